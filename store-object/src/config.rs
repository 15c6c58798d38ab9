use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use store_core::{Backend, Config, Error, ErrorKind, Result, Secret, Size};
use url::Url;

use crate::ObjectBackend;

/// Settings of a store over the crate `object_store`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectConfig {
    /// Which storage, and a folder in it: `az://container/folder`, `gs://bucket/folder`, `file:///folder`,
    /// `memory:///`.
    pub url: String,
    /// What the crate takes for that kind of storage, such as `azure_storage_account_name`.
    #[serde(default)]
    pub options: BTreeMap<String, Secret>,
    /// The size of a part; smaller blobs are sent in one piece.
    #[serde(default = "part_size")]
    pub part_size: Size,
    /// Parts of an upload, or pieces of a download, that are on their way at once.
    #[serde(default = "concurrency")]
    pub concurrency: u32,
    /// What stands for the storage in locations; `url` without its colon and slashes where it is not set.
    #[serde(default)]
    pub location_name: Option<String>,
}

fn part_size() -> Size {
    Size(8 << 20)
}

fn concurrency() -> u32 {
    4
}

impl ObjectConfig {
    /// The settings of a store at `url`, all else as by default.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            options: BTreeMap::new(),
            part_size: part_size(),
            concurrency: concurrency(),
            location_name: None,
        }
    }

    /// The URL, and what stands for it in locations.
    pub(crate) fn check(&self) -> Result<(Url, String)> {
        // Not quoted: it may hold credentials.
        let invalid = |message: &str, hint: &str| {
            Error::new(ErrorKind::Invalid, message.to_owned()).with_hint(hint.to_owned())
        };
        let url = Url::parse(&self.url).map_err(|_| {
            invalid("`url` is no URL", "a URL looks like az://container/folder or gs://bucket/folder")
        })?;
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
            return Err(invalid("`url` holds credentials or a query", "credentials belong to `options`"));
        }
        if !(5 << 20..=1 << 30).contains(&self.part_size.0) {
            return Err(invalid("`part_size` is not from 5 MiB to 1 GiB", "leave it out for 8 MiB"));
        }
        if !(1..=64).contains(&self.concurrency) {
            return Err(invalid("`concurrency` is not from 1 to 64", "leave it out for 4"));
        }
        let name = self.location_name.clone().unwrap_or_else(|| {
            let host = url.host_str().unwrap_or_default();
            format!("{}/{host}/{}", url.scheme(), url.path())
                .split('/')
                .filter(|part| !part.is_empty())
                .collect::<Vec<_>>()
                .join("/")
        });
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%/".contains(&b)) {
            return Err(invalid(
                "`location_name` does not fit into a URI",
                "use letters, digits, dots and slashes",
            ));
        }
        Ok((url, name))
    }
}

impl Config for ObjectConfig {
    const TYPE: &'static str = "object";

    fn check(&self) -> Result<()> {
        Self::check(self).map(drop)
    }

    async fn connect(self, _: &str) -> Result<Arc<dyn Backend>> {
        Ok(Arc::new(ObjectBackend::connect(&self).await?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_named() {
        assert_eq!(ObjectConfig::new("az://images/cloud/").check().unwrap().1, "az/images/cloud");
        let small = ObjectConfig { part_size: Size(1), ..ObjectConfig::new("memory:///") };
        for (config, named) in [
            (ObjectConfig::new("images"), "`url`"),
            (ObjectConfig::new("az://key:hunter2@host/x"), "`url`"),
            (small, "`part_size`"),
        ] {
            let error = config.check().unwrap_err();
            assert!(error.message().contains(named), "{error}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }
}
