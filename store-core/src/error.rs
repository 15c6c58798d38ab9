use std::{borrow::Cow, error::Error as StdError, fmt, time::Duration};

use crate::{BlobId, Location};

/// A result whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as far as a program could act on it.
///
/// | kind | what a program does |
/// |---|---|
/// | `NotFound`, `AlreadyExists`, `InUse` | tells its user; the storage is fine |
/// | `Invalid`, `Unsupported` | changes the call or the configuration |
/// | `Rejected` | refuses the image: its content breaks the store's policy |
/// | `Corrupt` | distrusts these bytes; reads another copy |
/// | `Denied` | has credentials or permissions mended |
/// | `NoSpace` | frees space, or picks another store |
/// | `Unavailable` | tries again later; the layers have already tried a few times |
/// | `Internal` | reports a bug, here or in the storage |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No such blob.
    NotFound,
    /// The id is taken; the blob that has it is untouched.
    AlreadyExists,
    /// Something else still uses the blob, such as a clone of it.
    InUse,
    /// A malformed id, location, range or setting.
    Invalid,
    /// The image is hostile, not of the declared format, or larger than the store allows.
    Rejected,
    /// Bytes that do not add up: a short body, a wrong size, a wrong digest.
    Corrupt,
    /// Credentials are missing, wrong or too weak.
    Denied,
    /// Ruled out by the backend's capabilities, or by a read-only store.
    Unsupported,
    /// Full, or over quota.
    NoSpace,
    /// May pass: network, throttling, deadline. The one kind worth a retry.
    Unavailable,
    /// A bug, here or there.
    Internal,
}

impl ErrorKind {
    /// Every kind, in the order of the table above.
    pub const ALL: [Self; 11] = [
        Self::NotFound,
        Self::AlreadyExists,
        Self::InUse,
        Self::Invalid,
        Self::Rejected,
        Self::Corrupt,
        Self::Denied,
        Self::Unsupported,
        Self::NoSpace,
        Self::Unavailable,
        Self::Internal,
    ];

    /// The kind as a stable snake-case word, for metrics and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::InUse => "in_use",
            Self::Invalid => "invalid",
            Self::Rejected => "rejected",
            Self::Corrupt => "corrupt",
            Self::Denied => "denied",
            Self::Unsupported => "unsupported",
            Self::NoSpace => "no_space",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A kind to act on; a message, store, operation and location to read; a hint to follow; a source to dig into.
///
/// Drivers give kind, message and source; [`Store`](crate::Store) adds the rest, once for all of them. The
/// message is for people and no part of the API; [`Error::kind`] is.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: Cow<'static, str>,
    hint: Option<Cow<'static, str>>,
    store: Option<String>,
    operation: Option<&'static str>,
    target: Option<String>,
    retry_after: Option<Duration>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind`; `message` says what happened, in lower case, without the kind's own words.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            kind,
            message: message.into(),
            hint: None,
            store: None,
            operation: None,
            target: None,
            retry_after: None,
            source: None,
        }))
    }

    /// What a program can act on.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the same call may work later: `Unavailable`, and nothing else.
    pub fn is_retryable(&self) -> bool {
        self.kind() == ErrorKind::Unavailable
    }

    /// What happened, without the context that [`Display`](fmt::Display) adds.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What a person could do about it.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// The store's configured name.
    pub fn store(&self) -> Option<&str> {
        self.0.store.as_deref()
    }

    /// The call that failed: `put`, `read`, `list`, ...
    pub fn operation(&self) -> Option<&'static str> {
        self.0.operation
    }

    /// The blob id or location it was about. Locations print without credentials.
    pub fn target(&self) -> Option<&str> {
        self.0.target.as_deref()
    }

    /// After how long the storage asks to be tried again.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// Adds what a person could do about it; the first hint stays.
    pub fn with_hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.0.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// Adds after how long the storage asks to be tried again.
    pub fn with_retry_after(mut self, pause: Duration) -> Self {
        self.0.retry_after = Some(pause);
        self
    }

    /// The same error in other words.
    pub(crate) fn reworded(mut self, message: String) -> Self {
        self.0.message = message.into();
        self
    }

    /// Adds the cause.
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Adds store, operation and blob where they are not known yet: the innermost context wins.
    pub fn in_call(
        mut self,
        store: &str,
        operation: &'static str,
        target: Option<&dyn fmt::Display>,
    ) -> Self {
        self.0.store.get_or_insert_with(|| store.to_owned());
        self.0.operation.get_or_insert(operation);
        if let (None, Some(target)) = (&self.0.target, target) {
            self.0.target = Some(target.to_string());
        }
        self
    }

    /// An ability that the backend lacks.
    pub fn unsupported(what: &'static str) -> Self {
        Self::new(ErrorKind::Unsupported, format!("this store does not support {what}"))
    }

    /// What the operating system says, by the kinds that it has in common with every storage.
    pub fn from_io(what: impl fmt::Display, error: std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        let (kind, hint) = match error.kind() {
            Io::NotFound => (ErrorKind::NotFound, None),
            Io::AlreadyExists => (ErrorKind::AlreadyExists, None),
            Io::PermissionDenied => {
                (ErrorKind::Denied, Some("check owner and mode of the file and its directories"))
            }
            Io::ReadOnlyFilesystem => (ErrorKind::Denied, Some("the file system is mounted read-only")),
            Io::StorageFull => (ErrorKind::NoSpace, Some("the file system is full")),
            Io::QuotaExceeded => (ErrorKind::NoSpace, Some("the disk quota is used up")),
            Io::FileTooLarge => {
                (ErrorKind::NoSpace, Some("the file system, or a limit, allows no file of this size"))
            }
            // What a share says when its server, or the process that serves it, has gone.
            Io::NotConnected | Io::ConnectionAborted | Io::StaleNetworkFileHandle => {
                (ErrorKind::Unavailable, Some("if it is on a share, mount that again"))
            }
            Io::TimedOut
            | Io::Interrupted
            | Io::ConnectionRefused
            | Io::ConnectionReset
            | Io::HostUnreachable
            | Io::NetworkUnreachable
            | Io::NetworkDown => (ErrorKind::Unavailable, None),
            Io::InvalidInput | Io::InvalidFilename | Io::NotADirectory | Io::IsADirectory => {
                (ErrorKind::Invalid, None)
            }
            // EIO, and whatever else no caller can act on.
            _ => (ErrorKind::Internal, Some("the kernel's log may say more")),
        };
        let message = format!("{what}: {error}");
        let error = Self::new(kind, message).with_source(error);
        match hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }

    /// No blob at `at`.
    pub fn not_found(at: &Location) -> Self {
        Self::new(ErrorKind::NotFound, format!("no blob at {at}"))
    }

    /// No blob of this id.
    pub fn no_blob(id: &BlobId) -> Self {
        Self::new(ErrorKind::NotFound, format!("there is no blob {id}"))
    }

    /// The id has a blob, which is not this upload's.
    pub fn taken(id: &BlobId) -> Self {
        Self::new(ErrorKind::AlreadyExists, format!("{id} exists"))
    }

    /// A sweep took the upload while it was under way.
    pub fn swept() -> Self {
        Self::new(ErrorKind::NotFound, "the upload has been swept away").with_hint("send the image again")
    }

    /// The task or thread that worked on it is gone: it panicked, or the process ends.
    pub fn stopped(cause: impl StdError + Send + Sync + 'static) -> Self {
        Self::new(ErrorKind::Internal, "an operation was stopped").with_source(cause)
    }
}

impl fmt::Display for Error {
    /// `store fast: put 3f2a: no space left (2.1 GiB needed)`, without hint and source.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0;
        if let Some(store) = &inner.store {
            write!(f, "store {store}: ")?;
        }
        match (inner.operation, &inner.target) {
            (Some(operation), Some(target)) => write!(f, "{operation} {target}: ")?,
            (Some(operation), None) => write!(f, "{operation}: ")?,
            (None, _) => {}
        }
        f.write_str(&inner.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0;
        let mut debug = f.debug_struct("Error");
        debug.field("kind", &inner.kind).field("message", &inner.message);
        let context = [
            ("store", inner.store.as_deref()),
            ("operation", inner.operation),
            ("target", inner.target.as_deref()),
        ];
        for (name, value) in context {
            if let Some(value) = value {
                debug.field(name, &value);
            }
        }
        if let Some(source) = &inner.source {
            debug.field("source", source);
        }
        debug.finish_non_exhaustive()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_context_and_hint_win() {
        let error = Error::new(ErrorKind::NoSpace, "disk full")
            .with_hint("free some space")
            .with_hint("outer")
            .in_call("fast", "put", Some(&"image-1"))
            .in_call("slow", "copy", Some(&"image-2"));
        assert_eq!(error.to_string(), "store fast: put image-1: disk full");
        assert_eq!(error.hint(), Some("free some space"));
    }

    #[test]
    fn only_unavailable_is_retryable() {
        for kind in ErrorKind::ALL {
            assert_eq!(Error::new(kind, "x").is_retryable(), kind == ErrorKind::Unavailable);
        }
    }
}
