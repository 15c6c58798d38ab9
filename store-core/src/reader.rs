use std::{fmt, fs::File, ops::Range, sync::Arc};

use bytes::Bytes;
use futures::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};

use crate::{
    Algorithm, ByteRange, Chunk, ChunkStream, Digests, Download, Error, ErrorKind, Hasher, Location, Meta,
    Result, Stat, file, lanes::Lanes, store::Shared,
};

/// How much of a file the kernel copies between two reports.
const COPIED_AT_ONCE: u64 = 256 << 20;

/// A blob's bytes on their way out.
pub type ByteStream = BoxStream<'static, Result<Bytes>>;

/// An open blob. Cheap to clone; reads may run concurrently.
///
/// Every stream yields exactly the bytes of its range or ends in an error: a broken one is resumed at the offset
/// that it reached, and a whole blob is compared with the digest kept with it.
#[derive(Clone)]
pub struct Reader {
    shared: Arc<Shared>,
    at: Location,
    download: Arc<dyn Download>,
    thorough: bool,
}

impl Reader {
    pub(crate) fn new(shared: Arc<Shared>, at: Location, download: Arc<dyn Download>) -> Self {
        Self { shared, at, download, thorough: false }
    }

    /// Lets reads of the whole blob be compared with every digest kept with it, not only with the cheapest: proof
    /// against people too, not only against accidents.
    #[must_use]
    pub fn thorough(mut self) -> Self {
        self.thorough = true;
        self
    }

    /// The blob as it was when it was opened.
    pub fn stat(&self) -> &Stat {
        self.download.stat()
    }

    /// Where it is.
    pub fn location(&self) -> &Location {
        &self.at
    }

    /// The blob as a local file, where it is one: for zero-copy paths such as `sendfile(2)`. Nothing that is
    /// read this way is verified.
    pub fn file(&self) -> Option<&Arc<File>> {
        self.download.file()
    }

    /// Streams `range` as bytes.
    pub fn stream(&self, range: impl Into<ByteRange>) -> Result<ByteStream> {
        let chunks = self.chunks(range)?;
        Ok(chunks.map_ok(|chunk| stream::iter(chunk.into_bytes().map(Ok))).try_flatten().boxed())
    }

    /// Streams `range` with the holes that the storage knows of.
    pub fn chunks(&self, range: impl Into<ByteRange>) -> Result<ChunkStream> {
        let size = self.stat().size;
        let range: ByteRange = range.into();
        let Some(span) = range.within(size) else {
            let error =
                Error::new(ErrorKind::Invalid, format!("{range} are not within the blob's {size} bytes"));
            let error = match size.checked_sub(1) {
                Some(last) => error.with_hint(format!("the first byte is 0, the last one {last}")),
                None => error.with_hint("the blob is empty"),
            };
            return Err(self.shared.context(error, "read", Some(&self.at)));
        };
        self.check_length()?;
        let mut transfer = Transfer::new(self, span);
        if size > 0 && transfer.next == 0 && transfer.end == size {
            transfer.check = self.check();
        }
        Ok(transfer.into_stream())
    }

    /// Writes the whole blob into an empty local file, with its holes, and says how long it is. Where the blob is a local
    /// file too, the kernel copies or even shares its blocks; the bytes are compared with their digest all the same.
    /// `progress` is told the length of each piece. Nothing is synced; after an error the file holds rubbish.
    pub async fn save(&self, target: Arc<File>, progress: impl Fn(u64) + Send + Sync) -> Result<u64> {
        let chunks = self.chunks(..)?;
        let size = self.stat().size;
        let Some(source) = self.file().map(Arc::clone) else {
            return file::write(target, chunks, progress).await;
        };
        // What is compared with nothing need not be read.
        let compared = !self.compared().is_empty();
        let check = async {
            let mut chunks = chunks;
            while compared && let Some(chunk) = chunks.try_next().await? {
                progress(chunk.len());
            }
            Ok(())
        };
        let copied = |len| {
            if !compared {
                progress(len);
            }
        };
        if file::share(Arc::clone(&source), Arc::clone(&target)).await? {
            copied(size);
            return check.await.map(|()| size);
        }
        let Some(first) = file::copy_first(Arc::clone(&source), Arc::clone(&target), size).await? else {
            drop(check);
            return file::write(target, self.chunks(..)?, progress).await;
        };
        copied(first);
        let copy = async {
            let mut at = first;
            while at < size {
                let step = at..size.min(at + COPIED_AT_ONCE);
                if !file::copy(Arc::clone(&source), Arc::clone(&target), step.clone()).await? {
                    let message = "the kernel copied only the first part of the file";
                    return Err(Error::new(ErrorKind::Internal, message));
                }
                copied(step.end - step.start);
                at = step.end;
            }
            Ok(())
        };
        // The kernel copies while the bytes are compared: both see the same pages.
        futures::future::try_join(copy, check).await?;
        Ok(size)
    }

    /// Reads all bytes and computes the digests by `hashers`, with holes read as zeros.
    pub(crate) async fn digests(&self, hashers: Vec<Hasher>, progress: impl Fn(u64)) -> Result<Digests> {
        let mut lanes = self.lanes(hashers);
        let mut chunks = Transfer::new(self, 0..self.stat().size).into_stream();
        while let Some(chunk) = chunks.try_next().await? {
            lanes.feed(&chunk).await?;
            progress(chunk.len());
        }
        lanes.finish().await
    }

    /// A blob that was cut, or grew, since it was written is damaged in every range.
    pub(crate) fn check_length(&self) -> Result<()> {
        let Stat { size, meta, .. } = self.stat();
        match meta.as_ref().map(|meta| meta.size).filter(|written| written != size) {
            None => Ok(()),
            Some(written) => {
                let message = format!("the blob has {size} bytes, not the {written} that were written");
                let error = Error::new(ErrorKind::Corrupt, message).with_hint(RESTORE);
                Err(self.shared.context(error, "read", Some(&self.at)))
            }
        }
    }

    /// The digests that a read of all bytes is compared with.
    fn compared(&self) -> Vec<Algorithm> {
        let Some(Meta { digests: expected, .. }) = &self.stat().meta else { return Vec::new() };
        match (self.thorough, self.shared.options.verify_reads) {
            (true, _) => expected.iter().map(|(algorithm, _)| algorithm).collect(),
            (false, true) => expected.cheapest().into_iter().collect(),
            (false, false) => Vec::new(),
        }
    }

    fn check(&self) -> Option<Check> {
        let algorithms = self.compared();
        if algorithms.is_empty() {
            return None;
        }
        let expected = self.stat().meta.as_ref()?.digests.clone();
        let hashers = algorithms.into_iter().map(Hasher::new).collect();
        Some(Check { expected, lanes: self.lanes(hashers) })
    }

    fn lanes(&self, hashers: Vec<Hasher>) -> Lanes {
        let Shared { janitor, backend, .. } = &*self.shared;
        Lanes::start(&janitor.runtime, backend.info().chunk, hashers, Vec::new())
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("at", &self.at).field("stat", self.stat()).finish_non_exhaustive()
    }
}

/// One range on its way out, over as many of the driver's streams as it takes.
struct Transfer {
    reader: Reader,
    next: u64,
    end: u64,
    stream: Option<ChunkStream>,
    /// Failures since the last byte of progress.
    failed: u32,
    check: Option<Check>,
    done: bool,
}

struct Check {
    expected: Digests,
    lanes: Lanes,
}

impl Transfer {
    fn new(reader: &Reader, span: Range<u64>) -> Self {
        let (next, end) = (span.start, span.end);
        Self { reader: reader.clone(), next, end, stream: None, failed: 0, check: None, done: false }
    }

    fn into_stream(self) -> ChunkStream {
        stream::unfold(self, |mut transfer| async move {
            if transfer.done {
                return None;
            }
            let step = transfer.step().await;
            transfer.done = step.is_err();
            let item = step.map_err(|error| {
                let reader = &transfer.reader;
                reader.shared.context(error, "read", Some(&reader.at))
            });
            item.transpose().map(|item| (item, transfer))
        })
        .boxed()
    }

    /// The next chunk, or `None` after the last one.
    async fn step(&mut self) -> Result<Option<Chunk>> {
        if self.next == self.end {
            self.done = true;
            // A storage that has more to say did not answer what was asked.
            if let Some(mut stream) = self.stream.take()
                && let Some(Ok(chunk)) = stream.next().await
                && !chunk.is_empty()
            {
                return Err(too_much());
            }
            if let Some(check) = self.check.take() {
                check.compare().await?;
            }
            return Ok(None);
        }
        loop {
            match self.pull().await {
                Ok(chunk) => {
                    self.failed = 0;
                    self.next += chunk.len();
                    if let Some(check) = &mut self.check {
                        check.lanes.feed(&chunk).await?;
                    }
                    return Ok(Some(chunk));
                }
                Err(error) => {
                    self.stream = None;
                    self.failed += 1;
                    let pause = self.reader.shared.options.retry.pause(self.failed, &error);
                    let Some(pause) = pause.filter(|_| error.is_retryable()) else { return Err(error) };
                    tracing::debug!(offset = self.next, %error, "resuming a broken download");
                    metrics::counter!("imagestore_retries_total", "store" => self.reader.shared.name.clone(),
                        "operation" => "read")
                    .increment(1);
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    async fn pull(&mut self) -> Result<Chunk> {
        if self.stream.is_none() {
            self.stream = Some(self.reader.download.read(self.next..self.end).await?);
        }
        let Some(stream) = &mut self.stream else { return Err(short(self.end - self.next)) };
        loop {
            match stream.next().await {
                Some(Ok(chunk)) if chunk.is_empty() => {}
                Some(Ok(chunk)) if chunk.len() > self.end - self.next => {
                    return Err(too_much());
                }
                Some(Ok(chunk)) => return Ok(chunk),
                Some(Err(error)) => return Err(error),
                None => return Err(short(self.end - self.next)),
            }
        }
    }
}

impl Check {
    async fn compare(self) -> Result<()> {
        let found = self.lanes.finish().await?;
        match self.expected.differences(&found).first() {
            None => Ok(()),
            Some(algorithm) => Err(differs(*algorithm, &self.expected, &found)),
        }
    }
}

const RESTORE: &str = "if there is another copy, delete this one, then copy that here under the same id";

/// The error of stored bytes that are not those that were written.
pub(crate) fn differs(algorithm: Algorithm, expected: &Digests, found: &Digests) -> Error {
    let (expected, found) = (expected.hex(algorithm), found.hex(algorithm));
    let (expected, found) = (expected.unwrap_or_default(), found.unwrap_or_default());
    let message = format!("the stored bytes are damaged: their {algorithm} is {found}, not {expected}");
    Error::new(ErrorKind::Corrupt, message).with_hint(RESTORE)
}

fn too_much() -> Error {
    Error::new(ErrorKind::Corrupt, "the storage sent more bytes than asked for")
}

fn short(missing: u64) -> Error {
    Error::new(ErrorKind::Unavailable, format!("the storage ended the stream {missing} bytes early"))
}
