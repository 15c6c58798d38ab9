use std::{path::PathBuf, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use store_core::{Backend, Config, Error, ErrorKind, Result, Secret, Size, Span};

use crate::{CephBackend, location::is_name};

/// Settings of a Ceph store.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CephConfig {
    /// The pool that images are in.
    #[serde(default = "pool")]
    pub pool: String,
    /// A namespace of the pool; without it, the pool itself.
    #[serde(default)]
    pub namespace: Option<String>,
    /// Creates the namespace if it is missing.
    #[serde(default)]
    pub create_namespace: bool,
    /// The cluster's configuration file; `/etc/ceph/ceph.conf` where neither it nor `mon_host` is set.
    #[serde(default)]
    pub conf: Option<PathBuf>,
    /// The monitors, such as `10.0.0.1,10.0.0.2`: in place of a configuration file, or of what it says.
    #[serde(default)]
    pub mon_host: Option<String>,
    /// The user, without `client.` in front.
    #[serde(default = "user")]
    pub user: String,
    /// The file with the user's key; where the configuration file says, unless set.
    #[serde(default)]
    pub keyring: Option<PathBuf>,
    /// The user's key itself, in place of a file.
    #[serde(default)]
    pub key: Option<Secret>,
    /// The pool that keeps the data of images, such as an erasure-coded one; `pool` keeps the rest.
    #[serde(default)]
    pub data_pool: Option<String>,
    /// What images can do; the cluster's `rbd_default_features` where it is not set.
    #[serde(default)]
    pub features: Option<Vec<Feature>>,
    /// The length of the objects that an image is kept in: a power of two, 4 KiB to 32 MiB.
    #[serde(default = "object_size")]
    pub object_size: Size,
    /// The snapshot that makes an image a blob.
    #[serde(default = "snapshot")]
    pub snapshot: String,
    /// Stores no runs of zeros.
    #[serde(default = "yes")]
    pub thin_provisioning: bool,
    /// Requests of 2 MiB that each transfer has in flight.
    #[serde(default = "concurrency")]
    pub concurrency: u32,
    /// What becomes of a deleted blob that has clones.
    #[serde(default)]
    pub delete_in_use: InUse,
    /// How a blob is copied within the pool.
    #[serde(default)]
    pub copy: CopyMode,
    /// After which time a cluster that cannot be reached is given up.
    #[serde(default = "connect_timeout")]
    pub connect_timeout: Span,
    /// After which time an operation that is not answered is given up.
    #[serde(default = "operation_timeout")]
    pub operation_timeout: Span,
}

/// What an image can do: `RBD_FEATURE_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Feature {
    /// It can be cloned.
    Layering,
    /// One client at a time writes to it.
    ExclusiveLock,
    /// It is known which objects exist: holes are found at once. Needs `exclusive-lock`.
    ObjectMap,
    /// It is known which objects differ between snapshots. Needs `object-map`.
    FastDiff,
    /// A clone can be flattened with its snapshots.
    DeepFlatten,
}

impl Feature {
    pub(crate) fn bit(self) -> u64 {
        match self {
            Self::Layering => 1,
            Self::ExclusiveLock => 4,
            Self::ObjectMap => 8,
            Self::FastDiff => 16,
            Self::DeepFlatten => 32,
        }
    }
}

/// What becomes of a deleted blob that has clones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum InUse {
    /// It stays, and the deletion fails with `InUse`.
    #[default]
    Refuse,
    /// It is moved to the pool's trash; a sweep removes it when it has no clone any more.
    Trash,
}

/// How a blob is copied within the pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum CopyMode {
    /// Its data are copied, without its holes.
    #[default]
    Full,
    /// A copy-on-write clone: at once, but the original cannot be deleted while the copy exists.
    Clone,
}

fn pool() -> String {
    "images".to_owned()
}

fn user() -> String {
    "glance".to_owned()
}

fn snapshot() -> String {
    "snap".to_owned()
}

fn object_size() -> Size {
    Size(8 << 20)
}

fn yes() -> bool {
    true
}

fn concurrency() -> u32 {
    8
}

fn connect_timeout() -> Span {
    Span(Duration::from_secs(10))
}

fn operation_timeout() -> Span {
    Span(Duration::from_secs(30))
}

impl Default for CephConfig {
    fn default() -> Self {
        Self {
            pool: pool(),
            namespace: None,
            create_namespace: false,
            conf: None,
            mon_host: None,
            user: user(),
            keyring: None,
            key: None,
            data_pool: None,
            features: None,
            object_size: object_size(),
            snapshot: snapshot(),
            thin_provisioning: yes(),
            concurrency: concurrency(),
            delete_in_use: InUse::default(),
            copy: CopyMode::default(),
            connect_timeout: connect_timeout(),
            operation_timeout: operation_timeout(),
        }
    }
}

impl CephConfig {
    /// Finds what cannot work before anything is sent.
    pub(crate) fn check(&self) -> Result<()> {
        let invalid = |message: String| Err(Error::new(ErrorKind::Invalid, message));
        for (key, name) in [("pool", &self.pool), ("user", &self.user), ("snapshot", &self.snapshot)] {
            if !is_name(name) {
                return invalid(format!("`{key}` {name:?} is no name"));
            }
        }
        if self.user.starts_with("client.") {
            return invalid("`user` is written without \"client.\" in front".to_owned());
        }
        for (key, name) in [("namespace", &self.namespace), ("data_pool", &self.data_pool)] {
            if name.as_ref().is_some_and(|name| !is_name(name)) {
                return invalid(format!("`{key}` {:?} is no name", name.as_deref().unwrap_or_default()));
            }
        }
        if self.create_namespace && self.namespace.is_none() {
            return invalid("`create_namespace` needs a `namespace`".to_owned());
        }
        if self.key.is_some() && self.keyring.is_some() {
            return invalid("`key` and `keyring` exclude each other".to_owned());
        }
        if !self.object_size.0.is_power_of_two() || !(4 << 10..=32 << 20).contains(&self.object_size.0) {
            return invalid(format!(
                "`object_size` {} is no power of two from 4 KiB to 32 MiB",
                self.object_size
            ));
        }
        if !(1..=64).contains(&self.concurrency) {
            return invalid(format!("`concurrency` {} is not from 1 to 64", self.concurrency));
        }
        for (key, span) in
            [("connect_timeout", self.connect_timeout), ("operation_timeout", self.operation_timeout)]
        {
            if span.0 < Duration::from_secs(1) {
                return invalid(format!("`{key}` is less than a second"));
            }
        }
        self.check_features()
    }

    fn check_features(&self) -> Result<()> {
        use Feature::{ExclusiveLock, FastDiff, Layering, ObjectMap};
        let Some(features) = &self.features else { return Ok(()) };
        let missing = |feature, needed| features.contains(&feature) && !features.contains(&needed);
        let message = if !features.contains(&Layering) {
            "`features` lacks \"layering\", without which no image can be cloned"
        } else if missing(ObjectMap, ExclusiveLock) {
            "`features`: \"object-map\" needs \"exclusive-lock\""
        } else if missing(FastDiff, ObjectMap) {
            "`features`: \"fast-diff\" needs \"object-map\""
        } else {
            return Ok(());
        };
        Err(Error::new(ErrorKind::Invalid, message))
    }
}

impl Config for CephConfig {
    const TYPE: &'static str = "ceph";

    fn check(&self) -> Result<()> {
        Self::check(self)
    }

    fn read_only(&mut self) {
        self.create_namespace = false;
    }

    async fn connect(self, _: &str) -> Result<Arc<dyn Backend>> {
        Ok(Arc::new(CephBackend::connect(&self).await?))
    }
}

#[cfg(test)]
mod tests {
    use store_core::Settings;

    use super::*;

    fn check(text: &str) -> Result<CephConfig> {
        let settings = Settings::parse(&format!("[stores.a]\ntype = 'ceph'\n{text}"))?;
        let config: CephConfig = settings.section("a")?.backend()?;
        config.check().map(|()| config)
    }

    #[test]
    fn what_cannot_work_is_named() {
        let config = check("").unwrap();
        assert_eq!((config.pool.as_str(), config.user.as_str()), ("images", "glance"));
        assert_eq!(text(&config), text(&CephConfig::default()));
        assert!(check("features = ['layering', 'exclusive-lock', 'object-map', 'fast-diff']").is_ok());
        for (text, named) in [
            ("pool = ''", "`pool`"),
            ("pool = 'a/b'", "`pool`"),
            ("user = 'client.glance'", "`user`"),
            ("snapshot = 'a@b'", "`snapshot`"),
            ("namespace = 'a/b'", "`namespace`"),
            ("create_namespace = true", "`namespace`"),
            ("data_pool = ''", "`data_pool`"),
            ("key = 'hunter2'\nkeyring = '/k'", "`keyring`"),
            ("object_size = '3MiB'", "`object_size`"),
            ("object_size = '64MiB'", "`object_size`"),
            ("concurrency = 0", "`concurrency`"),
            ("operation_timeout = '10ms'", "`operation_timeout`"),
            ("connect_timeout = '10ms'", "`connect_timeout`"),
            ("features = ['exclusive-lock']", "`features`"),
            ("features = ['layering', 'object-map']", "`features`"),
            ("features = ['layering', 'journaling']", "`features`"),
            ("delete_in_use = 'force'", "`delete_in_use`"),
            ("copy = 'move'", "`copy`"),
            ("chunk_size = 'hunter2'", "`chunk_size`"),
        ] {
            let error = check(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{text}");
            assert!(error.message().contains(named), "{text}: {error}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }

    fn text(config: &CephConfig) -> String {
        serde_json::to_string(config).unwrap()
    }

    #[test]
    fn secrets_never_show() {
        let config = check("key = 'hunter2'").unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
