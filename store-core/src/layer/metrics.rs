use std::{
    fmt,
    fs::File,
    future::Future,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use tracing::Instrument;

use crate::{
    Backend, BlobId, Capacity, Chunk, ChunkStream, Download, Entry, Info, Location, Meta, Result, Secret,
    SizeHint, Stat, Swept, Upload,
};

/// Measures every call through the `metrics` facade, and wraps it in a `tracing` span: `imagestore`, of level debug, with
/// the fields `store`, `operation` and, where it is about a blob, `blob`: its id or location.
///
/// | metric | labels | |
/// |---|---|---|
/// | `imagestore_operations_total` | store, operation, outcome (`ok` or an error kind) | counter |
/// | `imagestore_operation_seconds` | store, operation | histogram |
/// | `imagestore_in_flight` | store, operation | gauge |
/// | `imagestore_bytes_total` | store, direction (`in`, `out`), content (`data`, `zeros`) | counter |
/// | `imagestore_retries_total` | store, operation | counter |
/// | `imagestore_errors_total` | store, operation, kind | counter |
///
/// The last two are counted above the layers: an error is what a program sees, be it the storage's or one of bytes that
/// are not those announced, or not those that were written. `put` lasts from begin to commit or abort, `read` from the first
/// to the last byte of a stream; so do their spans.
#[derive(Debug)]
pub struct Metrics {
    store: Arc<str>,
    inner: Arc<dyn Backend>,
}

impl Metrics {
    /// Measures the calls of `inner` under the store's `name`.
    pub fn new(name: &str, inner: Arc<dyn Backend>) -> Self {
        Self { store: name.into(), inner }
    }

    async fn call<T>(
        &self,
        operation: &'static str,
        blob: Option<&(dyn fmt::Display + Sync)>,
        call: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let mut running = Running::start(&self.store, operation, blob);
        let outcome = call.instrument(running.span.clone()).await;
        running.end(&outcome);
        outcome
    }
}

/// One operation under way; what is dropped before its end counts as `cancelled`.
struct Running {
    store: Arc<str>,
    operation: &'static str,
    started: Instant,
    outcome: &'static str,
    span: tracing::Span,
}

impl Running {
    fn start(store: &Arc<str>, operation: &'static str, blob: Option<&(dyn fmt::Display + Sync)>) -> Self {
        let blob = blob.map(tracing::field::display);
        let running = Self {
            store: Arc::clone(store),
            operation,
            started: Instant::now(),
            outcome: "cancelled",
            span: tracing::debug_span!("imagestore", store = &**store, operation, blob),
        };
        running.in_flight().increment(1);
        running
    }

    fn in_flight(&self) -> metrics::Gauge {
        metrics::gauge!("imagestore_in_flight", "store" => self.store.to_string(), "operation" => self.operation)
    }

    fn end<T>(&mut self, outcome: &Result<T>) {
        self.outcome = outcome.as_ref().map_or_else(|error| error.kind().as_str(), |_| "ok");
    }

    fn bytes(&self, direction: &'static str, chunk: &Chunk) {
        let content = if matches!(chunk, Chunk::Zeros(_)) { "zeros" } else { "data" };
        metrics::counter!("imagestore_bytes_total", "store" => self.store.to_string(), "direction" => direction,
            "content" => content)
        .increment(chunk.len());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.in_flight().decrement(1);
        let (store, operation) = (self.store.to_string(), self.operation);
        metrics::histogram!("imagestore_operation_seconds", "store" => store.clone(), "operation" => operation)
            .record(self.started.elapsed());
        metrics::counter!("imagestore_operations_total", "store" => store, "operation" => operation,
            "outcome" => self.outcome)
        .increment(1);
    }
}

#[async_trait]
impl Backend for Metrics {
    fn info(&self) -> &Info {
        self.inner.info()
    }

    async fn begin(&self, id: &BlobId, size: SizeHint) -> Result<Box<dyn Upload>> {
        let mut running = Running::start(&self.store, "put", Some(id));
        let begun = self.inner.begin(id, size).instrument(running.span.clone()).await;
        running.end(&begun);
        let inner = begun?;
        running.outcome = "cancelled";
        Ok(Box::new(MeasuredUpload { inner, running }))
    }

    async fn locate(&self, id: &BlobId) -> Result<Location> {
        self.call("locate", Some(id), self.inner.locate(id)).await
    }

    async fn open(&self, at: &Location) -> Result<Arc<dyn Download>> {
        let inner = self.call("open", Some(at), self.inner.open(at)).await?;
        Ok(Arc::new(MeasuredDownload { inner, store: Arc::clone(&self.store), at: at.clone() }))
    }

    async fn delete(&self, at: &Location) -> Result<()> {
        self.call("delete", Some(at), self.inner.delete(at)).await
    }

    fn list(&self) -> BoxStream<'_, Result<Entry>> {
        let mut running = Running::start(&self.store, "list", None);
        running.outcome = "ok";
        self.inner
            .list()
            .inspect(move |entry| {
                if entry.is_err() {
                    running.end(entry)
                }
            })
            .boxed()
    }

    async fn sweep(&self, age: Duration) -> Result<Swept> {
        self.call("sweep", None, self.inner.sweep(age)).await
    }

    async fn capacity(&self) -> Result<Capacity> {
        self.call("capacity", None, self.inner.capacity()).await
    }

    async fn presign(&self, at: &Location, lifetime: Duration) -> Result<Secret> {
        self.call("presign", Some(at), self.inner.presign(at, lifetime)).await
    }
}

struct MeasuredUpload {
    inner: Box<dyn Upload>,
    running: Running,
}

#[async_trait]
impl Upload for MeasuredUpload {
    async fn write(&mut self, chunk: Chunk) -> Result<()> {
        self.running.bytes("in", &chunk);
        let outcome = self.inner.write(chunk).instrument(self.running.span.clone()).await;
        if outcome.is_err() {
            self.running.end(&outcome);
        }
        outcome
    }

    async fn adopt(&mut self, source: &Arc<File>) -> Result<Option<Arc<File>>> {
        let outcome = self.inner.adopt(source).instrument(self.running.span.clone()).await;
        if outcome.is_err() {
            self.running.end(&outcome);
        }
        outcome
    }

    async fn copy(&mut self, from: &Location, size: u64) -> Result<()> {
        let outcome = self.inner.copy(from, size).instrument(self.running.span.clone()).await;
        if outcome.is_err() {
            self.running.end(&outcome);
        }
        outcome
    }

    async fn commit(&mut self, meta: &Meta) -> Result<Location> {
        let outcome = self.inner.commit(meta).instrument(self.running.span.clone()).await;
        self.running.end(&outcome);
        outcome
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().instrument(self.running.span.clone()).await
    }
}

#[derive(Debug)]
struct MeasuredDownload {
    inner: Arc<dyn Download>,
    store: Arc<str>,
    at: Location,
}

#[async_trait]
impl Download for MeasuredDownload {
    fn stat(&self) -> &Stat {
        self.inner.stat()
    }

    async fn read(&self, range: Range<u64>) -> Result<ChunkStream> {
        let mut running = Running::start(&self.store, "read", Some(&self.at));
        let mut left = range.end - range.start;
        let begun = self.inner.read(range).instrument(running.span.clone()).await;
        running.end(&begun);
        running.outcome = if begun.is_ok() && left > 0 { "cancelled" } else { running.outcome };
        let chunks = begun?.inspect(move |chunk| match chunk {
            Ok(bytes) => {
                running.bytes("out", bytes);
                left = left.saturating_sub(bytes.len());
                if left == 0 {
                    running.end(chunk);
                }
            }
            Err(_) => running.end(chunk),
        });
        Ok(chunks.boxed())
    }

    fn file(&self) -> Option<&Arc<File>> {
        self.inner.file()
    }
}
