use std::{fs::File, future::Future, ops::Range, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{
    StreamExt,
    stream::{self, BoxStream, Stream},
};

use crate::{
    Backend, BlobId, Capacity, Chunk, ChunkStream, Download, Entry, Error, ErrorKind, Info, Location, Meta,
    Result, Secret, SizeHint, Stat, Swept, Timeout, Upload,
};

/// Gives up on calls that take too long.
#[derive(Debug)]
pub struct Deadline {
    inner: Arc<dyn Backend>,
    limits: Timeout,
}

impl Deadline {
    /// Deadlines for every call of `inner`.
    pub fn new(inner: Arc<dyn Backend>, limits: Timeout) -> Self {
        Self { inner, limits }
    }
}

async fn within<T>(limit: Duration, call: impl Future<Output = Result<T>> + Send) -> Result<T> {
    tokio::time::timeout(limit, call).await.unwrap_or_else(|_| Err(late(limit)))
}

fn late(limit: Duration) -> Error {
    let limit = humantime::format_duration(limit);
    Error::new(ErrorKind::Unavailable, format!("the storage did not answer within {limit}"))
        .with_hint("`timeout` in the store's configuration sets how long is waited")
}

/// Ends `items` in an error when one of them takes longer than `limit`.
fn each_within<'a, T: Send + 'a>(
    limit: Duration,
    items: impl Stream<Item = Result<T>> + Send + Unpin + 'a,
) -> BoxStream<'a, Result<T>> {
    stream::unfold(Some(items), move |items| async move {
        let mut items = items?;
        match tokio::time::timeout(limit, items.next()).await {
            Ok(item) => item.map(|item| (item, Some(items))),
            Err(_) => Some((Err(late(limit)), None)),
        }
    })
    .boxed()
}

#[async_trait]
impl Backend for Deadline {
    fn info(&self) -> &Info {
        self.inner.info()
    }

    async fn begin(&self, id: &BlobId, size: SizeHint) -> Result<Box<dyn Upload>> {
        let inner = within(self.limits.call.0, self.inner.begin(id, size)).await?;
        Ok(Box::new(DeadlineUpload { inner, limits: self.limits }))
    }

    async fn locate(&self, id: &BlobId) -> Result<Location> {
        within(self.limits.call.0, self.inner.locate(id)).await
    }

    async fn open(&self, at: &Location) -> Result<Arc<dyn Download>> {
        let inner = within(self.limits.call.0, self.inner.open(at)).await?;
        Ok(Arc::new(DeadlineDownload { inner, limits: self.limits }))
    }

    async fn delete(&self, at: &Location) -> Result<()> {
        within(self.limits.call.0, self.inner.delete(at)).await
    }

    fn list(&self) -> BoxStream<'_, Result<Entry>> {
        each_within(self.limits.call.0, self.inner.list())
    }

    async fn sweep(&self, age: Duration) -> Result<Swept> {
        within(self.limits.commit.0, self.inner.sweep(age)).await
    }

    async fn capacity(&self) -> Result<Capacity> {
        within(self.limits.call.0, self.inner.capacity()).await
    }

    async fn presign(&self, at: &Location, lifetime: Duration) -> Result<Secret> {
        within(self.limits.call.0, self.inner.presign(at, lifetime)).await
    }
}

struct DeadlineUpload {
    inner: Box<dyn Upload>,
    limits: Timeout,
}

#[async_trait]
impl Upload for DeadlineUpload {
    async fn write(&mut self, chunk: Chunk) -> Result<()> {
        within(self.limits.chunk.0, self.inner.write(chunk)).await
    }

    async fn adopt(&mut self, source: &Arc<File>) -> Result<Option<Arc<File>>> {
        within(self.limits.commit.0, self.inner.adopt(source)).await
    }

    async fn copy(&mut self, from: &Location, size: u64) -> Result<()> {
        // A storage that copies reports no progress, and takes longer for more.
        let limit =
            self.limits.commit.0.saturating_mul(1 + u32::try_from(size >> 30).unwrap_or(u32::MAX - 1));
        within(limit, self.inner.copy(from, size)).await
    }

    async fn commit(&mut self, meta: &Meta) -> Result<Location> {
        within(self.limits.commit.0, self.inner.commit(meta)).await
    }

    async fn abort(&mut self) -> Result<()> {
        within(self.limits.commit.0, self.inner.abort()).await
    }
}

#[derive(Debug)]
struct DeadlineDownload {
    inner: Arc<dyn Download>,
    limits: Timeout,
}

#[async_trait]
impl Download for DeadlineDownload {
    fn stat(&self) -> &Stat {
        self.inner.stat()
    }

    async fn read(&self, range: Range<u64>) -> Result<ChunkStream> {
        let chunks = within(self.limits.call.0, self.inner.read(range)).await?;
        Ok(each_within(self.limits.chunk.0, chunks))
    }

    fn file(&self) -> Option<&Arc<File>> {
        self.inner.file()
    }
}
