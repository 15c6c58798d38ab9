use std::error::Error as StdError;

use store_core::{Error, ErrorKind};

/// Kind and hint of an answer. Swift has no codes: what tells cases of one status apart is the text.
pub(crate) fn answer(what: &str, status: u16, transaction: Option<&str>, text: &str) -> Error {
    use ErrorKind as Kind;
    let quota = text.to_lowercase().contains("quota");
    let (kind, hint) = match status {
        400 => (Kind::Invalid, Some("the server does not take a name or a value of the request")),
        401 => (Kind::Denied, Some("the server does not take the token")),
        403 if quota => (Kind::NoSpace, Some(QUOTA)),
        403 => {
            (Kind::Denied, Some("the user has no right to do this: check its roles, and the container's ACL"))
        }
        404 => (Kind::NotFound, None),
        405 | 501 => (Kind::Unsupported, Some("the server lacks this, or has it turned off")),
        408 | 499 => (
            Kind::Unavailable,
            Some("the bytes came too slowly for the server's `client_timeout`, or broke off"),
        ),
        409 => (Kind::Unavailable, Some("a newer request was faster, or the clocks of the servers differ")),
        412 => (Kind::AlreadyExists, None),
        413 if quota => (Kind::NoSpace, Some(QUOTA)),
        413 => (Kind::Unsupported, Some("this is more than the server takes: lower `segment_size`")),
        422 => (Kind::Unavailable, Some("the bytes were damaged on their way")),
        425 | 429 | 498 => (Kind::Unavailable, Some("the server wants fewer requests")),
        507 => (Kind::NoSpace, Some("the server's disks are full")),
        503 => (Kind::Unavailable, Some("storage servers are away, or their disks are full")),
        500.. => (Kind::Unavailable, None),
        _ => (Kind::Internal, None),
    };
    let text = plain(text);
    let text = if text.is_empty() { text } else { format!(": {text}") };
    let error = Error::new(kind, format!("cannot {what}: status {status}{}{text}", noted(transaction)));
    match hint {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}

/// What names a request in the server's logs, for a message.
pub(crate) fn noted(transaction: Option<&str>) -> String {
    transaction.map(|id| format!(", transaction {id}")).unwrap_or_default()
}

const QUOTA: &str =
    "the quota of the account or of the container is used up: delete blobs, or have it raised";

/// A line of what the server says, without markup.
fn plain(text: &str) -> String {
    let mut inside = false;
    let letters = text.chars().filter_map(|c| {
        inside = (inside || c == '<') && c != '>';
        (!inside).then_some(if c.is_control() || c == '>' { ' ' } else { c })
    });
    let words: Vec<String> =
        letters.take(400).collect::<String>().split_whitespace().map(str::to_owned).collect();
    words.join(" ").chars().take(200).collect()
}

/// No answer, or not all of one. What a configuration can mend is not worth a retry.
pub(crate) fn of_reqwest(what: &str, error: reqwest::Error) -> Error {
    // Without the address: a temporary URL or a query may hold a secret.
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    unreachable(what, &text, error.is_timeout(), error.is_builder())
}

fn unreachable(what: &str, text: &str, late: bool, builder: bool) -> Error {
    let lower = text.to_lowercase();
    let has = |parts: &[&str]| parts.iter().any(|part| lower.contains(part));
    let (kind, reason, hint) = if late {
        (
            ErrorKind::Unavailable,
            "the server did not answer in time",
            "if it lasts, check the network and the server",
        )
    } else if has(&["certificate", "unknownissuer", "notvalidforname"]) {
        (
            ErrorKind::Invalid,
            "the server's certificate is not trusted",
            "name the authority that signed it in `ca_file`, and use the host's name that it is for",
        )
    } else if has(&["corrupt message", "invalidcontenttype"]) {
        (ErrorKind::Invalid, "the server does not speak TLS there", "write the URL with http://")
    } else if has(&["dns error", "failed to lookup address", "name resolution"]) {
        (
            ErrorKind::Unavailable,
            "the server's name is not known",
            "check the host in `auth_url` and `endpoint`",
        )
    } else if has(&["connection refused"]) {
        (ErrorKind::Unavailable, "nothing listens there", "check host and port, and the server")
    } else if builder {
        (ErrorKind::Invalid, "the request cannot be made", "check `auth_url`, `endpoint` and the credentials")
    } else {
        (ErrorKind::Unavailable, "the connection broke", "if it lasts, check the network and the server")
    };
    Error::new(kind, format!("cannot {what}: {reason}")).with_hint(hint).with_source(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_decides_and_a_quota_is_told_apart() {
        for (status, text, kind) in [
            (401, "", ErrorKind::Denied),
            (403, "", ErrorKind::Denied),
            (404, "", ErrorKind::NotFound),
            (408, "", ErrorKind::Unavailable),
            (412, "", ErrorKind::AlreadyExists),
            (413, "<html><p>Upload exceeds quota.</p></html>", ErrorKind::NoSpace),
            (413, "<html><p>Your request is too large.</p></html>", ErrorKind::Unsupported),
            (422, "", ErrorKind::Unavailable),
            (429, "", ErrorKind::Unavailable),
            (498, "Slow down", ErrorKind::Unavailable),
            (499, "", ErrorKind::Unavailable),
            (503, "", ErrorKind::Unavailable),
            (507, "", ErrorKind::NoSpace),
            (418, "", ErrorKind::Internal),
        ] {
            assert_eq!(answer("x", status, None, text).kind(), kind, "{status} {text}");
        }
        let error =
            answer("read a blob", 503, Some("tx1"), "<html><h1>Service Unavailable</h1><p>The\n server");
        assert_eq!(
            error.message(),
            "cannot read a blob: status 503, transaction tx1: Service Unavailable The server"
        );
    }

    #[test]
    fn what_a_configuration_can_mend_is_not_retried() {
        for (text, kind) in [
            ("dns error: failed to lookup address", ErrorKind::Unavailable),
            ("tcp connect error: Connection refused (os error 111)", ErrorKind::Unavailable),
            ("connection closed before message completed", ErrorKind::Unavailable),
            ("invalid peer certificate: UnknownIssuer", ErrorKind::Invalid),
            ("received corrupt message of type InvalidContentType", ErrorKind::Invalid),
        ] {
            assert_eq!(unreachable("x", text, false, false).kind(), kind, "{text}");
        }
    }
}
