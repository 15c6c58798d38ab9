use std::{
    collections::VecDeque,
    fs::File,
    sync::{Arc, LazyLock},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use store_core::{
    BlobId, Chunk, Download, Error, ErrorKind, Location, Meta, Result, SizeHint, Upload, file::blocking,
};
use tokio::{
    sync::oneshot,
    task::{JoinHandle, spawn, spawn_blocking},
    time::{sleep, timeout},
};
use tokio_util::task::TaskTracker;

use crate::{
    CopyMode,
    backend::{CHUNK, Shared},
    client::META,
    error::{from_errno, stopped, swept, taken},
    ffi::{Errno, Image, Mode, Outcome, Which},
    location::{Target, staged_name},
};

/// Commit point: the rename of the finished image to its id, which fails if there is an image of that name.
///
/// Before it, the image is under a staged name, with its length, its metadata and its protected snapshot.
pub(crate) struct CephUpload {
    staged: Arc<Staged>,
    /// What is under way stays here while it is awaited, so that nothing is lost with a future.
    opening: Option<JoinHandle<Result<Open>>>,
    open: Option<Open>,
    /// Writes, oldest first, with their lengths.
    flying: VecDeque<(oneshot::Receiver<Outcome<Bytes>>, usize)>,
    resizing: Option<JoinHandle<Result<()>>>,
    /// With what Ceph calls the image that is to be the blob.
    committing: Option<(JoinHandle<Result<()>>, Arc<str>)>,
    cleaning: Option<JoinHandle<Result<()>>>,
    /// The image's length, of which `offset` bytes are written or left out.
    size: u64,
    offset: u64,
    over: bool,
}

/// An image that is not yet a blob.
struct Staged {
    store: Arc<Shared>,
    id: BlobId,
    name: String,
}

/// The image, held by each write in flight too, and what Ceph calls it.
#[derive(Clone)]
struct Open {
    image: Arc<Image>,
    id: Arc<str>,
}

/// With an unknown length, an image grows by at least so much, then doubles, up to the other limit.
const LEAST_STEP: u64 = 64 << 20;
const MOST_STEP: u64 = 8 << 30;

/// Writes in flight, however short they are.
const MOST_WRITES: usize = 256;

/// How often what is not wanted is removed, and the pause between.
const REMOVALS: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);

impl CephUpload {
    /// Starts an upload by making its image.
    pub(crate) async fn begin(store: Arc<Shared>, id: &BlobId, hint: SizeHint) -> Result<Self> {
        let name = staged_name(&random_token()?, id);
        let staged = Arc::new(Staged { store, id: id.clone(), name });
        let opening = {
            let staged = Arc::clone(&staged);
            spawn_blocking(move || staged.create(hint))
        };
        let mut upload = Self {
            staged,
            opening: Some(opening),
            open: None,
            flying: VecDeque::new(),
            resizing: None,
            committing: None,
            cleaning: None,
            size: hint.total.unwrap_or_default(),
            offset: 0,
            over: false,
        };
        if let Some(opening) = &mut upload.opening {
            let opened = opening.await;
            upload.opening = None;
            upload.open = Some(opened.map_err(stopped)??);
        }
        Ok(upload)
    }

    async fn write_data(&mut self, bytes: Bytes) -> Result<()> {
        let end = self.offset + bytes.len() as u64;
        // A write that crosses the end of the image is cut short without an error.
        if end > self.size {
            self.grow(end).await?;
        }
        let window = self.staged.store.concurrency * CHUNK;
        while self.flying.len() >= MOST_WRITES
            || self.flying.iter().map(|(_, len)| len).sum::<usize>() + bytes.len() > window.max(bytes.len())
        {
            self.land().await?;
        }
        let Some(open) = &self.open else { return Err(over()) };
        let len = bytes.len();
        self.flying.push_back((open.image.write(self.offset, bytes), len));
        self.offset = end;
        Ok(())
    }

    /// Waits for the oldest write.
    async fn land(&mut self) -> Result<()> {
        let Some((oldest, _)) = self.flying.front_mut() else { return Ok(()) };
        let outcome = oldest.await;
        self.flying.pop_front();
        let (written, _) = outcome.map_err(stopped)?;
        written.map(drop).map_err(|e| from_errno("write the image", e))
    }

    async fn grow(&mut self, end: u64) -> Result<()> {
        let Some(open) = self.open.clone() else { return Err(over()) };
        let size = end.max(self.size.saturating_add(self.size.clamp(LEAST_STEP, MOST_STEP)));
        let resizing = self.resizing.insert(spawn_blocking(move || {
            open.image.resize(size).map_err(|e| from_errno("make the image longer", e))
        }));
        let resized = resizing.await;
        self.resizing = None;
        resized.map_err(stopped)??;
        self.size = size;
        Ok(())
    }

    /// Puts a copy-on-write clone in the place of the empty image.
    async fn clone_from(&mut self, from: &Location, size: u64) -> Result<()> {
        let Some(empty) = self.open.take() else { return Err(over()) };
        let (staged, at) = (Arc::clone(&self.staged), from.clone());
        let opening = self.opening.insert(spawn_blocking(move || {
            close(empty);
            staged.clone_of(&at, size)
        }));
        let opened = opening.await;
        self.opening = None;
        self.open = Some(opened.map_err(stopped)??);
        (self.size, self.offset) = (size, size);
        Ok(())
    }

    /// Hands all that is under way to a task that removes it.
    fn clean(&mut self) -> JoinHandle<Result<()>> {
        let remains = Remains {
            staged: Arc::clone(&self.staged),
            opening: self.opening.take(),
            open: self.open.take(),
            flying: std::mem::take(&mut self.flying),
            resizing: self.resizing.take(),
            committing: self.committing.take(),
        };
        CLEANING.spawn(remains.remove())
    }
}

/// What this process is about to remove; sweeps wait for it.
static CLEANING: LazyLock<TaskTracker> = LazyLock::new(TaskTracker::new);

/// Waits until what was being removed is gone, but not for long.
pub(crate) async fn settle(most: Duration) {
    CLEANING.close();
    let _ = timeout(most, CLEANING.wait()).await;
}

#[async_trait]
impl Upload for CephUpload {
    async fn write(&mut self, chunk: Chunk) -> Result<()> {
        match chunk {
            Chunk::Data(bytes) => self.write_data(bytes).await,
            // Nothing is in the image yet: what is not written is a hole.
            Chunk::Zeros(len) => {
                self.offset += len;
                Ok(())
            }
        }
    }

    async fn adopt(&mut self, _: &Arc<File>) -> Result<Option<Arc<File>>> {
        Ok(None)
    }

    async fn copy(&mut self, from: &Location, size: u64) -> Result<()> {
        // An image of no length has no clones.
        if self.staged.store.copy == CopyMode::Clone && size > 0 {
            return self.clone_from(from, size).await;
        }
        // As librbd's own copy does it, which however cannot be stopped.
        let (store, at) = (Arc::clone(&self.staged.store), from.clone());
        let source = blocking(move || store.open(&at)).await?;
        if source.stat().size != size {
            return Err(Error::not_found(from));
        }
        let mut chunks = source.read(0..size).await?;
        while let Some(chunk) = chunks.try_next().await? {
            self.write(chunk).await?;
        }
        Ok(())
    }

    async fn commit(&mut self, meta: &Meta) -> Result<Location> {
        while !self.flying.is_empty() {
            self.land().await?;
        }
        let Some(open) = self.open.take() else { return Err(over()) };
        let (staged, size, meta) = (Arc::clone(&self.staged), self.offset, meta.clone());
        let id = Arc::clone(&open.id);
        let task = spawn_blocking(move || {
            let committed = staged.commit(&open, size, &meta);
            // Its watcher must not be in the way of who deletes the blob.
            close(open);
            committed
        });
        let (committing, id) = self.committing.insert((task, id));
        let outcome = committing.await.map_err(stopped).flatten();
        // A failed one stays known: what became of it is looked up in the clean-up.
        if outcome.is_err() {
            let id = Arc::clone(id);
            self.committing = Some((spawn(std::future::ready(Ok(()))), id));
        }
        outcome?;
        // No await from here on: a future dropped now would lose a blob that is there.
        self.committing = None;
        self.over = true;
        self.staged.store.images.place.location(self.staged.id.as_str())
    }

    async fn abort(&mut self) -> Result<()> {
        if self.over {
            return Ok(());
        }
        if self.cleaning.is_none() {
            self.cleaning = Some(self.clean());
        }
        let Some(cleaning) = &mut self.cleaning else { return Ok(()) };
        let outcome = cleaning.await.map_err(stopped).flatten();
        self.over = true;
        outcome
    }
}

impl Drop for CephUpload {
    /// For a `begin` that was dropped, and for an abort that was given up: it goes on, and nobody waits for it.
    fn drop(&mut self) {
        if !self.over && self.cleaning.is_none() && tokio::runtime::Handle::try_current().is_ok() {
            drop(self.clean());
        }
    }
}

impl Staged {
    fn create(&self, hint: SizeHint) -> Result<Open> {
        let images = &self.store.images;
        if images.id_of(self.id.as_str())?.is_some() {
            return Err(taken(&self.id));
        }
        if let Some(needed) = hint.needed() {
            // An estimate: the cluster counts with a delay. What it lets pass fails later.
            let free = images.capacity()?.free;
            if needed > free {
                let message = format!("the image needs {needed} bytes, and {free} are left");
                return Err(Error::new(ErrorKind::NoSpace, message));
            }
        }
        let size = hint.total.unwrap_or_default();
        images.pool.create(&self.name, size, &images.layout).map_err(|errno| {
            let error = from_errno("create an image", errno);
            match errno {
                Errno::EINVAL | Errno::ENOENT => {
                    error.with_hint("the cluster does not take this `data_pool`, `features` or `object_size`")
                }
                _ => error,
            }
        })?;
        self.open()
    }

    fn open(&self) -> Result<Open> {
        let image = self.store.images.pool.open(Which::Name(&self.name), None, Mode::Write);
        let image = image.map_err(|e| from_errno("open the new image", e))?;
        let id = image.id().map_err(|e| from_errno("ask for the image's id", e))?.into();
        Ok(Open { image: Arc::new(image), id })
    }

    fn clone_of(&self, at: &Location, size: u64) -> Result<Open> {
        let images = &self.store.images;
        images.discard(&self.name)?;
        let target = images.place.find(at)?;
        let snapshot = target.snapshot.as_ref().unwrap_or(&images.place.snapshot);
        images.pool.clone_image(&target.image, snapshot, &self.name, &images.layout).map_err(|errno| {
            match errno {
                Errno::ENOENT => Error::not_found(at),
                other => from_errno("clone the image", other),
            }
        })?;
        let open = self.open()?;
        match open.image.size() {
            Ok(found) if found == size => Ok(open),
            // Another blob has come in the place of the one that was looked at.
            Ok(_) => Err(Error::not_found(at)),
            Err(error) => Err(from_errno("ask for the clone's length", error)),
        }
    }

    /// Makes everything durable, then visible.
    fn commit(&self, open: &Open, size: u64, meta: &Meta) -> Result<()> {
        let store = &self.store.images;
        let finish = || -> Result<(), Errno> {
            let image = &open.image;
            if image.size()? != size {
                image.resize(size)?;
            }
            image.flush()?;
            image.set_metadata(META, &meta.to_json())?;
            image.create_snapshot(&store.place.snapshot)?;
            image.protect(&store.place.snapshot)
        };
        finish().map_err(|errno| match errno {
            Errno::ENOENT => swept(),
            other => from_errno("finish the image", other),
        })?;
        // After the snapshot: a sweep that takes it for abandoned looks for one after it has left its mark.
        if store.is_swept(&open.id)? {
            return Err(swept());
        }
        match store.publish(&self.name, &open.id, &self.id)? {
            true => Ok(()),
            false => Err(taken(&self.id)),
        }
    }
}

/// Closes an image that nothing is in flight on.
fn close(open: Open) {
    match Arc::into_inner(open.image) {
        Some(image) => {
            if let Err(errno) = image.close() {
                tracing::debug!(%errno, "an image was not closed in order");
            }
        }
        None => tracing::debug!("an image is still in use; it is closed later"),
    }
}

/// What an upload that is not wanted leaves.
struct Remains {
    staged: Arc<Staged>,
    opening: Option<JoinHandle<Result<Open>>>,
    open: Option<Open>,
    flying: VecDeque<(oneshot::Receiver<Outcome<Bytes>>, usize)>,
    resizing: Option<JoinHandle<Result<()>>>,
    committing: Option<(JoinHandle<Result<()>>, Arc<str>)>,
}

impl Remains {
    async fn remove(mut self) -> Result<()> {
        if let Some(opening) = self.opening {
            self.open = opening.await.ok().and_then(Result::ok);
        }
        for (write, _) in self.flying {
            let _ = write.await; // Whatever it wrote goes away now.
        }
        if let Some(resizing) = self.resizing {
            let _ = resizing.await;
        }
        let mut committed = None;
        if let Some((committing, id)) = self.committing {
            let _ = committing.await; // What counts is what is there.
            committed = Some(id);
        }
        let mut tried = 0;
        loop {
            let (staged, open, committed) = (Arc::clone(&self.staged), self.open.take(), committed.clone());
            let removing = spawn_blocking(move || {
                open.into_iter().for_each(close);
                staged.remove(committed.as_deref())
            });
            tried += 1;
            match removing.await.map_err(stopped)? {
                Err(error) if error.is_retryable() && tried < REMOVALS => sleep(PAUSE).await,
                outcome => return outcome,
            }
        }
    }
}

impl Staged {
    /// Removes the image, also the blob that a commit has made of the image `committed`.
    fn remove(&self, committed: Option<&str>) -> Result<()> {
        let images = &self.store.images;
        if committed.is_some() && images.id_of(self.id.as_str())?.as_deref() == committed {
            let target = Target { image: self.id.to_string(), snapshot: None };
            return images.delete(&target, &images.place.location(self.id.as_str())?);
        }
        images.discard(&self.name)
    }
}

fn over() -> Error {
    Error::new(ErrorKind::Internal, "the upload has ended")
}

fn random_token() -> Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|e| Error::new(ErrorKind::Internal, format!("the system has no random numbers: {e}")))?;
    Ok(hex::encode(bytes))
}
