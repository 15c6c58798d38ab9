use percent_encoding::percent_decode_str;
use store_core::{BlobId, Error, ErrorKind, Location, Result};

/// What the name of an image under way starts with. No id starts with a dot.
pub(crate) const STAGED: &str = ".imagestore.";

/// Which images of which cluster are this store's.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) fsid: String,
    pub(crate) pool: String,
    /// Empty for the pool itself.
    pub(crate) namespace: String,
    /// The snapshot that makes an image a blob.
    pub(crate) snapshot: String,
}

/// What a location names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) image: String,
    /// Without one, the image at the store's snapshot where it has that, else as it is.
    pub(crate) snapshot: Option<String>,
}

impl Place {
    /// The location of a blob, as Glance writes it and Nova and Cinder read it: `rbd://FSID/POOL/IMAGE/SNAPSHOT`.
    pub(crate) fn location(&self, image: &str) -> Result<Location> {
        let part = Location::encode_segment;
        let (fsid, pool) = (part(&self.fsid), part(&self.pool()));
        format!("rbd://{fsid}/{pool}/{}/{}", part(image), part(&self.snapshot)).parse()
    }

    /// `POOL`, or `POOL/NAMESPACE` as Ceph's tools write it.
    fn pool(&self) -> String {
        match self.namespace.is_empty() {
            true => self.pool.clone(),
            false => format!("{}/{}", self.pool, self.namespace),
        }
    }

    /// What `at` names: four parts, or an image alone.
    ///
    /// Any other cluster or pool is refused: a location is data that others may have written.
    pub(crate) fn find(&self, at: &Location) -> Result<Target> {
        let outside = || {
            let part = Location::encode_segment;
            let like =
                format!("rbd://{}/{}/ID/{}", part(&self.fsid), part(&self.pool()), part(&self.snapshot));
            Error::new(ErrorKind::Invalid, format!("{at} is not in this store"))
                .with_hint(format!("its locations are {like}, or rbd://IMAGE"))
        };
        let rest = at.rest().strip_prefix("//").filter(|_| at.scheme() == "rbd").ok_or_else(outside)?;
        let decode = |part: &str| percent_decode_str(part).decode_utf8().map(String::from).ok();
        let parts: Option<Vec<String>> = rest.split('/').map(decode).collect();
        let parts = parts.unwrap_or_default();
        let target = match parts.as_slice() {
            [image] => Target { image: image.clone(), snapshot: None },
            [fsid, pool, image, snapshot] if *fsid == self.fsid && *pool == self.pool() => {
                Target { image: image.clone(), snapshot: Some(snapshot.clone()) }
            }
            _ => return Err(outside()),
        };
        let fits = is_name(&target.image) && target.snapshot.as_deref().is_none_or(is_name);
        if fits { Ok(target) } else { Err(outside()) }
    }
}

/// Whether an image or a snapshot can have this name, and nothing under way has. Ceph itself takes almost any text, but
/// then its tools cannot address it.
pub(crate) fn is_name(name: &str) -> bool {
    let fits = !name.is_empty() && name.len() <= 512 && !name.starts_with(STAGED);
    fits && !name.contains(['/', '@']) && !name.chars().any(char::is_control)
}

/// The name of a new image under way; `token` tells it from others of the same id.
pub(crate) fn staged_name(token: &str, id: &BlobId) -> String {
    format!("{STAGED}{token}.{id}")
}

/// The id that an image under way is to get.
pub(crate) fn staged_id(name: &str) -> Option<BlobId> {
    name.strip_prefix(STAGED)?.split_once('.')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place() -> Place {
        Place {
            fsid: "b0a5-1".into(),
            pool: "cloud images".into(),
            namespace: String::new(),
            snapshot: "snap".into(),
        }
    }

    #[test]
    fn locations_are_those_of_glance() {
        let at = place().location("a.b~c-d_e").unwrap();
        assert_eq!(at.to_string(), "rbd://b0a5-1/cloud%20images/a.b~c-d_e/snap");
        let found = place().find(&at).unwrap();
        assert_eq!(found, Target { image: "a.b~c-d_e".into(), snapshot: Some("snap".into()) });
        let short = place().find(&"rbd://caf%C3%A9%3A1".parse().unwrap()).unwrap();
        assert_eq!(short, Target { image: "café:1".into(), snapshot: None });
        let spaced = Place { namespace: "team".into(), ..place() };
        let at = spaced.location("x").unwrap();
        assert_eq!(at.to_string(), "rbd://b0a5-1/cloud%20images%2Fteam/x/snap");
        assert_eq!(spaced.find(&at).unwrap().image, "x");
        assert!(place().find(&at).is_err());
    }

    #[test]
    fn nothing_else_is_found() {
        for bad in [
            "rbd://other/cloud%20images/a/snap",
            "rbd://b0a5-1/other/a/snap",
            "rbd://b0a5-1/cloud%20images/a",
            "rbd://b0a5-1/cloud%20images//snap",
            "rbd://b0a5-1/cloud%20images/a/",
            "rbd://b0a5-1/cloud%20images/a/snap/x",
            "rbd://b0a5-1/cloud%20images/%2Ea%2Fb/snap",
            "rbd://b0a5-1/cloud%20images/a%40b/snap",
            "rbd://b0a5-1/cloud%20images/a%00b/snap",
            "rbd://b0a5-1/cloud%20images/a%FFb/snap",
            "rbd://b0a5-1/cloud%20images/.imagestore.1.a/snap",
            "rbd://%2Eimagestore.1.a",
            "rbd:a",
            "file:///b0a5-1/cloud%20images/a/snap",
        ] {
            let error = place().find(&bad.parse().unwrap()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{bad}");
        }
    }

    #[test]
    fn staged_names_lead_back_to_their_ids() {
        let id: BlobId = "a.b-c".parse().unwrap();
        let name = staged_name("0123", &id);
        assert_eq!(staged_id(&name), Some(id));
        assert!(!is_name(&name) && name.parse::<BlobId>().is_err());
        assert_eq!(staged_id(".imagestore.0123"), None);
        assert_eq!(staged_id("a.b.c"), None);
    }

    proptest! {
        #[test]
        fn every_name_survives_its_location(image in "\\PC{1,40}", pool in "\\PC{1,20}", snapshot in "[^/@\\p{C}]{1,20}") {
            prop_assume!(is_name(&image) && is_name(&snapshot));
            let place = Place { pool, snapshot: snapshot.clone(), ..place() };
            let target = place.find(&place.location(&image).unwrap()).unwrap();
            prop_assert_eq!(target, Target { image, snapshot: Some(snapshot) });
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,60}") {
            if let Ok(at) = format!("rbd:{text}").parse() {
                let _ = place().find(&at);
            }
            let _ = staged_id(&text);
        }
    }
}
