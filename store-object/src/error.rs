use std::error::Error as StdError;

use object_store::Error as Theirs;
use store_core::{Error, ErrorKind};

/// What the storage, or the way to it, says.
pub(crate) fn from_object(what: &str, error: Theirs) -> Error {
    let (kind, hint) = match &error {
        Theirs::NotFound { .. } => (ErrorKind::NotFound, None),
        Theirs::AlreadyExists { .. } => (ErrorKind::AlreadyExists, None),
        // A reader's condition: the object is another one by now.
        Theirs::Precondition { .. } | Theirs::NotModified { .. } => {
            (ErrorKind::NotFound, Some("the blob was replaced since it was opened; open it again"))
        }
        Theirs::NotSupported { .. } | Theirs::NotImplemented { .. } => (ErrorKind::Unsupported, None),
        Theirs::PermissionDenied { .. } => {
            (ErrorKind::Denied, Some("the credentials lack a permission: to read, write, delete and list"))
        }
        Theirs::Unauthenticated { .. } => {
            (ErrorKind::Denied, Some("the storage does not know these credentials"))
        }
        Theirs::InvalidPath { .. } | Theirs::UnknownConfigurationKey { .. } => {
            (ErrorKind::Invalid, Some("check `url` and `options`"))
        }
        Theirs::Generic { source, .. } => return generic(what, &**source),
        _ => (ErrorKind::Internal, None),
    };
    let error = Error::new(kind, format!("cannot {what}")).with_source(error);
    match hint {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}

/// What is wrong with the settings of a storage, to which nothing has been sent yet.
pub(crate) fn from_opening(error: Theirs) -> Error {
    let error = from_object("open the storage", error);
    match error.kind() {
        ErrorKind::Internal => Error::new(ErrorKind::Invalid, "the storage cannot be opened so")
            .with_hint("check `url` and `options`")
            .with_source(error),
        _ => error,
    }
}

/// The crate has no kinds for these; its text is all there is. Its own retries are over by then.
fn generic(what: &str, source: &(dyn StdError + Send + Sync + 'static)) -> Error {
    let mut text = source.to_string();
    let mut next = source.source();
    let mut full = false;
    while let Some(inner) = next {
        if let Some(io) = inner.downcast_ref::<std::io::Error>() {
            full |= matches!(io.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded);
        }
        let said = inner.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = inner.source();
    }
    // Ports, names and signatures in addresses hold any word, and signatures are nobody's business.
    let text = without_addresses(&text);
    let lower = text.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    let (kind, hint) = if full || has(&["no space left", "quota exceeded"]) {
        (ErrorKind::NoSpace, "delete blobs, or have the storage's space or quota raised")
    } else if has(&["certificate"]) {
        (ErrorKind::Invalid, "the server's certificate is not trusted")
    } else if has(&["containernotfound", "nosuchbucket", "containerbeingdeleted"]) {
        (ErrorKind::Invalid, "the container or bucket of `url` does not exist")
    } else if has(&["status code: 401", "status code: 403", "authenticationfailed", "authorizationfailure"]) {
        (ErrorKind::Denied, "the storage does not accept these credentials")
    } else if has(&[
        "connect",
        "timed out",
        "timeout",
        "reset",
        "broken pipe",
        "dns",
        "sending request",
        "retries",
        "closed",
        "eof",
        "incomplete",
        "decoding response",
        "response body",
        "interrupted",
        "server error",
    ]) {
        (ErrorKind::Unavailable, "if it lasts, check the network and the server")
    } else {
        (ErrorKind::Internal, "the storage said something that this store does not know")
    };
    Error::new(kind, format!("cannot {what}")).with_hint(hint).with_source(text)
}

fn without_addresses(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = ["http://", "https://"].iter().filter_map(|scheme| rest.find(scheme)).min() {
        kept.push_str(&rest[..at]);
        kept.push_str("...");
        let end = |c: char| c.is_whitespace() || matches!(c, ')' | '"' | '\'' | '<' | '>');
        let address = &rest[at..];
        rest = &address[address.find(end).unwrap_or(address.len())..];
    }
    kept.push_str(rest);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_decide_where_there_is_no_kind() {
        for (text, kind) in [
            ("error sending request: connection refused", ErrorKind::Unavailable),
            ("Server returned non-2xx status code: 404: ContainerNotFound", ErrorKind::Invalid),
            ("write: No space left on device", ErrorKind::NoSpace),
            ("Server returned non-2xx status code: 403 Forbidden: ", ErrorKind::Denied),
            ("error sending request for url (http://127.0.0.1:40300/a/403?sig=eof)", ErrorKind::Unavailable),
            ("odd answer of https://host/containernotfound/reset", ErrorKind::Internal),
            ("something else", ErrorKind::Internal),
        ] {
            let source = Box::<dyn StdError + Send + Sync>::from(text);
            let error = from_object("x", Theirs::Generic { store: "x", source });
            assert_eq!(error.kind(), kind, "{text}");
            assert!(!format!("{error:?}").contains("http"), "{error:?}");
        }
    }

    #[test]
    fn addresses_are_left_out() {
        let text = "request for (http://a/b?sig=c) and \"https://d\" failed";
        assert_eq!(without_addresses(text), "request for (...) and \"...\" failed");
    }
}
