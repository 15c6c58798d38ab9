//! The driver surface: what a storage implements.

use std::{fmt, fs::File, ops::Range, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::Serialize;

use crate::{BlobId, Chunk, Location, Meta, Result, Secret, Stat};

/// A blob's content on its way out, in order.
pub type ChunkStream = BoxStream<'static, Result<Chunk>>;

/// A place that keeps blobs: the contract that a driver implements.
///
/// No method has a default, so a layer that forgets one does not compile. Drivers report kind, message and
/// cause; store name, operation and blob are added by [`Store`](crate::Store). Every method may be called
/// concurrently, and every future may be dropped at any await point: what it had begun then MUST be finished
/// or undone by the driver, and MUST NOT become visible as a half-written blob.
#[async_trait]
pub trait Backend: fmt::Debug + Send + Sync + 'static {
    /// What this backend is and can do; constant. Only [`Capabilities::atomic_create`] MAY be claimed later, when an upload
    /// has shown what the server does.
    fn info(&self) -> &Info;

    /// Starts an upload. Nothing of it is visible under `id` before [`Upload::commit`].
    ///
    /// A taken id MAY be refused here with [`AlreadyExists`](crate::ErrorKind::AlreadyExists), and MUST be at
    /// commit. A `size` that cannot fit SHOULD be refused here with [`NoSpace`](crate::ErrorKind::NoSpace).
    async fn begin(&self, id: &BlobId, size: SizeHint) -> Result<Box<dyn Upload>>;

    /// Finds a committed blob by id.
    async fn locate(&self, id: &BlobId) -> Result<Location>;

    /// Opens a committed blob for reading and describes it.
    async fn open(&self, at: &Location) -> Result<Arc<dyn Download>>;

    /// Removes a blob. A missing one is [`NotFound`](crate::ErrorKind::NotFound).
    ///
    /// A reader that has the blob open sees its bytes to the end or an error, never other bytes.
    async fn delete(&self, at: &Location) -> Result<()>;

    /// Lists committed blobs, in no order. Memory MUST NOT grow with their number.
    fn list(&self) -> BoxStream<'_, Result<Entry>>;

    /// Removes uploads last written to more than `age` ago and neither committed nor aborted, as a killed
    /// process leaves them. It MUST NOT touch a committed blob; an age of zero takes live uploads too.
    async fn sweep(&self, age: Duration) -> Result<Swept>;

    /// Measures the space left.
    async fn capacity(&self) -> Result<Capacity>;

    /// Makes a URL under which whoever holds it can GET the blob for `lifetime`. Whether there is such a blob need not
    /// be looked at.
    async fn presign(&self, at: &Location, lifetime: Duration) -> Result<Secret>;
}

/// One blob on its way in.
///
/// Guaranteed by [`Writer`](crate::Writer): calls come one at a time: `copy`, `adopt` or `write`s in order, then `commit` at
/// most once, then `abort` if anything failed or any future was dropped before it was ready, be it a `write` or the
/// `commit`; and `abort` again if its own future was dropped. Chunks are at most [`Info::chunk`] bytes of data;
/// [`Chunk::Zeros`] comes only where [`Info::hole`] is set, then as a multiple of it, at a multiple of it.
#[async_trait]
pub trait Upload: Send {
    /// Takes all of `chunk`, or fails. MAY return before the bytes are stored, with bounded memory; then a later
    /// call reports the failure.
    async fn write(&mut self, chunk: Chunk) -> Result<()>;

    /// Takes the whole content of a local file by sharing its blocks, where the storage can (a reflink), and gives the
    /// file to read it back from, which nobody else can change; `None` where the bytes have to be written.
    ///
    /// Guaranteed to come first if it comes, and to be followed by no `write` if it gives a file.
    async fn adopt(&mut self, source: &Arc<File>) -> Result<Option<Arc<File>>>;

    /// Takes the whole content of a committed blob of the same storage, `size` bytes, without sending them through here.
    /// The storage may share them with the original, as long as each can be deleted without harm to the other, or with
    /// [`InUse`](crate::ErrorKind::InUse).
    ///
    /// Guaranteed to come first if it comes, and to be followed by no `write`.
    async fn copy(&mut self, from: &Location, size: u64) -> Result<()>;

    /// Makes all bytes and `meta` durable and then visible, in one atomic step that fails with
    /// [`AlreadyExists`](crate::ErrorKind::AlreadyExists) if the id is taken.
    ///
    /// A reply that got lost MUST be resolved by looking, not by guessing.
    async fn commit(&mut self, meta: &Meta) -> Result<Location>;

    /// Waits for I/O still in flight, then removes all of this upload and nothing else: also the blob of a
    /// `commit` of its own whose future was dropped, never the blob of a rival.
    async fn abort(&mut self) -> Result<()>;
}

/// One blob on its way out: an open handle.
#[async_trait]
pub trait Download: fmt::Debug + Send + Sync {
    /// The blob as it was when it was opened.
    fn stat(&self) -> &Stat;

    /// Streams exactly the bytes of `range`, which is guaranteed to lie within the blob, or ends in an error.
    ///
    /// A stream that breaks ends in [`Unavailable`](crate::ErrorKind::Unavailable); the caller then comes back for
    /// the rest. If the blob has been replaced meanwhile, the error is `NotFound` or `Corrupt`.
    async fn read(&self, range: Range<u64>) -> Result<ChunkStream>;

    /// The blob as an open local file, where it is one: for zero-copy paths such as `sendfile(2)`.
    fn file(&self) -> Option<&Arc<File>>;
}

/// The identity and abilities of a backend.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Info {
    /// The URI scheme of the locations it returns.
    pub scheme: &'static str,
    /// Other schemes whose locations it reads.
    pub also: &'static [&'static str],
    /// The most bytes of data that one [`Upload::write`] is given; all but the last of a run are this long.
    pub chunk: usize,
    /// Granularity of holes in bytes; `None` where zeros are stored like any data.
    pub hole: Option<u64>,
    /// What works; the conformance suite checks each claim both ways.
    pub can: Capabilities,
}

impl Info {
    /// An identity with chunks of 1 MiB, no holes and no abilities.
    pub fn new(scheme: &'static str) -> Self {
        Self { scheme, also: &[], chunk: 1 << 20, hole: None, can: Capabilities::default() }
    }
}

/// What a backend can do beyond opening a blob at a location and reading any range of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// `begin` works, and with it `locate`.
    pub write: bool,
    /// `delete` works.
    pub delete: bool,
    /// `list` works.
    pub list: bool,
    /// `capacity` works.
    pub capacity: bool,
    /// Digests, format, time and properties are kept with the bytes.
    pub metadata: bool,
    /// Of any number of rival commits of one id exactly one wins, decided by the storage. Maybe claimed only after the
    /// first upload.
    pub atomic_create: bool,
    /// A killed process leaves a staged upload that `sweep` finds; where not, it leaves nothing.
    pub staging: bool,
    /// [`Upload::copy`] works.
    pub copy: bool,
    /// `presign` works.
    pub presign: bool,
}

/// What is known of an upload's length before it starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SizeHint {
    /// Its length in bytes.
    pub total: Option<u64>,
    /// How many of them are not in holes of the source, where the source is sparse.
    pub data: Option<u64>,
}

impl SizeHint {
    /// A length of `total` bytes, all data as far as is known.
    pub fn exactly(total: u64) -> Self {
        Self { total: Some(total), data: None }
    }

    /// The space that the upload may need, in bytes.
    pub fn needed(&self) -> Option<u64> {
        self.data.or(self.total)
    }
}

/// A half-open range of bytes, as callers ask for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteRange {
    /// The whole blob.
    Full,
    /// From an offset to the end.
    From(u64),
    /// `start..end`.
    Span(u64, u64),
    /// The last so many bytes, or all where the blob is shorter.
    Last(u64),
}

impl ByteRange {
    /// The span that this names in a blob of `size` bytes, if it lies within.
    pub fn within(self, size: u64) -> Option<Range<u64>> {
        let range = match self {
            Self::Full => 0..size,
            Self::From(start) => start..size,
            Self::Span(start, end) => start..end,
            Self::Last(len) => size.saturating_sub(len)..size,
        };
        (range.start <= range.end && range.end <= size).then_some(range)
    }
}

impl fmt::Display for ByteRange {
    /// As people count: `bytes 0 to 99`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Full => f.write_str("all bytes"),
            Self::From(start) => write!(f, "the bytes from {start} on"),
            Self::Span(start, end) if start < end => write!(f, "bytes {start} to {}", end - 1),
            Self::Span(start, end) => write!(f, "the bytes of {start}..{end}"),
            Self::Last(len) => write!(f, "the last {len} bytes"),
        }
    }
}

impl From<Range<u64>> for ByteRange {
    fn from(range: Range<u64>) -> Self {
        Self::Span(range.start, range.end)
    }
}

impl From<std::ops::RangeFrom<u64>> for ByteRange {
    fn from(range: std::ops::RangeFrom<u64>) -> Self {
        Self::From(range.start)
    }
}

impl From<std::ops::RangeFull> for ByteRange {
    fn from(_: std::ops::RangeFull) -> Self {
        Self::Full
    }
}

/// A committed blob, as `list` sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Entry {
    /// Its id.
    pub id: BlobId,
    /// Where it is.
    pub location: Location,
    /// Its length in bytes.
    pub size: u64,
}

impl Entry {
    /// An entry.
    pub fn new(id: BlobId, location: Location, size: u64) -> Self {
        Self { id, location, size }
    }
}

/// What a sweep removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Swept {
    /// Uploads.
    pub uploads: u64,
    /// Their bytes, as far as the storage tells.
    pub bytes: u64,
}

/// Space, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Capacity {
    /// All of it.
    pub total: u64,
    /// What is left for new blobs.
    pub free: u64,
}
