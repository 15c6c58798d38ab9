use std::{fmt, path::PathBuf, str::FromStr};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::{Error, ErrorKind, Result};

/// A blob's name, chosen by the caller: 1 to 200 of `[A-Za-z0-9._-]`, no leading dot or dash.
///
/// The rule is the intersection of what every storage takes as one path component, with room for the suffixes
/// that some of them add. A UUID fits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlobId(String);

impl BlobId {
    /// The longest id, in bytes.
    pub const MAX_LEN: usize = 200;

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A fresh random id: a version 4 UUID (RFC 9562).
    pub fn random() -> Self {
        let mut bytes = [0; 16];
        // The kernel's generator fails only before it is seeded at boot; an id of zeros is still a valid id,
        // and a clash with it is refused by the store.
        let _ = getrandom::fill(&mut bytes);
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let hex = hex::encode(bytes);
        Self(format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]))
    }
}

impl FromStr for BlobId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let fits = (1..=Self::MAX_LEN).contains(&text.len())
            && !text.starts_with(['.', '-'])
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if fits {
            return Ok(Self(text.to_owned()));
        }
        let shown: String = text.chars().take(80).collect();
        Err(Error::new(ErrorKind::Invalid, format!("{shown:?} is not a blob id")).with_hint(
            "an id is 1 to 200 of A-Z a-z 0-9 . _ - and starts with a letter, digit or underscore",
        ))
    }
}

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a committed blob is: a URI (RFC 3986) that only its backend takes apart.
///
/// A store returns one for each blob; a database keeps its text. URIs with credentials, which other programs
/// have written, parse too: the driver uses the secret, `Display` and `Debug` show `***` in its place.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Location(String);

/// What `file://` paths keep as it is: unreserved, `/`, and the rest of RFC 3986's `pchar`.
const PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'!')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b'+')
    .remove(b',')
    .remove(b';')
    .remove(b'=')
    .remove(b':')
    .remove(b'@');

impl Location {
    /// The part before the colon, in lower case.
    pub fn scheme(&self) -> &str {
        self.0.split_once(':').map_or("", |(scheme, _)| scheme)
    }

    /// What follows `scheme:`, credentials included: for the driver that uses them, never for printing.
    pub fn rest(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, rest)| rest)
    }

    /// The `file://` location of an absolute path.
    pub fn from_path(path: &std::path::Path) -> Result<Self> {
        if !path.is_absolute() {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("{} is not an absolute path", path.display()),
            ));
        }
        use std::os::unix::ffi::OsStrExt;
        let path = percent_encoding::percent_encode(path.as_os_str().as_bytes(), PATH);
        Ok(Self(format!("file://{path}")))
    }

    /// The absolute path of a `file://` location (RFC 8089, an empty or `localhost` authority).
    pub fn to_path(&self) -> Result<PathBuf> {
        use std::os::unix::ffi::OsStringExt;
        let wrong = |what: &str| Error::new(ErrorKind::Invalid, format!("{self}: {what}"));
        let rest =
            self.rest().strip_prefix("//").ok_or_else(|| wrong("a file location starts with file://"))?;
        let path = rest.strip_prefix("localhost").filter(|path| path.starts_with('/')).unwrap_or(rest);
        if !path.starts_with('/') {
            return Err(wrong("a file location names an absolute path on this host"));
        }
        if path.contains(['?', '#']) {
            return Err(wrong("a file location has no query and no fragment"));
        }
        let bytes: Vec<u8> = percent_decode_str(path).collect();
        if bytes.contains(&0) {
            return Err(wrong("a path holds no NUL byte"));
        }
        Ok(PathBuf::from(std::ffi::OsString::from_vec(bytes)))
    }

    /// `text` with everything but RFC 3986's unreserved characters percent-encoded: one URI segment.
    pub fn encode_segment(text: &str) -> String {
        const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
        utf8_percent_encode(text, SEGMENT).to_string()
    }

    /// The credentials' place in the text, where it has any: all before the last `@` of the authority.
    fn userinfo(&self) -> Option<std::ops::Range<usize>> {
        let start = self.0.find("://")? + 3;
        let end = self.0[start..].find('/').map_or(self.0.len(), |at| start + at);
        // Glance's s3 locations hold keys with a `/` in them; then the `@` comes after it.
        let at = self.0[start..end].rfind('@').or_else(|| self.0[start..].rfind('@'))?;
        (self.scheme() != "file").then_some(start..start + at)
    }
}

impl FromStr for Location {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = |what: &'static str| {
            Err(Error::new(ErrorKind::Invalid, what)
                .with_hint("a location looks like file:///srv/images/3f2a"))
        };
        let Some((scheme, rest)) = text.split_once(':') else {
            return invalid("a location is a URI: scheme:...");
        };
        let mut letters = scheme.bytes();
        let scheme_fits = letters.next().is_some_and(|b| b.is_ascii_alphabetic())
            && letters.all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
        if !scheme_fits {
            return invalid("the location does not start with a URI scheme");
        }
        if rest.trim_start_matches('/').is_empty() || text.len() > 4096 {
            return invalid("a location names something behind its scheme, in at most 4096 bytes");
        }
        if text.bytes().any(|b| b.is_ascii_control() || b == b' ') {
            return invalid("the location holds a space or a control character that is not percent-encoded");
        }
        Ok(Self(format!("{}:{rest}", scheme.to_ascii_lowercase())))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.userinfo() {
            Some(secret) => write!(f, "{}***{}", &self.0[..secret.start], &self.0[secret.end..]),
            None => f.write_str(&self.0),
        }
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Location({self})")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_that_leave_their_directory_are_refused() {
        for bad in ["", ".", "..", "../x", "a/b", ".hidden", "-rf", "a b", "a\0", "é", &"x".repeat(201)] {
            assert_eq!(bad.parse::<BlobId>().unwrap_err().kind(), ErrorKind::Invalid, "{bad:?}");
        }
        for good in ["a", "_", "3f2a.qcow2", &"x".repeat(200)] {
            assert_eq!(good.parse::<BlobId>().unwrap().as_str(), good);
        }
        assert!(BlobId::random().as_str().parse::<BlobId>().is_ok());
    }

    #[test]
    fn secrets_never_show() {
        for (uri, shown) in [
            ("s3://key:se/cret@host/bucket/k", "s3://***@host/bucket/k"),
            ("swift+https://user:pass@auth/v3/c/o", "swift+https://***@auth/v3/c/o"),
            ("http://user:p@ss@host/x", "http://***@host/x"),
            ("rbd://fsid/pool/image/snap", "rbd://fsid/pool/image/snap"),
            ("file:///srv/a@b", "file:///srv/a@b"),
        ] {
            let at: Location = uri.parse().unwrap();
            assert_eq!(at.to_string(), shown);
            assert_eq!(format!("{at:?}"), format!("Location({shown})"));
            assert_eq!(format!("{}:{}", at.scheme(), at.rest()), uri);
        }
    }

    proptest! {
        #[test]
        fn any_path_survives_the_uri(bytes in proptest::collection::vec(1u8..=255, 0..60)) {
            use std::os::unix::ffi::OsStringExt;
            let path = std::path::Path::new("/").join(std::ffi::OsString::from_vec(bytes.iter().copied().skip_while(|b| *b == b'/').collect()));
            prop_assume!(path != std::path::Path::new("/"));
            let at = Location::from_path(&path).unwrap();
            prop_assert_eq!(at.to_string().parse::<Location>().unwrap().to_path().unwrap(), path);
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in "\\PC{0,60}") {
            let _ = text.parse::<BlobId>();
            if let Ok(at) = text.parse::<Location>() {
                let _ = (at.to_path(), at.to_string(), at.rest().len());
            }
        }
    }
}
