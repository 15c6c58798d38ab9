use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::stream::BoxStream;

use crate::{
    Backend, BlobId, Capabilities, Capacity, Download, Entry, Error, Info, Location, Result, Secret,
    SizeHint, Swept, Upload,
};

/// Refuses whatever would change the storage.
#[derive(Debug)]
pub struct ReadOnly {
    inner: Arc<dyn Backend>,
    info: Info,
}

impl ReadOnly {
    /// A read-only view of `inner`.
    pub fn new(inner: Arc<dyn Backend>) -> Self {
        let mut info = inner.info().clone();
        info.can = Capabilities {
            write: false,
            delete: false,
            staging: false,
            atomic_create: false,
            copy: false,
            ..info.can
        };
        Self { inner, info }
    }
}

#[async_trait]
impl Backend for ReadOnly {
    fn info(&self) -> &Info {
        &self.info
    }

    async fn begin(&self, _: &BlobId, _: SizeHint) -> Result<Box<dyn Upload>> {
        Err(refused("uploads"))
    }

    async fn locate(&self, id: &BlobId) -> Result<Location> {
        self.inner.locate(id).await
    }

    async fn open(&self, at: &Location) -> Result<Arc<dyn Download>> {
        self.inner.open(at).await
    }

    async fn delete(&self, _: &Location) -> Result<()> {
        Err(refused("deletion"))
    }

    fn list(&self) -> BoxStream<'_, Result<Entry>> {
        self.inner.list()
    }

    async fn sweep(&self, _: Duration) -> Result<Swept> {
        Err(refused("sweeping"))
    }

    async fn capacity(&self) -> Result<Capacity> {
        self.inner.capacity().await
    }

    async fn presign(&self, at: &Location, lifetime: Duration) -> Result<Secret> {
        self.inner.presign(at, lifetime).await
    }
}

fn refused(what: &'static str) -> Error {
    Error::unsupported(what).with_hint("the store is configured with `read_only = true`")
}
