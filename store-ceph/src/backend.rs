use std::{
    collections::HashSet,
    fmt,
    fs::File,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{
    FutureExt, StreamExt, TryStreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use serde::Serialize;
use store_core::{
    Backend, BlobId, Capacity, Chunk, ChunkStream, Download, Entry, Error, ErrorKind, Info, Location, Meta,
    Result, Secret, SizeHint, Stat, Swept, Upload, buffer::Pool as Buffers, driver::Guarded, file::blocking,
    is_zero,
};

use crate::{
    CephConfig, CopyMode,
    client::{Images, META, both},
    error::from_errno,
    ffi::Image,
    location::{Target, staged_id},
    upload::{CephUpload, settle},
};

/// Bytes of a request, never across objects of the usual length. librbd copies what is in flight, so that longer ones
/// would cost memory and gain nothing.
pub(crate) const CHUNK: usize = 2 << 20;

/// The least run of zeros that is not stored: what OSDs allocate at least.
const HOLE: u64 = 64 << 10;

/// How much of an image is searched for holes at once, at least, and in how many of its objects: each search takes some
/// messages, however little there is to find.
const SEGMENT: u64 = 1 << 30;
const SEGMENT_OBJECTS: u64 = 2048;

/// How long a sweep waits for what this process is removing anyway.
const CLEANED_WITHIN: Duration = Duration::from_secs(20);

/// Images of a list that are opened at once.
const LISTED_AT_ONCE: usize = 8;

/// Blobs as RBD images of a Ceph pool.
#[derive(Clone)]
pub struct CephBackend {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    info: Info,
    pub(crate) images: Images,
    pub(crate) concurrency: usize,
    pub(crate) copy: CopyMode,
    buffers: Buffers,
}

/// A deleted blob that is in the pool's trash because it has clones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TrashedBlob {
    /// The name that its image had.
    pub name: String,
    /// What Ceph calls the image, for `rbd trash restore`.
    pub image: String,
    /// When it was deleted: seconds since 1970.
    pub deleted: i64,
}

impl CephBackend {
    /// Connects to the cluster, or uses the connection that the same settings have in this process; fails if the pool
    /// cannot be used.
    pub async fn connect(config: &CephConfig) -> Result<Self> {
        config.check()?;
        let images = {
            let config = config.clone();
            blocking(move || Images::connect(&config)).await?
        };
        let mut info = Info::new("rbd");
        info.chunk = CHUNK;
        info.hole = config.thin_provisioning.then_some(HOLE);
        info.can.write = true;
        info.can.delete = true;
        info.can.list = true;
        info.can.capacity = true;
        info.can.metadata = true;
        info.can.atomic_create = true;
        info.can.staging = true;
        info.can.copy = true;
        let concurrency = config.concurrency as usize;
        let buffers = Buffers::new(CHUNK, concurrency);
        Ok(Self { shared: Arc::new(Shared { info, images, concurrency, copy: config.copy, buffers }) })
    }

    /// The deleted blobs that are kept in the trash until they have no clones; see
    /// [`InUse::Trash`](crate::InUse::Trash). [`sweep`](Backend::sweep) removes those that nobody uses any more.
    pub async fn trash(&self) -> Result<Vec<TrashedBlob>> {
        let trashed = self.with(Images::trashed).await?;
        Ok(trashed
            .into_iter()
            .map(|entry| TrashedBlob { name: entry.name, image: entry.id, deleted: entry.at })
            .collect())
    }

    /// Calls a function that blocks.
    async fn with<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Images) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let shared = Arc::clone(&self.shared);
        blocking(move || call(&shared.images)).await
    }
}

impl Shared {
    pub(crate) fn open(self: &Arc<Self>, at: &Location) -> Result<CephDownload> {
        let target = self.images.place.find(at)?;
        let (found, kept) = both(|| self.images.find(&target), || self.images.metadata(&target.image, META));
        let (image, snapshot) = found?.ok_or_else(|| Error::not_found(at))?;
        let target = Target { snapshot, ..target };
        let wrong = |e| from_errno("describe the image", e);
        let id = image.id().map_err(wrong)?;
        let mut stat = Stat::new(image.size().map_err(wrong)?);
        let kept = match kept? {
            Some((of, json)) if of == id => json,
            // Of another image, which had the name before or has it now.
            _ => image.metadata(META).map_err(wrong)?,
        };
        if let Some(json) = kept {
            stat.meta = Some(Meta::from_json(json.as_bytes())?);
        }
        let stripe = image.stripe().map_err(wrong)?;
        let clone = image.is_clone().map_err(wrong)?;
        let open = Opened { store: Arc::clone(self), target, image: Arc::new(image), id, stripe, clone };
        Ok(CephDownload { stat, open: Arc::new(open) })
    }

    /// The blob that an image of the pool's directory is, if it is one.
    fn listed(&self, name: &str, image: &str, early: &Mutex<HashSet<String>>) -> Result<Option<Entry>> {
        let early = || early.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = staged_id(name) {
            if !self.images.is_published(&id, image)? {
                return Ok(None);
            }
            early().insert(image.to_owned());
            return self.entry(id, image);
        }
        match name.parse() {
            Ok(id) if !early().contains(image) => self.entry(id, image),
            // What has no id for a name was not written by a store.
            _ => Ok(None),
        }
    }

    /// The blob of this name and image, if it is one: if it has the store's snapshot.
    fn entry(&self, id: BlobId, image: &str) -> Result<Option<Entry>> {
        let place = &self.images.place;
        let Some(snapshot) = self.images.snapshot(image, &place.snapshot)? else { return Ok(None) };
        let Some(size) = self.images.size_at(image, snapshot)? else { return Ok(None) };
        Ok(Some(Entry::new(id.clone(), place.location(id.as_str())?, size)))
    }
}

impl fmt::Debug for CephBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CephBackend").field(&self.shared.images).finish()
    }
}

#[async_trait]
impl Backend for CephBackend {
    fn info(&self) -> &Info {
        &self.shared.info
    }

    async fn begin(&self, id: &BlobId, size: SizeHint) -> Result<Box<dyn Upload>> {
        let steps = CephUpload::new(Arc::clone(&self.shared), id, size)?;
        Ok(Box::new(Guarded::begin(steps).await?))
    }

    async fn locate(&self, id: &BlobId) -> Result<Location> {
        let id = id.clone();
        self.with(move |images| {
            let snapshot = &images.place.snapshot;
            let Some(image) = images.id_of(id.as_str())? else { return Err(Error::no_blob(&id)) };
            match images.snapshot(&image, snapshot)? {
                Some(_) => images.place.location(id.as_str()),
                None => Err(Error::no_blob(&id).with_hint(format!(
                    "there is an image of this name, but it has no snapshot `{snapshot}`; rbd://{id} is what it holds now"
                ))),
            }
        })
        .await
    }

    async fn open(&self, at: &Location) -> Result<Arc<dyn Download>> {
        let (shared, at) = (Arc::clone(&self.shared), at.clone());
        let download = blocking(move || shared.open(&at)).await?;
        Ok(Arc::new(download))
    }

    async fn delete(&self, at: &Location) -> Result<()> {
        // On a thread: a dropped future does not stop it half way.
        let at = at.clone();
        self.with(move |images| images.delete(&images.place.find(&at)?, &at)).await
    }

    fn list(&self) -> BoxStream<'_, Result<Entry>> {
        let pages = stream::try_unfold(String::new(), move |after| async move {
            let page = self.with(move |images| images.page(&after)).await?;
            let last = page.last().map(|(name, _)| name.clone());
            Ok::<_, Error>(last.map(|last| (page, last)))
        });
        // What was found by the name that it had under way has its own on a later page by then.
        let early = Arc::new(Mutex::new(HashSet::new()));
        pages
            .map_ok(move |page| {
                let early = Arc::clone(&early);
                stream::iter(page)
                    .map(move |(name, image)| {
                        let (shared, early) = (Arc::clone(&self.shared), Arc::clone(&early));
                        blocking(move || shared.listed(&name, &image, &early))
                    })
                    .buffer_unordered(LISTED_AT_ONCE)
            })
            .try_flatten()
            .try_filter_map(|entry| std::future::ready(Ok(entry)))
            .boxed()
    }

    async fn sweep(&self, age: Duration) -> Result<Swept> {
        settle(CLEANED_WITHIN).await;
        self.with(move |images| images.sweep(age)).await
    }

    async fn capacity(&self) -> Result<Capacity> {
        self.with(Images::capacity).await
    }

    async fn presign(&self, _: &Location, _: Duration) -> Result<Secret> {
        Err(Error::unsupported("URLs for its blobs: RBD is not read over HTTP"))
    }
}

pub(crate) struct CephDownload {
    stat: Stat,
    open: Arc<Opened>,
}

/// An open blob.
struct Opened {
    store: Arc<Shared>,
    target: Target,
    image: Arc<Image>,
    id: String,
    stripe: u64,
    clone: bool,
}

impl fmt::Debug for CephDownload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CephDownload").field("image", &self.open.target.image).finish_non_exhaustive()
    }
}

#[async_trait]
impl Download for CephDownload {
    fn stat(&self) -> &Stat {
        &self.stat
    }

    async fn read(&self, range: Range<u64>) -> Result<ChunkStream> {
        let ahead = self.open.store.concurrency;
        let open = Arc::clone(&self.open);
        let step = SEGMENT.max(SEGMENT_OBJECTS.saturating_mul(open.stripe));
        let segments = stream::try_unfold((open, range), move |(open, rest)| async move {
            if rest.is_empty() {
                return Ok::<_, Error>(None);
            }
            let segment = rest.start..rest.end.min((rest.start / step + 1) * step);
            let after = segment.end..rest.end;
            let pieces = {
                let open = Arc::clone(&open);
                blocking(move || open.pieces(segment)).await?
            };
            Ok(Some((pieces, (open, after))))
        });
        let open = Arc::clone(&self.open);
        let pieces = segments.map_ok(|pieces| stream::iter(pieces.into_iter().map(Ok))).try_flatten();
        // Each request is sent when its turn has come, not when it is waited for.
        let chunks = pieces.map(move |piece| match piece {
            Ok(Piece::Data(range)) => Arc::clone(&open).fetch(range),
            Ok(Piece::Hole(len)) => std::future::ready(Ok(vec![Chunk::Zeros(len)])).boxed(),
            Err(error) => std::future::ready(Err(error)).boxed(),
        });
        let chunks = chunks.buffered(ahead).map_ok(|chunks| stream::iter(chunks.into_iter().map(Ok)));
        let chunks = chunks.try_flatten();
        if !self.open.clone {
            return Ok(chunks.boxed());
        }
        // Where an object of a clone is gone, its parent's bytes are read, which look like any others.
        let open = Arc::clone(&self.open);
        let check = async move { blocking(move || open.check()).await };
        let end = stream::once(check).filter_map(|found| std::future::ready(found.err().map(Err)));
        Ok(chunks.chain(end).boxed())
    }

    fn file(&self) -> Option<&Arc<File>> {
        None
    }
}

/// A part of a range: one request, or nothing to ask for.
#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Data(Range<u64>),
    Hole(u64),
}

impl Opened {
    fn pieces(&self, segment: Range<u64>) -> Result<Vec<Piece>> {
        let data = self.image.data(segment.clone(), true).map_err(|e| from_errno("look for holes", e))?;
        let pieces = cut(segment, data);
        if pieces.iter().any(|piece| matches!(piece, Piece::Hole(_))) {
            self.check()?;
        }
        Ok(pieces)
    }

    /// Starts to read a piece.
    fn fetch(self: Arc<Self>, piece: Range<u64>) -> BoxFuture<'static, Result<Vec<Chunk>>> {
        let len = (piece.end - piece.start) as usize;
        let reading = self.image.read(piece.start, len, self.store.buffers.take());
        async move {
            let (read, buffer) = reading.await.map_err(Error::stopped)?;
            let read = read.map_err(|e| from_errno("read the image", e))?;
            if read != len {
                let message = format!("the cluster sent {read} of {len} bytes at {}", piece.start);
                return Err(Error::new(ErrorKind::Corrupt, message));
            }
            let bytes = buffer.freeze();
            if self.may_be_gone(&bytes, piece.start) {
                blocking(move || self.check()).await?;
            }
            Ok(runs(bytes, piece.start))
        }
        .boxed()
    }

    /// A deleted image's objects go one by one, and what is gone reads as zeros: if a whole object of a reply is zeros,
    /// one cannot know.
    fn may_be_gone(&self, bytes: &[u8], offset: u64) -> bool {
        let stripe = self.stripe.max(512);
        let lead = (offset.next_multiple_of(stripe) - offset).min(bytes.len() as u64) as usize;
        let (first, rest) = bytes.split_at(lead);
        (!first.is_empty() && is_zero(first)) || rest.chunks(stripe as usize).any(is_zero)
    }

    /// Fails if the image is not under its name any more.
    fn check(&self) -> Result<()> {
        let Target { image: name, snapshot } = &self.target;
        let gone = || {
            let message = format!("the image {name} was deleted while it was read");
            Error::new(ErrorKind::NotFound, message)
        };
        // A fresh look: nobody tells a reader.
        let images = &self.store.images;
        if images.id_of(name)?.as_ref() != Some(&self.id) {
            return Err(gone());
        }
        match snapshot {
            Some(snapshot) if images.snapshot(&self.id, snapshot)?.is_none() => Err(gone()),
            _ => Ok(()),
        }
    }
}

/// Cuts a segment into pieces that end at multiples of [`CHUNK`]; `data` are the parts of it that are not holes.
fn cut(segment: Range<u64>, data: Vec<Range<u64>>) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut at = segment.start;
    let push_hole = |pieces: &mut Vec<Piece>, hole: Range<u64>| {
        if !hole.is_empty() {
            pieces.push(Piece::Hole(hole.end - hole.start));
        }
    };
    for part in data {
        let (start, end) = (part.start.max(at), part.end.min(segment.end));
        if start >= end {
            continue;
        }
        push_hole(&mut pieces, at..start);
        at = start;
        while at < end {
            let next = end.min((at / CHUNK as u64 + 1) * CHUNK as u64);
            pieces.push(Piece::Data(at..next));
            at = next;
        }
    }
    push_hole(&mut pieces, at..segment.end);
    pieces
}

/// Splits bytes into data and the runs of zeros that fill whole blocks: what is in one object with data, or was written as
/// zeros, is no hole to Ceph.
fn runs(mut bytes: Bytes, offset: u64) -> Vec<Chunk> {
    let mut runs = Vec::new();
    let mut start = 0;
    let mut at = (offset.next_multiple_of(HOLE) - offset).min(bytes.len() as u64) as usize;
    let hole = HOLE as usize;
    while at + hole <= bytes.len() {
        let zeros = bytes[at..].chunks_exact(hole).take_while(|block| is_zero(block)).count() * hole;
        if zeros > 0 {
            if at > start {
                runs.push(Chunk::Data(bytes.slice(start..at)));
            }
            runs.push(Chunk::Zeros(zeros as u64));
            start = at + zeros;
        }
        at += zeros.max(hole);
    }
    let rest = bytes.split_off(start);
    if !rest.is_empty() {
        runs.push(Chunk::Data(rest));
    }
    runs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn runs_make_the_bytes(offset in 0..3 * HOLE, blocks in proptest::collection::vec((0u8..2, 1..2 * HOLE), 0..6)) {
            let bytes: Vec<u8> = blocks.iter().flat_map(|(byte, len)| vec![*byte; *len as usize]).collect();
            let runs = runs(Bytes::from(bytes.clone()), offset);
            let mut at = offset;
            for run in &runs {
                prop_assert!(!run.is_empty());
                if let Chunk::Zeros(len) = run {
                    prop_assert!(at.is_multiple_of(HOLE) && len.is_multiple_of(HOLE));
                }
                at += run.len();
            }
            let flat: Vec<u8> = runs.into_iter().flat_map(Chunk::into_bytes).flatten().collect();
            prop_assert!(flat == bytes);
        }
    }

    #[test]
    fn pieces_make_the_segment() {
        // Four parts make a request.
        let part = |n: u64| n * (CHUNK as u64 / 4);
        assert_eq!(cut(5..5, Vec::new()), []);
        assert_eq!(cut(5..9, Vec::new()), [Piece::Hole(4)]);
        let pieces = cut(100..part(20), vec![0..part(5), part(8)..part(9), part(16)..part(24)]);
        assert_eq!(
            pieces,
            [
                Piece::Data(100..part(4)),
                Piece::Data(part(4)..part(5)),
                Piece::Hole(part(3)),
                Piece::Data(part(8)..part(9)),
                Piece::Hole(part(7)),
                Piece::Data(part(16)..part(20)),
            ]
        );
    }
}
