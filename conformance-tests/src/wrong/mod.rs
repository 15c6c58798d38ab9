//! Backends that are wrong in one way each, and the case that must notice it: the suite is tested too.
//!
//! Each is a `Twist` of a few lines over the reference backend. Whoever adds a case shows here how it fails.

mod errors;
mod faults;
mod listing;
mod promises;
mod reads;
mod uploads;

use std::{fmt, fs::File, ops::Range, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::stream::BoxStream;
use store_core::{
    Backend, BlobId, Capacity, Chunk, ChunkStream, Download, Entry, Info, Location, MemoryBackend, Meta,
    Result, Secret, SizeHint, Stat, Swept, Upload,
};

use crate::{Fault, FaultKind, Fixture, Flaky};

/// A backend that breaks a promise.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Wrong {
    /// What it does wrong.
    pub name: &'static str,
    /// The case that must fail on it.
    pub caught_by: &'static str,
    twist: fn() -> Arc<dyn Twist>,
}

impl Wrong {
    /// A storage that it is wrong about.
    pub fn fixture(&self) -> Fixture {
        over((self.twist)())
    }
}

/// The storage that the wrong backends stand on, with nothing wrong: every case passes on it.
pub fn reference() -> Fixture {
    #[derive(Debug)]
    struct Straight;
    impl Twist for Straight {}
    over(Arc::new(Straight))
}

/// Every wrong backend.
pub fn all() -> impl Iterator<Item = &'static Wrong> {
    let themes =
        [uploads::WRONG, reads::WRONG, listing::WRONG, errors::WRONG, promises::WRONG, faults::WRONG];
    themes.into_iter().flatten()
}

/// A backend on which nothing works, whatever it declares: a case that passes on it looks at nothing.
pub fn dead() -> Fixture {
    over(Arc::new(promises::Dead))
}

/// A theme's table.
macro_rules! wrong {
    ($($twist:expr => $name:ident, caught by $case:ident;)*) => {
        pub(super) const WRONG: &[$crate::wrong::Wrong] = &[$($crate::wrong::Wrong {
            name: stringify!($name),
            caught_by: stringify!($case),
            twist: || std::sync::Arc::new($twist),
        }),*];
    };
}
use wrong;

/// The storage that a twist is put upon.
type Inner = Arc<dyn Backend>;

fn over(twist: Arc<dyn Twist>) -> Fixture {
    let flaky = Flaky::new(Arc::new(MemoryBackend::new(1 << 30)));
    let (fault, damage, crash) = (flaky.fault_hook(), flaky.damage_hook(), flaky.crash_hook());
    let inner: Inner = Arc::new(flaky);
    let told = Arc::clone(&twist);
    let after_crash = (Arc::clone(&twist), Arc::clone(&inner));
    let open = move || -> Arc<dyn Backend> {
        let mut info = inner.info().clone();
        twist.info(&mut info);
        Arc::new(Twisted { inner: Arc::clone(&inner), info, twist: Arc::clone(&twist) })
    };
    Fixture::new(open)
        .grace(Duration::ZERO)
        .limit(Duration::from_secs(60))
        .exact_capacity()
        .fault(&FaultKind::ALL, move |injected| {
            told.fault(injected);
            fault(injected)
        })
        .damage(damage)
        .crash(move || {
            let (twist, inner) = after_crash.clone();
            let crashed = crash();
            async move {
                crashed.await?;
                twist.crash(&inner).await.map_err(|error| error.to_string())
            }
        })
}

/// What a wrong backend does otherwise; what it leaves alone is right.
#[async_trait]
trait Twist: fmt::Debug + Send + Sync + 'static {
    fn info(&self, _: &mut Info) {}

    async fn begin(&self, inner: &Inner, id: &BlobId, size: SizeHint) -> Result<Box<dyn Upload>> {
        inner.begin(id, size).await
    }

    async fn locate(&self, inner: &Inner, id: &BlobId) -> Result<Location> {
        inner.locate(id).await
    }

    async fn open(&self, inner: &Inner, at: &Location) -> Result<Arc<dyn Download>> {
        inner.open(at).await
    }

    async fn delete(&self, inner: &Inner, at: &Location) -> Result<()> {
        inner.delete(at).await
    }

    fn list<'a>(&'a self, inner: &'a Inner) -> BoxStream<'a, Result<Entry>> {
        inner.list()
    }

    async fn sweep(&self, inner: &Inner, age: Duration) -> Result<Swept> {
        inner.sweep(age).await
    }

    async fn capacity(&self, inner: &Inner) -> Result<Capacity> {
        inner.capacity().await
    }

    async fn presign(&self, inner: &Inner, at: &Location, lifetime: Duration) -> Result<Secret> {
        inner.presign(at, lifetime).await
    }

    async fn write(&self, upload: &mut Going, chunk: Chunk) -> Result<()> {
        upload.inner.write(chunk).await
    }

    async fn adopt(&self, upload: &mut Going, source: &Arc<File>) -> Result<Option<Arc<File>>> {
        upload.inner.adopt(source).await
    }

    async fn copy(&self, upload: &mut Going, from: &Location, size: u64) -> Result<()> {
        upload.inner.copy(from, size).await
    }

    async fn commit(&self, upload: &mut Going, meta: &Meta) -> Result<Location> {
        upload.inner.commit(meta).await
    }

    async fn abort(&self, upload: &mut Going) -> Result<()> {
        upload.inner.abort().await
    }

    fn stat(&self, _: &mut Stat) {}

    async fn read(&self, download: &Arc<dyn Download>, range: Range<u64>) -> Result<ChunkStream> {
        download.read(range).await
    }

    /// Is told of faults before they come.
    fn fault(&self, _: Fault) {}

    async fn crash(&self, _: &Inner) -> Result<()> {
        Ok(())
    }
}

/// An upload, and where it belongs.
struct Going {
    inner: Box<dyn Upload>,
    backend: Inner,
    id: BlobId,
    size: SizeHint,
    /// What a twist keeps from the storage.
    held: Vec<Chunk>,
    written: u64,
}

#[derive(Debug)]
struct Twisted {
    inner: Inner,
    info: Info,
    twist: Arc<dyn Twist>,
}

#[async_trait]
impl Backend for Twisted {
    fn info(&self) -> &Info {
        &self.info
    }

    async fn begin(&self, id: &BlobId, size: SizeHint) -> Result<Box<dyn Upload>> {
        let inner = self.twist.begin(&self.inner, id, size).await?;
        let backend = Arc::clone(&self.inner);
        let going = Going { inner, backend, id: id.clone(), size, held: Vec::new(), written: 0 };
        Ok(Box::new(TwistedUpload { going, twist: Arc::clone(&self.twist) }))
    }

    async fn locate(&self, id: &BlobId) -> Result<Location> {
        self.twist.locate(&self.inner, id).await
    }

    async fn open(&self, at: &Location) -> Result<Arc<dyn Download>> {
        let inner = self.twist.open(&self.inner, at).await?;
        let mut stat = inner.stat().clone();
        self.twist.stat(&mut stat);
        Ok(Arc::new(TwistedDownload { inner, stat, twist: Arc::clone(&self.twist) }))
    }

    async fn delete(&self, at: &Location) -> Result<()> {
        self.twist.delete(&self.inner, at).await
    }

    fn list(&self) -> BoxStream<'_, Result<Entry>> {
        self.twist.list(&self.inner)
    }

    async fn sweep(&self, age: Duration) -> Result<Swept> {
        self.twist.sweep(&self.inner, age).await
    }

    async fn capacity(&self) -> Result<Capacity> {
        self.twist.capacity(&self.inner).await
    }

    async fn presign(&self, at: &Location, lifetime: Duration) -> Result<Secret> {
        self.twist.presign(&self.inner, at, lifetime).await
    }
}

struct TwistedUpload {
    going: Going,
    twist: Arc<dyn Twist>,
}

#[async_trait]
impl Upload for TwistedUpload {
    async fn write(&mut self, chunk: Chunk) -> Result<()> {
        let len = chunk.len();
        let written = self.twist.write(&mut self.going, chunk).await;
        self.going.written += len;
        written
    }

    async fn adopt(&mut self, source: &Arc<File>) -> Result<Option<Arc<File>>> {
        self.twist.adopt(&mut self.going, source).await
    }

    async fn copy(&mut self, from: &Location, size: u64) -> Result<()> {
        self.twist.copy(&mut self.going, from, size).await
    }

    async fn commit(&mut self, meta: &Meta) -> Result<Location> {
        self.twist.commit(&mut self.going, meta).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.twist.abort(&mut self.going).await
    }
}

#[derive(Debug)]
struct TwistedDownload {
    inner: Arc<dyn Download>,
    stat: Stat,
    twist: Arc<dyn Twist>,
}

#[async_trait]
impl Download for TwistedDownload {
    fn stat(&self) -> &Stat {
        &self.stat
    }

    async fn read(&self, range: Range<u64>) -> Result<ChunkStream> {
        self.twist.read(&self.inner, range).await
    }

    fn file(&self) -> Option<&Arc<File>> {
        None
    }
}
