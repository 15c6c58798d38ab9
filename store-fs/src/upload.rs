use std::{
    collections::VecDeque,
    fs::File,
    ops::Range,
    os::unix::fs::FileExt,
    sync::{Arc, OnceLock},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use store_core::{BlobId, Chunk, Error, ErrorKind, Location, Meta, Result, Upload, buffer, file};
use tokio::{
    sync::OwnedSemaphorePermit,
    task::{JoinHandle, spawn_blocking},
};

use crate::{
    backend::Shared,
    client::{OpenDir, Publish, Staged, forget, make_buffered, punch, share_blocks, sync_data},
    error::no_space,
    location,
};

/// Commit point: `linkat(2)`, or a rename that replaces nothing, of a file that is durable already; then the directory
/// is made durable.
pub(crate) struct FsUpload {
    parts: Arc<Parts>,
    direct: bool,
    /// The announced length.
    total: Option<u64>,
    /// Whether the whole length was allocated at the start.
    pub(crate) reserved: bool,
    offset: u64,
    /// Writes under way, oldest first. They stay here while they are awaited, so that none is lost with a future.
    writing: VecDeque<JoinHandle<Result<()>>>,
    committing: Option<JoinHandle<Result<(), Publish>>>,
    /// With direct I/O, the disk at work on making durable what it took so far.
    flushing: Option<JoinHandle<Result<()>>>,
    /// Bytes since the last time that they were made durable.
    unsynced: u64,
    over: bool,
}

/// What the blocking steps of an upload share.
struct Parts {
    store: Arc<Shared>,
    id: BlobId,
    directory: OpenDir,
    staged: Staged,
    /// Which came first.
    fate: OnceLock<Fate>,
}

/// What becomes of an upload. A commit goes on by itself, also after a clean-up that did not wait for its end.
#[derive(Debug)]
enum Fate {
    Published,
    GivenUp,
}

/// Writes in flight that every upload may have.
const IN_FLIGHT: usize = 8;

/// Further writes in flight that the uploads of a store share: with them digests go on while the disk flushes its
/// cache, and yet many uploads at once hold little memory.
pub(crate) const SPARE_WRITES: usize = 16;

/// Without direct I/O, how much may lie in the page cache before it is written out.
const WRITE_BEHIND: u64 = 64 << 20;

/// With direct I/O, how much may lie in the disk's own cache before it is told to write it out, while digests go on:
/// left to the commit, all of it would have to be waited for there.
const FLUSH_BEHIND: u64 = 64 << 20;

impl FsUpload {
    pub(crate) fn new(
        store: Arc<Shared>,
        id: BlobId,
        total: Option<u64>,
        directory: OpenDir,
        staged: Staged,
    ) -> Self {
        let direct = staged.direct;
        Self {
            parts: Arc::new(Parts { store, id, directory, staged, fate: OnceLock::new() }),
            direct,
            total,
            reserved: false,
            offset: 0,
            writing: VecDeque::new(),
            committing: None,
            flushing: None,
            unsynced: 0,
            over: false,
        }
    }

    pub(crate) fn file(&self) -> &File {
        &self.parts.staged.file
    }

    /// Refuses an upload whose allocated `total` has taken what is to be left free.
    pub(crate) fn keep_reserve(&self, total: u64) -> Result<()> {
        let (reserve, directory) = (self.parts.store.reserve(), &self.parts.directory);
        let (_, free) = directory.space()?;
        if free >= reserve {
            return Ok(());
        }
        let before = free.saturating_add(total).saturating_sub(reserve);
        Err(no_space(&directory.path, total, before, reserve))
    }

    /// Starts `work` on one of the blocking threads that the store may have.
    async fn run<T: Send + 'static>(&self, work: impl FnOnce(&Parts) -> T + Send + 'static) -> JoinHandle<T> {
        let (parts, call) = (Arc::clone(&self.parts), self.parts.store.call().await);
        spawn_blocking(move || {
            let _until_it_ends = call;
            work(&parts)
        })
    }

    /// The same, and waits for its end.
    async fn run_now<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Parts) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.run(work).await.await.map_err(Error::stopped)?
    }

    async fn write_data(&mut self, bytes: Bytes) -> Result<()> {
        let at = self.offset;
        let aligned = |value: u64| value.is_multiple_of(buffer::ALIGNMENT as u64);
        if self.direct && !(aligned(at) && aligned(bytes.len() as u64)) {
            // The odd end of an image. Direct and buffered writes do not overlap, but must not pass each other.
            self.drain(0).await?;
            self.run_now(|parts| make_buffered(&parts.staged.file)).await?;
            self.direct = false;
        }
        let spare = self.make_room().await?;
        if self.direct {
            self.flush_behind().await?;
        } else if self.unsynced > WRITE_BEHIND {
            self.drain(0).await?;
            let len = self.unsynced;
            self.unsynced = 0;
            let sync = self.run(move |parts| parts.write_out(at.saturating_sub(len)..at)).await;
            self.writing.push_back(sync);
        }
        let (direct, unreserved, len) = (self.direct, !self.reserved, bytes.len() as u64);
        let write = self.run(move |parts| {
            let _until_written = spare;
            if unreserved {
                parts.leave_free(len)?;
            }
            write_at(parts, bytes, at, direct)
        });
        let write = write.await;
        self.writing.push_back(write);
        self.unsynced += len;
        self.offset += len;
        Ok(())
    }

    async fn write_zeros(&mut self, len: u64) -> Result<()> {
        let at = self.offset;
        self.offset += len;
        if self.reserved {
            self.drain(IN_FLIGHT - 1).await?;
            let punched = self.run(move |parts| punch(&parts.staged.file, at, len)).await;
            self.writing.push_back(punched);
        }
        Ok(())
    }

    /// Copies a file within the kernel where it can, piece by piece so that the page cache is not filled.
    async fn copy_file(&mut self, source: Arc<File>, size: u64) -> Result<()> {
        if self.direct {
            self.run_now(|parts| make_buffered(&parts.staged.file)).await?;
            self.direct = false;
        }
        while self.offset < size {
            let range = self.offset..size.min(self.offset + WRITE_BEHIND);
            let target = Arc::clone(&self.parts.staged.file);
            if !file::copy(Arc::clone(&source), target, range.clone()).await? {
                return self.copy_through(source, size).await;
            }
            self.offset = range.end;
            self.drain(0).await?;
            let sync = self.run(move |parts| parts.write_out(range)).await;
            self.writing.push_back(sync);
        }
        Ok(())
    }

    /// Copies what is left of a file by reading and writing: between file systems that the kernel does not copy between.
    async fn copy_through(&mut self, source: Arc<File>, size: u64) -> Result<()> {
        let mut chunks = file::read(source, self.offset..size, self.parts.store.pool.clone());
        while let Some(chunk) = chunks.try_next().await? {
            self.write(chunk).await?;
        }
        Ok(())
    }

    /// Has the disk write out what its cache holds, one such request at a time.
    async fn flush_behind(&mut self) -> Result<()> {
        if self.unsynced < FLUSH_BEHIND {
            return Ok(());
        }
        self.finish_flush().await?;
        self.flushing = Some(self.run(|parts| sync_data(&parts.staged.file)).await);
        self.unsynced = 0;
        Ok(())
    }

    /// Waits for the flush under way: its error is reported to it alone (fsync(2)), so none may be passed over.
    async fn finish_flush(&mut self) -> Result<()> {
        let Some(flushing) = &mut self.flushing else { return Ok(()) };
        let outcome = flushing.await;
        self.flushing = None;
        outcome.map_err(Error::stopped)?
    }

    /// Waits until one more write may be under way; gives the permit of one of the spare ones, if it takes that.
    async fn make_room(&mut self) -> Result<Option<OwnedSemaphorePermit>> {
        while self.writing.front().is_some_and(JoinHandle::is_finished) {
            self.drain(self.writing.len() - 1).await?;
        }
        if self.writing.len() >= IN_FLIGHT {
            if let Ok(spare) = Arc::clone(&self.parts.store.spare_writes).try_acquire_owned() {
                return Ok(Some(spare));
            }
            self.drain(IN_FLIGHT - 1).await?;
        }
        Ok(None)
    }

    /// Waits until at most `left` writes are under way.
    async fn drain(&mut self, left: usize) -> Result<()> {
        while self.writing.len() > left {
            let Some(oldest) = self.writing.front_mut() else { break };
            let outcome = oldest.await;
            self.writing.pop_front();
            outcome.map_err(Error::stopped)??;
        }
        Ok(())
    }
}

#[async_trait]
impl Upload for FsUpload {
    async fn write(&mut self, chunk: Chunk) -> Result<()> {
        match chunk {
            Chunk::Data(bytes) => self.write_data(bytes).await,
            Chunk::Zeros(len) => self.write_zeros(len).await,
        }
    }

    async fn adopt(&mut self, source: &Arc<File>) -> Result<Option<Arc<File>>> {
        let (source, direct) = (Arc::clone(source), self.direct);
        let shared = self.run_now(move |parts| {
            let file = &parts.staged.file;
            if !share_blocks(file, &source) {
                return Ok(None);
            }
            if direct {
                make_buffered(file)?;
            }
            let found = file.metadata().map_err(|e| Error::from_io("cannot examine the upload", e))?;
            Ok(Some(found.len()))
        });
        let Some(len) = shared.await? else { return Ok(None) };
        // A source that has grown since it was measured gave more than was announced; the commit cuts that off.
        self.offset = self.total.map_or(len, |total| total.min(len));
        self.direct = false;
        Ok(Some(Arc::clone(&self.parts.staged.file)))
    }

    async fn copy(&mut self, from: &Location, size: u64) -> Result<()> {
        let at = from.clone();
        let source = self.run_now(move |parts| {
            let source = parts.store.blob(&at)?;
            let found = source.metadata().map_err(|e| Error::from_io("cannot examine the blob", e))?;
            // Another blob has come in the place of the one that was looked at.
            if found.len() == size { Ok(Arc::new(source)) } else { Err(Error::not_found(&at)) }
        });
        let source = source.await?;
        match self.adopt(&source).await? {
            Some(_) => Ok(()),
            None => self.copy_file(source, size).await,
        }
    }

    async fn commit(&mut self, meta: &Meta) -> Result<Location> {
        self.drain(0).await?;
        self.finish_flush().await?;
        let (size, meta) = (self.offset, meta.clone());
        let publishing = self.run(move |parts| parts.publish(size, &meta)).await;
        let committing = self.committing.insert(publishing);
        let outcome = committing.await;
        self.committing = None;
        match outcome.map_err(Error::stopped)? {
            Ok(()) => {
                // No await from here on: a future dropped now would lose a blob that is there.
                self.over = true;
                location::of(&self.parts.directory.path, &self.parts.id)
            }
            Err(Publish::Taken) => Err(Error::taken(&self.parts.id)),
            Err(Publish::Failed(error)) => Err(error),
        }
    }

    async fn abort(&mut self) -> Result<()> {
        while let Some(oldest) = self.writing.front_mut() {
            let _ = oldest.await; // Whatever it wrote goes away now.
            self.writing.pop_front();
        }
        let _ = self.finish_flush().await;
        // A commit whose future was dropped has gone on: what it published is taken back.
        let published = match &mut self.committing {
            Some(committing) => matches!(committing.await, Ok(Ok(()))),
            None => false,
        };
        self.committing = None;
        let undo = self.run_now(move |parts| {
            match published {
                true => parts.directory.unpublish(&parts.id, &parts.staged),
                false => parts.directory.discard(&parts.id, &parts.staged),
            }
            Ok(())
        });
        undo.await?;
        self.over = true;
        Ok(())
    }
}

impl Drop for FsUpload {
    /// For a runtime that ends before its janitor ran: the staged name goes, and writes under way go nowhere.
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let Parts { id, directory, staged, fate, .. } = &*self.parts;
        match fate.set(Fate::GivenUp) {
            Ok(()) => directory.discard(id, staged),
            Err(_) => directory.unpublish(id, staged),
        }
    }
}

impl Parts {
    /// Makes a range of the file durable, and has the page cache forget it.
    fn write_out(&self, range: Range<u64>) -> Result<()> {
        sync_data(&self.staged.file)?;
        forget(&self.staged.file, range.start, range.end - range.start);
        Ok(())
    }

    /// Refuses bytes whose space was not reserved, where they would not leave free what is configured. Those of the writes
    /// in flight are not counted.
    fn leave_free(&self, len: u64) -> Result<()> {
        let reserve = self.store.reserve();
        if reserve == 0 {
            return Ok(()); // The file system says when it is full.
        }
        let free = self.directory.space()?.1.saturating_sub(reserve);
        if free >= len { Ok(()) } else { Err(no_space(&self.directory.path, len, free, reserve)) }
    }

    fn publish(&self, size: u64, meta: &Meta) -> Result<(), Publish> {
        let lock =
            self.store.lock_for_commit(&self.id, &self.directory).map_err(|error| match error.kind() {
                ErrorKind::AlreadyExists => Publish::Taken,
                _ => Publish::Failed(error),
            })?;
        let given_up = || Publish::Failed(Error::new(ErrorKind::Unavailable, "the upload was given up"));
        if self.fate.get().is_some() {
            return Err(given_up());
        }
        self.directory.publish(&self.id, &self.staged, size, meta)?;
        if self.fate.set(Fate::Published).is_err() {
            self.directory.unpublish(&self.id, &self.staged);
            return Err(given_up());
        }
        drop(lock);
        self.directory.unstage(&self.staged);
        Ok(())
    }
}

/// Writes at an offset; direct I/O takes aligned memory only, so other memory is copied first.
fn write_at(parts: &Parts, bytes: Bytes, at: u64, direct: bool) -> Result<()> {
    let file = &parts.staged.file;
    let misaligned = bytes.as_ptr().align_offset(buffer::ALIGNMENT) != 0;
    let mut bytes = bytes;
    if direct && misaligned {
        let mut copy = parts.store.pool.take();
        copy.fill(&bytes);
        bytes = copy.freeze();
    }
    file.write_all_at(&bytes, at).map_err(|e| Error::from_io("cannot write the blob", e))
}
