use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};
use store_core::{Backend, Config, Error, ErrorKind, Result, Secret, Size};

use crate::S3Backend;

/// Settings of an S3 store.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct S3Config {
    /// The bucket.
    pub bucket: String,
    /// `http://` or `https://`, host and port of the server; Amazon's own for the region where it is not set.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// The region to sign for. Where it is not set: `us-east-1` at an `endpoint`, else what the environment says.
    #[serde(default)]
    pub region: Option<String>,
    /// What all keys start with, such as `images/`: with a slash at its end, or else the store `a` has the blobs of `ab` in it.
    #[serde(default)]
    pub prefix: String,
    /// Access key; without it, the SDK's chain of variables, profiles and instance roles is asked.
    #[serde(default)]
    pub access_key: Option<Secret>,
    /// Secret key.
    #[serde(default)]
    pub secret_key: Option<Secret>,
    /// Token of temporary credentials.
    #[serde(default)]
    pub session_token: Option<Secret>,
    /// The profile of the SDK's files that credentials are taken from; without it, what the environment says.
    #[serde(default)]
    pub profile: Option<String>,
    /// Whether the bucket is named in the path or in the host.
    #[serde(default)]
    pub path_style: PathStyle,
    /// Creates the bucket if it is missing.
    #[serde(default)]
    pub create_bucket: bool,
    /// How the server can tell that what it received is what was sent.
    #[serde(default)]
    pub checksum: Checksum,
    /// The least size of a part; smaller blobs are sent in one piece.
    #[serde(default = "part_size")]
    pub part_size: Size,
    /// Parts of an upload, or pieces of a download, that are on their way at once.
    #[serde(default = "concurrency")]
    pub concurrency: u32,
    /// The most memory that the parts of one upload take.
    #[serde(default = "window")]
    pub window: Size,
    /// The size of the pieces that a download asks for.
    #[serde(default = "read_size")]
    pub read_size: Size,
    /// Storage class of blobs; the bucket's own where it is not set.
    #[serde(default)]
    pub storage_class: Option<String>,
    /// Tags of blobs.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// Encryption by the server; the bucket's own setting where it is not set.
    #[serde(default)]
    pub sse: Option<Sse>,
    /// The key to encrypt with, for `sse = "kms"`.
    #[serde(default)]
    pub sse_kms_key: Option<String>,
    /// The key to encrypt with, for `sse = "customer"`: 32 bytes in base64, which the server does not keep.
    #[serde(default)]
    pub sse_customer_key: Option<Secret>,
    /// The proxy to go through: `http://`, host and port; `"environment"` for what variables such as `HTTPS_PROXY` and
    /// `NO_PROXY` say. The first is not asked for what is on this host or its link.
    #[serde(default)]
    pub proxy: Option<Secret>,
    /// Certificates in PEM that are trusted besides those of the system.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Whether the server refuses to replace an object when it is asked to (`If-None-Match: *`).
    #[serde(default)]
    pub conditional_writes: Conditional,
    /// What stands for the server in locations, a host or a host and a port; those of the endpoint where it is not set.
    #[serde(default)]
    pub location_host: Option<String>,
}

/// Where the bucket is named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PathStyle {
    /// In the path at an `endpoint`, in the host's name at Amazon.
    #[default]
    Auto,
    /// In the path.
    On,
    /// In the host's name.
    Off,
}

/// How the server can tell that what it received is what was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Checksum {
    /// The request's signature covers a SHA-256 of the content. Every server checks it.
    #[default]
    Sha256,
    /// An MD5 in `Content-MD5`. Every server checks it, and its computation is the slowest.
    Md5,
    /// A CRC-32C, which the server also keeps. Cheap; needs Amazon, or a server of 2023 or later.
    Crc32c,
    /// A CRC-64/NVME, which the server also keeps. Cheap; needs Amazon, or a server of 2025 or later.
    Crc64nvme,
    /// None: what TLS does is enough.
    None,
}

/// Whether the server honours `If-None-Match: *`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Conditional {
    /// Tried out with the first upload; Amazon's server is known to.
    #[default]
    Auto,
    /// It does.
    On,
    /// It does for an object that is written in one piece, not for one that is made of parts.
    Put,
    /// It does not.
    Off,
}

/// Encryption by the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Sse {
    /// With keys of the storage (`AES256`).
    Aes256,
    /// With a key of the key management service (`aws:kms`).
    Kms,
    /// With a key that is sent along with each request and that the server forgets (SSE-C); refused without TLS.
    ///
    /// The SDK's crates show it at the level `trace`, which no log should have of them.
    Customer,
}

/// The least size of a part that is not the last one.
pub(crate) const MIN_PART: u64 = 5 << 20;

/// The largest part.
pub(crate) const MAX_PART: u64 = 5 << 30;

fn part_size() -> Size {
    Size(8 << 20)
}

fn read_size() -> Size {
    Size(32 << 20)
}

fn window() -> Size {
    Size(64 << 20)
}

fn concurrency() -> u32 {
    8
}

impl S3Config {
    /// The settings of a store in `bucket`, all else as by default.
    pub fn new(bucket: impl Into<String>) -> Self {
        Self {
            bucket: bucket.into(),
            endpoint: None,
            region: None,
            prefix: String::new(),
            access_key: None,
            secret_key: None,
            session_token: None,
            profile: None,
            path_style: PathStyle::default(),
            create_bucket: false,
            checksum: Checksum::default(),
            part_size: part_size(),
            concurrency: concurrency(),
            window: window(),
            read_size: read_size(),
            storage_class: None,
            tags: BTreeMap::new(),
            sse: None,
            sse_kms_key: None,
            sse_customer_key: None,
            proxy: None,
            ca_file: None,
            conditional_writes: Conditional::default(),
            location_host: None,
        }
    }

    /// Finds what cannot work before anything is sent.
    pub(crate) fn check(&self) -> Result<()> {
        let invalid = |message: String| Err(Error::new(ErrorKind::Invalid, message));
        if self.bucket.is_empty() || self.bucket.contains(['/', ':', '@']) {
            return invalid(format!("`bucket` {:?} is no bucket's name", self.bucket));
        }
        if self.access_key.is_some() != self.secret_key.is_some() {
            return invalid("`access_key` and `secret_key` go together; one of them is missing".to_owned());
        }
        if self.session_token.is_some() && self.access_key.is_none() {
            return invalid("`session_token` belongs to an `access_key`, which is missing".to_owned());
        }
        if let Some(endpoint) = &self.endpoint {
            host_of(endpoint)?;
        }
        if let Some(host) = self.location_host.as_ref().filter(|host| !is_host(host)) {
            return invalid(format!("`location_host` {host:?} is not a host, or a host and a port"))
                .map_err(|error: Error| error.with_hint("one looks like s3.example.org:9000"));
        }
        let segments_fit = self.prefix.split('/').rev().skip(1).all(|part| !["", ".", ".."].contains(&part));
        if !segments_fit || self.prefix.len() > 512 || self.prefix.chars().any(char::is_control) {
            return invalid(format!("`prefix` {:?} must be parts with single slashes between", self.prefix))
                .map_err(|error: Error| error.with_hint("a prefix looks like images/ or cloud/images/"));
        }
        if !(MIN_PART..=MAX_PART).contains(&self.part_size.0) {
            return invalid(format!("`part_size` {} is not from 5 MiB to 5 GiB", self.part_size));
        }
        if self.window < self.part_size {
            return invalid(format!("`window` {} holds no part of {}", self.window, self.part_size));
        }
        if !(1..=256).contains(&self.concurrency) {
            return invalid(format!("`concurrency` {} is not from 1 to 256", self.concurrency));
        }
        if self.read_size.0 < 64 << 10 || self.read_size.0 > 1 << 30 {
            return invalid(format!("`read_size` {} is not from 64 KiB to 1 GiB", self.read_size));
        }
        if self.sse_kms_key.is_some() && self.sse != Some(Sse::Kms) {
            return invalid("`sse_kms_key` needs `sse` = \"kms\"".to_owned());
        }
        if self.sse_customer_key.is_some() != (self.sse == Some(Sse::Customer)) {
            return invalid("`sse` = \"customer\" and `sse_customer_key` go together".to_owned());
        }
        if self.sse == Some(Sse::Customer)
            && self.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"))
        {
            return invalid(
                "`sse` = \"customer\" sends its key along: it needs an `endpoint` of https://".to_owned(),
            );
        }
        if self.profile.is_some() && self.access_key.is_some() {
            return invalid("of `profile` and `access_key`, only one can be used".to_owned());
        }
        if self.tags.len() > 10 {
            return invalid(format!("`tags` has {} tags; S3 takes 10", self.tags.len()));
        }
        Ok(())
    }
}

/// Host and port of an endpoint.
pub(crate) fn host_of(endpoint: &str) -> Result<&str> {
    let rest = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
    let host = rest.map(|rest| rest.strip_suffix('/').unwrap_or(rest));
    // Not quoted: it may hold credentials.
    host.filter(|host| is_host(host)).ok_or_else(|| {
        Error::new(ErrorKind::Invalid, "`endpoint` is not http:// or https:// with a host and a port")
            .with_hint("an endpoint looks like https://s3.example.org:9000; credentials have their own keys")
    })
}

/// Whether it is a host, with a port or without: what a location can be read back with.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let fits = match inner {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)),
    };
    fits && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

impl Config for S3Config {
    const TYPE: &'static str = "s3";

    fn check(&self) -> Result<()> {
        Self::check(self)
    }

    fn read_only(&mut self) {
        self.create_bucket = false;
    }

    async fn connect(self, _: &str) -> Result<Arc<dyn Backend>> {
        Ok(Arc::new(Box::pin(S3Backend::connect(&self)).await?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use store_core::Settings;

    use super::*;

    fn check(text: &str) -> Result<S3Config> {
        let settings = Settings::parse(&format!("[stores.a]\ntype = 's3'\n{text}"))?;
        let config: S3Config = settings.section("a")?.backend()?;
        config.check().map(|()| config)
    }

    #[test]
    fn what_cannot_work_is_named() {
        assert_eq!(check("bucket = 'b'").unwrap().window.0, 64 << 20);
        assert!(check("bucket = 'b'\nendpoint = 'http://127.0.0.1:9000/'\nprefix = 'a/b/'").is_ok());
        for host in ["s3.example.org", "s3_a:9000", "127.0.0.1:9000", "[::1]", "[::1]:9000"] {
            assert!(check(&format!("bucket = 'b'\nlocation_host = '{host}'")).is_ok(), "{host}");
        }
        for (text, named) in [
            ("", "`bucket`"),
            ("bucket = 'a/b'", "`bucket`"),
            ("bucket = 'b'\naccess_key = 'x'", "`secret_key`"),
            ("bucket = 'b'\nsession_token = 'x'", "`session_token`"),
            ("bucket = 'b'\nendpoint = 's3.example.org'", "`endpoint`"),
            ("bucket = 'b'\nendpoint = 'http://key:hunter2@host'", "`endpoint`"),
            ("bucket = 'b'\nendpoint = 'http://host/path'", "`endpoint`"),
            ("bucket = 'b'\nendpoint = 'http://host:port'", "`endpoint`"),
            ("bucket = 'b'\nlocation_host = 'https://s3.example.org'", "`location_host`"),
            ("bucket = 'b'\nlocation_host = 's3.example.org/'", "`location_host`"),
            ("bucket = 'b'\nlocation_host = 's3.example.org:'", "`location_host`"),
            ("bucket = 'b'\nlocation_host = '::1'", "`location_host`"),
            ("bucket = 'b'\nlocation_host = ''", "`location_host`"),
            ("bucket = 'b'\nprefix = '/a/'", "`prefix`"),
            ("bucket = 'b'\nprefix = 'a//b/'", "`prefix`"),
            ("bucket = 'b'\nprefix = 'a/../b'", "`prefix`"),
            ("bucket = 'b'\npart_size = '1MiB'", "`part_size`"),
            ("bucket = 'b'\nwindow = '1MiB'", "`window`"),
            ("bucket = 'b'\nconcurrency = 0", "`concurrency`"),
            ("bucket = 'b'\nread_size = 1", "`read_size`"),
            ("bucket = 'b'\nsse_kms_key = 'x'", "`sse_kms_key`"),
            ("bucket = 'b'\nsse = 'customer'", "`sse_customer_key`"),
            ("bucket = 'b'\nsse_customer_key = 'hunter2'", "`sse_customer_key`"),
            (
                "bucket = 'b'\nsse = 'customer'\nsse_customer_key = 'hunter2'\nendpoint = 'http://host'",
                "`endpoint` of https://",
            ),
            ("bucket = 'b'\nprofile = 'x'\naccess_key = 'y'\nsecret_key = 'z'", "`profile`"),
            ("bucket = 'b'\nchecksum = 'crc33'", "`checksum`"),
            ("bucket = 'b'\nacces_key = 'hunter2'", "`acces_key`"),
        ] {
            let error = check(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{text}");
            assert!(error.message().contains(named), "{text}: {error}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_a_configuration_panic(
            text in "(https?://)?\\PC{0,40}", sizes in proptest::array::uniform3(any::<u64>()), concurrency in any::<u32>(),
        ) {
            let mut config = S3Config::new(&*text);
            (config.endpoint, config.prefix) = (Some(text.clone()), text.clone());
            (config.part_size, config.window, config.read_size) = (Size(sizes[0]), Size(sizes[1]), Size(sizes[2]));
            config.concurrency = concurrency;
            let _ = config.check();
            if let Ok(host) = host_of(&text) {
                prop_assert!(!host.is_empty() && !host.contains('@'));
            }
        }
    }

    #[test]
    fn secrets_never_show() {
        let config = check("bucket = 'b'\naccess_key = 'hunter1'\nsecret_key = 'hunter2'").unwrap();
        assert!(!format!("{config:?}").contains("hunter"));
    }
}
