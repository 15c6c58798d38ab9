use std::{
    fmt,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use store_core::{Backend, Config, Error, ErrorKind, Result, Size, file::blocking};

use crate::FsBackend;

/// Settings of a filesystem store.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FsConfig {
    /// The data directory, an absolute path; blobs lie in it under their ids.
    #[serde(default, deserialize_with = "some_absolute")]
    pub path: Option<PathBuf>,
    /// Several data directories, instead of `path`.
    #[serde(default)]
    pub directories: Vec<Directory>,
    /// Creates missing data directories.
    #[serde(default = "yes")]
    pub create: bool,
    /// Demands that each data directory holds `.imagestore/marker` already. The marker lies on the share: where it is
    /// missing, the share is not mounted.
    #[serde(default)]
    pub require_marker: bool,
    /// How an upload is kept before its commit.
    #[serde(default)]
    pub staging: Staging,
    /// Goes around the page cache where the file system can (`O_DIRECT`).
    #[serde(default = "yes")]
    pub direct_io: bool,
    /// Permissions of blobs, in octal.
    #[serde(default)]
    pub file_mode: Mode,
    /// The group of blobs, by name or number; the process's own where it is not set.
    #[serde(default)]
    pub group: Option<Group>,
    /// Space that uploads must leave free in each directory.
    #[serde(default)]
    pub reserve: Size,
    /// Of a store that is `read_only`: no directory and no marker is made.
    #[serde(skip)]
    pub(crate) read_only: bool,
}

/// One of several data directories.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Directory {
    /// An absolute path.
    #[serde(deserialize_with = "absolute")]
    pub path: PathBuf,
    /// Directories of higher priority are filled first; among equals, the one with most free space.
    #[serde(default)]
    pub priority: i32,
}

/// How an upload is kept before its commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Staging {
    /// As a file without a name where the file system has such, else in the staging directory.
    #[default]
    Auto,
    /// As a file without a name (`O_TMPFILE`): a killed process leaves nothing.
    Unnamed,
    /// In the directory `.imagestore/staging`: a killed process leaves files there, which `sweep` removes.
    Directory,
}

/// File permissions, written in octal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode(pub u32);

impl Default for Mode {
    fn default() -> Self {
        Self(0o640)
    }
}

impl Serialize for Mode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:04o}", self.0))
    }
}

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mode = u32::from_str_radix(&text, 8).ok().filter(|mode| mode & !0o777 == 0 && mode & 0o400 != 0);
        mode.map(Self).ok_or_else(|| {
            let expected = "permissions in octal that let the owner read, such as \"0640\"";
            de::Error::invalid_value(de::Unexpected::Str(&text), &expected)
        })
    }
}

/// A group of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Group(pub u32);

impl<'de> Deserialize<'de> for Group {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Group;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a group's name or number")
            }
            fn visit_i64<E: de::Error>(self, id: i64) -> Result<Group, E> {
                // The highest number means "no change" to chown(2).
                let fits = u32::try_from(id).ok().filter(|id| *id != u32::MAX);
                fits.map(Group).ok_or_else(|| E::invalid_value(de::Unexpected::Signed(id), &self))
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<Group, E> {
                match nix::unistd::Group::from_name(name) {
                    Ok(Some(group)) => Ok(Group(group.gid.as_raw())),
                    Ok(None) => Err(E::custom(format!("this host has no group {name:?}"))),
                    Err(error) => Err(E::custom(format!("cannot look the group {name:?} up: {error}"))),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl FsConfig {
    /// The settings of a store in one directory, all else as by default.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: Some(path.into()),
            directories: Vec::new(),
            create: true,
            require_marker: false,
            staging: Staging::default(),
            direct_io: true,
            file_mode: Mode::default(),
            group: None,
            reserve: Size::default(),
            read_only: false,
        }
    }

    /// The data directories, the preferred first.
    pub(crate) fn checked_directories(&self) -> Result<Vec<Directory>> {
        let invalid = |message: String| Err(Error::new(ErrorKind::Invalid, message));
        let mut directories = match (&self.path, self.directories.is_empty()) {
            (Some(path), true) => vec![Directory { path: path.clone(), priority: 0 }],
            (None, false) => self.directories.clone(),
            (None, true) => {
                let missing =
                    Error::new(ErrorKind::Invalid, "`path` is missing: it names the data directory");
                return Err(missing.with_hint("add a line such as: path = \"/srv/images\""));
            }
            (Some(_), false) => return invalid("`path` and `directories` exclude each other".to_owned()),
        };
        for Directory { path, .. } in &directories {
            check_path(path).map_err(|message| Error::new(ErrorKind::Invalid, message))?;
            if directories.iter().filter(|other| other.path == *path).count() > 1 {
                return invalid(format!("`directories` names {} twice", path.display()));
            }
        }
        directories.sort_by_key(|directory| std::cmp::Reverse(directory.priority));
        Ok(directories)
    }
}

impl Config for FsConfig {
    const TYPE: &'static str = "fs";

    fn check(&self) -> Result<()> {
        self.checked_directories().map(drop)
    }

    fn read_only(&mut self) {
        self.read_only = true;
    }

    async fn connect(self, _: &str) -> Result<Arc<dyn Backend>> {
        Ok(Arc::new(blocking(move || FsBackend::open(&self)).await?))
    }
}

/// Told here as well as in [`FsConfig::checked_directories`]: here the line is known.
fn absolute<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(deserializer)?;
    check_path(&path).map_err(de::Error::custom)?;
    Ok(path)
}

fn some_absolute<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    absolute(deserializer).map(Some)
}

fn check_path(path: &Path) -> Result<(), String> {
    match path.is_absolute() && !path.components().any(|part| part == Component::ParentDir) {
        true => Ok(()),
        false => Err(format!("`path` {:?} must be absolute and without `..`", path.display())),
    }
}

fn yes() -> bool {
    true
}
