use std::{
    collections::BTreeMap,
    fs::File,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use serde::{Deserialize, Serialize};

use crate::{
    Backend, BlobId, Capacity, Chunk, ChunkStream, Download, Entry, Error, ErrorKind, Info, Location, Meta,
    Result, Secret, Size, SizeHint, Stat, Swept, Upload,
};

/// Blobs in memory: the reference backend, which tests and examples use. Nothing survives the process.
///
/// Clones share one storage. Its commit point is an insert under one lock.
#[derive(Clone, Debug)]
pub struct MemoryBackend {
    info: Arc<Info>,
    capacity: u64,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    blobs: BTreeMap<BlobId, Arc<Held>>,
    staged: BTreeMap<u64, Staged>,
    next: u64,
    used: u64,
}

#[derive(Debug)]
struct Held {
    stat: Stat,
    chunks: Vec<Chunk>,
}

#[derive(Debug)]
struct Staged {
    chunks: Vec<Chunk>,
    used: u64,
    touched: Instant,
}

impl MemoryBackend {
    /// An empty storage of `capacity` bytes; holes cost nothing.
    pub fn new(capacity: u64) -> Self {
        let mut info = Info::new("memory");
        info.hole = Some(4096);
        info.can.write = true;
        info.can.delete = true;
        info.can.list = true;
        info.can.capacity = true;
        info.can.metadata = true;
        info.can.atomic_create = true;
        info.can.staging = true;
        info.can.copy = true;
        Self { info: Arc::new(info), capacity, state: Arc::default() }
    }

    /// An empty storage of 1 GiB, ready for [`Store::new`](crate::Store::new).
    pub fn shared() -> Arc<dyn Backend> {
        Arc::new(Self::new(1 << 30))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self, at: &Location) -> Result<Arc<Held>> {
        let held = self.lock().blobs.get(&id_of(at)?).cloned();
        held.ok_or_else(|| Error::not_found(at))
    }
}

fn location(id: &BlobId) -> Result<Location> {
    format!("memory://{id}").parse()
}

fn id_of(at: &Location) -> Result<BlobId> {
    let id = at.rest().strip_prefix("//").and_then(|id| id.parse().ok());
    id.ok_or_else(|| Error::new(ErrorKind::Invalid, "a memory location is memory://ID"))
}

#[async_trait]
impl Backend for MemoryBackend {
    fn info(&self) -> &Info {
        &self.info
    }

    async fn begin(&self, id: &BlobId, size: SizeHint) -> Result<Box<dyn Upload>> {
        let mut state = self.lock();
        if state.blobs.contains_key(id) {
            return Err(Error::taken(id));
        }
        let free = self.capacity - state.used;
        if size.needed().is_some_and(|needed| needed > free) {
            return Err(full());
        }
        let ticket = state.next;
        state.next += 1;
        state.staged.insert(ticket, Staged { chunks: Vec::new(), used: 0, touched: Instant::now() });
        Ok(Box::new(MemoryUpload { backend: self.clone(), id: id.clone(), ticket }))
    }

    async fn locate(&self, id: &BlobId) -> Result<Location> {
        let at = location(id)?;
        self.held(&at).map(|_| at)
    }

    async fn open(&self, at: &Location) -> Result<Arc<dyn Download>> {
        Ok(self.held(at)?)
    }

    async fn delete(&self, at: &Location) -> Result<()> {
        let mut state = self.lock();
        let held = state.blobs.remove(&id_of(at)?).ok_or_else(|| Error::not_found(at))?;
        state.used -= held.stat.allocated.unwrap_or_default();
        Ok(())
    }

    fn list(&self) -> BoxStream<'_, Result<Entry>> {
        // One entry at a time, from the last id on, so that a long list costs no memory.
        stream::unfold(None, move |last: Option<BlobId>| async move {
            let state = self.lock();
            let (id, held) = match &last {
                None => state.blobs.first_key_value()?,
                Some(last) => {
                    use std::ops::Bound::{Excluded, Unbounded};
                    state.blobs.range((Excluded(last), Unbounded)).next()?
                }
            };
            let entry = location(id).map(|at| Entry::new(id.clone(), at, held.stat.size));
            Some((entry, Some(id.clone())))
        })
        .boxed()
    }

    async fn sweep(&self, age: Duration) -> Result<Swept> {
        let mut state = self.lock();
        let old = |staged: &Staged| staged.touched.elapsed() >= age;
        let tickets: Vec<u64> =
            state.staged.iter().filter(|(_, s)| old(s)).map(|(ticket, _)| *ticket).collect();
        let mut swept = Swept::default();
        for ticket in tickets {
            if let Some(staged) = state.staged.remove(&ticket) {
                state.used -= staged.used;
                swept.uploads += 1;
                swept.bytes += staged.used;
            }
        }
        Ok(swept)
    }

    async fn capacity(&self) -> Result<Capacity> {
        Ok(Capacity { total: self.capacity, free: self.capacity - self.lock().used })
    }

    async fn presign(&self, _: &Location, _: Duration) -> Result<Secret> {
        Err(Error::unsupported("URLs for its blobs"))
    }
}

struct MemoryUpload {
    backend: MemoryBackend,
    id: BlobId,
    ticket: u64,
}

#[async_trait]
impl Upload for MemoryUpload {
    async fn write(&mut self, chunk: Chunk) -> Result<()> {
        let mut guard = self.backend.lock();
        let state = &mut *guard;
        let Some(staged) = state.staged.get_mut(&self.ticket) else { return Err(Error::swept()) };
        let cost = match &chunk {
            Chunk::Data(bytes) => bytes.len() as u64,
            Chunk::Zeros(_) => 0,
        };
        if cost > self.backend.capacity - state.used {
            return Err(full());
        }
        state.used += cost;
        staged.used += cost;
        staged.touched = Instant::now();
        // A copy, because the caller's buffer may be one of few that are recycled.
        staged.chunks.push(match chunk {
            Chunk::Data(bytes) => Chunk::Data(Bytes::copy_from_slice(&bytes)),
            zeros => zeros,
        });
        Ok(())
    }

    async fn adopt(&mut self, _: &Arc<File>) -> Result<Option<Arc<File>>> {
        Ok(None)
    }

    async fn copy(&mut self, from: &Location, size: u64) -> Result<()> {
        let held = self.backend.held(from)?;
        if held.stat.size != size {
            return Err(Error::not_found(from));
        }
        for chunk in &held.chunks {
            self.write(chunk.clone()).await?;
        }
        Ok(())
    }

    async fn commit(&mut self, meta: &Meta) -> Result<Location> {
        let at = location(&self.id)?;
        let mut state = self.backend.lock();
        if state.blobs.contains_key(&self.id) {
            return Err(Error::taken(&self.id));
        }
        let Some(staged) = state.staged.remove(&self.ticket) else { return Err(Error::swept()) };
        let stat = Stat { size: meta.size, allocated: Some(staged.used), meta: Some(meta.clone()) };
        state.blobs.insert(self.id.clone(), Arc::new(Held { stat, chunks: staged.chunks }));
        Ok(at)
    }

    async fn abort(&mut self) -> Result<()> {
        let mut state = self.backend.lock();
        if let Some(staged) = state.staged.remove(&self.ticket) {
            state.used -= staged.used;
        }
        Ok(())
    }
}

#[async_trait]
impl Download for Held {
    fn stat(&self) -> &Stat {
        &self.stat
    }

    async fn read(&self, range: Range<u64>) -> Result<ChunkStream> {
        let mut offset = 0;
        let mut wanted = Vec::new();
        for chunk in &self.chunks {
            let end = offset + chunk.len();
            if end > range.start && offset < range.end {
                let mut piece = chunk.clone();
                drop(piece.split_to(range.start.saturating_sub(offset)));
                let from = offset.max(range.start);
                wanted.push(Ok(piece.split_to(range.end.min(end) - from)));
            }
            offset = end;
        }
        Ok(stream::iter(wanted).boxed())
    }

    fn file(&self) -> Option<&Arc<File>> {
        None
    }
}

fn full() -> Error {
    Error::new(ErrorKind::NoSpace, "the memory store is full")
        .with_hint("raise its `capacity`, or delete blobs")
}

/// Settings of a memory store.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct MemoryConfig {
    /// How much it holds, in bytes.
    pub capacity: Size,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self { capacity: Size(1 << 30) }
    }
}

impl crate::Config for MemoryConfig {
    const TYPE: &'static str = "memory";

    async fn connect(self, _: &str) -> Result<Arc<dyn Backend>> {
        Ok(Arc::new(MemoryBackend::new(self.capacity.0)))
    }
}
