//! Real servers, started by `testservers/swift`, and requests that go past the store.

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use md5::{Digest, Md5};
use reqwest::{Method, Response, header::HeaderMap};
use store_core::{Location, Secret};
use store_swift::SwiftConfig;

pub(crate) mod front;
pub(crate) mod scripted;

/// A server that runs until this process ends.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    script: &'static str,
    pub(crate) name: String,
    lines: HashMap<String, String>,
}

fn script(name: &str, arguments: &[&str]) -> Result<String, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testservers").join(name);
    let output = Command::new(path)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("testservers/{name} cannot be run: {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(said.trim().to_owned()),
    }
}

impl Server {
    /// Starts one; `name` tells those of one process apart.
    pub(crate) fn start(name: &str, options: &[&str]) -> Result<Self, String> {
        Self::of("swift", name, options)
    }

    /// Ceph's object gateway, which speaks Swift's protocol with tokens of version 1.
    pub(crate) fn start_ceph(name: &str) -> Result<Self, String> {
        let mut server = Self::of("ceph", name, &["--rgw"])?;
        for (theirs, ours) in
            [("SWIFT_AUTH_URL", "AUTH_URL"), ("SWIFT_USER", "ACCOUNT_USER"), ("SWIFT_KEY", "ACCOUNT_KEY")]
        {
            let value = server.get(theirs).to_owned();
            server.lines.insert(ours.to_owned(), value);
        }
        let address = server.get("AUTH_URL").split('/').nth(2).unwrap_or_default().to_owned();
        server.lines.insert("ADDRESS".to_owned(), address);
        Ok(server)
    }

    fn of(program: &'static str, name: &str, options: &[&str]) -> Result<Self, String> {
        let process = std::process::id().to_string();
        let name = format!("{name}-{process}");
        let mut arguments = vec!["start", "--name", &name, "--owner", &process];
        arguments.extend(options);
        let lines = script(program, &arguments)?;
        let lines = lines.lines().filter_map(|line| line.split_once('='));
        let lines = lines.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        Ok(Self { script: program, name, lines })
    }

    /// Ends it, and removes its data.
    pub(crate) fn stop(&self) -> Result<(), String> {
        script(self.script, &["stop", &self.name]).map(drop)
    }

    /// Ends one of its services.
    pub(crate) fn pause(&self, service: &str) -> Result<(), String> {
        script(self.script, &["pause", &self.name, service]).map(drop)
    }

    /// Starts it again.
    pub(crate) fn resume(&self, service: &str) -> Result<(), String> {
        script(self.script, &["resume", &self.name, service]).map(drop)
    }

    /// Has the object server send the container server what it owes it.
    pub(crate) fn update(&self) -> Result<(), String> {
        script(self.script, &["update", &self.name]).map(drop)
    }

    /// Has it forget all tokens that it gave out: they are in memcached alone.
    pub(crate) fn forget(&self) -> Result<(), String> {
        // Its clock has seconds: what came in this one would stay.
        std::thread::sleep(Duration::from_secs(2));
        let reply = self.memcached(b"flush_all\r\n")?;
        if reply.starts_with(b"OK") { Ok(()) } else { Err(String::from_utf8_lossy(&reply).into_owned()) }
    }

    /// What it remembers of an account, to be remembered again: as `memcached` writes it.
    pub(crate) fn remembered(&self, account: &str) -> Result<Vec<u8>, String> {
        let key = hex::encode(Md5::digest(format!("account/{account}")));
        let reply = self.memcached(format!("get {key}\r\n").as_bytes())?;
        let value = reply.strip_prefix(format!("VALUE {key} ").as_bytes());
        let value = value.and_then(|value| value.strip_suffix(b"END\r\n"));
        let (flags, rest) =
            value.and_then(|v| v.split_at_checked(v.iter().position(|b| *b == b' ')?)).ok_or("nothing")?;
        Ok([format!("set {key} ").as_bytes(), flags, b" 60", rest].concat())
    }

    pub(crate) fn remember(&self, account: &[u8]) -> Result<(), String> {
        let reply = self.memcached(account)?;
        if reply == b"STORED\r\n" { Ok(()) } else { Err(String::from_utf8_lossy(&reply).into_owned()) }
    }

    fn memcached(&self, command: &[u8]) -> Result<Vec<u8>, String> {
        let ports = std::fs::read_to_string(Path::new(self.get("FOLDER")).join("ports"));
        let ports = ports.map_err(|e| e.to_string())?;
        let port = ports.lines().find_map(|line| line.strip_prefix("memcached=")).ok_or("no memcached")?;
        let mut line = TcpStream::connect(format!("127.0.0.1:{port}")).map_err(|e| e.to_string())?;
        line.write_all(&[command, b"quit\r\n"].concat()).map_err(|e| e.to_string())?;
        let mut reply = Vec::new();
        line.read_to_end(&mut reply).map_err(|e| e.to_string())?;
        Ok(reply)
    }

    /// What the script printed.
    pub(crate) fn get(&self, key: &str) -> &str {
        self.lines.get(key).map_or("", String::as_str)
    }

    /// The settings of a store in `container`, which it creates, with version 1.
    pub(crate) fn config(&self, container: &str) -> SwiftConfig {
        let mut config = SwiftConfig::new(container);
        config.auth_url = Some(self.get("AUTH_URL").to_owned());
        config.user = Some(self.get("ACCOUNT_USER").to_owned());
        config.password = Some(Secret::new(self.get("ACCOUNT_KEY")));
        config.create_container = true;
        config
    }

    /// The same with Keystone.
    pub(crate) fn keystone(&self, container: &str) -> SwiftConfig {
        let mut config = SwiftConfig::new(container);
        config.auth_url = Some(self.get("KEYSTONE_URL").to_owned());
        config.user = Some(self.get("USERNAME").to_owned());
        config.password = Some(Secret::new(self.get("PASSWORD")));
        config.project = Some(self.get("PROJECT").to_owned());
        config.region = Some(self.get("REGION").to_owned());
        config.create_container = true;
        config
    }

    /// Requests with version 1, in the account of `images`.
    pub(crate) async fn raw(&self) -> Result<Raw, String> {
        self.raw_as(self.get("ACCOUNT_USER"), self.get("ACCOUNT_KEY")).await
    }

    pub(crate) async fn raw_as(&self, user: &str, key: &str) -> Result<Raw, String> {
        let http = reqwest::Client::new();
        let call = http.get(self.get("AUTH_URL")).header("x-auth-user", user).header("x-auth-key", key);
        let reply = call.send().await.map_err(|e| e.to_string())?;
        let header = |name: &str| {
            let value = reply.headers().get(name).and_then(|value| value.to_str().ok());
            value.map(str::to_owned).ok_or_else(|| format!("no {name}"))
        };
        Ok(Raw { token: header("x-auth-token")?, storage: header("x-storage-url")?, http })
    }

    /// Requests with Keystone, in the account of the project.
    pub(crate) async fn raw_keystone(&self) -> Result<Raw, String> {
        let http = reqwest::Client::new();
        let id = serde_json::json!({ "id": "default" });
        let body = serde_json::json!({ "auth": {
            "identity": { "methods": ["password"], "password": { "user":
                { "name": self.get("USERNAME"), "domain": id, "password": self.get("PASSWORD") } } },
            "scope": { "project": { "name": self.get("PROJECT"), "domain": id } } } });
        let call = http.post(format!("{}/auth/tokens", self.get("KEYSTONE_URL")));
        let call = call.header("content-type", "application/json").body(body.to_string());
        let reply = call.send().await.map_err(|e| e.to_string())?;
        let token = reply.headers().get("x-subject-token").and_then(|token| token.to_str().ok());
        let token = token.ok_or("no token")?.to_owned();
        let storage = format!("http://{}/v1/AUTH_{}", self.get("KEYSTONE_ADDRESS"), self.get("PROJECT_ID"));
        Ok(Raw { http, token, storage })
    }
}

/// Requests that go past the store.
#[derive(Clone, Debug)]
pub(crate) struct Raw {
    http: reqwest::Client,
    token: String,
    pub(crate) storage: String,
}

impl Raw {
    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: impl Into<reqwest::Body>,
    ) -> Result<Response, String> {
        let call = self.http.request(method.clone(), format!("{}{path}", self.storage));
        let (call, body) = (call.headers(headers).header("x-auth-token", &self.token), body.into());
        let empty = body.as_bytes().is_some_and(<[u8]>::is_empty);
        // Swift wants the length even of nothing.
        let call = if empty { call.header("content-length", "0") } else { call.body(body) };
        let reply = call.send().await.map_err(|e| e.to_string())?;
        match reply.status().is_success() {
            true => Ok(reply),
            false => Err(format!("{method} {path}: {}", reply.status())),
        }
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Response, String> {
        self.call(method, path, map(headers), Vec::new()).await
    }

    pub(crate) async fn put(&self, path: &str, bytes: impl Into<reqwest::Body>) -> Result<(), String> {
        self.call(Method::PUT, path, HeaderMap::new(), bytes).await.map(drop)
    }

    pub(crate) async fn delete(&self, path: &str) -> Result<(), String> {
        self.send(Method::DELETE, path, &[]).await.map(drop)
    }

    /// Names in a container.
    pub(crate) async fn list(&self, container: &str) -> Result<Vec<String>, String> {
        let reply = match self.send(Method::GET, &format!("/{container}"), &[]).await {
            Err(error) if error.contains("404") => return Ok(Vec::new()),
            reply => reply?,
        };
        let text = reply.text().await.map_err(|e| e.to_string())?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Removes a container, that of its segments, and what is in them.
    pub(crate) async fn remove(&self, container: &str) -> Result<(), String> {
        for container in [container.to_owned(), format!("{container}_segments")] {
            let names = self.list(&container).await?;
            let lines = names.iter().map(|name| format!("/{container}/{}", encoded(name)));
            let lines: Vec<String> = lines.chain([format!("/{container}")]).collect();
            let headers = map(&[("content-type", "text/plain")]);
            self.call(Method::POST, "?bulk-delete", headers, lines.join("\n")).await?;
        }
        Ok(())
    }
}

pub(crate) fn map(headers: &[(&str, &str)]) -> HeaderMap {
    let pairs = headers.iter().filter_map(|(name, value)| {
        Some((reqwest::header::HeaderName::try_from(*name).ok()?, value.parse().ok()?))
    });
    pairs.collect()
}

pub(crate) fn encoded(name: &str) -> String {
    name.split('/').map(Location::encode_segment).collect::<Vec<_>>().join("/")
}

/// A name that no other container has.
pub(crate) fn container() -> String {
    format!("test-{}", store_core::BlobId::random())
}
