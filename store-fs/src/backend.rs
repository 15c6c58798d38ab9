use std::{
    collections::{BTreeSet, VecDeque},
    ffi::OsString,
    fmt,
    fs::File,
    ops::Range,
    path::Path,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures::{
    StreamExt, TryStreamExt, future,
    stream::{self, BoxStream},
};
use rustix::fs::Dir;
use store_core::{
    Backend, BlobId, Capacity, ChunkStream, Download, Entry, Error, ErrorKind, Info, Location, Result,
    Secret, SizeHint, Stat, Swept, Upload,
    buffer::Pool,
    file::{self, blocking},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    FsConfig, Staging,
    client::{DataDir, OpenDir, dress, reserve},
    error::{io, no_space},
    location,
    upload::{FsUpload, SPARE_WRITES},
};

/// Bytes per write: large enough that direct I/O reaches the disk's speed, small enough that a transfer's window
/// stays far below 64 MiB.
pub(crate) const CHUNK: usize = 1 << 20;

/// Zeros are looked for in steps of this many bytes: no file system has larger blocks by default.
const HOLE: u64 = 64 << 10;

/// Blobs as files in local directories, or on mounted shares.
#[derive(Clone)]
pub struct FsBackend {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    info: Info,
    config: FsConfig,
    /// The preferred first.
    directories: Vec<DataDir>,
    named_staging: bool,
    pub(crate) pool: Pool,
    pub(crate) spare_writes: Arc<Semaphore>,
    /// Held by each call, write and read on its blocking thread, however long that is.
    calls: Arc<Semaphore>,
}

/// Calls at once: a share that does not answer holds so many of the process's blocking threads, and leaves the others to the
/// stores that do.
const CALLS_AT_ONCE: usize = 64;

impl FsBackend {
    /// Prepares the data directories. Blocks on the file system.
    ///
    /// One of several that cannot be opened does not take the blobs of the others away; it is tried again at each call.
    pub fn open(config: &FsConfig) -> Result<Self> {
        let directories = config.checked_directories()?.into_iter();
        let directories: Vec<DataDir> =
            directories.map(|directory| DataDir::new(directory, config)).collect();
        let mut unnamed = config.staging != Staging::Directory;
        let mut lost = Vec::new();
        for directory in &directories {
            match directory.open() {
                Ok(open) => unnamed &= open.has_unnamed_files(),
                Err(error) => lost.push(error),
            }
        }
        if lost.len() == directories.len() {
            return Err(lost.swap_remove(0));
        }
        for error in &lost {
            tracing::warn!(%error, "nothing is stored before this data directory is back");
        }
        // What it can do shows when it is back; staging files with names works everywhere.
        unnamed &= lost.is_empty() || config.staging == Staging::Unnamed;
        if config.staging == Staging::Unnamed && !unnamed {
            let message = "`staging` = \"unnamed\" needs a file system with O_TMPFILE, and /proc";
            return Err(Error::new(ErrorKind::Unsupported, message).with_hint("leave it at \"auto\""));
        }
        let mut info = Info::new("file");
        info.also = &["filesystem"];
        info.chunk = CHUNK;
        info.hole = Some(HOLE);
        info.can.write = true;
        info.can.delete = true;
        info.can.list = true;
        info.can.capacity = true;
        info.can.metadata = true;
        info.can.atomic_create = true;
        info.can.staging = !unnamed;
        info.can.copy = true;
        let shared = Shared {
            info,
            config: config.clone(),
            directories,
            named_staging: !unnamed,
            pool: Pool::new(CHUNK, 48),
            spare_writes: Arc::new(Semaphore::new(SPARE_WRITES)),
            calls: Arc::new(Semaphore::new(CALLS_AT_ONCE)),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Runs `work` on a blocking thread.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Shared>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let shared = Arc::clone(&self.shared);
        let call = shared.call().await;
        blocking(move || {
            let _until_it_ends = call;
            work(&shared)
        })
        .await
    }
}

impl Shared {
    /// Room for one more call.
    pub(crate) async fn call(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.calls).acquire_owned().await.ok() // It is never closed.
    }

    /// The open directory, and the name in it, that `at` leads to.
    fn find(&self, at: &Location) -> Result<(OpenDir, OsString)> {
        let directories = self.directories.iter().map(|directory| (directory.path.as_path(), directory));
        let (directory, name) = location::find(at, directories)?;
        Ok((directory.open()?, name))
    }

    /// The open file of the blob at `at`.
    pub(crate) fn blob(&self, at: &Location) -> Result<File> {
        let (directory, name) = self.find(at)?;
        let blob = directory.open_blob(&name)?.ok_or_else(|| Error::not_found(at))?;
        Ok(blob.file)
    }

    /// Bytes that uploads leave free in each directory.
    pub(crate) fn reserve(&self) -> u64 {
        self.config.reserve.0
    }

    /// Where `id` is, if it is anywhere. In a directory that cannot be opened it may be: that is an error, unless it is
    /// in another one.
    fn holder(&self, id: &BlobId) -> Result<Option<&Path>> {
        let mut lost = None;
        for directory in &self.directories {
            match directory.open().and_then(|open| open.holds(id)) {
                Ok(true) => return Ok(Some(&directory.path)),
                Ok(false) => {}
                Err(error) => drop(lost.get_or_insert(error)),
            }
        }
        lost.map_or(Ok(None), Err)
    }

    /// The first directory by priority and free space that takes `needed` bytes.
    fn roomiest(&self, needed: u64) -> Result<OpenDir> {
        let mut candidates = Vec::new();
        for directory in &self.directories {
            let open = directory.open()?;
            let (_, free) = open.space()?;
            candidates.push((directory.priority, free.saturating_sub(self.config.reserve.0), open));
        }
        candidates.sort_by_key(|(priority, free, _)| std::cmp::Reverse((*priority, *free)));
        let most = candidates.iter().map(|(_, free, _)| *free).max().unwrap_or_default();
        let fits = candidates.into_iter().find(|(_, free, _)| *free >= needed.max(1));
        fits.map(|(_, _, open)| open)
            .ok_or_else(|| no_space(&self.directories[0].path, needed, most, self.config.reserve.0))
    }

    fn begin(self: &Arc<Self>, id: &BlobId, size: SizeHint) -> Result<FsUpload> {
        if self.holder(id)?.is_some() {
            return Err(Error::taken(id));
        }
        let directory = self.roomiest(size.needed().unwrap_or_default())?;
        // Direct I/O pays from a few writes on.
        let direct = self.config.direct_io && size.total.is_none_or(|total| total >= 4 * CHUNK as u64);
        let staged = directory.stage(id, self.named_staging, direct)?;
        let mut upload = FsUpload::new(Arc::clone(self), id.clone(), size.total, directory, staged);
        dress(upload.file(), self.config.file_mode.0, self.config.group.map(|group| group.0))?;
        if let (Some(total), true) = (size.total, size.data.is_none_or(|data| Some(data) == size.total))
            && total > 0
        {
            upload.reserved = reserve(upload.file(), total)?;
            // Another upload may have found the same space free, and taken it meanwhile.
            if upload.reserved {
                upload.keep_reserve(total)?;
            }
        }
        Ok(upload)
    }

    /// Whether a commit needs the lock: rival uploads of one id may be in different directories.
    pub(crate) fn lock_for_commit(&self, id: &BlobId, target: &OpenDir) -> Result<Option<impl Drop + use<>>> {
        if self.directories.len() < 2 {
            return Ok(None);
        }
        // Every process must take the same one: the first in the configuration's order of names.
        let first = self.directories.iter().min_by_key(|directory| &directory.path);
        let lock = first.map(|directory| directory.open()?.lock()).transpose()?;
        if self.holder(id)?.is_some_and(|holder| holder != target.path) {
            return Err(Error::taken(id));
        }
        Ok(lock)
    }
}

impl fmt::Debug for FsBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paths = self.shared.directories.iter().map(|directory| &directory.path);
        f.debug_tuple("FsBackend").field(&paths.collect::<Vec<_>>()).finish()
    }
}

#[async_trait]
impl Backend for FsBackend {
    fn info(&self) -> &Info {
        &self.shared.info
    }

    async fn begin(&self, id: &BlobId, size: SizeHint) -> Result<Box<dyn Upload>> {
        let id = id.clone();
        Ok(Box::new(self.run(move |shared| shared.begin(&id, size)).await?))
    }

    async fn locate(&self, id: &BlobId) -> Result<Location> {
        let id = id.clone();
        self.run(move |shared| match shared.holder(&id)? {
            Some(directory) => location::of(directory, &id),
            None => Err(Error::no_blob(&id)),
        })
        .await
    }

    async fn open(&self, at: &Location) -> Result<Arc<dyn Download>> {
        let at = at.clone();
        self.run(move |shared| {
            let (directory, name) = shared.find(&at)?;
            let blob = directory.open_blob(&name)?.ok_or_else(|| Error::not_found(&at))?;
            let mut stat = Stat::new(blob.size);
            stat.allocated = Some(blob.allocated);
            stat.meta = blob.meta;
            let (file, pool, calls) = (Arc::new(blob.file), shared.pool.clone(), Arc::clone(&shared.calls));
            let download: Arc<dyn Download> = Arc::new(FsDownload { file, stat, pool, calls });
            Ok(download)
        })
        .await
    }

    async fn delete(&self, at: &Location) -> Result<()> {
        let at = at.clone();
        self.run(move |shared| {
            let (directory, name) = shared.find(&at)?;
            match directory.remove_blob(&name)? {
                true => Ok(()),
                false => Err(Error::not_found(&at)),
            }
        })
        .await
    }

    fn list(&self) -> BoxStream<'_, Result<Entry>> {
        // What one directory ends in comes last, so that it does not hide the blobs of the others.
        let entries = stream::iter(&self.shared.directories);
        let entries = entries.map(|directory| list_directory(&self.shared, directory)).flatten();
        let mut failure = None;
        let with_end = entries.map(Some).chain(stream::once(future::ready(None)));
        let ordered = with_end.filter_map(move |entry| {
            future::ready(match entry {
                Some(Ok(entry)) => Some(Ok(entry)),
                Some(Err(error)) => {
                    failure.get_or_insert(error);
                    None
                }
                None => failure.take().map(Err),
            })
        });
        ordered.boxed()
    }

    async fn sweep(&self, age: Duration) -> Result<Swept> {
        self.run(move |shared| {
            let mut all = Swept::default();
            let mut lost = None;
            for directory in &shared.directories {
                match directory.open().and_then(|open| open.sweep(age)) {
                    Ok(swept) => {
                        all.uploads += swept.uploads;
                        all.bytes += swept.bytes;
                    }
                    Err(error) => drop(lost.get_or_insert(error)),
                }
            }
            lost.map_or(Ok(all), Err)
        })
        .await
    }

    async fn capacity(&self) -> Result<Capacity> {
        self.run(|shared| {
            let mut all = Capacity { total: 0, free: 0 };
            let mut counted = BTreeSet::new();
            for directory in &shared.directories {
                let directory = directory.open()?;
                if counted.insert(directory.device()?) {
                    let (total, free) = directory.space()?;
                    all.total = all.total.saturating_add(total);
                    all.free = all.free.saturating_add(free.saturating_sub(shared.config.reserve.0));
                }
            }
            Ok(all)
        })
        .await
    }

    async fn presign(&self, _: &Location, _: Duration) -> Result<Secret> {
        Err(Error::unsupported("URLs for its blobs: nobody can GET a local file"))
    }
}

/// How many entries one blocking step reads.
const LISTED_AT_ONCE: usize = 512;

/// Lists one directory, a batch at a time.
fn list_directory(shared: &Arc<Shared>, directory: &DataDir) -> BoxStream<'static, Result<Entry>> {
    enum State {
        Closed(DataDir),
        Open(OpenDir, Dir),
        Done,
    }
    let first = (Arc::clone(shared), State::Closed(directory.clone()));
    let batches = stream::try_unfold(first, |(shared, state)| async move {
        let call = shared.call().await;
        blocking(move || {
            let _until_it_ends = call;
            let (directory, mut entries) = match state {
                State::Closed(directory) => {
                    let directory = directory.open()?;
                    let entries = directory.entries()?;
                    (directory, entries)
                }
                State::Open(directory, entries) => (directory, entries),
                State::Done => return Ok(None),
            };
            let mut batch = VecDeque::with_capacity(LISTED_AT_ONCE);
            while batch.len() < LISTED_AT_ONCE {
                let Some(entry) = entries.read() else {
                    return Ok(Some((stream::iter(batch.into_iter().map(Ok)), (shared, State::Done))));
                };
                let entry = entry.map_err(|errno| io("cannot list the data directory", errno))?;
                // What has no id for a name was not written by a store.
                let Some(id) = entry.file_name().to_str().ok().and_then(|name| name.parse::<BlobId>().ok())
                else {
                    continue;
                };
                if let Some(size) = directory.size_of(entry.file_name())? {
                    let at = location::of(&directory.path, &id)?;
                    batch.push_back(Entry::new(id, at, size));
                }
            }
            Ok(Some((stream::iter(batch.into_iter().map(Ok)), (shared, State::Open(directory, entries)))))
        })
        .await
    });
    batches.try_flatten().boxed()
}

#[derive(Debug)]
struct FsDownload {
    file: Arc<File>,
    stat: Stat,
    pool: Pool,
    calls: Arc<Semaphore>,
}

#[async_trait]
impl Download for FsDownload {
    fn stat(&self) -> &Stat {
        &self.stat
    }

    async fn read(&self, range: Range<u64>) -> Result<ChunkStream> {
        let (file, calls) = (Arc::clone(&self.file), Arc::clone(&self.calls));
        Ok(file::read_within(file, range, self.pool.clone(), calls))
    }

    fn file(&self) -> Option<&Arc<File>> {
        Some(&self.file)
    }
}
