use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt, future::BoxFuture, stream::FuturesUnordered};
use store_core::{
    BlobId, Chunk, Download, Error, ErrorKind, Location, Meta, Result, SizeHint,
    driver::{Pending, Request, Steps, token},
    file::blocking,
};
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;

use crate::{
    CopyMode,
    backend::{CHUNK, Shared},
    client::{META, both, finish_error},
    error::from_errno,
    ffi::{Errno, Image, Mode, Outcome, Which},
    location::{Target, staged_name},
};

/// Commit point: the rename of the finished image to its id, which fails if there is an image of that name.
///
/// Before it, the image is under a staged name, with its length, its metadata and its protected snapshot.
pub(crate) struct CephUpload {
    staged: Arc<Staged>,
    hint: SizeHint,
    opening: Pending<Open>,
    open: Option<Open>,
    /// Writes in flight, in the order in which they are answered: a late one is not in the way of the others.
    flying: FuturesUnordered<BoxFuture<'static, Result<Landed>>>,
    /// Their bytes.
    held: u64,
    resizing: Pending<()>,
    /// What Ceph calls the image that is to be the blob, once its commit has begun.
    committing: Option<Arc<str>>,
    /// The image's length, of which `offset` bytes are written or left out.
    size: u64,
    offset: u64,
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
    short: Option<Short>,
}

/// The space that an image needs and that which is left, where it is too little.
#[derive(Clone, Copy)]
struct Short {
    needed: u64,
    free: u64,
}

impl Short {
    fn into_error(self) -> Error {
        let Self { needed, free } = self;
        Error::new(ErrorKind::NoSpace, format!("the image needs {needed} bytes, and {free} are left"))
    }
}

/// A write that is over.
struct Landed {
    len: u64,
    outcome: Outcome<Bytes>,
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
    pub(crate) fn new(store: Arc<Shared>, id: &BlobId, hint: SizeHint) -> Result<Self> {
        let name = staged_name(&token()?, id);
        Ok(Self {
            staged: Arc::new(Staged { store, id: id.clone(), name }),
            hint,
            opening: Pending::default(),
            open: None,
            flying: FuturesUnordered::new(),
            held: 0,
            resizing: Pending::default(),
            committing: None,
            size: hint.total.unwrap_or_default(),
            offset: 0,
        })
    }

    async fn write_data(&mut self, bytes: Bytes) -> Result<()> {
        if let Some(short) = self.open.as_ref().and_then(|open| open.short) {
            return Err(short.into_error());
        }
        let end = self.offset + bytes.len() as u64;
        // A write that crosses the end of the image is cut short without an error.
        if end > self.size {
            self.grow(end).await?;
        }
        let window = (self.staged.store.concurrency * CHUNK) as u64;
        let len = bytes.len() as u64;
        while !self.flying.is_empty() && (self.held + len > window || self.flying.len() >= MOST_WRITES) {
            self.land().await?;
        }
        let Some(open) = &self.open else { return Err(no_image()) };
        let writing = open.image.write(self.offset, bytes);
        let landing =
            writing.map(move |outcome| Ok(Landed { len, outcome: outcome.map_err(Error::stopped)? }));
        self.flying.push(landing.boxed());
        self.held += len;
        self.offset = end;
        Ok(())
    }

    /// Waits for one write, whichever is answered first.
    async fn land(&mut self) -> Result<()> {
        let Some(landed) = self.flying.next().await else { return Ok(()) };
        let Landed { len, outcome: (written, _) } = landed?;
        self.held -= len;
        written.map(drop).map_err(|e| from_errno("write the image", e))
    }

    async fn grow(&mut self, end: u64) -> Result<()> {
        let Some(open) = self.open.clone() else { return Err(no_image()) };
        let size = end.max(self.size.saturating_add(self.size.clamp(LEAST_STEP, MOST_STEP)));
        let resize = Request::blocking(move || {
            open.image.resize(size).map_err(|e| from_errno("make the image longer", e))
        });
        self.resizing.run(resize).await?;
        self.size = size;
        Ok(())
    }

    /// Puts a copy-on-write clone in the place of the empty image.
    async fn clone_from(&mut self, from: &Location, size: u64) -> Result<()> {
        let Some(empty) = self.open.take() else { return Err(no_image()) };
        let (staged, at) = (Arc::clone(&self.staged), from.clone());
        let opening = Request::blocking(move || {
            close(empty);
            staged.clone_of(&at, size)
        });
        self.open = Some(self.opening.run(opening).await?);
        (self.size, self.offset) = (size, size);
        Ok(())
    }

    /// Removes the image, or the blob that the commit has made of it.
    async fn remove(&mut self) -> Result<()> {
        if let Some(open) = self.opening.left().await {
            self.open = Some(open);
        }
        while self.flying.next().await.is_some() {} // Whatever they wrote goes away now.
        self.resizing.left().await;
        let mut tried = 0;
        loop {
            let (staged, open) = (Arc::clone(&self.staged), self.open.take());
            let committed = self.committing.clone();
            let removing = blocking(move || {
                open.into_iter().for_each(close);
                staged.remove(committed.as_deref())
            });
            tried += 1;
            match removing.await {
                Err(error) if error.is_retryable() && tried < REMOVALS => sleep(PAUSE).await,
                outcome => return outcome,
            }
        }
    }
}

/// What this process is about to remove; sweeps wait for it.
static CLEANING: LazyLock<TaskTracker> = LazyLock::new(TaskTracker::new);

/// Waits until what was being removed is gone, but not for long.
pub(crate) async fn settle(most: Duration) {
    CLEANING.close();
    let _ = timeout(most, CLEANING.wait()).await;
}

impl Steps for CephUpload {
    /// Makes the image.
    async fn begin(&mut self) -> Result<()> {
        let (staged, hint) = (Arc::clone(&self.staged), self.hint);
        self.open = Some(self.opening.run(Request::blocking(move || staged.create(hint))).await?);
        Ok(())
    }

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

    async fn finish(&mut self, meta: &Meta) -> Result<Request<()>> {
        while !self.flying.is_empty() {
            self.land().await?;
        }
        let Some(open) = self.open.take() else { return Err(no_image()) };
        let (staged, size, meta) = (Arc::clone(&self.staged), self.offset, meta.clone());
        self.committing = Some(Arc::clone(&open.id));
        Ok(Request::blocking(move || {
            let committed = staged.commit(&open, size, &meta);
            // Its watcher must not be in the way of who deletes the blob.
            both(|| close(open), || committed.is_ok().then(|| staged.store.images.give_up(&staged.name)));
            committed
        }))
    }

    fn location(&self) -> Result<Location> {
        self.staged.store.images.place.location(self.staged.id.as_str())
    }

    fn discard(&mut self, _: bool) -> impl Future<Output = Result<()>> + Send {
        CLEANING.track_future(self.remove())
    }
}

impl Staged {
    fn create(&self, hint: SizeHint) -> Result<Open> {
        let images = &self.store.images;
        let room = || match hint.needed() {
            Some(needed) => Ok(images.space()?.map(|space| (needed, space))),
            None => Ok(None),
        };
        let (taken, room) = both(|| images.id_of(self.id.as_str()), room);
        if taken?.is_some() {
            return Err(Error::taken(&self.id));
        }
        // An estimate: the cluster counts with a delay. What it lets pass fails later.
        let short = room?.filter(|(needed, space)| *needed > space.free);
        let short = short.map(|(needed, space)| (Short { needed, free: space.free }, needed > space.total));
        // What is to be a clone takes no space. Only the first byte tells that it is none, unless nothing ever fits.
        if let Some((short, _)) = short.filter(|(_, never)| *never || self.store.copy != CopyMode::Clone) {
            return Err(short.into_error());
        }
        let short = short.map(|(short, _)| short);
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
        Ok(Open { short, ..self.open()? })
    }

    fn open(&self) -> Result<Open> {
        let image = self.store.images.pool.open(Which::Name(&self.name), None, Mode::Write);
        let image = image.map_err(|e| from_errno("open the new image", e))?;
        let id = image.id().map_err(|e| from_errno("ask for the image's id", e))?.into();
        Ok(Open { image: Arc::new(image), id, short: None })
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
        let write = || {
            let image = &open.image;
            if image.size()? != size {
                image.resize(size)?;
            }
            image.flush()
        };
        write().map_err(finish_error)?;
        let (protected, described) = both(
            || {
                open.image.create_snapshot(&store.place.snapshot).map_err(finish_error)?;
                store.protect(&open.id)
            },
            || {
                store.set_metadata(&open.id, META, &meta.to_json())?;
                store.is_of_old_format(self.id.as_str())
            },
        );
        protected?;
        if described.map_err(finish_error)? {
            return Err(Error::taken(&self.id));
        }
        // After the snapshot: a sweep that takes it for abandoned looks for one after it has left its mark.
        if store.is_swept(&open.id)? {
            return Err(Error::swept());
        }
        match store.publish(&self.name, &open.id, &self.id)? {
            true => Ok(()),
            false => Err(Error::taken(&self.id)),
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

fn no_image() -> Error {
    Error::new(ErrorKind::Internal, "the upload has no image any more")
}
