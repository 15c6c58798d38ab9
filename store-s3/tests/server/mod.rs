//! Real servers, started by the scripts in `testservers`, and buckets in them.

use std::{
    collections::HashMap,
    path::Path,
    process::{Command, Stdio},
};

use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode};
use store_core::Secret;
use store_s3::S3Config;

/// A server that runs until this process ends.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    kind: Kind,
    pub(crate) name: String,
    pub(crate) endpoint: String,
    pub(crate) region: String,
    pub(crate) access_key: String,
    pub(crate) secret_key: String,
    pub(crate) pid: u32,
    pub(crate) ca_file: Option<String>,
    /// The ARN of a role that the user may assume.
    pub(crate) role: Option<String>,
    /// The configuration of the cluster that it is the gateway of.
    conf: Option<String>,
}

/// Which script starts a server, and what stands before the names of its S3 lines.
#[derive(Clone, Copy, Debug)]
struct Kind {
    script: &'static str,
    prefix: &'static str,
    pid: &'static str,
}

const MINIO: Kind = Kind { script: "minio", prefix: "", pid: "PID" };
const RGW: Kind = Kind { script: "ceph", prefix: "S3_", pid: "RGW_PID" };
const SWIFT: Kind = Kind { script: "swift", prefix: "S3_", pid: "PID" };

fn script(kind: Kind, arguments: &[&str]) -> Result<String, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testservers").join(kind.script);
    let output = Command::new(path)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("testservers/{} cannot be run: {e}", kind.script))?;
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(said.trim().to_owned()),
    }
}

impl Server {
    /// Starts a MinIO; `name` tells those of one process apart.
    pub(crate) fn start(name: &str, options: &[&str]) -> Result<Self, String> {
        Self::start_kind(MINIO, name, options)
    }

    /// Starts a Ceph object gateway.
    pub(crate) fn start_rgw(name: &str, options: &[&str]) -> Result<Self, String> {
        Self::start_kind(RGW, name, &[&["--rgw"], options].concat())
    }

    /// Starts Swift with its S3 API.
    pub(crate) fn start_swift(name: &str, options: &[&str]) -> Result<Self, String> {
        // Swift merges parts into one object with a request for at most 1000 of them, unless told otherwise.
        Self::start_kind(SWIFT, name, &[&["--s3", "--max-segments", "10000"], options].concat())
    }

    fn start_kind(kind: Kind, name: &str, options: &[&str]) -> Result<Self, String> {
        let process = std::process::id().to_string();
        let name = format!("{name}-{process}");
        let mut arguments = vec!["start", "--name", &name, "--owner", &process];
        arguments.extend(options);
        Self::lines(kind, &name, &arguments)
    }

    /// What the script of a server says of it.
    fn lines(kind: Kind, name: &str, arguments: &[&str]) -> Result<Self, String> {
        let lines = script(kind, arguments)?;
        let lines: HashMap<&str, &str> = lines.lines().filter_map(|line| line.split_once('=')).collect();
        let value = |key: &str| lines.get(key).map(|value| value.to_string());
        let needed =
            |key: &str| value(key).ok_or_else(|| format!("testservers/{} prints no {key}", kind.script));
        let own = |key: &str| needed(&format!("{}{key}", kind.prefix));
        Ok(Self {
            kind,
            endpoint: own("ENDPOINT")?,
            region: own("REGION")?,
            access_key: own("ACCESS_KEY")?,
            secret_key: own("SECRET_KEY")?,
            pid: needed(kind.pid)?.parse().map_err(|_| "PID is no number")?,
            ca_file: value("CA_FILE"),
            role: value("S3_ROLE"),
            conf: value("CONF"),
            name: name.to_owned(),
        })
    }

    /// Ends it, and removes its data.
    pub(crate) fn stop(&self) -> Result<(), String> {
        script(self.kind, &["stop", &self.name]).map(drop)
    }

    /// Kills it as a power cut would.
    pub(crate) fn kill(&self) -> Result<(), String> {
        let killed = Command::new("kill").args(["-KILL", &self.pid.to_string()]).status();
        let killed = killed.map_err(|e| e.to_string())?.success();
        if killed { Ok(()) } else { Err(format!("{} cannot be killed", self.pid)) }
    }

    /// Starts it again, with its data and at the same address.
    pub(crate) fn restart(&self) -> Result<Self, String> {
        match self.is_minio() {
            true => Self::lines(self.kind, &self.name, &["restart", &self.name]),
            false => Self::lines(self.kind, &self.name, &["start", "--rgw", "--name", &self.name]),
        }
    }

    /// Runs a command of the gateway's administrator.
    pub(crate) fn admin(&self, arguments: &[&str]) -> Result<(), String> {
        let conf = self.conf.as_deref().ok_or("it is no gateway")?;
        let output = Command::new("radosgw-admin")
            .args(["-c", conf, "-n", "client.rgw.a"])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .map_err(|e| format!("radosgw-admin: {e}"))?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(format!("{arguments:?}: {said}")) }
    }

    /// The same server as another user sees it, who is made for it.
    pub(crate) fn user(&self, name: &str) -> Result<Self, String> {
        let (access, secret) = (format!("{name}access"), format!("{name}secret"));
        let (user, shown) = (format!("--uid={name}"), format!("--display-name={name}"));
        let keys = [format!("--access-key={access}"), format!("--secret-key={secret}")];
        self.admin(&["user", "create", &user, &shown, &keys[0], &keys[1]])?;
        Ok(Self { access_key: access, secret_key: secret, ..self.clone() })
    }

    /// Whether it is a MinIO, which among others removes a bucket with all that is in it.
    pub(crate) fn is_minio(&self) -> bool {
        self.kind.script == "minio"
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
        let trust = self.ca_file.iter().filter_map(|file| std::fs::read(file).ok());
        let trust = trust.fold(TrustStore::default(), |trust, pem| trust.with_pem_certificate(pem));
        let tls = TlsContext::builder().with_trust_store(trust).build().expect("its own certificates");
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
            .tls_context(tls)
            .build_https();
        let config = aws_sdk_s3::Config::builder()
            .http_client(http)
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
