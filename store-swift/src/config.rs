use std::{path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};
use store_core::{Backend, BlobId, Config, Error, ErrorKind, Result, Secret, Size, Span};

use crate::SwiftBackend;

/// Settings of a Swift store.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SwiftConfig {
    /// The container; with `container_seed` or `multi_tenant`, what the names of containers start with.
    pub container: String,
    /// What the names of all objects start with, such as `images/`.
    #[serde(default)]
    pub prefix: String,
    /// Creates missing containers of blobs; those of segments are created in any case.
    #[serde(default)]
    pub create_container: bool,
    /// Where segments go; `container` with `_segments` behind it where it is not set.
    #[serde(default)]
    pub segment_container: Option<String>,
    /// Spreads blobs over containers named after so many of the first characters of their ids.
    #[serde(default)]
    pub container_seed: u32,
    /// A container for each blob, in the account of the user whose credentials these are.
    #[serde(default)]
    pub multi_tenant: bool,
    /// Projects that may read the containers that this store creates; `*` is everybody with a token.
    #[serde(default)]
    pub readers: Vec<String>,
    /// Projects that may write to them.
    #[serde(default)]
    pub writers: Vec<String>,
    /// Storage policy of containers that are created; the cluster's default where it is not set.
    #[serde(default)]
    pub storage_policy: Option<String>,

    /// Where tokens are had: `https://keystone:5000/v3`, or `https://swift/auth/v1.0`.
    #[serde(default)]
    pub auth_url: Option<String>,
    /// Which protocol is spoken there.
    #[serde(default)]
    pub auth_version: AuthVersion,
    /// User; `account:user` with version 1.
    #[serde(default)]
    pub user: Option<String>,
    /// The user by id.
    #[serde(default)]
    pub user_id: Option<String>,
    /// The user's domain.
    #[serde(default)]
    pub user_domain: Option<String>,
    /// The user's domain by id.
    #[serde(default)]
    pub user_domain_id: Option<String>,
    /// Password; the key with version 1.
    #[serde(default)]
    pub password: Option<Secret>,
    /// Project.
    #[serde(default)]
    pub project: Option<String>,
    /// The project by id.
    #[serde(default)]
    pub project_id: Option<String>,
    /// The project's domain.
    #[serde(default)]
    pub project_domain: Option<String>,
    /// The project's domain by id.
    #[serde(default)]
    pub project_domain_id: Option<String>,
    /// Application credential by id.
    #[serde(default)]
    pub application_credential_id: Option<String>,
    /// Application credential by name, with `user` or `user_id`.
    #[serde(default)]
    pub application_credential_name: Option<String>,
    /// The application credential's secret.
    #[serde(default)]
    pub application_credential_secret: Option<Secret>,
    /// A token that somebody else got, with `endpoint`. It is not renewed.
    #[serde(default)]
    pub token: Option<Secret>,
    /// The entry of `clouds.yaml` to use.
    #[serde(default)]
    pub cloud: Option<String>,
    /// That file, where it is not in one of its usual places.
    #[serde(default)]
    pub clouds_file: Option<PathBuf>,
    /// A user with the role `service`, whose token goes with each request, so that expired ones are taken.
    #[serde(default)]
    pub service_user: Option<String>,
    /// Its password.
    #[serde(default)]
    pub service_password: Option<Secret>,
    /// Its project.
    #[serde(default)]
    pub service_project: Option<String>,
    /// The domain of both.
    #[serde(default)]
    pub service_domain: Option<String>,

    /// The region in the catalog.
    #[serde(default)]
    pub region: Option<String>,
    /// The interface in the catalog; the public one where nothing else says which.
    #[serde(default)]
    pub interface: Option<Interface>,
    /// The type in the catalog; `object-store` where nothing else says which.
    #[serde(default)]
    pub service_type: Option<String>,
    /// In place of the catalog's address: scheme, host and port, or all with the account, where
    /// `%(project_id)s` stands for the project.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// Certificates in PEM that are trusted besides those of the system.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,

    /// The least size of a segment; a shorter blob is sent in one piece.
    #[serde(default = "segment_size")]
    pub segment_size: Size,
    /// Segments of an upload, or pieces of a download, that are on their way at once.
    #[serde(default = "concurrency")]
    pub concurrency: u32,
    /// The most memory that the segments of one upload take.
    #[serde(default = "window")]
    pub window: Size,
    /// The size of the pieces that a download asks for.
    #[serde(default = "read_size")]
    pub read_size: Size,
    /// How it is told that what the server received is what was sent.
    #[serde(default)]
    pub checksum: Checksum,
    /// What a blob of several segments becomes.
    #[serde(default)]
    pub large_objects: LargeObjects,
    /// After which time blobs expire: the server deletes them then.
    #[serde(default)]
    pub expire: Option<Span>,
    /// The key that temporary URLs are signed with.
    #[serde(default)]
    pub temp_url_key: Option<Secret>,
    /// The name of this account in locations, `swift+config://REFERENCE/..`, as in Glance's configuration.
    #[serde(default = "reference")]
    pub reference: String,
}

/// Which protocol tokens are had with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AuthVersion {
    /// Version 1 if `/v1` is in `auth_url`, or `/auth/1.0` at its end, else Keystone.
    #[default]
    Auto,
    /// Swift's own, which Ceph has too.
    V1,
    /// Keystone's version 3.
    V3,
}

/// Which of a service's addresses in the catalog is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Interface {
    /// For all.
    #[default]
    Public,
    /// Within the cloud.
    Internal,
    /// For administrators.
    Admin,
}

impl Interface {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Internal => "internal",
            Self::Admin => "admin",
        }
    }
}

/// How it is told that what the server received is what was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Checksum {
    /// By the MD5 of each segment, or of all of a short blob.
    #[default]
    Md5,
    /// It is not; what TLS does is enough, and it saves half a second of CPU time for each GiB.
    None,
}

/// What a blob of several segments becomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LargeObjects {
    /// A static large object where the server has them, else a dynamic one.
    #[default]
    Auto,
    /// A static large object: a list of segments with their MD5s.
    Static,
    /// A dynamic large object: all objects with a prefix, as far as the container's list knows them.
    Dynamic,
}

fn segment_size() -> Size {
    Size(16 << 20)
}

fn read_size() -> Size {
    Size(16 << 20)
}

fn window() -> Size {
    Size(64 << 20)
}

fn concurrency() -> u32 {
    4
}

fn reference() -> String {
    "ref1".to_owned()
}

/// Below it, Swift serves segments at one a second.
pub(crate) const MIN_SEGMENT: u64 = 1 << 20;

impl SwiftConfig {
    /// The settings of a store in `container`, all else as by default.
    pub fn new(container: impl Into<String>) -> Self {
        Self {
            container: container.into(),
            prefix: String::new(),
            create_container: false,
            segment_container: None,
            container_seed: 0,
            multi_tenant: false,
            readers: Vec::new(),
            writers: Vec::new(),
            storage_policy: None,
            auth_url: None,
            auth_version: AuthVersion::default(),
            user: None,
            user_id: None,
            user_domain: None,
            user_domain_id: None,
            password: None,
            project: None,
            project_id: None,
            project_domain: None,
            project_domain_id: None,
            application_credential_id: None,
            application_credential_name: None,
            application_credential_secret: None,
            token: None,
            cloud: None,
            clouds_file: None,
            service_user: None,
            service_password: None,
            service_project: None,
            service_domain: None,
            region: None,
            interface: None,
            service_type: None,
            endpoint: None,
            ca_file: None,
            segment_size: segment_size(),
            concurrency: concurrency(),
            window: window(),
            read_size: read_size(),
            checksum: Checksum::default(),
            large_objects: LargeObjects::default(),
            expire: None,
            temp_url_key: None,
            reference: reference(),
        }
    }

    /// Finds what cannot work before anything is sent.
    pub(crate) fn check(&self) -> Result<()> {
        let invalid = |message: String| Err(Error::new(ErrorKind::Invalid, message));
        for (key, name) in
            [("container", Some(&self.container)), ("segment_container", self.segment_container.as_ref())]
        {
            let Some(name) = name else { continue };
            let fits = !name.is_empty() && name.len() <= 200 && ![".", ".."].contains(&name.as_str());
            if !fits || name.contains('/') || name.chars().any(char::is_control) {
                return invalid(format!("`{key}` {name:?} is no container's name"));
            }
        }
        if self.segment_container.as_ref() == Some(&self.container) {
            return invalid("`segment_container` must be another one than `container`".to_owned());
        }
        let segments_fit = self.prefix.split('/').rev().skip(1).all(|part| !["", ".", ".."].contains(&part));
        if !segments_fit || self.prefix.len() > 512 || self.prefix.chars().any(char::is_control) {
            return invalid(format!("`prefix` {:?} must be parts with single slashes between", self.prefix))
                .map_err(|error: Error| error.with_hint("a prefix looks like images/ or cloud/images/"));
        }
        if self.container_seed > 32 {
            return invalid(format!("`container_seed` {} is not from 0 to 32", self.container_seed));
        }
        if (self.container_seed > 0 || self.multi_tenant) && self.segment_container.is_some() {
            return invalid("`segment_container` cannot be one of many: leave it out".to_owned());
        }
        if self.container_seed > 0 && self.multi_tenant {
            return invalid("`container_seed` makes no sense with `multi_tenant`".to_owned());
        }
        // Containers named after ids of the greatest length, and those of their segments, still fit into 256 bytes.
        let most = match (self.multi_tenant, self.container_seed) {
            (true, _) => 256 - "_+segments".len() - BlobId::MAX_LEN,
            (_, 1..) => 256 - "__segments".len() - 64,
            _ => 200,
        };
        if self.container.len() > most {
            return invalid(format!(
                "`container` {:?} is too long to have ids behind it: at most {most} bytes",
                self.container
            ));
        }
        let reference_fits = !self.reference.is_empty()
            && self.reference.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !reference_fits {
            return invalid(format!("`reference` {:?} must be letters, digits, . _ and -", self.reference));
        }
        for (key, url) in [("auth_url", &self.auth_url), ("endpoint", &self.endpoint)] {
            if let Some(url) = url {
                check_url(key, url)?;
            }
        }
        if self.segment_size.0 < MIN_SEGMENT || self.segment_size.0 > 5 << 30 {
            return invalid(format!("`segment_size` {} is not from 1 MiB to 5 GiB", self.segment_size));
        }
        if self.window.0 < self.segment_size.0 {
            return invalid(format!("`window` {} holds no segment of {}", self.window, self.segment_size));
        }
        if !(1..=256).contains(&self.concurrency) {
            return invalid(format!("`concurrency` {} is not from 1 to 256", self.concurrency));
        }
        if self.read_size.0 < 64 << 10 || self.read_size.0 > 1 << 30 {
            return invalid(format!("`read_size` {} is not from 64 KiB to 1 GiB", self.read_size));
        }
        if self.service_user.is_some() != self.service_password.is_some() {
            return invalid("`service_user` and `service_password` go together; one is missing".to_owned());
        }
        if self.expire.is_some_and(|expire| expire.0.as_secs() == 0) {
            return invalid("`expire` is less than a second".to_owned());
        }
        Ok(())
    }
}

/// Refuses what is no URL without quoting it: it may hold credentials.
pub(crate) fn check_url(key: &str, url: &str) -> Result<()> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let fits = rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(['?', '#', '@', ' ']))
        && reqwest::Url::parse(url).is_ok();
    match fits {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Invalid, format!("`{key}` is no http:// or https:// URL"))
            .with_hint(
                "it looks like https://keystone.example.org:5000/v3; credentials have their own keys",
            )),
    }
}

impl Config for SwiftConfig {
    const TYPE: &'static str = "swift";

    fn check(&self) -> Result<()> {
        Self::check(self)
    }

    fn read_only(&mut self) {
        self.create_container = false;
    }

    async fn connect(self, _: &str) -> Result<Arc<dyn Backend>> {
        Ok(Arc::new(SwiftBackend::connect(&self).await?))
    }
}

#[cfg(test)]
mod tests {
    use store_core::Settings;

    use super::*;

    fn check(text: &str) -> Result<SwiftConfig> {
        let settings = Settings::parse(&format!("[stores.a]\ntype = 'swift'\n{text}"))?;
        let config: SwiftConfig = settings.section("a")?.backend()?;
        config.check().map(|()| config)
    }

    #[test]
    fn what_cannot_work_is_named() {
        assert_eq!(check("container = 'c'").unwrap().window.0, 64 << 20);
        assert!(check(&format!("container = '{}'\nmulti_tenant = true", "c".repeat(46))).is_ok());
        assert!(check("container = 'c'\nauth_url = 'http://127.0.0.1:5000/v3'\nprefix = 'a/b/'").is_ok());
        for (text, named) in [
            ("", "`container`"),
            ("container = 'a/b'", "`container`"),
            ("container = '..'", "`container`"),
            ("container = 'c'\nsegment_container = 'c'", "`segment_container`"),
            ("container = 'c'\nsegment_container = 's'\nmulti_tenant = true", "`segment_container`"),
            ("container = 'c'\nprefix = 'a//b/'", "`prefix`"),
            ("container = 'c'\nprefix = 'a/../b'", "`prefix`"),
            ("container = 'c'\ncontainer_seed = 33", "`container_seed`"),
            ("container = 'c'\ncontainer_seed = 2\nmulti_tenant = true", "`container_seed`"),
            ("container = 'c'\nreference = 'a/b'", "`reference`"),
            ("container = 'c'\nauth_url = 'keystone'", "`auth_url`"),
            ("container = 'c'\nauth_url = 'http://key:hunter2@host'", "`auth_url`"),
            ("container = 'c'\nendpoint = 'ftp://host'", "`endpoint`"),
            ("container = 'c'\nsegment_size = '64KiB'", "`segment_size`"),
            ("container = 'c'\nwindow = '1MiB'", "`window`"),
            ("container = 'c'\nconcurrency = 0", "`concurrency`"),
            ("container = 'c'\nread_size = 1", "`read_size`"),
            ("container = 'c'\nservice_user = 'glance'", "`service_password`"),
            ("container = 'c'\nexpire = '1ms'", "`expire`"),
            ("container = 'c'\ninterface = 'other'", "`interface`"),
            ("container = 'c'\npasword = 'hunter2'", "`pasword`"),
            (&format!("container = '{}'\nmulti_tenant = true", "c".repeat(47)), "`container`"),
            (&format!("container = '{}'\ncontainer_seed = 2", "c".repeat(183)), "`container`"),
        ] {
            let error = check(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{text}");
            assert!(error.message().contains(named), "{text}: {error}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }

    #[test]
    fn the_readme_has_every_key() {
        // An unknown key is answered with the known ones.
        let error = check("x = 1").unwrap_err();
        let keys: Vec<&str> = error.message().split('`').skip(3).step_by(2).collect();
        assert!(keys.len() > 40, "{error}");
        let readme = include_str!("../README.md");
        let rows: Vec<&str> = readme.lines().filter(|line| line.starts_with("| `")).collect();
        for key in keys {
            let key = format!("`{key}`");
            assert!(rows.iter().any(|row| row.split(" | ").next().unwrap().contains(&key)), "{key}");
        }
    }

    #[test]
    fn secrets_never_show() {
        let keys = ["password", "application_credential_secret", "token", "temp_url_key", "service_password"];
        let text: String = keys.iter().map(|key| format!("{key} = 'hunter2'\n")).collect();
        let config = check(&format!("container = 'c'\nservice_user = 's'\n{text}")).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
