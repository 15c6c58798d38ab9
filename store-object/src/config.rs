use std::{collections::BTreeMap, sync::Arc};

use object_store::{ObjectStoreScheme as Scheme, path::Path};
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

    /// Finds what cannot work before anything is opened.
    pub(crate) fn check(&self) -> Result<Checked> {
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
        let (scheme, prefix) = Scheme::parse(&url).map_err(|_| {
            invalid(
                "`url` names no storage that is known",
                "it starts with az://, gs://, file:/// or memory:///",
            )
        })?;
        match scheme {
            Scheme::AmazonS3 => {
                return Err(invalid("`url` is one of S3", "use `type = \"s3\"`, which knows it better"));
            }
            Scheme::Http => {
                return Err(invalid(
                    "`url` is one of a web server, where the crate creates nothing conditionally (WebDAV)",
                    "mount it and use `type = \"fs\"`, or use another storage",
                ));
            }
            _ => {}
        }
        if let Some(unknown) = self.options.keys().find(|key| !is_option(&scheme, key)) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("`options` has {unknown:?}, which {} does not take", url.scheme()),
            )
            .with_hint("the names are those of the crate object_store, such as azure_storage_account_name"));
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
        Ok(Checked { url, scheme, prefix, name })
    }

    /// What the crate is told, with a time for a request that a part can be sent in: at 500 kB/s, and 30 s besides, which is
    /// all that the crate allows by itself.
    pub(crate) fn all_options(&self) -> BTreeMap<String, String> {
        let limit = 30 + self.part_size.0 / 500_000;
        let mut all = BTreeMap::from([("timeout".to_owned(), format!("{limit}s"))]);
        for (key, value) in &self.options {
            let key = key.to_ascii_lowercase();
            // It has several names.
            if ["azure_timeout", "google_timeout"].contains(&&*key) {
                all.remove("timeout");
            }
            all.insert(key, value.expose().to_owned());
        }
        all
    }
}

/// What a configuration says.
pub(crate) struct Checked {
    pub(crate) url: Url,
    pub(crate) scheme: Scheme,
    pub(crate) prefix: Path,
    /// What stands for the storage in locations.
    pub(crate) name: String,
}

impl Checked {
    /// The Cargo feature that is missing for the storage.
    pub(crate) fn lacks(&self) -> Option<&'static str> {
        match self.scheme {
            Scheme::MicrosoftAzure if !cfg!(feature = "azure") => Some("azure"),
            Scheme::GoogleCloudStorage if !cfg!(feature = "gcp") => Some("gcp"),
            _ => None,
        }
    }

    /// The most parts that a blob can have.
    pub(crate) fn most_parts(&self) -> Option<u64> {
        match self.scheme {
            Scheme::MicrosoftAzure => Some(50_000),
            Scheme::GoogleCloudStorage => Some(10_000),
            _ => None,
        }
    }
}

/// Whether the crate takes such an option: others it passes over without a word. What is not built in takes any.
fn is_option(scheme: &Scheme, key: &str) -> bool {
    let _key = key.to_ascii_lowercase();
    match scheme {
        #[cfg(feature = "azure")]
        Scheme::MicrosoftAzure => _key.parse::<object_store::azure::AzureConfigKey>().is_ok(),
        #[cfg(feature = "gcp")]
        Scheme::GoogleCloudStorage => _key.parse::<object_store::gcp::GoogleConfigKey>().is_ok(),
        Scheme::Local | Scheme::Memory => false,
        _ => true,
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
        assert_eq!(ObjectConfig::new("az://images/cloud/").check().unwrap().name, "az/images/cloud");
        let small = ObjectConfig { part_size: Size(1), ..ObjectConfig::new("memory:///") };
        let with = |url, key: &str| ObjectConfig {
            options: [(key.to_owned(), Secret::new("hunter2"))].into(),
            ..ObjectConfig::new(url)
        };
        assert!(with("az://images/cloud", "azure_storage_account_key").check().is_ok());
        assert!(with("az://images/cloud", "TIMEOUT").check().is_ok());
        for (config, named) in [
            (ObjectConfig::new("images"), "`url`"),
            (ObjectConfig::new("az://key:hunter2@host/x"), "`url`"),
            (ObjectConfig::new("azz://images/cloud"), "`url`"),
            (ObjectConfig::new("s3://images/cloud"), "S3"),
            (ObjectConfig::new("https://dav.example.org/images"), "WebDAV"),
            (with("az://images/cloud", "azure_storage_acount_key"), "azure_storage_acount_key"),
            (with("memory:///", "timeout"), "timeout"),
            (small, "`part_size`"),
        ] {
            let error = config.check().map(drop).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.message().contains(named) && error.hint().is_some(), "{error}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }

    #[test]
    fn a_request_has_the_time_that_a_part_takes() {
        let mut config = ObjectConfig::new("az://images");
        assert_eq!(config.all_options()["timeout"], "46s");
        config.part_size = Size(1 << 30);
        assert_eq!(config.all_options()["timeout"], "2177s");
        for name in ["timeout", "Azure_Timeout"] {
            config.options = [(name.to_owned(), Secret::new("5s"))].into();
            assert_eq!(config.all_options(), [(name.to_ascii_lowercase(), "5s".to_owned())].into());
        }
    }
}
