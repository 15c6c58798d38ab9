use std::{
    collections::BTreeSet,
    fmt,
    fs::File,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use store_core::{
    Backend, BlobId, Capacity, Chunk, ChunkStream, Download, Entry, Error, ErrorKind, Info, Location, Meta,
    Result, Secret, SizeHint, Stat, Swept, Upload,
    buffer::Pool,
    driver::{Cutoff, Gathered, Guarded, Request, again, stream_ahead},
};
use tokio::sync::OnceCell;

use crate::{
    S3Config,
    client::{Client, Creation, Listed, Object, Only, Pending},
    config::{Conditional, Sse, host_of},
    error::region_of,
    location::{Place, Theirs},
    upload::S3Upload,
};

/// Bytes per write, and per chunk of a download: many make a part, and the dozen that core holds for digests is small beside
/// a window.
const CHUNK: usize = 1 << 20;

/// Chunks of each request of a download that wait for the reader, at most. Those that come later fill the line meanwhile, and
/// the server's end of it.
const WAITING: usize = 7;

/// Requests of a sweep that are on their way at once.
const SWEPT_AT_ONCE: usize = 16;

/// Connections that are opened along with a store, besides the first one.
const WARM: u32 = 3;

/// Trying out a server is over after so long.
const PROBED: Duration = Duration::from_secs(3600);

/// Blobs as objects of an S3 bucket.
#[derive(Clone)]
pub struct S3Backend {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    /// What is claimed before it is known whether the server honours conditions.
    info: Info,
    atomic: Info,
    pub(crate) config: S3Config,
    pub(crate) client: Client,
    /// The client for commits, when it is known which conditions the server honours.
    committer: OnceCell<Client>,
    /// The key and the token of the blob that was found last: whoever looks for one is about to open it.
    located: Mutex<Option<(String, String)>>,
    pub(crate) place: Place,
    /// Buffers of the size of a chunk.
    pool: Pool,
}

impl Shared {
    fn download(&self, client: Client, key: String, etag: Option<String>, stat: Stat) -> S3Download {
        let (pool, ahead) = (self.pool.clone(), self.config.concurrency as usize);
        S3Download { client, key, etag, stat, pool, pieces: self.config.read_size.0, ahead }
    }
}

impl S3Backend {
    /// Connects to the bucket: fails if it cannot be used, and creates it if that is configured. What the server does with
    /// conditional writes is found out with the first upload, while that is on its way: only then `atomic_create` is claimed.
    pub async fn connect(config: &S3Config) -> Result<Self> {
        config.check()?;
        let mut client = Client::new(config).await?;
        client.warm_up(WARM.min(config.concurrency - 1));
        if let Err(error) = again(|| client.check_bucket(&config.prefix, config.create_bucket)).await {
            // Where nobody said which region the bucket is in, the server does.
            let region = region_of(&error).filter(|_| config.region.is_none()).map(str::to_owned);
            client = client.in_region(&region.ok_or(error)?);
            again(|| client.check_bucket(&config.prefix, config.create_bucket)).await?;
        }
        let (host, also) = hosts(config, client.region())?;
        let place = Place {
            host: config.location_host.clone().unwrap_or_else(|| host.clone()),
            also: also.into_iter().chain([host]).collect(),
            bucket: config.bucket.clone(),
            prefix: config.prefix.clone(),
        };
        // Amazon's servers are known to honour conditions. Others are tried out with the first upload.
        let tried_out = config.conditional_writes == Conditional::Auto && config.endpoint.is_some();
        let committer = OnceCell::new_with((!tried_out).then(|| client.clone()));
        let mut info = Info::new("s3");
        info.also = &["s3+http", "s3+https"];
        info.chunk = CHUNK;
        info.can.write = true;
        info.can.delete = true;
        info.can.list = true;
        info.can.metadata = true;
        info.can.copy = true;
        info.can.presign = config.sse != Some(Sse::Customer);
        info.can.staging = true;
        let mut atomic = info.clone();
        atomic.can.atomic_create = true;
        let pool = Pool::new(CHUNK, config.concurrency as usize * WAITING);
        // The secrets have gone into the client.
        let mut config = config.clone();
        (config.access_key, config.secret_key, config.session_token) = (None, None, None);
        (config.sse_customer_key, config.proxy) = (None, None);
        let located = Mutex::default();
        let shared = Shared { info, atomic, config, client, committer, located, place, pool };
        Ok(Self { shared: Arc::new(shared) })
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
    /// The client for commits. To be called on a task of its own: what is dropped leaves the object that it tries out.
    pub(crate) async fn committer(&self) -> Result<&Client> {
        let probe = async {
            let key = format!("{}{}", self.place.probes(), BlobId::random());
            Box::pin(self.client.probed(&key)).await
        };
        self.committer.get_or_try_init(|| probe).await
    }

    /// The client for commits, where it is known by now.
    pub(crate) fn known_committer(&self) -> Option<&Client> {
        self.committer.get()
    }

    /// Starts to find out what a committer has to know, where that is not known yet.
    pub(crate) fn probing(self: &Arc<Self>) -> Option<Request<()>> {
        let shared = Arc::clone(self);
        let probing = async move { shared.committer().await.map(drop) };
        self.committer.get().is_none().then(|| Request::spawn(probing))
    }

    async fn locate(&self, id: &BlobId) -> Result<Location> {
        let key = self.place.key(id);
        let object = self.client.head(&key).await?.ok_or_else(|| Error::no_blob(id))?;
        let at = self.place.location(&key)?;
        *self.located() = object.token.map(|token| (key, token));
        Ok(at)
    }

    fn located(&self) -> MutexGuard<'_, Option<(String, String)>> {
        self.located.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn describe(&self, name: &str, at: &Location) -> Result<S3Download> {
        let key = format!("{}{name}", self.place.prefix);
        // What was there a moment ago most often still is. Its metadata is then read while that is looked up.
        let token = self.located().take_if(|(located, _)| *located == key).map(|(_, token)| token);
        let (object, early) = tokio::join!(self.client.head(&key), async {
            match &token {
                Some(token) => self.client.get(&self.place.sidecar(name, token)).await,
                None => Ok(None),
            }
        });
        let object = object?.ok_or_else(|| Error::not_found(at))?;
        let json = match &object.token {
            Some(found) if token.as_ref() == Some(found) => early?,
            Some(found) => self.client.get(&self.place.sidecar(name, found)).await?,
            None => None,
        };
        let mut stat = Stat::new(object.size);
        stat.meta = json.map(|json| Meta::from_json(&json)).transpose()?;
        Ok(self.download(self.client.clone(), key, object.etag, stat))
    }

    /// An object of another bucket that a location brings credentials for: for reading, without what a store keeps with
    /// its blobs.
    async fn describe_theirs(&self, theirs: &Theirs, at: &Location) -> Result<S3Download> {
        let client = self.client.of(theirs);
        let object = client.head(&theirs.key).await?.ok_or_else(|| Error::not_found(at))?;
        Ok(self.download(client, theirs.key.clone(), object.etag, Stat::new(object.size)))
    }

    async fn delete(&self, name: &str, at: &Location) -> Result<()> {
        let key = format!("{}{name}", self.place.prefix);
        let object = again(|| self.client.head(&key)).await?.ok_or_else(|| Error::not_found(at))?;
        let mut tried = false;
        again(|| {
            let repeated = std::mem::replace(&mut tried, true);
            self.delete_object(&key, &object, repeated)
        })
        .await?;
        let Some(token) = &object.token else { return Ok(()) };
        let sidecar = self.place.sidecar(name, token);
        if let Err(error) = again(|| self.client.delete(&sidecar)).await {
            tracing::warn!(%error, "the metadata of a deleted blob is still there; sweep will remove it");
        }
        Ok(())
    }

    /// Removes `object`, and no other one that has come in its place since a request before was carried out, whose reply was
    /// lost.
    async fn delete_object(&self, key: &str, object: &Object, repeated: bool) -> Result<()> {
        if repeated {
            let now = self.client.head(key).await?;
            if now.is_none_or(|now| (now.token, now.etag) != (object.token.clone(), object.etag.clone())) {
                return Ok(());
            }
        }
        self.client.delete(key).await
    }

    async fn sweep(&self, age: Duration) -> Result<Swept> {
        let old = Cutoff::new(age);
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
                .filter(|sidecar| std::future::ready(old.takes(sidecar.modified)))
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
                None => break,
            }
        }
        // Last: no upload that is gone can complete any more. Where it is not known whether there are claims, there may be.
        if self.known_committer().is_none_or(|client| client.creation == Creation::Claimed) {
            self.sweep_small(&self.place.claims(), old).await?;
        }
        // A young probe may be one that is going on, whose server would be misjudged.
        self.sweep_small(&self.place.probes(), Cutoff::new(age.max(PROBED))).await?;
        Ok(swept)
    }

    /// Removes small objects, claims or probes, whose process ended without doing so; and the uploads of their keys.
    async fn sweep_small(&self, prefix: &str, old: Cutoff) -> Result<()> {
        let mut next = None;
        loop {
            let (page, more) = self.client.list(prefix, next).await?;
            for object in page.iter().filter(|object| old.takes(object.modified)) {
                self.client.clear(&object.key).await?;
            }
            match more {
                Some(_) => next = more,
                None => return Ok(()),
            }
        }
    }

    /// Aborts an upload if nothing has come for long, and says how many bytes it had.
    async fn sweep_upload(&self, upload: &Pending, old: Cutoff) -> Result<Option<u64>> {
        if !old.takes(upload.initiated) {
            return Ok(None);
        }
        let Some(parts) = self.client.parts(&upload.key, &upload.upload).await? else { return Ok(None) };
        if parts.newest.is_some_and(|newest| !old.takes(newest)) {
            return Ok(None);
        }
        self.client.abort(&upload.key, &upload.upload).await?;
        Ok(Some(parts.bytes))
    }

    /// Removes a sidecar that belongs to no object and no live upload, and the dead uploads of its key, which servers
    /// list by their whole key only. Says which key it was, what was removed, and how many bytes that had.
    async fn sweep_sidecar(&self, sidecar: Listed, old: Cutoff) -> Result<(String, u64, u64)> {
        let Some((key, token)) = self.place.owner(&sidecar.key) else { return Ok((sidecar.key, 0, 0)) };
        let is_committed = async || {
            let owner = self.client.head(&key).await?;
            Ok::<_, Error>(owner.is_some_and(|object| object.token.as_deref() == Some(token)))
        };
        if is_committed().await? {
            return Ok((key, 0, 0));
        }
        let (mut found, mut bytes, mut live) = (0, 0, false);
        let name = key.strip_prefix(&self.place.prefix).unwrap_or(&key);
        let gathered = [0, 1].map(|turn| self.place.gathered(name, token, turn));
        // What is gathered for long parts counts as one with its upload, and is where that is written to.
        for place in gathered.iter().chain([&key]) {
            if live {
                break;
            }
            for upload in self.client.uploads(place).await?.iter().filter(|upload| upload.key == *place) {
                match self.sweep_upload(upload, old).await? {
                    Some(had) => {
                        found += u64::from(*place == key);
                        bytes += had;
                    }
                    None => live = true,
                }
            }
        }
        let kept = if live { None } else { self.client.get(&sidecar.key).await? };
        // Again: an upload that is not listed any more may have been completed since the first look.
        if !live && !is_committed().await? {
            for place in &gathered {
                self.client.delete(place).await?;
            }
            self.client.delete(&sidecar.key).await?;
            // Or since this one: a commit looks for its sidecar after it has made the object.
            match kept.filter(|kept| !kept.is_empty()) {
                Some(kept) if is_committed().await? => {
                    again(|| self.client.put(&sidecar.key, kept.clone(), Only::Always)).await?;
                    return Ok((key, 0, 0));
                }
                _ => found = found.max(1),
            }
        }
        Ok((key, found, bytes + sidecar.size))
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
        match self.shared.known_committer() {
            Some(client) if client.creation != Creation::Looked => &self.shared.atomic,
            _ => &self.shared.info,
        }
    }

    async fn begin(&self, id: &BlobId, size: SizeHint) -> Result<Box<dyn Upload>> {
        let steps = S3Upload::new(Arc::clone(&self.shared), id, size)?;
        Ok(Box::new(Guarded::begin(steps).await?))
    }

    async fn locate(&self, id: &BlobId) -> Result<Location> {
        self.shared.locate(id).await
    }

    async fn open(&self, at: &Location) -> Result<Arc<dyn Download>> {
        if let Some(theirs) = self.shared.place.find_theirs(at) {
            return Ok(Arc::new(self.shared.describe_theirs(&theirs, at).await?));
        }
        let name = self.shared.place.find(at)?;
        Ok(Arc::new(self.shared.describe(&name, at).await?))
    }

    async fn delete(&self, at: &Location) -> Result<()> {
        let (shared, at) = (Arc::clone(&self.shared), at.clone());
        let name = shared.place.find(&at)?;
        // A task of its own: a dropped future must not leave the metadata behind.
        Request::spawn(async move { shared.delete(&name, &at).await }).await
    }

    fn list(&self) -> BoxStream<'_, Result<Entry>> {
        let shared = &*self.shared;
        stream::try_unfold(Some(None), move |from: Option<Option<String>>| async move {
            let Some(from) = from else { return Ok(None) };
            // Whoever lists can begin anew, but not go on in the middle.
            let (page, next) = match &from {
                None => shared.client.list(&shared.place.prefix, None).await?,
                Some(_) => again(|| shared.client.list(&shared.place.prefix, from.clone())).await?,
            };
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

    async fn presign(&self, at: &Location, lifetime: Duration) -> Result<Secret> {
        let name = self.shared.place.find(at)?;
        self.shared.client.presign(&format!("{}{name}", self.shared.place.prefix), lifetime).await
    }
}

struct S3Download {
    client: Client,
    key: String,
    etag: Option<String>,
    stat: Stat,
    /// Buffers of the size of a chunk.
    pool: Pool,
    /// Bytes of each request, but for the last.
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
        // A short range does not take the memory of a long one.
        let wanted = range.end - range.start;
        let short = wanted <= self.pool.size() as u64 / 2;
        let pool = if short { Pool::new(wanted as usize, 0) } else { self.pool.clone() };
        let gets = pieces(range, self.pieces).map(move |piece| {
            let (client, key, etag, pool) = (client.clone(), Arc::clone(&key), etag.clone(), pool.clone());
            async move |to| {
                client.get_range(&key, etag.as_deref(), piece, size, Gathered::new(&pool, to)).await
            }
        });
        Ok(stream_ahead(gets, self.ahead, WAITING).map_ok(Chunk::Data).boxed())
    }

    fn file(&self) -> Option<&Arc<File>> {
        None
    }
}

/// Cuts a range into pieces.
fn pieces(range: Range<u64>, size: u64) -> impl Iterator<Item = Range<u64>> + Send {
    let mut next = range.start;
    std::iter::from_fn(move || {
        let piece = next..range.end.min(next.saturating_add(size));
        next = piece.end;
        (!piece.is_empty()).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_the_range() {
        assert_eq!(pieces(5..20, 8).collect::<Vec<_>>(), [5..13, 13..20]);
        assert_eq!(pieces(7..7, 100).count(), 0);
        assert_eq!(pieces(0..100, 100).count(), 1);
    }
}
