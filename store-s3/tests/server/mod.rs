//! Real servers, started by `testservers/minio`, and buckets in them.

use std::{
    collections::HashMap,
    path::Path,
    process::{Command, Stdio},
};

use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use store_core::Secret;
use store_s3::S3Config;

/// A server that runs until this process ends.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) endpoint: String,
    pub(crate) region: String,
    pub(crate) access_key: String,
    pub(crate) secret_key: String,
    pub(crate) pid: u32,
    pub(crate) ca_file: Option<String>,
}

fn script(arguments: &[&str]) -> Result<String, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testservers/minio");
    let output = Command::new(path)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("testservers/minio cannot be run: {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(said.trim().to_owned()),
    }
}

impl Server {
    /// Starts one; `name` tells those of one process apart.
    pub(crate) fn start(name: &str, options: &[&str]) -> Result<Self, String> {
        let process = std::process::id().to_string();
        let name = format!("{name}-{process}");
        let mut arguments = vec!["start", "--name", &name, "--owner", &process];
        arguments.extend(options);
        let lines = script(&arguments)?;
        let lines: HashMap<&str, &str> = lines.lines().filter_map(|line| line.split_once('=')).collect();
        let value = |key: &str| lines.get(key).map(|value| value.to_string());
        let needed = |key: &str| value(key).ok_or_else(|| format!("testservers/minio prints no {key}"));
        Ok(Self {
            endpoint: needed("ENDPOINT")?,
            region: needed("REGION")?,
            access_key: needed("ACCESS_KEY")?,
            secret_key: needed("SECRET_KEY")?,
            pid: needed("PID")?.parse().map_err(|_| "PID is no number")?,
            ca_file: value("CA_FILE"),
            name,
        })
    }

    /// Ends it, and removes its data.
    pub(crate) fn stop(&self) -> Result<(), String> {
        script(&["stop", &self.name]).map(drop)
    }

    /// Host and port.
    pub(crate) fn address(&self) -> &str {
        self.endpoint.split_once("://").map_or(&self.endpoint, |(_, address)| address)
    }

    /// The settings of a store in `bucket`, which it creates.
    pub(crate) fn config(&self, bucket: &str) -> S3Config {
        let mut config = S3Config::new(bucket);
        config.endpoint = Some(self.endpoint.clone());
        config.region = Some(self.region.clone());
        config.access_key = Some(Secret::new(&self.access_key));
        config.secret_key = Some(Secret::new(&self.secret_key));
        config.create_bucket = true;
        config.ca_file = self.ca_file.as_ref().map(Into::into);
        config
    }

    /// A client that goes past the store.
    pub(crate) fn client(&self) -> aws_sdk_s3::Client {
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .endpoint_url(&self.endpoint)
            .region(Region::new(self.region.clone()))
            .credentials_provider(Credentials::new(&self.access_key, &self.secret_key, None, None, "test"))
            .force_path_style(true)
            .build();
        aws_sdk_s3::Client::from_conf(config)
    }
}

/// A name that no other bucket has.
pub(crate) fn bucket() -> String {
    format!("test-{}", store_core::BlobId::random())
}
