use std::{ffi::OsString, path::Path};

use store_core::{BlobId, Error, ErrorKind, Location, Result};

/// The location of a blob: `file:///DATA-DIRECTORY/ID`.
pub(crate) fn of(directory: &Path, id: &BlobId) -> Result<Location> {
    Location::from_path(&directory.join(id.as_str()))
}

/// The file name that `at` has in one of `directories`, and which one that is.
///
/// Blobs lie directly in a data directory. Any other path is refused, whatever it leads to: a location is data that
/// others may have written (CVE-2014-9493, CVE-2015-1195).
pub(crate) fn find<'a, D>(
    at: &Location,
    directories: impl Iterator<Item = (&'a Path, D)>,
) -> Result<(D, OsString)> {
    let outside = || {
        Error::new(ErrorKind::Invalid, format!("{at} is not in a data directory of this store"))
            .with_hint("a location of this store is file:///DATA-DIRECTORY/ID")
    };
    let path = at.to_path()?;
    // Joined and split by text, since `Path` would fold `a/./b` and `a//b`.
    let (parent, name) = match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if parent.join(name).as_os_str() == path.as_os_str() => (parent, name),
        _ => return Err(outside()),
    };
    if name.as_encoded_bytes().starts_with(b".") {
        return Err(outside());
    }
    directories
        .into_iter()
        .find(|(directory, _)| *directory == parent)
        .map(|(_, found)| (found, name.to_owned()))
        .ok_or_else(outside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_right_in_a_data_directory_are_found() {
        let find = |text: &str| {
            let directories = [(Path::new("/srv/a"), 'a'), (Path::new("/srv/b"), 'b')];
            super::find(&text.parse::<Location>().unwrap(), directories.into_iter())
        };
        assert_eq!(find("file:///srv/b/image").unwrap(), ('b', "image".into()));
        assert_eq!(find("filesystem:///srv/a/My%20image").unwrap(), ('a', "My image".into()));
        for bad in [
            "file:///srv/a/../../etc/passwd",
            "file:///srv/a/%2e%2e/%2e%2e/etc/passwd",
            "file:///srv/a/sub/image",
            "file:///srv/a//image",
            "file:///srv/a/./image",
            "file:///srv/a/image/",
            "file:///srv/a/image%00",
            "file:///srv/a/.imagestore",
            "file:///srv/a/..",
            "file:///srv/a",
            "file:///etc/passwd",
            "file://host/srv/a/image",
            "file:/srv/a/image",
            "file:///srv/a%2Fimage/x",
        ] {
            assert_eq!(find(bad).unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
        }
    }
}
