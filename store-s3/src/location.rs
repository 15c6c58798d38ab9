use percent_encoding::percent_decode_str;
use store_core::{BlobId, Error, ErrorKind, Location, Result, Secret};

/// What all that is not a blob lies under, behind the store's prefix. No id starts with a dot.
const RESERVED: &str = ".imagestore/";

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

    /// The key of one of the two objects that long parts of the upload `token` of `name` are gathered in, in turns.
    pub(crate) fn gathered(&self, name: &str, token: &str, part: i32) -> String {
        format!("{}{RESERVED}part/{name}.{token}.{}", self.prefix, part % 2)
    }

    /// What the keys start with that are written to find out what the server does.
    pub(crate) fn probes(&self) -> String {
        format!("{}{RESERVED}probe/", self.prefix)
    }

    /// What the keys of all claims start with.
    pub(crate) fn claims(&self) -> String {
        format!("{}{RESERVED}claim/", self.prefix)
    }

    /// The key of what an upload of `id` takes before it commits, where the server cannot decide between two.
    pub(crate) fn claim(&self, id: &BlobId) -> String {
        format!("{}{id}", self.claims())
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

    /// The key without the prefix that `at` names. Credentials in it are not used: the store has its own.
    ///
    /// Any other bucket, prefix or server is refused: a location is data that others may have written.
    pub(crate) fn find(&self, at: &Location) -> Result<String> {
        let parts = self.take_apart(at)?;
        if parts.bucket != self.bucket {
            return Err(self.outside(at));
        }
        let name = parts.key.strip_prefix(&self.prefix).ok_or_else(|| self.outside(at))?;
        // As others wrote them, names need not be ids; but they lie flat, and nothing of the store's own is a blob.
        match !name.is_empty() && !name.starts_with('.') && !name.contains('/') {
            true => Ok(name.to_owned()),
            false => Err(self.outside(at)),
        }
    }

    /// The object of another bucket of the same server that `at` names together with credentials for it, as Glance
    /// wrote them.
    pub(crate) fn find_theirs(&self, at: &Location) -> Option<Theirs> {
        let parts = self.take_apart(at).ok()?;
        // Neither part is quoted there; no access key holds a colon.
        let (access_key, secret_key) = parts.userinfo?.split_once(':')?;
        let elsewhere = parts.bucket != self.bucket || !parts.key.starts_with(&self.prefix);
        let complete = ![access_key, secret_key, parts.bucket].contains(&"");
        (elsewhere && complete).then(|| Theirs {
            access_key: Secret::new(access_key),
            secret_key: Secret::new(secret_key),
            bucket: parts.bucket.to_owned(),
            key: parts.key,
        })
    }

    fn take_apart<'a>(&self, at: &'a Location) -> Result<Parts<'a>> {
        let outside = || self.outside(at);
        let rest = at.rest().strip_prefix("//").ok_or_else(outside)?;
        // A secret key may hold a `/`, a blob's key no `@`.
        let (userinfo, rest) = match rest.rsplit_once('@') {
            Some((userinfo, rest)) => (Some(userinfo), rest),
            None => (None, rest),
        };
        let (host, path) = rest.split_once('/').ok_or_else(outside)?;
        let known = std::iter::once(&self.host).chain(&self.also).any(|known| known == host);
        // Without a server, as other tools write locations, only this bucket of this server can be meant.
        let (known, (bucket, key)) = match !known && host == self.bucket {
            true => (true, (host, path)),
            false => (known, path.split_once('/').ok_or_else(outside)?),
        };
        let key = percent_decode_str(key).decode_utf8().map_err(|_| outside())?;
        match known && !key.is_empty() && key.len() <= 1024 && !key.chars().any(char::is_control) {
            true => Ok(Parts { userinfo, bucket, key: key.into_owned() }),
            false => Err(outside()),
        }
    }

    fn outside(&self, at: &Location) -> Error {
        Error::new(ErrorKind::Invalid, format!("{at} is not in this store"))
            .with_hint(format!("its locations are s3://{}/{}/{}ID", self.host, self.bucket, self.prefix))
    }
}

/// An object that credentials of its own are named with.
#[derive(Debug)]
pub(crate) struct Theirs {
    pub(crate) access_key: Secret,
    pub(crate) secret_key: Secret,
    pub(crate) bucket: String,
    pub(crate) key: String,
}

/// A location on this store's server.
struct Parts<'a> {
    userinfo: Option<&'a str>,
    bucket: &'a str,
    key: String,
}

#[cfg(any(test, fuzzing))]
fn place() -> Place {
    Place {
        host: "s3.example.org:9000".into(),
        also: vec!["old.example.org".into()],
        bucket: "bucket".into(),
        prefix: "cloud images/".into(),
    }
}

/// Lets every parser of locations and keys see a text.
#[cfg(fuzzing)]
pub(crate) fn parse_all(text: &str) {
    let place = place();
    for text in [text.to_owned(), format!("s3://s3.example.org:9000/bucket/{text}")] {
        let Ok(at) = text.parse::<Location>() else { continue };
        if let Ok(name) = place.find(&at) {
            assert!(!name.is_empty() && !name.starts_with('.') && !name.contains('/'), "{name}");
            // What leads somewhere does so again when it is written anew.
            let again = place.location(&format!("{}{name}", place.prefix)).and_then(|at| place.find(&at));
            assert!(again.is_ok_and(|again| again == name), "{name}");
        }
        if let Some(theirs) = place.find_theirs(&at) {
            assert!(theirs.bucket != place.bucket || !theirs.key.starts_with(&place.prefix));
            assert!(!format!("{theirs:?}{at:?}{at}").contains(&format!(":{}@", theirs.secret_key.expose())));
        }
    }
    if let Some(id) = place.id(text) {
        assert_eq!(place.key(&id), text);
    }
    if let Some((key, token)) = place.owner(text) {
        assert!(key.starts_with(&place.prefix) && token.len() == 32);
    }
    let _ = crate::config::host_of(text).is_ok();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
            "s3://bucket/cloud%20images/71c675ab",
            "s3://KEY:se/cr@et@bucket/cloud%20images/71c675ab",
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
            "s3://bucket/a",
            "s3://bucket/bucket/cloud%20images/a",
            "s3://other/cloud%20images/a",
            "s3://KEY:hunter2@evil.example.org/bucket/cloud%20images/a",
            "s3:bucket/cloud%20images/a",
        ] {
            let error = place().find(&bad.parse().unwrap()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{bad}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn credentials_of_others_lead_to_their_bucket_on_this_server() {
        let place = place();
        let theirs = |at: &str| place.find_theirs(&at.parse().unwrap());
        let found = theirs("s3+https://KEY:hun:t/e@r2@old.example.org/glance/71c675ab").unwrap();
        assert_eq!((found.access_key.expose(), found.secret_key.expose()), ("KEY", "hun:t/e@r2"));
        assert_eq!((&*found.bucket, &*found.key), ("glance", "71c675ab"));
        assert!(!format!("{found:?}").contains("r2"));
        for bad in [
            "s3://KEY:hunter2@evil.example.org/glance/a",
            "s3://s3.example.org:9000/glance/a",
            "s3://KEY@s3.example.org:9000/glance/a",
            "s3://:hunter2@s3.example.org:9000/glance/a",
            "s3://KEY:hunter2@s3.example.org:9000/bucket/cloud%20images/a",
            "s3://KEY:hunter2@bucket/cloud%20images/a",
            "s3://KEY:hunter2@glance/a",
        ] {
            assert!(theirs(bad).is_none(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_location_makes_a_parser_panic(text in "s3:(//)?\\PC{0,60}") {
            if let Ok(at) = text.parse::<Location>() {
                let _ = (place().find(&at).is_ok(), place().find_theirs(&at).is_some());
            }
        }

        #[test]
        fn what_is_found_is_a_name_right_under_the_prefix(
            text in "s3://(K:\\PC{1,9}@)?s3.example.org:9000/(bucket|\\PC{1,9})/(cloud%20images/)?\\PC{0,40}",
        ) {
            if let Ok(at) = text.parse::<Location>() {
                if let Ok(name) = place().find(&at) {
                    prop_assert!(!name.is_empty() && !name.starts_with('.') && !name.contains('/'));
                }
                if let Some(theirs) = place().find_theirs(&at) {
                    prop_assert!(theirs.bucket != "bucket" || !theirs.key.starts_with("cloud images/"));
                }
            }
        }

        #[test]
        fn any_key_may_be_listed(name in "(cloud images/)?(.imagestore/meta/)?\\PC{0,40}") {
            let _ = place().id(&name);
            if let Some((key, token)) = place().owner(&name) {
                prop_assert!(key.starts_with("cloud images/") && token.len() == 32);
            }
        }

        #[test]
        fn any_id_comes_back(id in "[A-Za-z0-9_][A-Za-z0-9._-]{0,60}") {
            let (place, id) = (place(), id.parse::<BlobId>().unwrap());
            let at = place.location(&place.key(&id)).unwrap();
            prop_assert_eq!(place.find(&at).unwrap(), id.as_str());
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
