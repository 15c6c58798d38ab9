use std::{
    collections::BTreeSet,
    fmt,
    fs::File,
    ops::Range,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use futures::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use store_core::{
    Backend, BlobId, Capacity, Chunk, ChunkStream, Download, Entry, Error, ErrorKind, Info, Location, Meta,
    Result, Secret, SizeHint, Stat, Swept, Upload, buffer::Pool,
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    S3Config,
    client::{Client, Listed, Pending, again},
    config::{Conditional, host_of},
    error::stopped,
    location::{Place, RESERVED},
    upload::S3Upload,
};

/// Bytes per write: a few make a part, and those that core holds for digests stay far below 64 MiB.
const CHUNK: usize = 4 << 20;

/// The first piece of a download is short, so that its reader does not wait for a long one.
const FIRST_PIECE: u64 = 1 << 20;

/// Requests of a sweep that are on their way at once.
const SWEPT_AT_ONCE: usize = 16;

/// Blobs as objects of an S3 bucket.
#[derive(Clone)]
pub struct S3Backend {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    info: Info,
    pub(crate) config: S3Config,
    pub(crate) client: Client,
    pub(crate) place: Place,
    /// Buffers of `part_size`.
    pub(crate) pool: Pool,
}

impl S3Backend {
    /// Connects to the bucket: fails if it cannot be used, creates it if that is configured, and finds out what the
    /// server does with conditional writes.
    pub async fn connect(config: &S3Config) -> Result<Self> {
        config.check()?;
        let mut client = Client::new(config).await?;
        let (host, also) = hosts(config, client.region())?;
        let place = Place {
            host: config.location_host.clone().unwrap_or_else(|| host.clone()),
            also: also.into_iter().chain([host]).collect(),
            bucket: config.bucket.clone(),
            prefix: config.prefix.clone(),
        };
        again(|| client.check_bucket(&place.prefix, config.create_bucket)).await?;
        if config.conditional_writes == Conditional::Auto {
            let probe = format!("{}{RESERVED}probe/{}", place.prefix, BlobId::random());
            client.probe(&probe).await?;
        }
        let mut info = Info::new("s3");
        info.also = &["s3+http", "s3+https"];
        info.chunk = CHUNK;
        info.can.write = true;
        info.can.delete = true;
        info.can.list = true;
        info.can.metadata = true;
        info.can.atomic_create = client.conditional;
        info.can.staging = true;
        let pool = Pool::new(config.part_size.0 as usize, config.concurrency as usize);
        // The secrets have gone into the client.
        let mut config = config.clone();
        (config.access_key, config.secret_key, config.session_token) = (None, None, None);
        Ok(Self { shared: Arc::new(Shared { info, config, client, place, pool }) })
    }
}

/// What stands for the server in locations, and what else does.
fn hosts(config: &S3Config, region: Option<String>) -> Result<(String, Vec<String>)> {
    if let Some(endpoint) = &config.endpoint {
        return Ok((host_of(endpoint)?.to_owned(), Vec::new()));
    }
    let region = region.ok_or_else(|| {
        Error::new(ErrorKind::Invalid, "no region is known").with_hint("set `region`, or `endpoint`")
    })?;
    Ok((format!("s3.{region}.amazonaws.com"), vec!["s3.amazonaws.com".to_owned()]))
}

impl Shared {
    async fn describe(&self, name: &str, at: &Location) -> Result<S3Download> {
        let key = format!("{}{name}", self.place.prefix);
        let object = self.client.head(&key).await?.ok_or_else(|| Error::not_found(at))?;
        let mut stat = Stat::new(object.size);
        if let Some(token) = &object.token
            && let Some(json) = self.client.get(&self.place.sidecar(name, token)).await?
        {
            stat.meta = Some(Meta::from_json(&json)?);
        }
        let pieces = self.config.read_size.0;
        let ahead = self.config.concurrency as usize;
        Ok(S3Download { client: self.client.clone(), key, etag: object.etag, stat, pieces, ahead })
    }

    async fn delete(&self, name: &str, at: &Location) -> Result<()> {
        let key = format!("{}{name}", self.place.prefix);
        let object = again(|| self.client.head(&key)).await?.ok_or_else(|| Error::not_found(at))?;
        again(|| self.client.delete(&key)).await?;
        let Some(token) = &object.token else { return Ok(()) };
        let sidecar = self.place.sidecar(name, token);
        if let Err(error) = again(|| self.client.delete(&sidecar)).await {
            tracing::warn!(%error, "the metadata of a deleted blob is still there; sweep will remove it");
        }
        Ok(())
    }

    async fn sweep(&self, age: Duration) -> Result<Swept> {
        let old = Old::new(age);
        let mut swept = Swept::default();
        let mut keys = BTreeSet::new();
        for upload in self.client.uploads(&self.place.prefix).await? {
            if self.place.id(&upload.key).is_some()
                && let Some(bytes) = self.sweep_upload(&upload, old).await?
            {
                swept.uploads += 1;
                swept.bytes += bytes;
                keys.insert(upload.key);
            }
        }
        let prefix = self.place.sidecars();
        let mut next = None;
        loop {
            let (page, more) = self.client.list(&prefix, next).await?;
            let mut checks = stream::iter(page)
                .filter(|sidecar| std::future::ready(old.is(sidecar.modified)))
                .map(|sidecar| self.sweep_sidecar(sidecar, old))
                .buffer_unordered(SWEPT_AT_ONCE);
            while let Some((key, found, bytes)) = checks.try_next().await? {
                // A sidecar and an upload of one key are what one writer left.
                let known = keys.contains(&key);
                swept.uploads += if known { found.saturating_sub(1) } else { found };
                swept.bytes += bytes;
            }
            match more {
                Some(_) => next = more,
                None => return Ok(swept),
            }
        }
    }

    /// Aborts an upload if nothing has come for long, and says how many bytes it had.
    async fn sweep_upload(&self, upload: &Pending, old: Old) -> Result<Option<u64>> {
        if !old.is(upload.initiated) {
            return Ok(None);
        }
        let Some(parts) = self.client.parts(&upload.key, &upload.upload).await? else { return Ok(None) };
        if parts.newest.is_some_and(|newest| !old.is(newest)) {
            return Ok(None);
        }
        self.client.abort(&upload.key, &upload.upload).await?;
        Ok(Some(parts.bytes))
    }

    /// Removes a sidecar that belongs to no object and no live upload, and the dead uploads of its key, which servers
    /// list by their whole key only. Says which key it was, what was removed, and how many bytes that had.
    async fn sweep_sidecar(&self, sidecar: Listed, old: Old) -> Result<(String, u64, u64)> {
        let Some((key, token)) = self.place.owner(&sidecar.key) else { return Ok((sidecar.key, 0, 0)) };
        let owner = self.client.head(&key).await?;
        if owner.is_some_and(|object| object.token.as_deref() == Some(token)) {
            return Ok((key, 0, 0));
        }
        let (mut found, mut bytes, mut live) = (0, 0, false);
        for upload in self.client.uploads(&key).await?.iter().filter(|upload| upload.key == key) {
            match self.sweep_upload(upload, old).await? {
                Some(had) => {
                    found += 1;
                    bytes += had;
                }
                None => live = true,
            }
        }
        if !live {
            self.client.delete(&sidecar.key).await?;
            found = found.max(1);
        }
        Ok((key, found, bytes + sidecar.size))
    }
}

/// What counts as old. Times are the server's, so that a wrong clock here shifts what is old.
#[derive(Clone, Copy)]
struct Old {
    before: Option<i64>,
}

impl Old {
    fn new(age: Duration) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let before = i64::try_from(now.saturating_sub(age).as_secs()).unwrap_or(i64::MAX);
        // No clock is needed to take everything.
        Self { before: (!age.is_zero()).then_some(before) }
    }

    fn is(self, time: i64) -> bool {
        self.before.is_none_or(|before| time <= before)
    }
}

impl fmt::Debug for S3Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("S3Backend").field(&self.shared.place).finish()
    }
}

#[async_trait]
impl Backend for S3Backend {
    fn info(&self) -> &Info {
        &self.shared.info
    }

    async fn begin(&self, id: &BlobId, size: SizeHint) -> Result<Box<dyn Upload>> {
        Ok(Box::new(S3Upload::begin(Arc::clone(&self.shared), id, size).await?))
    }

    async fn locate(&self, id: &BlobId) -> Result<Location> {
        let key = self.shared.place.key(id);
        match self.shared.client.head(&key).await? {
            Some(_) => self.shared.place.location(&key),
            None => Err(Error::new(ErrorKind::NotFound, format!("there is no blob {id}"))),
        }
    }

    async fn open(&self, at: &Location) -> Result<Arc<dyn Download>> {
        let name = self.shared.place.find(at)?;
        Ok(Arc::new(self.shared.describe(&name, at).await?))
    }

    async fn delete(&self, at: &Location) -> Result<()> {
        let (shared, at) = (Arc::clone(&self.shared), at.clone());
        let name = shared.place.find(&at)?;
        // A task of its own: a dropped future must not leave the metadata behind.
        tokio::spawn(async move { shared.delete(&name, &at).await }).await.map_err(stopped)?
    }

    fn list(&self) -> BoxStream<'_, Result<Entry>> {
        let shared = &*self.shared;
        stream::try_unfold(Some(None), move |from: Option<Option<String>>| async move {
            let Some(from) = from else { return Ok(None) };
            let (page, next) = shared.client.list(&shared.place.prefix, from).await?;
            // What has no id for a name was not written by a store.
            let entries = page.into_iter().filter_map(|object| {
                let id = shared.place.id(&object.key)?;
                Some(shared.place.location(&object.key).map(|at| Entry::new(id, at, object.size)))
            });
            let entries: Vec<Result<Entry>> = entries.collect();
            Ok(Some((stream::iter(entries), next.map(Some))))
        })
        .try_flatten()
        .boxed()
    }

    async fn sweep(&self, age: Duration) -> Result<Swept> {
        self.shared.sweep(age).await
    }

    async fn capacity(&self) -> Result<Capacity> {
        Err(Error::unsupported("measuring the space left: S3 has no request for it"))
    }

    async fn presign(&self, _: &Location, _: Duration) -> Result<Secret> {
        Err(Error::unsupported("URLs for its blobs"))
    }
}

struct S3Download {
    client: Client,
    key: String,
    etag: Option<String>,
    stat: Stat,
    pieces: u64,
    ahead: usize,
}

impl fmt::Debug for S3Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Download").field("key", &self.key).field("etag", &self.etag).finish_non_exhaustive()
    }
}

#[async_trait]
impl Download for S3Download {
    fn stat(&self) -> &Stat {
        &self.stat
    }

    async fn read(&self, range: Range<u64>) -> Result<ChunkStream> {
        let (client, key, etag) = (self.client.clone(), Arc::<str>::from(&*self.key), self.etag.clone());
        let size = self.stat.size;
        // Tasks of their own, so that pieces come while the reader does something else.
        let pieces = stream::iter(pieces(range, self.pieces)).map(move |piece| {
            let (client, key, etag) = (client.clone(), Arc::clone(&key), etag.clone());
            let get = async move { client.get_range(&key, etag.as_deref(), piece, size).await };
            let get = AbortOnDropHandle::new(tokio::spawn(get));
            async move { get.await.map_err(stopped)? }
        });
        let chunks = pieces
            .buffered(self.ahead)
            .map_ok(|bytes| stream::iter(bytes.into_iter().map(|bytes| Ok(Chunk::Data(bytes)))))
            .try_flatten();
        Ok(chunks.boxed())
    }

    fn file(&self) -> Option<&Arc<File>> {
        None
    }
}

/// Cuts a range into pieces, the first one short.
fn pieces(range: Range<u64>, size: u64) -> impl Iterator<Item = Range<u64>> + Send {
    let mut next = range.start;
    std::iter::from_fn(move || {
        let len = if next == range.start { size.min(FIRST_PIECE) } else { size };
        let piece = next..range.end.min(next.saturating_add(len));
        next = piece.end;
        (!piece.is_empty()).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_the_range() {
        let all: Vec<_> = pieces(5..(20 << 20), 8 << 20).collect();
        assert_eq!(all.len(), 4);
        assert_eq!((all[0].start, all[0].end), (5, 5 + (1 << 20)));
        assert!(all.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert_eq!(all[3].end, 20 << 20);
        assert_eq!(pieces(7..7, 100).count(), 0);
        assert_eq!(pieces(0..100, 100).count(), 1);
    }
}
