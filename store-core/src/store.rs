use std::{fmt, fmt::Display, fs::File, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::{
    Stream, StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use serde::Serialize;
use tokio::runtime::Handle;

use crate::{
    Algorithm, Backend, Blob, BlobId, ByteRange, ByteStream, Capacity, Chunk, Digests, Entry, Error,
    ErrorKind, Expect, Hasher, Info, Location, Meta, Options, Reader, Result, Secret, SizeHint, Stat, Swept,
    Writer,
    buffer::Pool,
    file, layer,
    policy::Inspection,
    reader::differs,
    writer::{Janitor, too_large},
};

/// The handle that programs use: checks, digests, inspection, resumption and clean-up, the same over every backend.
///
/// Cheap to clone. Every method may be called concurrently; a call whose future is dropped leaves nothing behind.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

/// What a store, its writers and its readers have in common.
pub(crate) struct Shared {
    pub(crate) name: String,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) options: Options,
    pub(crate) janitor: Janitor,
    pub(crate) pool: Pool,
}

impl Shared {
    pub(crate) fn context(
        &self,
        error: Error,
        operation: &'static str,
        target: Option<&dyn Display>,
    ) -> Error {
        if error.store().is_none() {
            let (store, kind) = (self.name.clone(), error.kind().as_str());
            metrics::counter!("imagestore_errors_total", "store" => store, "operation" => operation, "kind" => kind)
                .increment(1);
        }
        error.in_call(&self.name, operation, target)
    }
}

/// How many unused buffers of a chunk each a store keeps for the next transfer.
const SPARE_BUFFERS: usize = 48;

impl Store {
    /// A store named `name` over `backend`, with the layers that `options` ask for.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, because dropped writers are cleaned up on it.
    pub fn new(name: impl Into<String>, backend: Arc<dyn Backend>, options: Options) -> Self {
        let name = name.into();
        let backend = layer::compose(&name, backend, &options);
        let pool = Pool::new(backend.info().chunk, SPARE_BUFFERS);
        let janitor = Janitor::new(Handle::current());
        Self { shared: Arc::new(Shared { name, backend, options, janitor, pool }) }
    }

    /// Its configured name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// What its backend is and can do.
    pub fn info(&self) -> &Info {
        self.shared.backend.info()
    }

    /// Its options.
    pub fn options(&self) -> &Options {
        &self.shared.options
    }

    /// Uploads all of `source` as `id`. Items are [`Bytes`] or [`Chunk`]s of any size.
    ///
    /// An error of the source is reported as it is; then, as after any error, nothing is kept.
    ///
    /// ```
    /// # use store_core::{Expect, MemoryBackend, Options, Store};
    /// # #[tokio::main] async fn main() -> store_core::Result<()> {
    /// let store = Store::new("ram", MemoryBackend::shared(), Options::default());
    /// let source = futures::stream::iter([Ok(bytes::Bytes::from("an image"))]);
    /// let blob = store.put(&"my-image".parse()?, source, Expect::new().size(8)).await?;
    /// assert_eq!(store.get(&blob.location, ..).await?, "an image");
    /// # Ok(()) }
    /// ```
    pub async fn put<S, C>(&self, id: &BlobId, source: S, expect: Expect) -> Result<Blob>
    where
        S: Stream<Item = Result<C>> + Send,
        C: Into<Chunk> + Send,
    {
        let outcome = async {
            let mut writer = self.begin(id, expect).await?;
            let mut source = std::pin::pin!(source);
            while let Some(piece) = source.next().await {
                let outcome = match piece {
                    Ok(piece) => writer.write(piece).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = outcome {
                    // The first error is the one to report.
                    let _ = writer.abort().await;
                    return Err(error);
                }
            }
            writer.finish().await
        };
        outcome.await.map_err(|error| self.shared.context(error, "put", Some(id)))
    }

    /// Uploads a local file as `id`: only its data is read, and holes stay holes. Where the storage is on the same file
    /// system and that can share blocks, nothing is copied. `progress` is told the length of each piece.
    pub async fn put_file(
        &self,
        id: &BlobId,
        source: Arc<File>,
        expect: Expect,
        progress: impl Fn(u64) + Send + Sync,
    ) -> Result<Blob> {
        let outcome = async {
            let examined = Arc::clone(&source);
            let (size, data) = file::blocking(move || {
                let sizes =
                    examined.metadata().and_then(|found| Ok((found.len(), file::data_size(&examined)?)));
                sizes.map_err(|e| Error::from_io("cannot examine the source", e))
            })
            .await?;
            let expect = Expect { size: expect.size.or(Some(size)), data_size: Some(data), ..expect };
            let mut writer = self.begin(id, expect).await?;
            let outcome = async {
                let source = writer.adopt(&source).await?.unwrap_or(source);
                let mut chunks = file::read(source, 0..size, self.shared.pool.clone());
                while let Some(chunk) = chunks.try_next().await? {
                    let len = chunk.len();
                    writer.write(chunk).await?;
                    progress(len);
                }
                Ok(())
            };
            match outcome.await {
                Ok(()) => writer.finish().await,
                Err(error) => {
                    // The first error is the one to report.
                    let _ = writer.abort().await;
                    Err(error)
                }
            }
        };
        outcome.await.map_err(|error| self.shared.context(error, "put", Some(id)))
    }

    /// Starts an upload of `id` that the caller feeds and finishes.
    pub async fn upload(&self, id: &BlobId, expect: Expect) -> Result<Writer> {
        self.begin(id, expect).await.map_err(|error| self.shared.context(error, "put", Some(id)))
    }

    async fn begin(&self, id: &BlobId, expect: Expect) -> Result<Writer> {
        let options = &self.shared.options;
        if let Some(most) = options.max_size.filter(|most| expect.size.is_some_and(|size| size > most.0)) {
            return Err(too_large(most.0));
        }
        Meta::check_properties(&expect.properties)?;
        let hint = SizeHint { total: expect.size, data: expect.data_size };
        let inspection = Inspection::new(options.inspect, expect.format);
        let upload = self.shared.janitor.watch(self.shared.backend.begin(id, hint)).await?;
        Ok(Writer::new(Arc::clone(&self.shared), id.clone(), upload, expect, inspection))
    }

    /// Finds a blob by its id.
    pub async fn locate(&self, id: &BlobId) -> Result<Location> {
        let found = self.shared.backend.locate(id).await;
        found.map_err(|error| self.shared.context(error, "locate", Some(id)))
    }

    /// Opens a blob for any number of reads.
    pub async fn open(&self, at: &Location) -> Result<Reader> {
        let opened = match self.claim(at) {
            Ok(()) => self.shared.backend.open(at).await,
            Err(error) => Err(error),
        };
        let download = opened.map_err(|error| self.shared.context(error, "open", Some(at)))?;
        Ok(Reader::new(Arc::clone(&self.shared), at.clone(), download))
    }

    /// Streams `range` of a blob: exactly those bytes, or an error.
    pub async fn stream(&self, at: &Location, range: impl Into<ByteRange>) -> Result<ByteStream> {
        let range = range.into();
        self.open(at).await?.stream(range)
    }

    /// Reads `range` of a blob into memory.
    pub async fn get(&self, at: &Location, range: impl Into<ByteRange>) -> Result<Bytes> {
        let stream = self.stream(at, range).await?;
        let all = stream.try_fold(BytesMut::new(), |mut all, bytes| async move {
            all.extend_from_slice(&bytes);
            Ok(all)
        });
        Ok(all.await?.freeze())
    }

    /// Describes a blob.
    pub async fn stat(&self, at: &Location) -> Result<Stat> {
        Ok(self.open(at).await?.stat().clone())
    }

    /// Removes a blob.
    pub async fn delete(&self, at: &Location) -> Result<()> {
        let deleted = match self.claim(at) {
            Ok(()) => self.shared.janitor.watch(self.shared.backend.delete(at)).await,
            Err(error) => Err(error),
        };
        deleted.map_err(|error| self.shared.context(error, "delete", Some(at)))
    }

    /// Lists committed blobs, in no order.
    pub fn list(&self) -> BoxStream<'_, Result<Entry>> {
        self.shared.backend.list().map_err(|error| self.shared.context(error, "list", None)).boxed()
    }

    /// Removes what killed uploads left behind more than `age` ago. An age shorter than the longest pause of a live
    /// upload takes that one too.
    pub async fn sweep(&self, age: Duration) -> Result<Swept> {
        let swept = self.shared.janitor.watch(self.shared.backend.sweep(age)).await;
        swept.map_err(|error| self.shared.context(error, "sweep", None))
    }

    /// Measures the space left.
    pub async fn capacity(&self) -> Result<Capacity> {
        let capacity = self.shared.backend.capacity().await;
        capacity.map_err(|error| self.shared.context(error, "capacity", None))
    }

    /// Makes a URL under which whoever holds it can GET the blob for `lifetime`, without this program: for a fast
    /// hand-out of images. Whether there is such a blob is not looked at. Where the storage has no such thing the error
    /// is [`Unsupported`](ErrorKind::Unsupported).
    pub async fn presign(&self, at: &Location, lifetime: Duration) -> Result<Secret> {
        let signed = match self.claim(at) {
            Ok(()) => self.shared.backend.presign(at, lifetime).await,
            Err(error) => Err(error),
        };
        signed.map_err(|error| self.shared.context(error, "presign", Some(at)))
    }

    /// Copies a blob to a new id, with what is kept with it. Where the storage can copy by itself no byte passes
    /// through here, and nothing is read again; else, and for a blob that says nothing of itself, this is
    /// [`copy_to`](Self::copy_to).
    pub async fn copy(
        &self,
        at: &Location,
        id: &BlobId,
        progress: impl Fn(u64) + Send + Sync,
    ) -> Result<Blob> {
        let Stat { size, allocated, meta } = self.stat(at).await?;
        let known = meta.filter(|meta| meta.size == size && self.info().can.copy);
        let Some(meta) = known else { return self.copy_to(at, self, id, progress).await };
        let copied = async {
            let options = &self.shared.options;
            if let Some(most) = options.max_size.filter(|most| size > most.0) {
                return Err(too_large(most.0));
            }
            let hint = SizeHint { total: Some(size), data: allocated.filter(|data| *data < size) };
            let upload = self.shared.janitor.watch(self.shared.backend.begin(id, hint)).await?;
            let writer = Writer::copying(Arc::clone(&self.shared), id.clone(), upload);
            writer.copy(at, meta).await
        };
        let blob = copied.await.map_err(|error| self.shared.context(error, "copy", Some(id)))?;
        progress(size);
        Ok(blob)
    }

    /// Copies a blob into `other` as `id`, with its holes and properties, and checks that the digests kept with it
    /// still hold; `progress` is told the length of each piece. Every byte passes through here.
    pub async fn copy_to(
        &self,
        at: &Location,
        other: &Self,
        id: &BlobId,
        progress: impl Fn(u64) + Send + Sync,
    ) -> Result<Blob> {
        let reader = self.open(at).await?;
        let Stat { size, allocated, meta } = reader.stat().clone();
        let mut expect = Expect::new().size(size);
        if let Some(data) = allocated.filter(|data| *data < size) {
            expect = expect.data_size(data);
        }
        if let Some(meta) = meta {
            expect.seen = meta.format.map(|format| (format, meta.virtual_size));
            expect.properties = meta.properties;
            expect.digests = meta.digests;
        }
        let chunks = reader.chunks(..)?.inspect_ok(|chunk| progress(chunk.len()));
        other.put(id, chunks, expect).await
    }

    /// Reads a blob again and compares it with all digests and the size kept with it; `progress` is told the length
    /// of each piece. Damage is [`Corrupt`](ErrorKind::Corrupt).
    pub async fn verify(&self, at: &Location, progress: impl Fn(u64) + Send + Sync) -> Result<Verified> {
        let reader = self.open(at).await?;
        let stat = reader.stat();
        let expected = stat.meta.as_ref().map(|meta| meta.digests.clone()).unwrap_or_default();
        let outcome = async {
            reader.check_length()?;
            let mut algorithms: Vec<Algorithm> = expected.iter().map(|(algorithm, _)| algorithm).collect();
            if algorithms.is_empty() {
                algorithms.push(Algorithm::Crc64Nvme);
            }
            let hashers = algorithms.into_iter().map(Hasher::new).collect();
            let found = reader.digests(hashers, progress).await?;
            match expected.differences(&found).first() {
                Some(algorithm) => Err(differs(*algorithm, &expected, &found)),
                None => Ok(Verified { size: stat.size, compared: !expected.is_empty(), digests: found }),
            }
        };
        outcome.await.map_err(|error| self.shared.context(error, "verify", Some(at)))
    }

    /// Waits until everything that dropped writers left has been removed, and until what other dropped calls had begun has
    /// ended.
    pub async fn settle(&self) {
        self.shared.janitor.settle().await;
    }

    /// A scheme that is not the backend's is a mistake to name here, not one for each driver to find.
    fn claim(&self, at: &Location) -> Result<()> {
        let info = self.info();
        let known = std::iter::once(&info.scheme).chain(info.also).any(|scheme| *scheme == at.scheme());
        match known {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Invalid, "the location belongs to another kind of store")
                .with_hint(format!("this store's locations start with {}:", info.scheme))),
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("name", &self.shared.name)
            .field("backend", &self.shared.backend)
            .finish()
    }
}

/// A blob whose bytes were read again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Verified {
    /// Its length in bytes.
    pub size: u64,
    /// Whether there were digests to compare with; without, only the read itself is proven.
    pub compared: bool,
    /// What was computed.
    pub digests: Digests,
}

/// A stream of one piece: for small blobs and tests.
pub fn once(bytes: impl Into<Bytes>) -> impl Stream<Item = Result<Bytes>> + Send {
    stream::iter([Ok(bytes.into())])
}
