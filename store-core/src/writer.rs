use std::{collections::BTreeMap, fmt, fs::File, sync::Arc};

use jiff::Timestamp;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use crate::{
    Algorithm, BlobId, Chunk, Digests, Error, ErrorKind, Hasher, Inspect, Location, Meta, Result, Tap,
    Upload,
    driver::tracked,
    inspect::{Format, Report},
    lanes::Lanes,
    policy::Inspection,
    rechunk::{self, Rechunk},
    store::Shared,
};

/// What the caller already knows and wants of a blob. What is known is checked before the commit.
#[derive(Default)]
#[must_use]
pub struct Expect {
    pub(crate) size: Option<u64>,
    pub(crate) data_size: Option<u64>,
    pub(crate) digests: Digests,
    pub(crate) format: Option<Format>,
    /// Format and virtual size of the blob that these bytes are a copy of, where nobody looks at them again.
    pub(crate) seen: Option<(Format, Option<u64>)>,
    pub(crate) properties: BTreeMap<String, String>,
    pub(crate) also: Vec<Algorithm>,
    pub(crate) taps: Vec<Box<dyn Tap>>,
}

impl Expect {
    /// Nothing is known.
    pub fn new() -> Self {
        Self::default()
    }

    /// The length in bytes; any other is an error, and a full disk is noticed before the first byte is sent.
    pub fn size(mut self, bytes: u64) -> Self {
        self.size = Some(bytes);
        self
    }

    /// How many of the bytes are not in holes, where the source is sparse.
    pub fn data_size(mut self, bytes: u64) -> Self {
        self.data_size = Some(bytes);
        self
    }

    /// Digests that the bytes must have; those that the store does not compute anyway are computed too.
    pub fn digests(mut self, digests: Digests) -> Self {
        self.digests = digests;
        self
    }

    /// A digest to compute besides those of the store's configuration.
    pub fn also(mut self, algorithm: Algorithm) -> Self {
        self.also.push(algorithm);
        self
    }

    /// The image format that the bytes must have, and be safe in.
    pub fn format(mut self, format: Format) -> Self {
        self.format = Some(format);
        self
    }

    /// A note to keep with the blob; see [`Meta::MAX_PROPERTIES`].
    pub fn property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.properties.insert(name.into(), value.into());
        self
    }

    /// Lets `tap` watch the bytes, and refuse them.
    pub fn tap(mut self, tap: impl Tap) -> Self {
        self.taps.push(Box::new(tap));
        self
    }
}

impl fmt::Debug for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Expect")
            .field("size", &self.size)
            .field("digests", &self.digests)
            .field("format", &self.format)
            .finish_non_exhaustive()
    }
}

/// A committed, durable blob.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Blob {
    /// Where to read it.
    pub location: Location,
    /// What is kept with it.
    pub meta: Meta,
    /// What the format inspector saw; `None` where inspection is off.
    pub report: Option<Report>,
}

/// An upload in progress. [`finish`](Self::finish) keeps the blob; anything else removes it.
///
/// # Cancel safety
///
/// A `write` whose future is dropped leaves the writer broken: the next call fails, and nothing is kept. A
/// `finish` whose future is dropped keeps nothing either. A dropped writer hands its clean-up to a task of the
/// store; [`Store::settle`](crate::Store::settle) waits for it.
#[must_use = "a dropped writer removes what was written"]
pub struct Writer {
    id: BlobId,
    upload: Option<Box<dyn Upload>>,
    lanes: Option<Lanes>,
    inspection: Inspection,
    rechunk: Rechunk,
    expect: Expect,
    size: u64,
    /// Where the next chunk goes.
    offset: u64,
    hole: Option<u64>,
    /// The storage has the bytes already; they only pass by.
    adopted: bool,
    /// Set while a write is in flight; stays set if that write fails or is cancelled.
    broken: bool,
    shared: Arc<Shared>,
}

impl Writer {
    pub(crate) fn new(
        shared: Arc<Shared>,
        id: BlobId,
        upload: Box<dyn Upload>,
        mut expect: Expect,
        inspection: Inspection,
    ) -> Self {
        let mut algorithms: Vec<Algorithm> = vec![Algorithm::Crc64Nvme];
        algorithms.extend(shared.options.digests.iter().copied());
        algorithms.extend(expect.also.iter().copied());
        algorithms.extend(expect.digests.iter().map(|(algorithm, _)| algorithm));
        algorithms.sort();
        algorithms.dedup();
        let hashers = algorithms.into_iter().map(Hasher::new).collect();
        let (chunk, taps) = (shared.backend.info().chunk, std::mem::take(&mut expect.taps));
        let lanes = Lanes::start(&shared.janitor.runtime, chunk, hashers, taps);
        let mut writer = Self::copying(shared, id, upload);
        writer.lanes = Some(lanes);
        writer.inspection = inspection;
        writer.expect = expect;
        writer
    }

    /// A writer for bytes that the storage copies by itself.
    pub(crate) fn copying(shared: Arc<Shared>, id: BlobId, upload: Box<dyn Upload>) -> Self {
        let info = shared.backend.info();
        let rechunk = Rechunk::new(info.chunk, info.hole, shared.pool.clone());
        let hole = info.hole;
        Self {
            id,
            upload: Some(upload),
            lanes: None,
            inspection: Inspection::new(Inspect::Off, None),
            rechunk,
            expect: Expect::new(),
            size: 0,
            offset: 0,
            hole,
            adopted: false,
            broken: false,
            shared,
        }
    }

    /// Appends bytes or a run of zeros, of any length; waits while the storage or a digest is behind.
    pub async fn write(&mut self, piece: impl Into<Chunk> + Send) -> Result<()> {
        let outcome = self.accept(piece.into()).await;
        outcome.map_err(|error| self.shared.context(error, "put", Some(&self.id)))
    }

    /// Lets the storage share the blocks of a local file instead of being sent its bytes; gives the file to read the
    /// bytes from, which are written all the same, for digests and inspection.
    pub(crate) async fn adopt(&mut self, source: &Arc<File>) -> Result<Option<Arc<File>>> {
        let Some(upload) = &mut self.upload else { return Err(finished()) };
        self.broken = true;
        let copy = upload.adopt(source).await?;
        self.broken = false;
        self.adopted = copy.is_some();
        Ok(copy)
    }

    /// How many bytes were written so far.
    pub fn written(&self) -> u64 {
        self.size
    }

    /// Makes the blob durable and visible; on any error nothing of it is left.
    pub async fn finish(mut self) -> Result<Blob> {
        let outcome = self.complete().await;
        let (shared, id) = (Arc::clone(&self.shared), self.id.clone());
        if outcome.is_err() {
            // The first error is the one to report; what could not be removed is left to `sweep`.
            let _ = self.abort().await;
        }
        outcome.map_err(|error| shared.context(error, "put", Some(&id)))
    }

    /// Removes everything written so far, and waits until it is gone.
    pub async fn abort(mut self) -> Result<()> {
        self.lanes = None;
        // Taken out only afterwards: if this future is dropped, the clean-up goes on in the background. So it does where
        // the storage cannot be reached, or takes too long.
        let Some(upload) = self.upload.as_mut() else { return Ok(()) };
        let outcome = upload.abort().await;
        if !outcome.as_ref().is_err_and(Error::is_retryable) {
            self.upload = None;
        }
        outcome.map_err(|error| self.shared.context(error, "abort", Some(&self.id)))
    }

    /// Lets the storage copy a blob, and commits the copy with `meta`; on any error nothing of it is left.
    pub(crate) async fn copy(mut self, from: &Location, mut meta: Meta) -> Result<Blob> {
        let outcome = async {
            let Some(upload) = &mut self.upload else { return Err(finished()) };
            upload.copy(from, meta.size).await?;
            // Blobs do not change, but another one may have come in this one's place before it was copied.
            let now = self.shared.backend.open(from).await?;
            if now.stat().meta.as_ref() != Some(&meta) {
                return Err(Error::not_found(from));
            }
            meta.created = Timestamp::now();
            let location = upload.commit(&meta).await?;
            self.upload = None;
            Ok(Blob { location, meta, report: None })
        };
        let outcome = outcome.await;
        if outcome.is_err() {
            // The first error is the one to report; what could not be removed is left to `sweep`.
            let _ = self.abort().await;
        }
        outcome
    }

    async fn accept(&mut self, mut piece: Chunk) -> Result<()> {
        if self.broken {
            return Err(Error::new(ErrorKind::Invalid, "an earlier write of this upload failed"));
        }
        self.broken = true;
        self.check_length(self.size.saturating_add(piece.len()))?;
        self.inspection.push(&piece)?;
        self.size += piece.len();
        while let Some(chunk) = self.rechunk.next(&mut piece) {
            self.store(chunk).await?;
        }
        self.broken = false;
        Ok(())
    }

    fn check_length(&self, size: u64) -> Result<()> {
        if let Some(expected) = self.expect.size.filter(|expected| size > *expected) {
            let message = format!("the source sends more than the announced {expected} bytes");
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        if let Some(most) = self.shared.options.max_size.filter(|most| size > most.0) {
            return Err(too_large(most.0));
        }
        Ok(())
    }

    async fn store(&mut self, chunk: Chunk) -> Result<()> {
        let Some(lanes) = &mut self.lanes else { return Err(finished()) };
        lanes.feed(&chunk).await?;
        if self.adopted {
            return Ok(());
        }
        let Some(upload) = &mut self.upload else { return Err(finished()) };
        match chunk {
            Chunk::Zeros(len) => {
                self.offset += len;
                upload.write(chunk).await?;
            }
            Chunk::Data(bytes) => {
                for run in rechunk::runs(self.offset, bytes, self.hole) {
                    self.offset += run.len();
                    upload.write(run).await?;
                }
            }
        }
        Ok(())
    }

    async fn complete(&mut self) -> Result<Blob> {
        if self.broken {
            return Err(Error::new(
                ErrorKind::Invalid,
                "an earlier write of this upload failed or was cancelled",
            ));
        }
        if let Some(chunk) = self.rechunk.flush() {
            self.store(chunk).await?;
        }
        if let Some(expected) = self.expect.size.filter(|expected| *expected != self.size) {
            let message = format!("the source ended after {} of the announced {expected} bytes", self.size);
            return Err(Error::new(ErrorKind::Corrupt, message).with_hint("send the image again"));
        }
        let report = self.inspection.finish()?;
        let Some(lanes) = self.lanes.take() else { return Err(finished()) };
        let digests = lanes.finish().await?;
        if let Some(algorithm) = self.expect.digests.differences(&digests).first() {
            let (want, got) = (self.expect.digests.hex(*algorithm), digests.hex(*algorithm));
            let (want, got) = (want.unwrap_or_default(), got.unwrap_or_default());
            let message = format!("the {algorithm} of the bytes is {got}, not the announced {want}");
            return Err(Error::new(ErrorKind::Corrupt, message).with_hint("send the image again"));
        }
        let mut meta = Meta::new(self.size);
        meta.digests = digests;
        let seen = report.as_ref().map(|report| (report.format, report.virtual_size)).or(self.expect.seen);
        meta.format = seen.map(|(format, _)| format).or(self.expect.format);
        meta.virtual_size = seen.and_then(|(_, size)| size);
        meta.properties = std::mem::take(&mut self.expect.properties);
        let Some(upload) = &mut self.upload else { return Err(finished()) };
        let location = upload.commit(&meta).await?;
        self.upload = None;
        Ok(Blob { location, meta, report })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(mut upload) = self.upload.take() {
            let retry = self.shared.options.retry;
            self.shared.janitor.run(async move {
                let mut failed = 0;
                while let Err(error) = upload.abort().await {
                    failed += 1;
                    let Some(pause) = retry.pause(failed, &error).filter(|_| error.is_retryable()) else {
                        tracing::warn!(%error, "a dropped upload could not be removed; sweep will");
                        break;
                    };
                    tokio::time::sleep(pause).await;
                }
            });
        }
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("store", &self.shared.name)
            .field("id", &self.id)
            .field("written", &self.size)
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}

/// The error of an image beyond the store's `max_size`.
pub(crate) fn too_large(most: u64) -> Error {
    Error::new(
        ErrorKind::Rejected,
        format!("the image is larger than the {most} bytes that this store allows"),
    )
    .with_hint("raise `max_size` of the store if such images are wanted")
}

fn finished() -> Error {
    Error::new(ErrorKind::Internal, "the upload has ended")
}

/// Runs the clean-up of dropped uploads, wherever the drop happens.
#[derive(Clone, Debug)]
pub(crate) struct Janitor {
    pub(crate) runtime: Handle,
    tasks: TaskTracker,
}

impl Janitor {
    pub(crate) fn new(runtime: Handle) -> Self {
        let tasks = TaskTracker::new();
        tasks.close();
        Self { runtime, tasks }
    }

    /// Lets [`settle`](Self::settle) wait for what goes on when `call` is dropped.
    pub(crate) fn watch<F: Future>(&self, call: F) -> impl Future<Output = F::Output> {
        tracked(&self.tasks, call)
    }

    fn run(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(task, &self.runtime);
    }

    /// Waits until there is nothing to clean up.
    pub(crate) async fn settle(&self) {
        self.tasks.wait().await;
    }
}
