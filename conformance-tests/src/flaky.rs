//! A backend that fails on demand: what the fault cases need, without a network.

use std::{
    collections::BTreeMap,
    fs::File,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use store_core::{
    Backend, BlobId, Capacity, Chunk, ChunkStream, Download, Entry, Error, ErrorKind, Info, Location, Meta,
    Result, Secret, SizeHint, Stat, Swept, Upload,
};
use tokio::{runtime::Handle, sync::watch};

use crate::{Damage, Fault, HookResult};

/// A backend behind a line that can be cut, stalled and slowed down, on a disk that can be damaged.
///
/// It stands for a driver that does its part right: what it had sent when the line broke it sends again, and a reply
/// that got lost it looks up. Clones share line and disk. Programs may use it to see what becomes of them when their
/// storage goes away.
///
/// ```
/// # use conformance_tests::{Fault, Flaky};
/// # use store_core::{ErrorKind, MemoryBackend, Options, Store};
/// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let flaky = Flaky::new(MemoryBackend::shared());
/// let mut options = Options::default();
/// options.retry.attempts = 1;
/// let store = Store::new("far", std::sync::Arc::new(flaky.clone()), options);
/// flaky.inject(Fault::Cut);
/// assert_eq!(store.capacity().await.unwrap_err().kind(), ErrorKind::Unavailable);
/// flaky.inject(Fault::Heal);
/// assert!(store.capacity().await.is_ok());
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Flaky {
    inner: Arc<dyn Backend>,
    line: Arc<Line>,
}

#[derive(Debug)]
struct Line {
    state: watch::Sender<State>,
    damage: Mutex<BTreeMap<Location, Vec<Damage>>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    cut: bool,
    stalled: bool,
    /// Bytes a second.
    slow: Option<u64>,
    cut_after: Option<u64>,
    cut_reply: Option<u32>,
    /// Grows with each break: whoever was on the line then has lost it.
    breaks: u64,
}

impl Flaky {
    /// `inner` behind a line that works.
    pub fn new(inner: Arc<dyn Backend>) -> Self {
        let line = Line { state: watch::Sender::new(State::default()), damage: Mutex::default() };
        Self { inner, line: Arc::new(line) }
    }

    /// Makes it fail, or work again.
    pub fn inject(&self, fault: Fault) {
        self.line.state.send_modify(|state| match fault {
            Fault::Heal => *state = State { breaks: state.breaks, ..State::default() },
            Fault::Cut => {
                state.cut = true;
                state.breaks += 1;
            }
            Fault::Stall => state.stalled = true,
            Fault::Slow(rate) => state.slow = Some(rate.max(1)),
            Fault::CutAfter(bytes) => state.cut_after = Some(bytes),
            Fault::CutReply(replies) => state.cut_reply = Some(replies),
        });
    }

    /// A hook for [`Fixture::fault`](crate::Fixture::fault).
    pub fn fault_hook(&self) -> impl Fn(Fault) -> BoxFuture<'static, HookResult> + Send + Sync + 'static {
        let flaky = self.clone();
        move |fault| {
            flaky.inject(fault);
            std::future::ready(Ok(())).boxed()
        }
    }

    /// A hook for [`Fixture::damage`](crate::Fixture::damage): the damage shows in every later read.
    pub fn damage_hook(
        &self,
    ) -> impl Fn(Location, Damage) -> BoxFuture<'static, HookResult> + Send + Sync + 'static {
        let line = Arc::clone(&self.line);
        move |at, damage| {
            line.damages().entry(at).or_default().push(damage);
            std::future::ready(Ok(())).boxed()
        }
    }

    /// A hook for [`Fixture::crash`](crate::Fixture::crash): every connection breaks.
    pub fn crash_hook(&self) -> impl Fn() -> BoxFuture<'static, HookResult> + Send + Sync + 'static {
        let flaky = self.clone();
        move || {
            flaky.inject(Fault::Cut);
            flaky.inject(Fault::Heal);
            std::future::ready(Ok(())).boxed()
        }
    }
}

impl Line {
    fn damages(&self) -> MutexGuard<'_, BTreeMap<Location, Vec<Damage>>> {
        self.damage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while the line is stalled; fails while it is cut.
    async fn ready(&self) -> Result<u64> {
        let mut state = self.state.subscribe();
        // The sender lives as long as `self`.
        let state = state.wait_for(|state| !state.stalled).await.map(|state| *state).unwrap_or_default();
        if state.cut { Err(broken()) } else { Ok(state.breaks) }
    }

    /// One request: whatever comes between it and its reply.
    async fn call<T>(&self, request: impl Future<Output = Result<T>> + Send) -> Result<T> {
        let breaks = self.ready().await?;
        self.pass(100).await?;
        let reply = request.await;
        self.ready().await?;
        let mut lost = false;
        self.state.send_if_modified(|state| {
            lost = state.breaks != breaks;
            match state.cut_reply {
                Some(0) => {
                    state.cut_reply = None;
                    state.breaks += 1;
                    lost = true;
                }
                Some(left) => state.cut_reply = Some(left - 1),
                None => return false,
            }
            true
        });
        if lost { Err(broken()) } else { reply }
    }

    /// Lets `bytes` over the line, in its own time.
    async fn pass(&self, bytes: u64) -> Result<()> {
        self.ready().await?;
        let slow = self.state.borrow().slow;
        if let Some(rate) = slow {
            tokio::time::sleep(Duration::from_secs_f64(bytes as f64 / rate as f64)).await;
        }
        let mut cut = false;
        self.state.send_if_modified(|state| {
            match state.cut_after {
                Some(left) if left < bytes => {
                    state.cut_after = None;
                    state.breaks += 1;
                    cut = true;
                }
                Some(left) => state.cut_after = Some(left - bytes),
                None => return false,
            }
            true
        });
        if cut { Err(broken()) } else { Ok(()) }
    }
}

fn broken() -> Error {
    Error::new(ErrorKind::Unavailable, "the line is cut")
}

/// As a driver does with what the line lost: once more, if the line is there again.
async fn twice<T, F: Future<Output = Result<T>> + Send>(mut call: impl FnMut() -> F + Send) -> Result<T> {
    match call().await {
        Err(error) if error.is_retryable() => call().await,
        outcome => outcome,
    }
}

#[async_trait]
impl Backend for Flaky {
    fn info(&self) -> &Info {
        self.inner.info()
    }

    async fn begin(&self, id: &BlobId, size: SizeHint) -> Result<Box<dyn Upload>> {
        let mut begun = Begun(None);
        let call = self.line.call(async {
            begun.0 = Some(self.inner.begin(id, size).await?);
            Ok(())
        });
        call.await?;
        let Some(inner) = begun.0.take() else {
            return Err(Error::new(ErrorKind::Internal, "an upload began without one"));
        };
        let (backend, line) = (Arc::clone(&self.inner), Arc::clone(&self.line));
        Ok(Box::new(FlakyUpload { backend, inner, line, committed: None }))
    }

    async fn locate(&self, id: &BlobId) -> Result<Location> {
        self.line.call(self.inner.locate(id)).await
    }

    async fn open(&self, at: &Location) -> Result<Arc<dyn Download>> {
        let inner = self.line.call(self.inner.open(at)).await?;
        let damage = self.line.damages().get(at).cloned().unwrap_or_default();
        let mut stat = inner.stat().clone();
        for damage in &damage {
            if let Damage::Truncate(len) = damage {
                stat.size = stat.size.min(*len);
            }
        }
        Ok(Arc::new(FlakyDownload { inner, line: Arc::clone(&self.line), damage, stat }))
    }

    async fn delete(&self, at: &Location) -> Result<()> {
        self.line.call(self.inner.delete(at)).await?;
        self.line.damages().remove(at);
        Ok(())
    }

    fn list(&self) -> BoxStream<'_, Result<Entry>> {
        let begun = self.line.call(async { Ok(self.inner.list()) });
        stream::once(begun)
            .flat_map(|entries| match entries {
                Ok(entries) => entries,
                Err(error) => stream::iter([Err(error)]).boxed(),
            })
            .boxed()
    }

    async fn sweep(&self, age: Duration) -> Result<Swept> {
        self.line.call(self.inner.sweep(age)).await
    }

    async fn capacity(&self) -> Result<Capacity> {
        self.line.call(self.inner.capacity()).await
    }

    async fn presign(&self, at: &Location, lifetime: Duration) -> Result<Secret> {
        self.line.call(self.inner.presign(at, lifetime)).await
    }
}

/// An upload whose first reply has not come: if it never does, nobody else knows of it, and it is taken back.
struct Begun(Option<Box<dyn Upload>>);

impl Drop for Begun {
    fn drop(&mut self) {
        if let (Some(mut upload), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            drop(runtime.spawn(async move { upload.abort().await }));
        }
    }
}

struct FlakyUpload {
    backend: Arc<dyn Backend>,
    inner: Box<dyn Upload>,
    line: Arc<Line>,
    /// Where it is, once the storage has it, whether or not the reply came through.
    committed: Option<Location>,
}

#[async_trait]
impl Upload for FlakyUpload {
    async fn write(&mut self, chunk: Chunk) -> Result<()> {
        // What the line loses is sent again; then the storage has it.
        let bytes = if let Chunk::Data(bytes) = &chunk { bytes.len() as u64 } else { 0 };
        twice(|| self.line.pass(bytes)).await?;
        self.inner.write(chunk).await
    }

    async fn adopt(&mut self, source: &Arc<File>) -> Result<Option<Arc<File>>> {
        self.inner.adopt(source).await
    }

    async fn copy(&mut self, from: &Location, size: u64) -> Result<()> {
        twice(|| self.line.call(async { Ok(()) })).await?;
        self.inner.copy(from, size).await
    }

    async fn commit(&mut self, meta: &Meta) -> Result<Location> {
        for attempt in 0.. {
            let (inner, committed) = (&mut self.inner, &mut self.committed);
            let call = self.line.call(async {
                // If only the reply got lost, the second look finds the blob there.
                if committed.is_none() {
                    *committed = Some(inner.commit(meta).await?);
                }
                Ok(committed.clone())
            });
            match call.await {
                Ok(Some(at)) => return Ok(at),
                Err(error) if error.is_retryable() && attempt == 0 => {}
                Err(error) => return Err(error),
                Ok(None) => break,
            }
        }
        Err(Error::new(ErrorKind::Internal, "a commit without a location"))
    }

    async fn abort(&mut self) -> Result<()> {
        twice(|| self.line.call(async { Ok(()) })).await?;
        match self.committed.take() {
            Some(at) => self.backend.delete(&at).await,
            None => self.inner.abort().await,
        }
    }
}

#[derive(Debug)]
struct FlakyDownload {
    inner: Arc<dyn Download>,
    line: Arc<Line>,
    damage: Vec<Damage>,
    stat: Stat,
}

#[async_trait]
impl Download for FlakyDownload {
    fn stat(&self) -> &Stat {
        &self.stat
    }

    async fn read(&self, range: Range<u64>) -> Result<ChunkStream> {
        let breaks = self.line.ready().await?;
        let chunks = self.line.call(self.inner.read(range.clone())).await?;
        let (line, damage) = (Arc::clone(&self.line), self.damage.clone());
        let start = (Some(chunks), range.start);
        let chunks = stream::unfold(start, move |(chunks, at)| {
            let (line, damage) = (Arc::clone(&line), damage.clone());
            async move {
                let mut chunks = chunks?;
                let chunk = match chunks.next().await? {
                    Ok(chunk) => chunk,
                    Err(error) => return Some((Err(error), (None, at))),
                };
                let passed = match line.pass(chunk.len()).await {
                    Ok(()) if line.state.borrow().breaks == breaks => Ok(()),
                    Ok(()) => Err(broken()),
                    Err(error) => Err(error),
                };
                if let Err(error) = passed {
                    return Some((Err(error), (None, at)));
                }
                let end = at + chunk.len();
                Some((Ok(damaged(chunk, at, &damage)), (Some(chunks), end)))
            }
        });
        Ok(chunks.boxed())
    }

    fn file(&self) -> Option<&Arc<File>> {
        None
    }
}

fn damaged(chunk: Chunk, at: u64, damage: &[Damage]) -> Chunk {
    let span = at..at + chunk.len();
    let flips = damage.iter().filter_map(|damage| match damage {
        Damage::Flip(offset) if span.contains(offset) => Some((offset - at) as usize),
        _ => None,
    });
    let flips: Vec<usize> = flips.collect();
    if flips.is_empty() {
        return chunk;
    }
    let mut bytes: Vec<u8> = chunk.into_bytes().flat_map(Vec::from).collect();
    for place in flips {
        bytes[place] ^= 1;
    }
    Chunk::Data(Bytes::from(bytes))
}
