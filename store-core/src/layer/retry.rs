use std::{future::Future, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};

use crate::{
    Backend, BlobId, Capacity, Download, Entry, ErrorKind, Info, Location, Result, Retry, Secret, SizeHint,
    Swept, Upload,
};

/// Tries again what failed with [`Unavailable`](ErrorKind::Unavailable).
///
/// Calls on an upload are not: only the driver can repeat a write or a commit without doing it twice. Neither are
/// reads: [`Reader`](crate::Reader) resumes them at the offset that they reached.
#[derive(Debug)]
pub struct Retrying {
    name: String,
    inner: Arc<dyn Backend>,
    policy: Retry,
}

impl Retrying {
    /// Retries for the calls of `inner`, counted under the store's `name`.
    pub fn new(name: &str, inner: Arc<dyn Backend>, policy: Retry) -> Self {
        Self { name: name.to_owned(), inner, policy }
    }

    async fn again<T, F>(&self, operation: &'static str, mut call: impl FnMut(u32) -> F + Send) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send,
    {
        let mut failed = 0;
        loop {
            let error = match call(failed).await {
                Err(error) if error.is_retryable() => error,
                outcome => return outcome,
            };
            failed += 1;
            let Some(pause) = self.policy.pause(failed, &error) else { return Err(error) };
            self.count(operation, &error);
            tokio::time::sleep(pause).await;
        }
    }

    fn count(&self, operation: &'static str, error: &crate::Error) {
        tracing::debug!(store = self.name, operation, %error, "trying again");
        metrics::counter!("imagestore_retries_total", "store" => self.name.clone(), "operation" => operation)
            .increment(1);
    }
}

#[async_trait]
impl Backend for Retrying {
    fn info(&self) -> &Info {
        self.inner.info()
    }

    async fn begin(&self, id: &BlobId, size: SizeHint) -> Result<Box<dyn Upload>> {
        self.again("put", |_| self.inner.begin(id, size)).await
    }

    async fn locate(&self, id: &BlobId) -> Result<Location> {
        self.again("locate", |_| self.inner.locate(id)).await
    }

    async fn open(&self, at: &Location) -> Result<Arc<dyn Download>> {
        self.again("open", |_| self.inner.open(at)).await
    }

    async fn delete(&self, at: &Location) -> Result<()> {
        self.again("delete", |failed| async move {
            match self.inner.delete(at).await {
                // The first attempt's reply was lost, its work was not.
                Err(error) if failed > 0 && error.kind() == ErrorKind::NotFound => Ok(()),
                outcome => outcome,
            }
        })
        .await
    }

    /// A list is begun again only while nothing of it has been passed on.
    fn list(&self) -> BoxStream<'_, Result<Entry>> {
        let start = (self.inner.list(), 0, false);
        stream::unfold(start, move |(mut entries, mut failed, mut begun)| async move {
            loop {
                let item = entries.next().await?;
                if let Err(error) = &item
                    && error.is_retryable()
                    && !begun
                    && let Some(pause) = self.policy.pause(failed + 1, error)
                {
                    self.count("list", error);
                    tokio::time::sleep(pause).await;
                    failed += 1;
                    entries = self.inner.list();
                    continue;
                }
                begun = true;
                return Some((item, (entries, failed, begun)));
            }
        })
        .boxed()
    }

    async fn sweep(&self, age: Duration) -> Result<Swept> {
        self.again("sweep", |_| self.inner.sweep(age)).await
    }

    async fn capacity(&self) -> Result<Capacity> {
        self.again("capacity", |_| self.inner.capacity()).await
    }

    async fn presign(&self, at: &Location, lifetime: Duration) -> Result<Secret> {
        self.again("presign", |_| self.inner.presign(at, lifetime)).await
    }
}
