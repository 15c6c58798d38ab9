//! What stands between a client and a real server: an end of TLS, a line that damages bytes, a count of requests.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

/// Passes on all that comes to a free port; on the runtime of its test, and for as long as that.
#[derive(Debug)]
pub(crate) struct Front {
    pub(crate) addr: SocketAddr,
    watched: Arc<Watched>,
}

#[derive(Debug, Default)]
struct Watched {
    /// The next connection to send so much gets a bit of it turned.
    damages: AtomicBool,
    /// What begins the requests that are counted.
    counted: &'static str,
    count: AtomicUsize,
    /// The first lines of requests, and of their answers.
    requests: Mutex<Vec<String>>,
    answers: Mutex<Vec<String>>,
    /// No answer is given before so many requests have come.
    held: AtomicUsize,
    /// What begins the request whose answer is kept, and what becomes of that.
    caught: Mutex<Option<(String, Caught)>>,
    /// The last token that an answer of Keystone had.
    subject: Mutex<String>,
}

/// An answer that a test waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caught {
    Awaited,
    Kept,
    GivenOn,
    Lost,
}

const METHODS: [&str; 5] = ["GET ", "HEAD ", "PUT ", "POST ", "DELETE "];

/// Far behind the headers of a request, and within the body of one that has a megabyte.
const DAMAGED_AT: usize = 300_000;

impl Front {
    pub(crate) async fn start(
        target: &str,
        tls: Option<&Authority>,
        counted: &'static str,
    ) -> Result<Self, String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(|e| e.to_string())?;
        let addr = listener.local_addr().map_err(|e| e.to_string())?;
        let acceptor = tls.map(Authority::acceptor).transpose()?;
        let watched = Arc::new(Watched { counted, ..Watched::default() });
        let (target, shared) = (target.to_owned(), Arc::clone(&watched));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (target, acceptor, watched) = (target.clone(), acceptor.clone(), Arc::clone(&shared));
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(target).await else { return };
                    match acceptor {
                        None => pass(client, server, &watched).await,
                        Some(acceptor) => {
                            // Whoever does not trust the certificate says so, and goes.
                            if let Ok(client) = acceptor.accept(client).await {
                                pass(client, server, &watched).await;
                            }
                        }
                    }
                });
            }
        });
        Ok(Self { addr, watched })
    }

    /// Turns one bit of the next long request.
    pub(crate) fn damage(&self) {
        self.watched.damages.store(true, Ordering::SeqCst);
    }

    /// Whether that has been done.
    pub(crate) fn has_damaged(&self) -> bool {
        !self.watched.damages.load(Ordering::SeqCst)
    }

    pub(crate) fn count(&self) -> usize {
        self.watched.count.load(Ordering::SeqCst)
    }

    /// The requests so far, without the parts of their paths that are random, in order; they are forgotten.
    pub(crate) fn requests(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.watched.requests))
    }

    /// How many answers had this status.
    pub(crate) fn answers(&self, status: &str) -> usize {
        lock(&self.watched.answers).iter().filter(|line| line.contains(status)).count()
    }

    /// Keeps all answers until so many requests have come from now on: whoever asks one after the other gets none.
    pub(crate) fn hold(&self, requests: usize) {
        let mut seen = lock(&self.watched.requests);
        seen.clear();
        self.watched.held.store(requests, Ordering::SeqCst);
    }

    /// Whether answers are still kept.
    pub(crate) fn is_held(&self) -> bool {
        self.watched.held.load(Ordering::SeqCst) > 0
    }

    /// Keeps the answer to the next request that begins so, which is carried out.
    pub(crate) fn catch(&self, request: String) {
        *lock(&self.watched.caught) = Some((request, Caught::Awaited));
    }

    /// Waits until there is that answer.
    pub(crate) async fn caught(&self) {
        while self.watched.caught() != Some(Caught::Kept) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Gives it on, or breaks its connection instead.
    pub(crate) fn release(&self, lost: bool) {
        self.watched.set_caught(if lost { Caught::Lost } else { Caught::GivenOn });
    }

    /// The last token that passed.
    pub(crate) fn subject(&self) -> String {
        lock(&self.watched.subject).clone()
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watched {
    fn caught(&self) -> Option<Caught> {
        lock(&self.caught).as_ref().map(|(_, caught)| *caught)
    }

    fn set_caught(&self, now: Caught) {
        if let Some((_, caught)) = &mut *lock(&self.caught) {
            *caught = now;
        }
    }

    fn is_awaited(&self, bytes: &[u8]) -> bool {
        let caught = lock(&self.caught);
        caught.as_ref().is_some_and(|(request, caught)| {
            *caught == Caught::Awaited && bytes.starts_with(request.as_bytes())
        })
    }

    /// Keeps an answer, and says whether it is to be given on.
    async fn keep(&self) -> bool {
        self.set_caught(Caught::Kept);
        while self.caught() == Some(Caught::Kept) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.caught() != Some(Caught::Lost)
    }

    fn request(&self, bytes: &[u8]) {
        if METHODS.iter().any(|method| bytes.starts_with(method.as_bytes())) {
            lock(&self.requests).push(first_line(bytes));
        }
    }

    async fn answer(&self, bytes: &[u8]) {
        if !bytes.starts_with(b"HTTP/1.1 ") {
            return;
        }
        lock(&self.answers).push(first_line(bytes));
        let text = String::from_utf8_lossy(bytes);
        if let Some((_, rest)) = text.split_once("X-Subject-Token: ") {
            *lock(&self.subject) = rest.split("\r\n").next().unwrap_or_default().to_owned();
        }
        while lock(&self.requests).len() < self.held.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // The requests that come after these answers are held no more.
        self.held.store(0, Ordering::SeqCst);
    }
}

fn first_line(bytes: &[u8]) -> String {
    let line = bytes.split(|b| *b == b'\r').next().unwrap_or_default();
    String::from_utf8_lossy(line).trim_end_matches(" HTTP/1.1").to_owned()
}

async fn pass(client: impl AsyncRead + AsyncWrite + Send, server: TcpStream, watched: &Watched) {
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (split(client), server.into_split());
    let keeps = AtomicBool::new(false);
    let requests = async {
        let (mut buffer, mut passed) = (vec![0; 16 << 10], 0);
        while let Ok(len @ 1..) = from_client.read(&mut buffer).await {
            if !watched.counted.is_empty() && buffer[..len].starts_with(watched.counted.as_bytes()) {
                watched.count.fetch_add(1, Ordering::SeqCst);
            }
            watched.request(&buffer[..len]);
            if watched.is_awaited(&buffer[..len]) {
                keeps.store(true, Ordering::SeqCst);
            }
            passed += len;
            if passed > DAMAGED_AT && watched.damages.swap(false, Ordering::SeqCst) {
                buffer[len / 2] ^= 1;
            }
            if to_server.write_all(&buffer[..len]).await.is_err() {
                break;
            }
        }
        let _ = to_server.shutdown().await; // It may be gone already.
    };
    let replies = async {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(len @ 1..) = from_server.read(&mut buffer).await {
            watched.answer(&buffer[..len]).await;
            if keeps.swap(false, Ordering::SeqCst) && !watched.keep().await {
                break;
            }
            if to_client.write_all(&buffer[..len]).await.is_err() {
                break;
            }
        }
        let _ = to_client.shutdown().await; // It may be gone already.
    };
    tokio::join!(requests, replies);
}

/// An authority that nobody knows, with a certificate for `localhost`.
#[derive(Debug)]
pub(crate) struct Authority {
    folder: tempfile::TempDir,
}

impl Authority {
    pub(crate) fn new() -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
        let openssl = |arguments: &str| {
            let output =
                Command::new("openssl").args(arguments.split(' ')).current_dir(folder.path()).output();
            let output = output.map_err(|e| format!("openssl cannot be run: {e}"))?;
            match output.status.success() {
                true => Ok(()),
                false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
            }
        };
        std::fs::write(folder.path().join("ext"), "subjectAltName=DNS:localhost\n")
            .map_err(|e| e.to_string())?;
        openssl(
            "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test-authority -keyout ca.key -out ca.pem",
        )?;
        openssl("req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr")?;
        openssl(
            "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out server.pem",
        )?;
        Ok(Self { folder })
    }

    pub(crate) fn ca_file(&self) -> PathBuf {
        self.file("ca.pem")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(Path::new(name))
    }

    fn acceptor(&self) -> Result<TlsAcceptor, String> {
        let certificate =
            CertificateDer::from_pem_file(self.file("server.pem")).map_err(|e| format!("{e:?}"))?;
        let key = PrivateKeyDer::from_pem_file(self.file("server.key")).map_err(|e| format!("{e:?}"))?;
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![certificate], key));
        Ok(TlsAcceptor::from(Arc::new(config.map_err(|e| e.to_string())?)))
    }
}
