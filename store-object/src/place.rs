use object_store::path::Path;
use store_core::{BlobId, Error, ErrorKind, Location, Result};

/// Where a store's objects are, and how its locations are written.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// What stands for the storage in locations.
    pub(crate) name: String,
    pub(crate) prefix: Path,
}

/// What one store keeps, each in a folder of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Folder {
    /// A note for each committed blob, by its id: the commit.
    Blob,
    /// The bytes, by id and token.
    Data,
    /// A mark for each upload that has begun, by id and token.
    Upload,
}

impl Place {
    pub(crate) fn folder(&self, folder: Folder) -> Path {
        self.prefix.clone().join(match folder {
            Folder::Blob => "blob",
            Folder::Data => "data",
            Folder::Upload => "upload",
        })
    }

    pub(crate) fn note(&self, id: &BlobId) -> Path {
        self.folder(Folder::Blob).join(id.as_str())
    }

    pub(crate) fn of_upload(&self, folder: Folder, id: &BlobId, token: &str) -> Path {
        self.folder(folder).join(format!("{id}.{token}"))
    }

    /// The id of a note.
    pub(crate) fn id(&self, note: &Path) -> Option<BlobId> {
        note.filename()?.parse().ok()
    }

    /// The id and the token of an upload's object.
    pub(crate) fn upload(&self, path: &Path) -> Option<(BlobId, String)> {
        let (id, token) = path.filename()?.rsplit_once('.')?;
        let is_token = token.len() == 32 && token.bytes().all(|b| b.is_ascii_hexdigit());
        Some((id.parse().ok()?, token.to_owned())).filter(|_| is_token)
    }

    /// `object://NAME/ID`.
    pub(crate) fn location(&self, id: &BlobId) -> Result<Location> {
        format!("object://{}/{id}", self.name).parse()
    }

    /// The blob that `at` names. Any other storage is refused: a location is data that others may have written.
    pub(crate) fn find(&self, at: &Location) -> Result<BlobId> {
        let outside = || {
            Error::new(ErrorKind::Invalid, format!("{at} is not in this store"))
                .with_hint(format!("its locations are object://{}/ID", self.name))
        };
        let rest = at.rest().strip_prefix("//").ok_or_else(outside)?;
        let (name, id) = rest.rsplit_once('/').ok_or_else(outside)?;
        if name != self.name {
            return Err(outside());
        }
        id.parse().map_err(|_| outside())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place() -> Place {
        Place { name: "az/images/cloud".into(), prefix: Path::from("cloud") }
    }

    #[test]
    fn nothing_outside_is_found() {
        for bad in [
            "object://az/images/a",
            "object://az/images/cloud/.a",
            "object://az/images/cloud/x/a",
            "object:a",
        ] {
            assert_eq!(place().find(&bad.parse().unwrap()).unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_id_comes_back(id in "[A-Za-z0-9_][A-Za-z0-9._-]{0,60}") {
            let (place, id) = (place(), id.parse::<BlobId>().unwrap());
            prop_assert_eq!(place.find(&place.location(&id).unwrap()).unwrap(), id.clone());
            let token = "0123456789abcdef0123456789abcdef";
            prop_assert_eq!(place.upload(&place.of_upload(Folder::Data, &id, token)), Some((id.clone(), token.to_owned())));
            prop_assert_eq!(place.id(&place.note(&id)), Some(id));
        }
    }
}
