//! A network that fails on demand, in front of a real server.

use std::{
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    runtime::Runtime,
    sync::watch,
};

use crate::{Fault, HookResult};

/// A TCP proxy that cuts, stalls and slows what passes through it, and loses replies.
///
/// A backend that connects to [`addr`](Self::addr) instead of its server gets all fault cases:
///
/// ```no_run
/// # use conformance_tests::{FaultKind, Fixture, Proxy, Setup};
/// # use store_core::{Backend, MemoryBackend};
/// # use std::sync::Arc;
/// # fn connect(_: std::net::SocketAddr) -> Arc<dyn Backend> { MemoryBackend::shared() }
/// # async fn setup() -> Setup {
/// let proxy = match Proxy::start("127.0.0.1:9000").await {
///     Ok(proxy) => Arc::new(proxy),
///     Err(why) => return Setup::Missing(format!("no server to test: {why}")),
/// };
/// let hook = proxy.hook();
/// Setup::Ready(Fixture::new(move || connect(proxy.addr())).fault(&FaultKind::ALL, hook))
/// # }
/// ```
///
/// It has threads of its own, so that one that is started on the runtime of one test serves all. Connections end
/// when it is dropped. It sees bytes and no requests: a reply is what the server sends first after the client sent
/// something, except for a plain `HTTP/1.1 100 Continue`, which ends no request.
pub struct Proxy {
    addr: SocketAddr,
    line: Arc<Line>,
    runtime: Option<Runtime>,
}

struct Line {
    target: SocketAddr,
    state: watch::Sender<State>,
    /// What is armed; apart from `state`, because it changes with every packet.
    armed: Mutex<Armed>,
}

#[derive(Clone, Copy, Default)]
struct State {
    cut: bool,
    stalled: bool,
    slow: Option<u64>,
    /// Grows with each break: connections that are older than the last one are dead.
    breaks: u64,
}

#[derive(Default)]
struct Armed {
    cut_after: Option<u64>,
    cut_reply: Option<u32>,
}

impl Proxy {
    /// A proxy on a free port of this host, in front of `target`. Fails where `target` does not answer, so that a
    /// server that is not there is noticed at once.
    pub async fn start(target: impl tokio::net::ToSocketAddrs) -> io::Result<Self> {
        let target = TcpStream::connect(target).await?.peer_addr()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("conformance-proxy")
            .enable_all()
            .build()?;
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let line =
            Arc::new(Line { target, state: watch::Sender::new(State::default()), armed: Mutex::default() });
        let accepting = Arc::clone(&line);
        runtime.spawn(async move {
            let Ok(listener) = TcpListener::from_std(listener) else { return };
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(Arc::clone(&accepting).serve(client));
            }
        });
        Ok(Self { addr, line, runtime: Some(runtime) })
    }

    /// Where clients connect to.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Makes the network fail, or work again.
    pub fn inject(&self, fault: Fault) {
        self.line.inject(fault);
    }

    /// A hook for [`Fixture::fault`](crate::Fixture::fault), good for all of
    /// [`FaultKind::ALL`](crate::FaultKind::ALL).
    pub fn hook(&self) -> impl Fn(Fault) -> BoxFuture<'static, HookResult> + Send + Sync + 'static {
        let line = Arc::clone(&self.line);
        move |fault| {
            line.inject(fault);
            std::future::ready(Ok(())).boxed()
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Also from within another runtime, where one may not wait.
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy")
            .field("addr", &self.addr)
            .field("target", &self.line.target)
            .finish_non_exhaustive()
    }
}

/// How much is passed on at a time: small, so that a cut hits between two of them.
const PIECE: usize = 16 << 10;

impl Line {
    fn inject(&self, fault: Fault) {
        let mut armed = self.armed();
        self.state.send_modify(|state| match fault {
            Fault::Heal => {
                *armed = Armed::default();
                *state = State { breaks: state.breaks, ..State::default() };
            }
            Fault::Cut => {
                state.cut = true;
                state.breaks += 1;
            }
            Fault::Stall => state.stalled = true,
            Fault::Slow(rate) => state.slow = Some(rate.max(1)),
            Fault::CutAfter(bytes) => armed.cut_after = Some(bytes),
            Fault::CutReply(replies) => armed.cut_reply = Some(replies),
        });
    }

    fn armed(&self) -> std::sync::MutexGuard<'_, Armed> {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cut_all(&self) {
        self.state.send_modify(|state| state.breaks += 1);
    }

    async fn serve(self: Arc<Self>, client: TcpStream) {
        let State { cut, breaks, .. } = *self.state.borrow();
        if cut {
            return;
        }
        let Ok(server) = TcpStream::connect(self.target).await else { return };
        // Small packets are the rule between a request and its reply.
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let asked = AtomicBool::new(false);
        let mut state = self.state.subscribe();
        let dead = async move {
            // The sender lives as long as the line.
            let _ = state.wait_for(|state| state.breaks != breaks).await;
        };
        // Either direction may end before the other one does (RFC 9293, section 3.6).
        let requests = self.copy(from_client, to_server, |_| {
            asked.store(true, Ordering::Relaxed);
            true
        });
        let replies = self.copy(from_server, to_client, |bytes| self.reply_may_pass(&asked, bytes));
        let both = futures::future::join(requests, replies);
        tokio::select! {
            biased;
            () = dead => {}
            _ = both => {}
        }
    }

    /// Whether what the server sends now reaches the client.
    fn reply_may_pass(&self, asked: &AtomicBool, bytes: &[u8]) -> bool {
        if bytes.starts_with(b"HTTP/1.1 100") || !asked.swap(false, Ordering::Relaxed) {
            return true;
        }
        let mut armed = self.armed();
        match armed.cut_reply {
            None => true,
            Some(0) => {
                armed.cut_reply = None;
                drop(armed);
                self.cut_all();
                false
            }
            Some(left) => {
                armed.cut_reply = Some(left - 1);
                true
            }
        }
    }

    async fn copy(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, passes: impl Fn(&[u8]) -> bool) {
        let mut buffer = vec![0; PIECE];
        while let Ok(len @ 1..) = from.read(&mut buffer).await {
            let mut bytes = &buffer[..len];
            if !passes(bytes) {
                return std::future::pending().await;
            }
            self.delay(len).await;
            let allowed = self.allowed(len as u64);
            bytes = &bytes[..allowed];
            if to.write_all(bytes).await.is_err() {
                return;
            }
            if allowed < len {
                self.cut_all();
                // Both directions end at once: a server that saw the end of this one first could answer half a request.
                return std::future::pending().await;
            }
        }
        // The other side may still have something to say; an error here means that it has not.
        let _ = to.shutdown().await;
    }

    async fn delay(&self, len: usize) {
        let mut state = self.state.subscribe();
        // The sender lives as long as the line.
        let slow = state.wait_for(|state| !state.stalled).await.map(|state| state.slow).unwrap_or_default();
        if let Some(rate) = slow {
            tokio::time::sleep(Duration::from_secs_f64(len as f64 / rate as f64)).await;
        }
    }

    /// How many of `len` bytes pass before the cut that is armed.
    fn allowed(&self, len: u64) -> usize {
        let mut armed = self.armed();
        let allowed = match armed.cut_after {
            None => len,
            Some(left) if left >= len => {
                armed.cut_after = Some(left - len);
                len
            }
            Some(left) => {
                armed.cut_after = None;
                left
            }
        };
        allowed as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that sends back whatever it is sent, and counts it.
    async fn echo() -> (SocketAddr, Arc<std::sync::atomic::AtomicU64>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let served = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let counted = Arc::clone(&served);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let served = Arc::clone(&counted);
                tokio::spawn(async move {
                    let mut buffer = [0; 4096];
                    while let Ok(len @ 1..) = client.read(&mut buffer).await {
                        served.fetch_add(len as u64, Ordering::SeqCst);
                        if client.write_all(&buffer[..len]).await.is_err() {
                            break;
                        }
                    }
                });
            }
        });
        (addr, served)
    }

    async fn ask(client: &mut TcpStream, text: &[u8]) -> io::Result<()> {
        client.write_all(text).await?;
        let mut reply = vec![0; text.len()];
        client.read_exact(&mut reply).await?;
        assert_eq!(reply, text);
        Ok(())
    }

    async fn proxied() -> (Proxy, TcpStream, Arc<std::sync::atomic::AtomicU64>) {
        let (addr, served) = echo().await;
        let proxy = Proxy::start(addr).await.unwrap();
        let client = TcpStream::connect(proxy.addr()).await.unwrap();
        (proxy, client, served)
    }

    #[tokio::test]
    async fn it_passes_everything_on() {
        let (_proxy, client, _) = proxied().await;
        let (mut from, mut to) = client.into_split();
        let text: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
        let sent = text.clone();
        let send = tokio::spawn(async move {
            to.write_all(&sent).await.unwrap();
            to.shutdown().await.unwrap();
        });
        let mut back = Vec::new();
        from.read_to_end(&mut back).await.unwrap();
        send.await.unwrap();
        assert!(back == text, "{} of {} bytes came back", back.len(), text.len());
    }

    #[tokio::test]
    async fn a_cut_ends_connections_and_refuses_new_ones_until_healed() {
        let (proxy, mut client, _) = proxied().await;
        ask(&mut client, b"hello").await.unwrap();
        proxy.inject(Fault::Cut);
        assert!(ask(&mut client, b"hello").await.is_err());
        let mut other = TcpStream::connect(proxy.addr()).await.unwrap();
        assert!(ask(&mut other, b"hello").await.is_err());
        proxy.inject(Fault::Heal);
        assert!(ask(&mut client, b"hello").await.is_err(), "a dead connection came back");
        let mut other = TcpStream::connect(proxy.addr()).await.unwrap();
        ask(&mut other, b"hello").await.unwrap();
    }

    #[tokio::test]
    async fn a_stall_holds_everything_and_loses_nothing() {
        let (proxy, mut client, _) = proxied().await;
        proxy.inject(Fault::Stall);
        let stalled = tokio::time::timeout(Duration::from_millis(200), ask(&mut client, b"hello")).await;
        assert!(stalled.is_err());
        proxy.inject(Fault::Heal);
        let mut reply = [0; 5];
        client.read_exact(&mut reply).await.unwrap();
        assert_eq!(&reply, b"hello");
    }

    #[tokio::test]
    async fn a_cut_after_some_bytes_passes_exactly_these() {
        let (proxy, mut client, served) = proxied().await;
        proxy.inject(Fault::CutAfter(7));
        // Five there, two of five back.
        client.write_all(b"hello").await.unwrap();
        let mut back = Vec::new();
        // It ends, be it well or with a reset.
        let _ = client.read_to_end(&mut back).await;
        assert_eq!(back, b"he");
        assert_eq!(served.load(Ordering::SeqCst), 5);
        let mut other = TcpStream::connect(proxy.addr()).await.unwrap();
        ask(&mut other, b"once only").await.unwrap();
    }

    #[tokio::test]
    async fn a_lost_reply_is_to_a_request_that_was_served() {
        let (proxy, mut client, served) = proxied().await;
        proxy.inject(Fault::CutReply(1));
        ask(&mut client, b"first").await.unwrap();
        client.write_all(b"second").await.unwrap();
        let mut back = Vec::new();
        // It ends, be it well or with a reset.
        let _ = client.read_to_end(&mut back).await;
        assert_eq!(back, b"");
        assert_eq!(served.load(Ordering::SeqCst), 11);
        let mut other = TcpStream::connect(proxy.addr()).await.unwrap();
        ask(&mut other, b"third").await.unwrap();
    }

    #[tokio::test]
    async fn a_continue_is_no_reply() {
        let (proxy, mut client, _) = proxied().await;
        proxy.inject(Fault::CutReply(0));
        ask(&mut client, b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
        assert!(ask(&mut client, b"HTTP/1.1 200 OK\r\n\r\n").await.is_err());
    }

    #[tokio::test]
    async fn a_slow_line_passes_all_the_same() {
        let (proxy, mut client, _) = proxied().await;
        proxy.inject(Fault::Slow(1_000_000));
        ask(&mut client, &[7; 3000]).await.unwrap();
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_noticed_at_the_start() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        assert!(Proxy::start(free).await.is_err());
    }
}
