use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{Digests, Error, ErrorKind, Result, inspect::Format};

/// What a blob says of itself, kept by the storage together with its bytes.
///
/// Every backend keeps the JSON text of [`Meta::to_json`], so that a blob may be copied between storages by any
/// tool that keeps attributes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Meta {
    /// Length in bytes.
    pub size: u64,
    /// What the writer computed on the way in.
    #[serde(default)]
    pub digests: Digests,
    /// What the format inspector saw, or the caller declared where inspection is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// The size of the disk that the image holds, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_size: Option<u64>,
    /// When it was committed.
    pub created: Timestamp,
    /// The caller's own words, at most [`Meta::MAX_PROPERTIES`] bytes in all.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
}

impl Meta {
    /// The most bytes that the properties' names and values may take together: an ext4 inode keeps all
    /// attributes in one block of 4 KiB, and S3 takes 2 KiB of user metadata.
    pub const MAX_PROPERTIES: usize = 1024;

    /// Metadata of a blob of `size` bytes, committed now.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            digests: Digests::default(),
            format: None,
            virtual_size: None,
            created: Timestamp::now(),
            properties: BTreeMap::new(),
        }
    }

    /// The form in which every backend keeps it.
    pub fn to_json(&self) -> String {
        // Strings, numbers and maps with string keys always have a JSON form.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The counterpart of [`to_json`](Self::to_json); fields that a later version added are ignored.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        serde_json::from_slice(json).map_err(|e| {
            Error::new(ErrorKind::Corrupt, "the blob's stored metadata is damaged").with_source(e)
        })
    }

    /// Checks that `properties` fit every storage.
    pub(crate) fn check_properties(properties: &BTreeMap<String, String>) -> Result<()> {
        let size: usize = properties.iter().map(|(name, value)| name.len() + value.len()).sum();
        match size <= Self::MAX_PROPERTIES {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::Invalid,
                format!("the properties take {size} bytes; at most {} are kept", Self::MAX_PROPERTIES),
            )),
        }
    }
}

/// A committed blob, as the storage describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Stat {
    /// Length in bytes.
    pub size: u64,
    /// Bytes that the storage really uses, holes excepted, where it tells.
    pub allocated: Option<u64>,
    /// What the blob says of itself; `None` where another program wrote it without.
    pub meta: Option<Meta>,
}

impl Stat {
    /// A blob of `size` bytes of which nothing else is known.
    pub fn new(size: u64) -> Self {
        Self { size, allocated: None, meta: None }
    }
}
