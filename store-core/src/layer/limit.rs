use std::{fs::File, ops::Range, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    Backend, BlobId, Capacity, Chunk, ChunkStream, Download, Entry, Error, ErrorKind, Info, Location, Meta,
    Result, Secret, SizeHint, Stat, Swept, Upload,
};

/// Lets at most so many uploads run at once, from `begin` to their end, and as many downloads while their stream lives.
///
/// They are counted apart: a copy within a store is both, and would wait for itself.
#[derive(Debug)]
pub struct Limit {
    inner: Arc<dyn Backend>,
    uploads: Arc<Semaphore>,
    downloads: Arc<Semaphore>,
}

impl Limit {
    /// At most `most` transfers at once in each direction, and at least one.
    pub fn new(inner: Arc<dyn Backend>, most: u32) -> Self {
        let permits = || Arc::new(Semaphore::new(most.max(1) as usize));
        Self { inner, uploads: permits(), downloads: permits() }
    }
}

async fn turn(permits: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit> {
    let permit = Arc::clone(permits).acquire_owned().await;
    permit
        .map_err(|closed| Error::new(ErrorKind::Internal, "the transfer limit is closed").with_source(closed))
}

#[async_trait]
impl Backend for Limit {
    fn info(&self) -> &Info {
        self.inner.info()
    }

    async fn begin(&self, id: &BlobId, size: SizeHint) -> Result<Box<dyn Upload>> {
        let permit = turn(&self.uploads).await?;
        let inner = self.inner.begin(id, size).await?;
        Ok(Box::new(LimitedUpload { inner, _permit: permit }))
    }

    async fn locate(&self, id: &BlobId) -> Result<Location> {
        self.inner.locate(id).await
    }

    async fn open(&self, at: &Location) -> Result<Arc<dyn Download>> {
        let inner = self.inner.open(at).await?;
        Ok(Arc::new(LimitedDownload { inner, permits: Arc::clone(&self.downloads) }))
    }

    async fn delete(&self, at: &Location) -> Result<()> {
        self.inner.delete(at).await
    }

    fn list(&self) -> BoxStream<'_, Result<Entry>> {
        self.inner.list()
    }

    async fn sweep(&self, age: Duration) -> Result<Swept> {
        self.inner.sweep(age).await
    }

    async fn capacity(&self) -> Result<Capacity> {
        self.inner.capacity().await
    }

    async fn presign(&self, at: &Location, lifetime: Duration) -> Result<Secret> {
        self.inner.presign(at, lifetime).await
    }
}

struct LimitedUpload {
    inner: Box<dyn Upload>,
    _permit: OwnedSemaphorePermit,
}

#[async_trait]
impl Upload for LimitedUpload {
    async fn write(&mut self, chunk: Chunk) -> Result<()> {
        self.inner.write(chunk).await
    }

    async fn adopt(&mut self, source: &Arc<File>) -> Result<Option<Arc<File>>> {
        self.inner.adopt(source).await
    }

    async fn copy(&mut self, from: &Location, size: u64) -> Result<()> {
        self.inner.copy(from, size).await
    }

    async fn commit(&mut self, meta: &Meta) -> Result<Location> {
        self.inner.commit(meta).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}

#[derive(Debug)]
struct LimitedDownload {
    inner: Arc<dyn Download>,
    permits: Arc<Semaphore>,
}

#[async_trait]
impl Download for LimitedDownload {
    fn stat(&self) -> &Stat {
        self.inner.stat()
    }

    async fn read(&self, range: Range<u64>) -> Result<ChunkStream> {
        let permit = turn(&self.permits).await?;
        let chunks = self.inner.read(range).await?;
        Ok(chunks
            .inspect(move |_| {
                let _held_as_long_as_the_stream = &permit;
            })
            .boxed())
    }

    fn file(&self) -> Option<&Arc<File>> {
        self.inner.file()
    }
}
