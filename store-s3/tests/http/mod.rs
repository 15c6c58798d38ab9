//! Just enough of HTTP for a server in a test, and for proxies that see requests.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

#[derive(Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    fn length(&self) -> usize {
        self.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// What S3 calls it.
    pub(crate) fn operation(&self) -> &'static str {
        let has = |name: &str| self.query.split('&').any(|pair| pair.split('=').next() == Some(name));
        match self.method.as_str() {
            "GET" if has("list-type") => "ListObjectsV2",
            "GET" if has("uploads") => "ListMultipartUploads",
            "GET" if has("uploadId") => "ListParts",
            "GET" => "GetObject",
            "HEAD" => "HeadObject",
            "PUT" if has("partNumber") && self.header("x-amz-copy-source").is_some() => "UploadPartCopy",
            "PUT" if has("partNumber") => "UploadPart",
            "PUT" => "PutObject",
            "POST" if has("uploads") => "CreateMultipartUpload",
            "POST" => "CompleteMultipartUpload",
            "DELETE" if has("uploadId") => "AbortMultipartUpload",
            "DELETE" => "DeleteObject",
            _ => "",
        }
    }

    /// As it goes on to a server, without its body.
    fn head(&self, path: &str) -> String {
        let query = if self.query.is_empty() { String::new() } else { format!("?{}", self.query) };
        let mut head = format!("{} {path}{query} HTTP/1.1\r\n", self.method);
        for (name, value) in self.headers.iter().filter(|(name, _)| *name != "expect") {
            head += &format!("{name}: {value}\r\n");
        }
        head + "\r\n"
    }
}

/// The next request, without its body.
pub(crate) async fn read_head(client: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    client.read_line(&mut line).await.ok().filter(|len| *len > 0)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next()?, words.next()?);
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        client.read_line(&mut line).await.ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let (path, query) = (path.to_owned(), query.to_owned());
    Some(Request { method, path, query, headers, body: Vec::new() })
}

/// The body that belongs to it.
pub(crate) async fn read_body(client: &mut BufReader<TcpStream>, request: &mut Request) -> Option<()> {
    if request.headers.contains_key("expect") {
        client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.ok()?;
    }
    request.body = vec![0; request.length()];
    client.read_exact(&mut request.body).await.ok().map(drop)
}

/// The next request.
pub(crate) async fn read(client: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut request = read_head(client).await?;
    read_body(client, &mut request).await?;
    Some(request)
}

pub(crate) fn reply(status: &str, headers: &str, body: &[u8], with_body: bool) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
    let mut all = head.into_bytes();
    if with_body {
        all.extend_from_slice(body);
    }
    all
}

/// The reply to a request with that method, all of it.
async fn read_reply(server: &mut BufReader<TcpStream>, method: &str) -> Option<Vec<u8>> {
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let start = head.len();
        server.read_line(&mut head).await.ok().filter(|len| *len > 0)?;
        let line = head[start..].to_ascii_lowercase();
        if let Some(text) = line.strip_prefix("content-length:") {
            length = text.trim().parse().ok()?;
        }
        if line == "\r\n" {
            break;
        }
    }
    let chunked = head.to_ascii_lowercase().contains("\r\ntransfer-encoding: chunked");
    let bodiless = method == "HEAD" || head.contains(" 204 ");
    let mut all = head.into_bytes();
    if bodiless {
        return Some(all);
    }
    loop {
        let mut end = 0;
        if chunked {
            let mut line = String::new();
            server.read_line(&mut line).await.ok().filter(|len| *len > 0)?;
            all.extend_from_slice(line.as_bytes());
            length = usize::from_str_radix(line.trim(), 16).ok()?;
            end = 2;
        }
        let start = all.len();
        all.resize(start + length + end, 0);
        server.read_exact(&mut all[start..]).await.ok()?;
        if !chunked || length == 0 {
            return Some(all);
        }
    }
}

/// A proxy for HTTP that finds every host at one address, and remembers which ones were asked for.
pub(crate) async fn proxy(address: String) -> Result<(String, Arc<Mutex<BTreeSet<String>>>), String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(|e| e.to_string())?;
    let url = format!("http://{}", listener.local_addr().map_err(|e| e.to_string())?);
    let hosts = Arc::new(Mutex::new(BTreeSet::new()));
    let seen = Arc::clone(&hosts);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (address, seen) = (address.clone(), Arc::clone(&seen));
            tokio::spawn(async move {
                let mut client = BufReader::new(client);
                let mut server = BufReader::new(TcpStream::connect(&address).await.ok()?);
                while let Some(request) = read(&mut client).await {
                    // A proxy is asked for whole URLs.
                    let rest = request.path.strip_prefix("http://")?;
                    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
                    seen.lock().unwrap().insert(host.to_owned());
                    server.write_all(request.head(&format!("/{path}")).as_bytes()).await.ok()?;
                    server.write_all(&request.body).await.ok()?;
                    let reply = read_reply(&mut server, &request.method).await?;
                    client.write_all(&reply).await.ok()?;
                }
                Some(())
            });
        }
    });
    Ok((url, hosts))
}

/// Where the connection breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Break {
    /// The server hears nothing.
    Before,
    /// The server hears half of the body; of a request that has none, half of its head.
    Middle,
    /// The server hears all, and nobody waits for its reply.
    After,
    /// The server hears all, but only when the client has tried again.
    Late,
    /// The server replies, and the reply is lost.
    Reply,
    /// Half of the reply arrives.
    HalfReply,
    /// It does not break, but nothing goes through it any more: of a body, from its start.
    Deaf,
    /// Nor here: the server has heard all, and is silent.
    Dumb,
}

impl Break {
    /// Where it breaks at once.
    pub(crate) const ALL: [Self; 6] =
        [Self::Before, Self::Middle, Self::After, Self::Late, Self::Reply, Self::HalfReply];
}

/// How long a late request takes.
const LATE: Duration = Duration::from_secs(2);

/// A proxy in front of a server that breaks the connection under one request of a kind.
pub(crate) struct Breaker {
    pub(crate) url: String,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    armed: Mutex<Option<(&'static str, usize, Break)>>,
    fired: AtomicBool,
    /// The broken request is not under way any more.
    over: AtomicBool,
}

impl State {
    fn take(&self, request: &Request) -> Option<Break> {
        let mut armed = self.armed.lock().unwrap();
        let (_, skip, _) = armed.as_mut().filter(|(operation, ..)| *operation == request.operation())?;
        if *skip > 0 {
            *skip -= 1;
            return None;
        }
        let (.., at) = armed.take()?;
        self.fired.store(true, Ordering::Relaxed);
        Some(at)
    }
}

impl Breaker {
    pub(crate) async fn start(address: &str) -> Result<Self, String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(|e| e.to_string())?;
        let url = format!("http://{}", listener.local_addr().map_err(|e| e.to_string())?);
        let state = Arc::new(State::default());
        let (address, shared) = (address.to_owned(), Arc::clone(&state));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (address, state) = (address.clone(), Arc::clone(&shared));
                tokio::spawn(async move {
                    let mut client = BufReader::new(client);
                    let mut server = BufReader::new(TcpStream::connect(&address).await.ok()?);
                    while let Some(mut request) = read_head(&mut client).await {
                        let at = state.take(&request);
                        if at != Some(Break::Deaf) {
                            read_body(&mut client, &mut request).await?;
                        }
                        if matches!(at, Some(Break::Deaf | Break::Dumb)) {
                            std::future::pending::<()>().await;
                        }
                        let (mut head, mut body) =
                            (request.head(&request.path).into_bytes(), &request.body[..]);
                        match at {
                            Some(Break::Before) => return None,
                            Some(Break::Middle) if body.is_empty() => head.truncate(head.len() / 2),
                            Some(Break::Middle) => body = &body[..body.len() / 2],
                            _ => {}
                        }
                        if at == Some(Break::Late) {
                            drop(client);
                            tokio::time::sleep(LATE).await;
                            if server.write_all(&[&head, body].concat()).await.is_ok() {
                                read_reply(&mut server, &request.method).await;
                            }
                            state.over.store(true, Ordering::Relaxed);
                            return None;
                        }
                        server.write_all(&head).await.ok()?;
                        server.write_all(body).await.ok()?;
                        if matches!(at, Some(Break::Middle | Break::After)) {
                            return None;
                        }
                        let mut reply = read_reply(&mut server, &request.method).await?;
                        match at {
                            Some(Break::Reply) => return None,
                            Some(Break::HalfReply) => reply.truncate(reply.len() / 2),
                            _ => {}
                        }
                        client.write_all(&reply).await.ok()?;
                        if at.is_some() {
                            return None;
                        }
                    }
                    Some(())
                });
            }
        });
        Ok(Self { url, state })
    }

    /// Breaks one request of that kind, after `skip` others.
    pub(crate) fn arm(&self, operation: &'static str, skip: usize, at: Break) {
        *self.state.armed.lock().unwrap() = Some((operation, skip, at));
    }

    /// Whether there was one.
    pub(crate) fn has_fired(&self) -> bool {
        self.state.fired.load(Ordering::Relaxed)
    }

    /// Waits until a late request has arrived.
    pub(crate) async fn late(&self) {
        while !self.state.over.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// A way to a server over TLS, with a certificate of an authority of its own.
pub(crate) struct Tls {
    pub(crate) url: String,
    folder: tempfile::TempDir,
}

impl Tls {
    pub(crate) async fn start(address: &str) -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
        certificates(folder.path())?;
        let read = |name: &str| std::fs::read(folder.path().join(name)).map_err(|e| e.to_string());
        let certificate = CertificateDer::from_pem_slice(&read("server.pem")?).map_err(|e| e.to_string())?;
        let key = PrivateKeyDer::from_pem_slice(&read("server.key")?).map_err(|e| e.to_string())?;
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key);
        let acceptor = TlsAcceptor::from(Arc::new(config.map_err(|e| e.to_string())?));
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(|e| e.to_string())?;
        let port = listener.local_addr().map_err(|e| e.to_string())?.port();
        let address = address.to_owned();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (address, acceptor) = (address.clone(), acceptor.clone());
                tokio::spawn(async move {
                    let mut client = acceptor.accept(client).await.ok()?;
                    let mut server = TcpStream::connect(&address).await.ok()?;
                    tokio::io::copy_bidirectional(&mut client, &mut server).await.ok()
                });
            }
        });
        Ok(Self { url: format!("https://127.0.0.1:{port}"), folder })
    }

    /// The authority's certificate.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }
}

fn certificates(folder: &Path) -> Result<(), String> {
    std::fs::write(folder.join("ext"), "subjectAltName=IP:127.0.0.1").map_err(|e| e.to_string())?;
    for line in [
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem",
        "req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr",
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out server.pem",
    ] {
        let openssl = Command::new("openssl").args(line.split(' ')).current_dir(folder).output();
        let openssl = openssl.map_err(|e| format!("openssl: {e}"))?;
        if !openssl.status.success() {
            return Err(String::from_utf8_lossy(&openssl.stderr).into_owned());
        }
    }
    Ok(())
}
