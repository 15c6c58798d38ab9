use std::{error::Error as StdError, time::Duration};

use aws_sdk_s3::{
    config::http::HttpResponse,
    error::{DisplayErrorContext, ProvideErrorMetadata, SdkError},
};
use store_core::{Error, ErrorKind};

/// What the server, or the way to it, says.
///
/// No cause is attached: the SDK's holds whole responses. Its text is in the message where it helps.
pub(crate) fn from_sdk<E>(what: &str, error: &SdkError<E, HttpResponse>) -> Error
where
    E: ProvideErrorMetadata + StdError + 'static,
{
    match error {
        SdkError::ServiceError(service) => {
            let (raw, error) = (service.raw(), service.err());
            let named = raw.headers().get("x-amz-bucket-region").map(str::to_owned);
            let region = named.or_else(|| region_in(raw.body().bytes().unwrap_or_default()));
            let (code, message) = (error.code().unwrap_or_default(), error.message().unwrap_or_default());
            let error = answer(what, raw.status().as_u16(), code, message, region);
            // In seconds: no server is known to send a date.
            match raw.headers().get("retry-after").and_then(|text| text.trim().parse().ok()) {
                Some(seconds) => error.with_retry_after(Duration::from_secs(seconds)),
                None => error,
            }
        }
        SdkError::ResponseError(response) => {
            let (status, headers) = (response.raw().status().as_u16(), response.raw().headers());
            // All that speak S3 number their refusals; what expects TLS breaks off after one of its own.
            if status == 400 && !headers.contains_key("x-amz-request-id") {
                return answer(what, status, "", "", None);
            }
            let text =
                format!("cannot {what}: the reply (status {status}) is cut off or not of S3's protocol");
            Error::new(ErrorKind::Unavailable, text)
                .with_hint("if it lasts, `endpoint` leads to something else than an S3 server")
        }
        SdkError::DispatchFailure(failure) => {
            let text = DisplayErrorContext(error).to_string();
            let passing = failure.is_timeout() || failure.is_io();
            unreachable(what, &text, passing)
        }
        SdkError::TimeoutError(_) => late(what),
        _ => unreachable(what, &DisplayErrorContext(error).to_string(), false),
    }
}

pub(crate) const NO_S3: &str = "check http:// or https://, host and port of `endpoint`: something else than an S3 server \
     answers, or one that expects TLS";

/// The region of the bucket, as a refusal names it.
#[derive(Debug)]
struct Region(String);

impl std::fmt::Display for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the bucket is in the region {}", self.0)
    }
}

impl StdError for Region {}

/// The region that a bucket is in, where the error is that a request was not signed for it.
pub(crate) fn region_of(error: &Error) -> Option<&str> {
    let region: &Region =
        StdError::source(error).filter(|_| error.kind() == ErrorKind::Invalid)?.downcast_ref()?;
    Some(&region.0)
}

/// What the body of a refusal says of the region, in XML.
fn region_in(body: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let (region, _) = text.split_once("<Region>")?.1.split_once("</Region>")?;
    let fits = region.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    (fits && !region.is_empty()).then(|| region.to_owned())
}

/// No answer within the time for it.
pub(crate) fn late(what: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("cannot {what}: the server did not answer in time"))
}

/// Kind and hint of each error code; codes differ between servers, so that the status decides where none is known.
fn answer(what: &str, status: u16, code: &str, message: &str, region: Option<String>) -> Error {
    use ErrorKind as Kind;
    let full = message.contains("no space left") || message.contains("minimum free drive threshold");
    let (kind, hint) = match code {
        _ if full || status == 507 => (Kind::NoSpace, Some("the server's disks are full")),
        "XMinioStorageFull" | "XMinioAdminBucketQuotaExceeded" | "QuotaExceeded" | "InsufficientCapacity" => {
            (Kind::NoSpace, Some("delete blobs, or have the server's space or quota raised"))
        }
        "NoSuchBucket" => (
            Kind::Invalid,
            Some("check `bucket`, or set `create_bucket = true` to have a missing one created"),
        ),
        "NoSuchKey" => (Kind::NotFound, None),
        "NoSuchUpload" => (Kind::NotFound, Some("the upload has been swept away; send the image again")),
        "PreconditionFailed" => (Kind::AlreadyExists, None),
        "ConditionalRequestConflict" | "OperationAborted" => (Kind::Unavailable, None),
        "SignatureDoesNotMatch" => (Kind::Denied, Some("`secret_key` is wrong for this `access_key`")),
        "InvalidAccessKeyId" => (Kind::Denied, Some("the server does not know this `access_key`")),
        "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" => {
            (Kind::Denied, Some("`session_token` has expired or is wrong; get new temporary credentials"))
        }
        "RequestTimeTooSkewed" | "RequestExpired" => {
            (Kind::Denied, Some("the clocks of this host and of the server differ; set them right (NTP)"))
        }
        "AuthorizationHeaderMalformed"
        | "PermanentRedirect"
        | "TemporaryRedirect"
        | "IllegalLocationConstraintException"
        | "InvalidRegion"
        | "InvalidLocationConstraint" => (Kind::Invalid, Some("`region` is not the one of the bucket")),
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" => (Kind::Denied, Some(PERMISSIONS)),
        "InvalidObjectState" => (Kind::Denied, Some("the object is archived; restore it first")),
        "InvalidBucketName" | "KeyTooLongError" | "XMinioInvalidObjectName" | "XMinioInvalidResourceName" => {
            (Kind::Invalid, Some("the server does not take this `bucket` or `prefix`"))
        }
        "EntityTooLarge" => (Kind::Unsupported, Some("the server takes no object that is so large")),
        "InvalidStorageClass" => (Kind::Invalid, Some("the server has no such `storage_class`")),
        "InvalidArgument" | "InvalidTag" => (
            Kind::Invalid,
            Some("the server does not take a setting: check `storage_class`, `sse` and `tags`"),
        ),
        "NotImplemented" | "MethodNotAllowed" => (Kind::Unsupported, None),
        "BadDigest"
        | "InvalidDigest"
        | "XAmzContentChecksumMismatch"
        | "XAmzContentSHA256Mismatch"
        | "IncompleteBody" => (Kind::Unavailable, Some("the bytes were damaged on their way")),
        "SlowDown"
        | "SlowDownRead"
        | "SlowDownWrite"
        | "TooManyRequests"
        | "Throttling"
        | "ThrottlingException"
        | "RequestLimitExceeded" => (Kind::Unavailable, Some(THROTTLED)),
        // Also within a reply of status 200, where no status tells.
        "RequestTimeout"
        | "OperationTimedOut"
        | "InternalError"
        | "ServiceUnavailable"
        | "XMinioServerNotInitialized"
        | "XMinioBackendDown"
        | "Busy" => (Kind::Unavailable, None),
        _ => match status {
            301 | 307 => (Kind::Invalid, Some("`region` or `endpoint` is not the one of the bucket")),
            401 | 403 => (Kind::Denied, Some(PERMISSIONS)),
            404 => (Kind::NotFound, None),
            429 => (Kind::Unavailable, Some(THROTTLED)),
            408 | 425 => (Kind::Unavailable, None),
            412 => (Kind::AlreadyExists, None),
            501 | 405 => (Kind::Unsupported, None),
            500.. => (Kind::Unavailable, None),
            // An S3 server says what is wrong. One that expects TLS does not, and others show a page.
            200 | 400 if code.is_empty() => (Kind::Invalid, Some(NO_S3)),
            _ => (Kind::Internal, None),
        },
    };
    let code = if code.is_empty() { "no code" } else { code };
    let message = if message.is_empty() { String::new() } else { format!(": {message}") };
    let error = Error::new(kind, format!("cannot {what}: status {status}, {code}{message}"));
    let error = match (hint, &region) {
        (Some(_), Some(region)) if kind == Kind::Invalid => {
            error.with_hint(format!("the bucket is in the region {region}; set `region` to it"))
        }
        (Some(hint), _) => error.with_hint(hint),
        (None, _) => error,
    };
    match region {
        Some(region) => error.with_source(Region(region)),
        None => error,
    }
}

const THROTTLED: &str =
    "the server has too much to do; if it lasts, lower `concurrency`, or set `max_transfers`";

const PERMISSIONS: &str = "the credentials lack a permission: the store reads, writes, deletes and lists objects and \
     multipart uploads; without the one to list, a missing blob looks like a forbidden one";

/// No answer at all. What a configuration can mend is not worth a retry.
fn unreachable(what: &str, text: &str, passing: bool) -> Error {
    let lower = text.to_lowercase();
    let has = |parts: &[&str]| parts.iter().any(|part| lower.contains(part));
    let (kind, reason, hint) =
        if has(&["credentialsnotloaded", "no providers in chain", "credentials provider"]) {
            (
                ErrorKind::Denied,
                "there are no credentials",
                "set `access_key` and `secret_key`, or give the environment what the AWS SDK looks for",
            )
        } else if has(&["while loading credentials"]) {
            (
                ErrorKind::Denied,
                "the credentials could not be had",
                "set `access_key` and `secret_key`, or see to what the AWS SDK asked for them",
            )
        } else if has(&["missing region", "a region must be set"]) {
            (ErrorKind::Invalid, "no region is known", "set `region`")
        } else if has(&["certificate", "unknownissuer", "notvalidforname"]) {
            (
                ErrorKind::Invalid,
                "the server's certificate is not trusted",
                "name the authority that signed it in `ca_file`, and use the host's name that it is for",
            )
        } else if has(&["corrupt message", "invalidcontenttype", "received corrupt"]) {
            (ErrorKind::Invalid, "the server does not speak TLS there", "write `endpoint` with http://")
        } else if has(&["dns error", "failed to lookup address", "name resolution"]) {
            (ErrorKind::Unavailable, "the server's name is not known", "check the host in `endpoint`")
        } else if has(&["connection refused"]) {
            (
                ErrorKind::Unavailable,
                "nothing listens there",
                "check host and port of `endpoint`, and the server",
            )
        } else if passing || has(&["connection", "broken pipe", "reset", "closed", "incomplete", "canceled"])
        {
            (ErrorKind::Unavailable, "the connection broke", "if it lasts, check the network and the server")
        } else {
            let text = format!("cannot {what}: {text}");
            return Error::new(ErrorKind::Internal, text);
        };
    Error::new(kind, format!("cannot {what}: {reason}")).with_hint(hint).with_source(text)
}

/// Lets every parser of a refusal see a text.
#[cfg(fuzzing)]
pub(crate) fn parse_all(body: &[u8]) {
    let text = String::from_utf8_lossy(body);
    let (code, message) = text.split_once('\n').unwrap_or((&text, ""));
    let status = body.first().map_or(400, |first| 300 + u16::from(*first));
    let region = region_in(body);
    assert!(region.iter().all(|region| region.bytes().all(|b| b.is_ascii_graphic())));
    let error = answer("fuzz", status, code, message, region.clone());
    if let Some(found) = region_of(&error) {
        assert_eq!(Some(found), region.as_deref());
    }
    let _ = unreachable("fuzz", &text, status % 2 == 0);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_reply_makes_a_region_of_anything_but_a_word(body in proptest::collection::vec(any::<u8>(), 0..80)) {
            let mut tagged = b"<Region>".to_vec();
            tagged.extend_from_slice(&body);
            tagged.extend_from_slice(b"</Region>");
            prop_assert!(region_in(&body).is_none());
            if let Some(region) = region_in(&tagged) {
                prop_assert!(region.bytes().all(|b| b.is_ascii_graphic()));
            }
        }
    }

    #[test]
    fn codes_decide_and_else_the_status() {
        for (status, code, kind) in [
            (403, "SignatureDoesNotMatch", ErrorKind::Denied),
            (403, "RequestTimeTooSkewed", ErrorKind::Denied),
            (400, "AuthorizationHeaderMalformed", ErrorKind::Invalid),
            (301, "PermanentRedirect", ErrorKind::Invalid),
            (404, "NoSuchBucket", ErrorKind::Invalid),
            (404, "NoSuchKey", ErrorKind::NotFound),
            (404, "", ErrorKind::NotFound),
            (403, "", ErrorKind::Denied),
            (412, "", ErrorKind::AlreadyExists),
            (429, "TooManyRequests", ErrorKind::Unavailable),
            (503, "SlowDown", ErrorKind::Unavailable),
            (503, "SlowDownWrite", ErrorKind::Unavailable),
            (500, "InternalError", ErrorKind::Unavailable),
            (400, "RequestTimeout", ErrorKind::Unavailable),
            (507, "XMinioStorageFull", ErrorKind::NoSpace),
            (400, "XAmzContentSHA256Mismatch", ErrorKind::Unavailable),
            (501, "NotImplemented", ErrorKind::Unsupported),
            (400, "Unheard", ErrorKind::Internal),
            (400, "", ErrorKind::Invalid),
            (200, "", ErrorKind::Invalid),
            (200, "SlowDownWrite", ErrorKind::Unavailable),
        ] {
            let error = answer("x", status, code, "", None);
            assert_eq!(error.kind(), kind, "{status} {code}");
        }
        let full = answer("x", 500, "InternalError", "write: no space left on device", None);
        assert_eq!(full.kind(), ErrorKind::NoSpace);
        let region = region_in(b"<Error><Region>eu-1</Region></Error>");
        let elsewhere = answer("x", 400, "AuthorizationHeaderMalformed", "", region);
        assert_eq!(region_of(&elsewhere), Some("eu-1"));
        assert_eq!(elsewhere.hint(), Some("the bucket is in the region eu-1; set `region` to it"));
    }

    #[test]
    fn a_region_is_a_plain_word() {
        assert_eq!(region_in(b"<Region>eu-1</Region>").as_deref(), Some("eu-1"));
        assert_eq!(region_in(b"<Region>\r\nHost: evil</Region>"), None);
    }

    #[test]
    fn what_a_configuration_can_mend_is_not_retried() {
        for (text, kind) in [
            ("dispatch failure: dns error: failed to lookup address", ErrorKind::Unavailable),
            ("tcp connect error: Connection refused (os error 111)", ErrorKind::Unavailable),
            ("connection closed before message completed", ErrorKind::Unavailable),
            ("invalid peer certificate: UnknownIssuer", ErrorKind::Invalid),
            ("received corrupt message of type InvalidContentType", ErrorKind::Invalid),
            ("no providers in chain provided credentials", ErrorKind::Denied),
            ("something else", ErrorKind::Internal),
        ] {
            assert_eq!(unreachable("x", text, false).kind(), kind, "{text}");
        }
    }
}
