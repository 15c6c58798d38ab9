use percent_encoding::percent_decode_str;
use store_core::{BlobId, Error, ErrorKind, Location, Result};

/// What all that is not a blob lies under, behind the store's prefix. No id starts with a dot.
pub(crate) const RESERVED: &str = ".imagestore/";

/// Which objects of which server are this store's.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// What stands for the server in the locations that the store returns.
    pub(crate) host: String,
    /// What else stands for it in locations that others wrote.
    pub(crate) also: Vec<String>,
    pub(crate) bucket: String,
    pub(crate) prefix: String,
}

impl Place {
    /// The key of a blob.
    pub(crate) fn key(&self, id: &BlobId) -> String {
        format!("{}{id}", self.prefix)
    }

    /// The id of the blob that `key` has, if it is one.
    pub(crate) fn id(&self, key: &str) -> Option<BlobId> {
        key.strip_prefix(&self.prefix)?.parse().ok()
    }

    /// What the keys of all sidecars start with.
    pub(crate) fn sidecars(&self) -> String {
        format!("{}{RESERVED}meta/", self.prefix)
    }

    /// The key of the sidecar that belongs to the upload `token` of `name`, a key without the prefix.
    pub(crate) fn sidecar(&self, name: &str, token: &str) -> String {
        format!("{}{name}.{token}", self.sidecars())
    }

    /// The object and the token that a sidecar belongs to.
    pub(crate) fn owner<'a>(&self, sidecar: &'a str) -> Option<(String, &'a str)> {
        let (name, token) = sidecar.strip_prefix(&self.sidecars())?.rsplit_once('.')?;
        let is_token = token.len() == 32 && token.bytes().all(|b| b.is_ascii_hexdigit());
        is_token.then(|| (format!("{}{name}", self.prefix), token))
    }

    /// The location of an object: `s3://HOST/BUCKET/KEY`.
    pub(crate) fn location(&self, key: &str) -> Result<Location> {
        let path: Vec<String> = key.split('/').map(Location::encode_segment).collect();
        format!("s3://{}/{}/{}", self.host, self.bucket, path.join("/")).parse()
    }

    /// The key without the prefix that `at` names. Credentials in it, as Glance writes them, are not used: the
    /// store has its own.
    ///
    /// Any other bucket, prefix or server is refused: a location is data that others may have written.
    pub(crate) fn find(&self, at: &Location) -> Result<String> {
        let outside = || {
            Error::new(ErrorKind::Invalid, format!("{at} is not in this store"))
                .with_hint(format!("its locations are s3://{}/{}/{}ID", self.host, self.bucket, self.prefix))
        };
        let rest = at.rest().strip_prefix("//").ok_or_else(outside)?;
        // A secret key may hold a `/`, a blob's key no `@`.
        let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
        let (host, path) = rest.split_once('/').ok_or_else(outside)?;
        let (bucket, key) = path.split_once('/').ok_or_else(outside)?;
        let known = std::iter::once(&self.host).chain(&self.also).any(|known| known == host);
        if !known || bucket != self.bucket {
            return Err(outside());
        }
        let key = percent_decode_str(key).decode_utf8().map_err(|_| outside())?;
        let name = key.strip_prefix(&self.prefix).ok_or_else(outside)?;
        // As others wrote them, names need not be ids; but they lie flat, and nothing of the store's own is a blob.
        let fits = !name.is_empty() && !name.starts_with('.') && !name.contains('/');
        if !fits || name.len() > 512 || name.chars().any(char::is_control) {
            return Err(outside());
        }
        Ok(name.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place {
            host: "s3.example.org:9000".into(),
            also: vec!["old.example.org".into()],
            bucket: "bucket".into(),
            prefix: "cloud images/".into(),
        }
    }

    #[test]
    fn locations_lead_back_to_their_keys() {
        let place = place();
        let at = place.location(&place.key(&"a.b-c".parse().unwrap())).unwrap();
        assert_eq!(at.to_string(), "s3://s3.example.org:9000/bucket/cloud%20images/a.b-c");
        assert_eq!(place.find(&at).unwrap(), "a.b-c");
        for historic in [
            "s3://KEY:se/cr@et@s3.example.org:9000/bucket/cloud%20images/71c675ab",
            "s3+https://KEY:secret@old.example.org/bucket/cloud%20images/71c675ab",
            "s3+http://old.example.org/bucket/cloud%20images/71c675ab",
        ] {
            let at: Location = historic.parse().unwrap();
            assert_eq!(place.find(&at).unwrap(), "71c675ab", "{historic}");
            assert!(!format!("{at} {at:?}").contains("et@"));
        }
    }

    #[test]
    fn nothing_else_is_found() {
        for bad in [
            "s3://other.example.org/bucket/cloud%20images/a",
            "s3://s3.example.org:9000/other/cloud%20images/a",
            "s3://s3.example.org:9000/bucket/a",
            "s3://s3.example.org:9000/bucket/cloud%20images/",
            "s3://s3.example.org:9000/bucket/cloud%20images/.imagestore/meta/a.00",
            "s3://s3.example.org:9000/bucket/cloud%20images/%2eimagestore/meta/a",
            "s3://s3.example.org:9000/bucket/cloud%20images/a/b",
            "s3://s3.example.org:9000/bucket/cloud%20images/a%2Fb",
            "s3://s3.example.org:9000/bucket/cloud%20images/a%00",
            "s3://s3.example.org:9000/bucket",
            "s3://KEY:hunter2@evil.example.org/bucket/cloud%20images/a",
            "s3:bucket/cloud%20images/a",
        ] {
            let error = place().find(&bad.parse().unwrap()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{bad}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn sidecars_lead_back_to_their_objects() {
        let place = place();
        let token = "0123456789abcdef0123456789abcdef";
        let sidecar = place.sidecar("a.b", token);
        assert_eq!(place.owner(&sidecar), Some(("cloud images/a.b".into(), token)));
        assert_eq!(place.id("cloud images/a.b"), Some("a.b".parse().unwrap()));
        assert_eq!(place.id(&sidecar), None);
        assert_eq!(place.owner("cloud images/.imagestore/meta/a.b"), None);
        assert_eq!(place.owner("cloud images/.imagestore/probe"), None);
    }
}
