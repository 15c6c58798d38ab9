use std::{
    collections::BTreeSet,
    fmt,
    fs::File,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use reqwest::{Method, header::HeaderMap};
use store_core::{
    Backend, BlobId, Capacity, Chunk, ChunkStream, Download, Entry, Error, ErrorKind, Info, Location, Meta,
    Result, Secret, SizeHint, Stat, Swept, Upload,
    buffer::Pool,
    driver::{Cutoff, Gathered, Guarded, Payload, Request, again, stream_ahead},
    file::blocking,
};

use crate::{
    SwiftConfig,
    auth::{Access, Identity},
    client::{Begin, Client, Kept, Listed, Named, Object, Segment, total},
    clouds,
    location::{Found, Place},
    upload::{MARK, SwiftUpload, is_segment},
};

/// Bytes per write: a few make a segment, and those that core holds for digests stay far below 64 MiB.
pub(crate) const CHUNK: usize = 2 << 20;

/// The MD5 of nothing.
const EMPTY: &str = "d41d8cd98f00b204e9800998ecf8427e";

/// Blobs as objects of a Swift container.
#[derive(Clone)]
pub struct SwiftBackend {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    info: Info,
    pub(crate) config: SwiftConfig,
    pub(crate) client: Client,
    pub(crate) place: Place,
    /// Buffers for what is read.
    pool: Pool,
    /// Containers that were there, or that this store has created.
    known: Mutex<BTreeSet<String>>,
    /// The server takes what `temp_url_key` signed.
    keyed: AtomicBool,
}

impl SwiftBackend {
    /// Connects to the account: fails if the credentials or the container cannot be used, creates the container if that
    /// is configured, and asks the server for its limits.
    pub async fn connect(config: &SwiftConfig) -> Result<Self> {
        config.check()?;
        let settings = config.clone();
        let access = blocking(move || clouds::find(&settings, &|name| std::env::var(name).ok())).await?;
        let client = Client::new(config, access).await?;
        let place = place(config, client.access(), again(|| client.storage()).await?);
        let mut info = Info::new(place.scheme());
        info.also = &["swift", "swift+http", "swift+https", "swift+config"];
        info.chunk = CHUNK;
        info.can.write = true;
        info.can.delete = true;
        info.can.list = true;
        info.can.metadata = true;
        info.can.staging = true;
        info.can.copy = true;
        // The secrets have gone into the client.
        let mut config = config.clone();
        (config.password, config.application_credential_secret, config.token) = (None, None, None);
        config.service_password = None;
        // As many as one download has at once; what more of them need is not kept.
        let spare = (config.read_size.0.div_ceil(CHUNK as u64) * u64::from(config.concurrency)).min(32);
        let (pool, known, keyed) =
            (Pool::new(CHUNK, spare as usize), Mutex::default(), AtomicBool::default());
        let mut shared = Shared { info, config, client, place, pool, known, keyed };
        // At once: each wait for an answer is a trip to the server. It opens the connections of the first transfer, too.
        let (limits, capacity) =
            tokio::try_join!(shared.client.ask_limits(&shared.config), shared.prepare())?;
        shared.info.can.capacity = capacity;
        shared.info.can.presign = shared.config.temp_url_key.is_some() && limits.temp_url;
        shared.client.limits = limits;
        Ok(Self { shared: Arc::new(shared) })
    }
}

fn place(config: &SwiftConfig, access: &Access, storage: String) -> Place {
    let user = match &access.identity {
        Identity::V1 { user, .. } => Some(user.clone()),
        Identity::Password { user, project, .. } => {
            user.name.as_ref().zip(project.name.as_ref()).map(|(user, project)| format!("{project}:{user}"))
        }
        Identity::Application { .. } | Identity::Token(_) => None,
    };
    Place {
        reference: config.reference.clone(),
        storage,
        auth: access.url.trim_end_matches('/').to_owned(),
        user,
        container: config.container.clone(),
        segments: config.segment_container.clone(),
        prefix: config.prefix.clone(),
        seed: config.container_seed as usize,
        multi_tenant: config.multi_tenant,
    }
}

impl Shared {
    /// Makes sure of the container, and says whether a quota tells how much space there is.
    async fn prepare(&self) -> Result<bool> {
        if self.place.many() {
            // A look at the account shows whether the credentials are good for it.
            let account = again(|| self.client.container("")).await?;
            return Ok(account.is_some_and(|headers| quota(&headers, "account").is_some()));
        }
        let container = &self.place.container;
        let segments = self.place.segments(container);
        let (found, segments_found, account) = tokio::try_join!(
            again(|| self.client.container(container)),
            // Who only reads need not have a right to it.
            async { Ok(again(|| self.client.container(&segments)).await.unwrap_or_default()) },
            // Not everybody who may use a container may look at its account.
            async { Ok(again(|| self.client.container("")).await.unwrap_or_default()) },
        )?;
        if segments_found.is_some() {
            self.remember(&segments);
        }
        let found = match found {
            Some(found) => {
                self.remember(container);
                found
            }
            None if self.config.create_container => {
                self.create(container).await?;
                HeaderMap::new()
            }
            None => {
                let text = format!("there is no container {container:?}");
                return Err(Error::new(ErrorKind::Invalid, text).with_hint(
                    "check `container`, or set `create_container = true` to have a missing one created",
                ));
            }
        };
        let of_container = quota(&found, "container").is_some();
        Ok(of_container || account.is_some_and(|headers| quota(&headers, "account").is_some()))
    }

    fn known(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, container: &str) {
        // A container of one blob comes and goes with it.
        if !self.place.multi_tenant {
            self.known().insert(container.to_owned());
        }
    }

    /// Makes sure of a container of segments, before any are sent to one that is missing.
    pub(crate) async fn make_sure(&self, container: &str) -> Result<()> {
        if self.known().contains(container) {
            return Ok(());
        }
        if !self.place.multi_tenant {
            match again(|| self.client.container(container)).await {
                Ok(None) => {}
                Ok(Some(_)) => {
                    self.remember(container);
                    return Ok(());
                }
                // Who may write to it may not have to look at it.
                Err(error) if error.kind() == ErrorKind::Denied => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.create(container).await
    }

    /// Creates a container that was found to be missing, whatever was known of it.
    pub(crate) async fn create_again(&self, container: &str) -> Result<()> {
        self.known().remove(container);
        self.create(container).await
    }

    /// Creates a container, unless it is known to be there.
    pub(crate) async fn create(&self, container: &str) -> Result<()> {
        if self.known().contains(container) {
            return Ok(());
        }
        let mut headers = Vec::new();
        if let Some(policy) = &self.config.storage_policy {
            headers.push(("x-storage-policy", policy.clone()));
        }
        if !self.config.readers.is_empty() {
            headers.push(("x-container-read", acl(&self.config.readers)));
        }
        if !self.config.writers.is_empty() {
            headers.push(("x-container-write", acl(&self.config.writers)));
        }
        again(|| self.client.put_container(Method::PUT, container, &headers)).await?;
        self.remember(container);
        Ok(())
    }

    /// Makes sure that the account has the key that temporary URLs are signed with. A container's would not do: it opens
    /// no container of segments.
    async fn give_key(&self, key: &Secret) -> Result<()> {
        const NAMES: [&str; 2] = ["x-account-meta-temp-url-key", "x-account-meta-temp-url-key-2"];
        let account = again(|| self.client.container("")).await?.unwrap_or_default();
        if !NAMES.iter().any(|name| account.get(*name).is_some_and(|value| value == key.expose())) {
            // Those of others keep their URLs alive.
            let free = NAMES.iter().find(|name| !account.contains_key(**name)).ok_or_else(|| {
                Error::new(ErrorKind::Invalid, "the account has two other keys for temporary URLs")
                    .with_hint("set `temp_url_key` to one of them, or remove one")
            })?;
            let headers = [(*free, key.expose().to_owned())];
            again(|| self.client.put_container(Method::POST, "", &headers)).await?;
        }
        Ok(())
    }

    /// Waits until Swift takes a URL that was signed with a key which the account has.
    ///
    /// Swift's proxies remember what they know of an account for a minute, and forget it before a change is made, not
    /// after it: a request in between brings back an account without the key. A look at the account corrects that.
    async fn prove_key(&self, url: &Secret) -> Result<()> {
        for wait in [0, 50, 100, 200, 400, 800] {
            tokio::time::sleep(Duration::from_millis(wait)).await;
            if again(|| self.client.takes(url)).await? {
                self.keyed.store(true, Ordering::Relaxed);
                return Ok(());
            }
            again(|| self.client.container("")).await?;
        }
        Err(Error::new(ErrorKind::Unavailable, "the server does not take what `temp_url_key` signed yet")
            .with_hint("Swift's proxies learn of an account's new key within a minute; then see whether clocks differ"))
    }

    /// Removes the containers of a blob that has them for itself, if they are empty.
    pub(crate) async fn tidy(&self, container: &str) -> Result<()> {
        if self.place.multi_tenant {
            let segments = self.place.segments(container);
            // Where there are segments, somebody is about to make a blob of them.
            if again(|| self.client.delete_container(&segments)).await? {
                again(|| self.client.delete_container(container)).await?;
            }
        }
        Ok(())
    }

    pub(crate) async fn describe(&self, found: &Found, at: &Location) -> Result<SwiftDownload> {
        let (container, object) = (&found.container, self.place.object(&found.name));
        let looked = self.client.look(container, &object).await?;
        let (head, begin) = looked.ok_or_else(|| Error::not_found(at))?;
        let meta = self.meta(container, &object, &head).await?;
        let (parts, begin) = match begin {
            Begin::Segments(segments) => (segments, Bytes::new()),
            Begin::Bytes(begin) => (vec![whole(container, &object, &head)], begin),
            Begin::Unknown => (self.parts(container, &object, &head, meta.as_ref()).await?, Bytes::new()),
        };
        let size = total(parts.iter().map(|part| part.size));
        let mut stat = Stat::new(size);
        stat.meta = meta;
        Ok(SwiftDownload {
            client: self.client.clone(),
            blob: Arc::new((container.clone(), object, head.etag)),
            parts: Arc::new(parts),
            begin,
            stat,
            pool: self.pool.clone(),
            pieces: self.config.read_size.0,
            ahead: self.config.concurrency as usize,
        })
    }

    async fn meta(&self, container: &str, object: &str, head: &Object) -> Result<Option<Meta>> {
        let (Some(kept), Some(token)) = (&head.meta, &head.token) else { return Ok(None) };
        let json = match kept {
            Kept::Here(json) => json.clone(),
            Kept::Beside => {
                let mut found = None;
                for (segments, staged) in self.staged_of(container, object, head, token).await? {
                    found = self.client.get(&segments, &format!("{staged}meta")).await?;
                    if found.is_some() {
                        break;
                    }
                }
                match found {
                    Some(json) => json.to_vec(),
                    None => return Ok(None),
                }
            }
        };
        Meta::from_json(&json).map(Some)
    }

    /// The objects that a blob is made of. They are read one by one: so a missing or changed one is told from a broken
    /// connection, and the server's limit on segments of dynamic large objects does not count.
    async fn parts(
        &self,
        container: &str,
        object: &str,
        head: &Object,
        meta: Option<&Meta>,
    ) -> Result<Vec<Segment>> {
        let whole = whole(container, object, head);
        let changed = || Error::new(ErrorKind::Unavailable, "the blob has changed while it was opened");
        if head.is_static {
            if let Some(segments) = self.client.manifest(container, object, head).await? {
                let size = total(segments.iter().map(|segment| segment.size));
                return if size == head.size { Ok(segments) } else { Err(changed()) };
            }
            // Ceph does not show what it has been told; of the store's own blobs, the list of the container tells.
            let listed = match (&head.token, self.client.limits.nested) {
                (Some(token), false) => self.staged(container, object, token).await?,
                _ => Vec::new(),
            };
            let size = total(listed.iter().map(|segment| segment.size));
            return Ok(if size == head.size && size > 0 { listed } else { vec![whole] });
        }
        let Some((container, prefix)) = &head.dynamic else { return Ok(vec![whole]) };
        let listed = self.client.list_all(container, prefix).await?;
        let (mut listed, _) = self.segments_of(container, prefix, listed);
        if head.token.is_some() || self.place.owner(&format!("{prefix}0")).is_some() {
            listed.retain(|listed| is_segment(&listed.name));
        }
        match meta {
            Some(meta) => self.check_listed(container, prefix, &listed, meta.size).await?,
            None => check_numbers(&listed, prefix)?,
        }
        let segment = |listed: Listed| Segment {
            container: container.clone(),
            name: listed.name,
            etag: listed.etag,
            size: listed.size,
            is_list: false,
        };
        Ok(listed.into_iter().map(segment).collect())
    }

    /// Fails if the list shows less than the whole of one of the store's own dynamic large objects: segments that are there
    /// all the same will be in the list some time, and others never.
    async fn check_listed(&self, container: &str, prefix: &str, listed: &[Listed], size: u64) -> Result<()> {
        let shown = total(listed.iter().map(|listed| listed.size));
        if shown == size {
            return Ok(());
        }
        let numbered = |number: usize| format!("{prefix}{number:08}");
        let gap = listed.iter().enumerate().position(|(number, listed)| listed.name != numbered(number));
        let missing = numbered(gap.unwrap_or(listed.len()));
        let text = format!("the container's list shows {shown} of the blob's {size} bytes");
        Err(match again(|| self.client.head(container, &missing)).await? {
            Some(_) => Error::new(ErrorKind::Unavailable, text).with_hint("the list lags behind"),
            None => Error::new(ErrorKind::Corrupt, text).with_hint(format!("{container}/{missing} is gone")),
        })
    }

    /// The segments of one of the store's own blobs, by the list of their container.
    async fn staged(&self, container: &str, object: &str, token: &str) -> Result<Vec<Segment>> {
        let name = object.strip_prefix(&self.place.prefix).unwrap_or(object);
        let segments = self.place.segments(container);
        let mut listed = Vec::new();
        for staged in self.place.all_staged(name, token) {
            listed.extend(self.client.list_all(&segments, &staged).await?);
        }
        let listed = listed.into_iter().filter(|listed| is_segment(&listed.name));
        let segment = |listed: Listed| Segment {
            container: segments.clone(),
            name: listed.name,
            etag: listed.etag,
            size: listed.size,
            is_list: false,
        };
        Ok(listed.map(segment).collect())
    }

    async fn delete(&self, found: &Found, at: &Location) -> Result<()> {
        let (container, object) = (&found.container, self.place.object(&found.name));
        let client = &self.client;
        let head = again(|| client.head(container, &object)).await?.ok_or_else(|| Error::not_found(at))?;
        match &head.token {
            // Atomic: the name first, then what no manifest names any more, and a sweep would find.
            Some(token) => {
                let large = head.is_static || head.dynamic.is_some();
                let staged = match large || matches!(head.meta, Some(Kept::Beside)) {
                    true => self.staged_of(container, &object, &head, token).await?,
                    false => Vec::new(),
                };
                client.delete_seen(container, &object, &head, || client.delete(container, &object)).await?;
                let swept = self.place.segments(container);
                for (segments, staged) in staged {
                    match self.remove_staged(&segments, &staged).await {
                        Err(error) if segments == swept => {
                            tracing::warn!(%error, "segments of a deleted blob are still there; sweep will remove them");
                        }
                        outcome => drop(
                            outcome.map_err(|error| left_behind(error, &format!("{segments}/{staged}")))?,
                        ),
                    }
                }
            }
            None if head.is_static => {
                match client.all_named(container, &object).await? {
                    // The name last: Swift, asked for all of it, drops the name even if it could delete no segment.
                    Some(named) => {
                        self.delete_named(named).await?;
                        let delete = || client.delete(container, &object);
                        client.delete_seen(container, &object, &head, delete).await?;
                    }
                    None => {
                        let delete = || async {
                            let Err(error) = client.delete_static(container, &object).await? else {
                                return Ok(());
                            };
                            match again(|| client.head(container, &object)).await? {
                                Some(_) => Err(error),
                                None => Err(left_behind(error, "where it had its segments")),
                            }
                        };
                        client.delete_seen(container, &object, &head, delete).await?;
                    }
                }
            }
            None => {
                // Segments first would leave a blob that reads as a shorter one if this is cut short.
                let segments = match &head.dynamic {
                    Some((of, prefix)) => {
                        let listed = again(|| client.list_all(of, prefix)).await?;
                        let (listed, sure) = self.segments_of(of, prefix, listed);
                        if !sure {
                            let text =
                                "which objects are segments of the blob cannot be told from blobs beside it";
                            return Err(Error::new(ErrorKind::Unsupported, text)
                                .with_hint("delete it with the program that wrote it"));
                        }
                        listed
                    }
                    None => Vec::new(),
                };
                let delete = || client.delete(container, &object);
                let gone = client.delete_seen(container, &object, &head, delete).await?;
                // What is there instead may have its segments under the same names.
                if let (true, Some((of, prefix))) = (gone, &head.dynamic) {
                    let names: Vec<String> = segments.into_iter().map(|listed| listed.name).collect();
                    let deleted = client.delete_all(of, &names).await;
                    deleted.map_err(|error| left_behind(error, &format!("{of}/{prefix}")))?;
                }
            }
        }
        self.tidy(container).await
    }

    /// Where all is that belongs to one of the store's own blobs: container and prefix. Its segments may have gone elsewhere
    /// before `segment_container` was changed: its manifest tells.
    async fn staged_of(
        &self,
        container: &str,
        object: &str,
        head: &Object,
        token: &str,
    ) -> Result<Vec<(String, String)>> {
        let name = object.strip_prefix(&self.place.prefix).unwrap_or(object);
        let segments = self.place.segments(container);
        let all = self.place.all_staged(name, token).into_iter();
        let mut all: Vec<_> = all.map(|staged| (segments.clone(), staged)).collect();
        let mut named = match head.is_static {
            true => again(|| self.client.named(container, object)).await?.unwrap_or_default(),
            false => Vec::new(),
        };
        let dynamic = head.dynamic.iter();
        named.extend(dynamic.map(|(container, name)| Named {
            container: container.clone(),
            name: name.clone(),
            is_list: false,
        }));
        for Named { container, name: of, .. } in named {
            let Some((staged, _)) = of.rsplit_once('/') else { continue };
            let found = (container, format!("{staged}/"));
            if self.place.is_staged(&found.1, name, token) && !all.contains(&found) {
                all.push(found);
            }
        }
        Ok(all)
    }

    /// Removes what a static large object is made of, each list after what it names: so what is cut short can be repeated.
    async fn delete_named(&self, named: Vec<Named>) -> Result<()> {
        for of in named.chunk_by(|one, next| (&one.container, one.is_list) == (&next.container, next.is_list))
        {
            let names: Vec<String> = of.iter().map(|named| named.name.clone()).collect();
            if let Err(error) = self.client.delete_all(&of[0].container, &names).await {
                let text = format!("the blob lacks segments, and can be deleted again: {}", error.message());
                let hint = error.hint().unwrap_or("delete it again").to_owned();
                return Err(Error::new(error.kind(), text).with_hint(hint).with_source(error));
            }
        }
        Ok(())
    }

    /// Those of the objects with the prefix of a dynamic large object that are its segments, and whether that is sure: blobs
    /// beside it may have names that begin so, as `ID-raw` beside Glance's `ID-00001`.
    fn segments_of(&self, container: &str, prefix: &str, listed: Vec<Listed>) -> (Vec<Listed>, bool) {
        if !self.place.holds_blobs(container) {
            return (listed, true);
        }
        let (numbered, others): (Vec<_>, Vec<_>) =
            listed.into_iter().partition(|listed| segment_number(&listed.name, prefix).is_some());
        match numbered.is_empty() {
            true => {
                let sure = others.is_empty();
                (others, sure)
            }
            false => (numbered, true),
        }
    }

    /// Removes all that is staged under `prefix`, and says how many bytes it had.
    ///
    /// The mark of a sweep goes last and alone: a writer that finds no mark any more finds no first segment either.
    async fn remove_staged(&self, container: &str, prefix: &str) -> Result<u64> {
        let mut marked = false;
        let mut bytes = 0;
        let mut after: Option<String> = None;
        loop {
            let page = again(|| self.client.list(container, prefix, after.as_deref())).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.name.clone());
            let mut names = Vec::new();
            for listed in page {
                // A proxy that takes no notice of the prefix lists what others need.
                let Some(rest) = listed.name.strip_prefix(prefix) else { continue };
                if rest == MARK {
                    marked = true;
                    continue;
                }
                // Lists of segments say the size of what they list.
                if !rest.starts_with("list-") {
                    bytes = listed.size.saturating_add(bytes);
                }
                names.push(listed.name);
            }
            self.client.delete_all(container, &names).await?;
        }
        if marked {
            let mark = format!("{prefix}{MARK}");
            again(|| self.client.delete(container, &mark)).await?;
        }
        Ok(bytes)
    }

    /// All containers that blobs may be in.
    fn containers(&self) -> BoxStream<'_, Result<String>> {
        match self.place.many() {
            false => stream::iter([Ok(self.place.container.clone())]).boxed(),
            true => self.all_containers(|name| self.place.holds_blobs(&name).then_some(name)),
        }
    }

    /// All containers whose segments may be there. That of the blobs themselves is made at the first commit.
    fn swept_containers(&self) -> BoxStream<'_, Result<String>> {
        match self.place.many() {
            false => self.containers(),
            true => self.all_containers(|name| self.place.blobs_of(&name).map(str::to_owned)),
        }
    }

    fn all_containers<'a>(
        &'a self,
        pick: impl Fn(String) -> Option<String> + Copy + Send + 'a,
    ) -> BoxStream<'a, Result<String>> {
        let prefix = format!("{}_", self.place.container);
        stream::try_unfold(None::<String>, move |after| {
            let prefix = prefix.clone();
            async move {
                let page = again(|| self.client.list_containers(&prefix, after.as_deref())).await?;
                let next = page.last().cloned();
                let picked: Vec<Result<String>> = page.into_iter().filter_map(pick).map(Ok).collect();
                Ok::<_, Error>(next.map(|next| (stream::iter(picked), Some(next))))
            }
        })
        .try_flatten()
        .boxed()
    }

    async fn sweep(&self, age: Duration) -> Result<Swept> {
        let mut swept = Swept::default();
        let mut containers = self.swept_containers();
        while let Some(container) = containers.try_next().await? {
            self.sweep_container(&container, age, &mut swept).await?;
            self.tidy(&container).await?;
        }
        Ok(swept)
    }

    async fn sweep_container(&self, container: &str, age: Duration, swept: &mut Swept) -> Result<()> {
        let segments = self.place.segments(container);
        let Some(headers) = again(|| self.client.container(&segments)).await? else { return Ok(()) };
        let old = clock(&headers).map_or_else(|| Cutoff::new(age), |now| Cutoff::by(now, age));
        let mut after: Option<String> = None;
        let mut group: Option<Group> = None;
        loop {
            let page = again(|| self.client.list(&segments, &self.place.prefix, after.as_deref())).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.name.clone());
            for listed in page {
                let Some((name, token)) = self.place.owner(&listed.name) else { continue };
                match &mut group {
                    Some(group) if group.name == name && group.token == token => {
                        group.newest = group.newest.max(listed.modified);
                    }
                    _ => {
                        let (name, token) = (name.to_owned(), token.to_owned());
                        let next = Group { name, token, newest: listed.modified };
                        if let Some(whole) = group.replace(next) {
                            self.sweep_group(container, whole, old, swept).await?;
                        }
                    }
                }
            }
        }
        match group {
            Some(group) => self.sweep_group(container, group, old, swept).await,
            None => Ok(()),
        }
    }

    /// Removes an upload that nothing has come to for long, and whose blob there is not.
    async fn sweep_group(&self, container: &str, group: Group, old: Cutoff, swept: &mut Swept) -> Result<()> {
        if !old.takes(group.newest) {
            return Ok(());
        }
        let (segments, object) = (self.place.segments(container), self.place.object(&group.name));
        let staged = self.place.staged(&group.name, &group.token);
        let committed = async || match again(|| self.client.head(container, &object)).await? {
            Some(head) if head.token.as_ref() == Some(&group.token) => Ok::<_, Error>(true),
            Some(head) => self.may_need(container, &object, &head, &segments, &staged).await,
            None => Ok(false),
        };
        if committed().await? {
            return Ok(());
        }
        // It may be committed in this moment: the mark tells its writer, or the second look tells of its blob.
        let mark = format!("{staged}{MARK}");
        let empty = Payload::default();
        again(|| self.client.put(&segments, &mark, &empty)).await?;
        if committed().await? {
            again(|| self.client.delete(&segments, &mark)).await?;
            return Ok(());
        }
        swept.bytes = swept.bytes.saturating_add(self.remove_staged(&segments, &staged).await?);
        swept.uploads += 1;
        Ok(())
    }

    /// Whether a blob needs what is staged, though it has another token, or none: a `POST` of other programs to it, as
    /// `openstack object set --property` makes it, replaces all metadata.
    async fn may_need(
        &self,
        container: &str,
        object: &str,
        head: &Object,
        segments: &str,
        staged: &str,
    ) -> Result<bool> {
        if head.is_static {
            let named = again(|| self.client.named(container, object)).await?;
            let is_staged = |named: &Named| named.container == segments && named.name.starts_with(staged);
            return Ok(named.map_or(head.token.is_none(), |named| named.iter().any(is_staged)));
        }
        Ok(match &head.dynamic {
            Some((of, prefix)) => {
                of == segments && (prefix.starts_with(staged) || staged.starts_with(prefix))
            }
            // What a dynamic large object is after such a `POST`; with another one, it is whole again.
            None => head.token.is_none() && head.size == 0,
        })
    }

    async fn capacity(&self) -> Result<Capacity> {
        let mut least: Option<Capacity> = None;
        let mut count = |headers: Option<HeaderMap>, kind: &str| {
            let Some(headers) = headers else { return };
            if let Some(total) = quota(&headers, kind) {
                let used = read(&headers, &format!("x-{kind}-bytes-used")).unwrap_or_default();
                let found = Capacity { total, free: total.saturating_sub(used) };
                if least.is_none_or(|least| found.free < least.free) {
                    least = Some(found);
                }
            }
        };
        let container = async {
            match self.place.many() {
                true => Ok(None),
                false => self.client.container(&self.place.container).await,
            }
        };
        let (container, account) = tokio::join!(container, self.client.container(""));
        count(container?, "container");
        match account {
            Ok(account) => count(account, "account"),
            Err(error) if error.kind() == ErrorKind::Denied => {}
            Err(error) => return Err(error),
        }
        least.ok_or_else(|| {
            Error::unsupported("measuring the space left: neither account nor container has a quota")
        })
    }
}

/// An object as the only part of its blob.
fn whole(container: &str, object: &str, head: &Object) -> Segment {
    Segment {
        container: container.to_owned(),
        name: object.to_owned(),
        etag: head.etag.clone().unwrap_or_default(),
        size: head.size,
        is_list: head.is_static || head.dynamic.is_some(),
    }
}

/// The segments of one upload.
struct Group {
    name: String,
    token: String,
    newest: i64,
}

/// The quota of an account or a container, in bytes.
fn quota(headers: &HeaderMap, kind: &str) -> Option<u64> {
    // Newer servers give an account's quota the shorter name.
    read(headers, &format!("x-{kind}-meta-quota-bytes"))
        .or_else(|| read(headers, &format!("x-{kind}-quota-bytes")))
}

fn read(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

/// What the server's clock showed when it answered, since 1970.
fn clock(headers: &HeaderMap) -> Option<Duration> {
    let time = jiff::fmt::rfc2822::parse(headers.get("date")?.to_str().ok()?).ok()?;
    u64::try_from(time.timestamp().as_second()).ok().map(Duration::from_secs)
}

/// An ACL that lets projects in.
fn acl(projects: &[String]) -> String {
    let of = |project: &String| match project.as_str() {
        "*" => "*:*".to_owned(),
        project if project.contains([':', '.']) => project.to_owned(),
        project => format!("{project}:*"),
    };
    projects.iter().map(of).collect::<Vec<_>>().join(",")
}

/// The number behind the prefix of a dynamic large object that makes an object a segment of it: of five digits as Glance
/// writes them, or of any length in a folder of its own, as others do.
fn segment_number(name: &str, prefix: &str) -> Option<usize> {
    let number = name.strip_prefix(prefix)?;
    let fits = number.bytes().all(|b| b.is_ascii_digit()) && (number.len() == 5 || prefix.ends_with('/'));
    fits.then(|| number.parse().ok())?
}

/// The size that is in the prefix of swiftclient's segments, `NAME/TIME/SIZE/SEGMENT_SIZE/`.
fn size_in(prefix: &str) -> Option<u64> {
    let mut parts = prefix.strip_suffix('/')?.rsplit('/');
    let (segment, size, time) = (parts.next()?, parts.next()?, parts.next()?);
    let known = segment.parse::<u64>().is_ok() && time.contains('.') && time.parse::<f64>().is_ok();
    known.then(|| size.parse().ok())?
}

/// Segments are numbered, from 1 on by Glance, and others begin with 0: a gap is one that is lost, or not listed yet.
fn check_numbers(listed: &[Listed], prefix: &str) -> Result<()> {
    let lost = |text: String| {
        Err(Error::new(ErrorKind::Corrupt, text)
            .with_hint("it was deleted, or the container's list lags behind: try again in some minutes"))
    };
    if let Some(size) = size_in(prefix) {
        let shown = total(listed.iter().map(|listed| listed.size));
        return match shown == size {
            true => Ok(()),
            false => lost(format!("segments of the blob are missing: {shown} of {size} bytes are there")),
        };
    }
    let numbers = listed.iter().map(|listed| segment_number(&listed.name, prefix));
    let Some(numbers) = numbers.collect::<Option<Vec<usize>>>() else { return Ok(()) };
    let start = match prefix.ends_with('/') {
        true => usize::from(numbers.first() != Some(&0)),
        false => 1,
    };
    match (start..).zip(&numbers).find(|(expected, number)| expected != *number) {
        None => Ok(()),
        Some((missing, _)) => lost(format!("segment {missing} of the blob is missing")),
    }
}

/// The name is gone, and a call that is repeated would find nothing: what is left has to be said now.
fn left_behind(error: Error, at: &str) -> Error {
    let kind = match error.kind() {
        ErrorKind::Unavailable => ErrorKind::Internal,
        kind => kind,
    };
    Error::new(kind, format!("the blob is gone, but not all of its segments: {}", error.message()))
        .with_hint(format!("delete what is left: {at}"))
        .with_source(error)
}

impl fmt::Debug for SwiftBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SwiftBackend").field(&self.shared.place).finish()
    }
}

#[async_trait]
impl Backend for SwiftBackend {
    fn info(&self) -> &Info {
        &self.shared.info
    }

    async fn begin(&self, id: &BlobId, size: SizeHint) -> Result<Box<dyn Upload>> {
        if let Some(total) = size.total
            && self.shared.info.can.capacity
        {
            let left = match self.shared.capacity().await {
                // The quota is gone, or not for this user to see.
                Err(error) if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::Denied) => u64::MAX,
                capacity => capacity?.free,
            };
            if total > left {
                let text = format!("{total} bytes do not fit into the {left} that the quota leaves");
                return Err(
                    Error::new(ErrorKind::NoSpace, text).with_hint("delete blobs, or have the quota raised")
                );
            }
        }
        let steps = SwiftUpload::new(Arc::clone(&self.shared), id, size)?;
        Ok(Box::new(Guarded::begin(steps).await?))
    }

    async fn locate(&self, id: &BlobId) -> Result<Location> {
        let place = &self.shared.place;
        let container = place.container(id.as_str());
        match self.shared.client.head(&container, &place.object(id.as_str())).await? {
            Some(_) => place.location(&container, id.as_str()),
            None => Err(Error::no_blob(id)),
        }
    }

    async fn open(&self, at: &Location) -> Result<Arc<dyn Download>> {
        let found = self.shared.place.find(at)?;
        Ok(Arc::new(self.shared.describe(&found, at).await?))
    }

    async fn delete(&self, at: &Location) -> Result<()> {
        let (shared, at) = (Arc::clone(&self.shared), at.clone());
        let found = shared.place.find(&at)?;
        // A task of its own: a dropped future must not leave segments behind.
        Request::spawn(async move { shared.delete(&found, &at).await }).await
    }

    fn list(&self) -> BoxStream<'_, Result<Entry>> {
        let shared = &*self.shared;
        shared
            .containers()
            .map_ok(move |container| {
                stream::try_unfold((None::<String>, None::<String>), move |(after, hidden)| {
                    let container = container.clone();
                    async move { shared.page(&container, after, hidden).await }
                })
                .map_ok(|entries| stream::iter(entries.into_iter().map(Ok)))
                .try_flatten()
            })
            .try_flatten()
            .boxed()
    }

    async fn sweep(&self, age: Duration) -> Result<Swept> {
        self.shared.sweep(age).await
    }

    async fn capacity(&self) -> Result<Capacity> {
        self.shared.capacity().await
    }

    async fn presign(&self, at: &Location, lifetime: Duration) -> Result<Secret> {
        let Some(key) = self.shared.config.temp_url_key.as_ref().filter(|_| self.shared.info.can.presign)
        else {
            return Err(Error::unsupported("temporary URLs: set `temp_url_key`"));
        };
        let found = self.shared.place.find(at)?;
        let object = self.shared.place.object(&found.name);
        let sign = || self.shared.client.temp_url(&found.container, &object, key, lifetime);
        if !self.shared.keyed.load(Ordering::Relaxed) {
            self.shared.give_key(key).await?;
            self.shared.prove_key(&sign().await?).await?;
        }
        sign().await
    }
}

/// Entries of a page of a list, with where the next one starts and what of it is hidden.
type Page = (Vec<Entry>, (Option<String>, Option<String>));

impl Shared {
    /// The blobs of a page after `after`; what starts with `hidden` are segments in the same container.
    async fn page(
        &self,
        container: &str,
        after: Option<String>,
        mut hidden: Option<String>,
    ) -> Result<Option<Page>> {
        let page = again(|| self.client.list(container, &self.place.prefix, after.as_deref())).await?;
        let Some(last) = page.last().map(|listed| listed.name.clone()) else { return Ok(None) };
        let mut entries = Vec::new();
        for listed in page {
            // What has no id for a name was not written by a store.
            let Some(id) = self.place.id(&listed.name) else { continue };
            if hidden.as_ref().is_some_and(|prefix| segment_number(&listed.name, prefix).is_some()) {
                continue;
            }
            let mut size = listed.size;
            // A dynamic large object is listed as an empty one, a static one on Ceph with the size of its list.
            if size == 0 || listed.etag == EMPTY {
                let head = again(|| self.client.head(container, &listed.name)).await?;
                let Some(head) = head else { continue };
                size = head.size;
                if let Some((of, prefix)) = head.dynamic {
                    hidden = Some(prefix).filter(|_| of == container);
                }
            }
            entries.push(Entry::new(id.clone(), self.place.location(container, id.as_str())?, size));
        }
        Ok(Some((entries, (Some(last), hidden))))
    }
}

pub(crate) struct SwiftDownload {
    client: Client,
    /// Container, object and entity tag.
    blob: Arc<(String, String, Option<String>)>,
    parts: Arc<Vec<Segment>>,
    /// Its first bytes, as far as they came when it was opened.
    begin: Bytes,
    stat: Stat,
    pool: Pool,
    pieces: u64,
    ahead: usize,
}

impl SwiftDownload {
    /// What the blob is made of.
    pub(crate) fn parts(&self) -> Arc<Vec<Segment>> {
        Arc::clone(&self.parts)
    }
}

impl fmt::Debug for SwiftDownload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SwiftDownload").field("blob", &self.blob).finish_non_exhaustive()
    }
}

#[async_trait]
impl Download for SwiftDownload {
    fn stat(&self) -> &Stat {
        &self.stat
    }

    async fn read(&self, range: Range<u64>) -> Result<ChunkStream> {
        let (client, blob, parts) = (self.client.clone(), Arc::clone(&self.blob), Arc::clone(&self.parts));
        let pool = self.pool.clone();
        let known = range.start.min(self.begin.len() as u64)..range.end.min(self.begin.len() as u64);
        let begin = self.begin.slice(known.start as usize..known.end as usize);
        let range = range.start + begin.len() as u64..range.end;
        let gets = Pieces::new(Arc::clone(&parts), range, self.pieces).map(move |(part, piece)| {
            let (client, blob, parts) = (client.clone(), Arc::clone(&blob), Arc::clone(&parts));
            let pool = pool.clone();
            async move |to| {
                let part = &parts[part];
                match client.get_range(part, piece, Gathered::new(&pool, to)).await {
                    Err(error) if error.kind() == ErrorKind::NotFound => {
                        Err(why(&client, &blob, part, error).await)
                    }
                    outcome => outcome,
                }
            }
        });
        // As many as a piece has: nothing has to hold it back.
        let waiting = self.pieces.div_ceil(self.pool.size() as u64) as usize;
        let ahead = with_heads(self.ahead, self.parts.first().map_or(0, |part| part.size), self.pieces);
        let chunks = stream_ahead(gets, ahead, waiting).map_ok(Chunk::Data);
        let begin = (!begin.is_empty()).then_some(Ok(Chunk::Data(begin)));
        Ok(stream::iter(begin).chain(chunks).boxed())
    }

    fn file(&self) -> Option<&Arc<File>> {
        None
    }
}

/// What it means that a part is not what it was: the blob is gone, or it is damaged.
async fn why(
    client: &Client,
    blob: &(String, String, Option<String>),
    part: &Segment,
    error: Error,
) -> Error {
    let (container, object, etag) = blob;
    if (container, object) == (&part.container, &part.name) {
        return error;
    }
    match again(|| client.look(container, object)).await {
        Ok(Some((head, _))) if head.etag == *etag => {
            let text = format!("segment {}/{} is missing or has changed", part.container, part.name);
            Error::new(ErrorKind::Corrupt, text)
                .with_hint("the blob is damaged for good: read another copy, and delete this one")
        }
        Ok(_) => error,
        Err(error) => error,
    }
}

/// The first piece of a long object. An object server computes the MD5 of all that it reads for a request that starts at the
/// first byte, and of nothing else; see decision 0039.
const HEAD: u64 = 1 << 20;

fn has_head(size: u64) -> bool {
    size > 4 * HEAD
}

/// How many more requests that makes, of those for a part of `size` bytes.
fn with_heads(requests: usize, size: u64, piece: u64) -> usize {
    let pieces = usize::try_from(size.div_ceil(piece)).unwrap_or(usize::MAX).max(1);
    if has_head(size) { requests + requests / pieces } else { requests }
}

/// Cuts a range of a blob into pieces, each within one of its parts.
struct Pieces {
    parts: Arc<Vec<Segment>>,
    part: usize,
    /// Within the part.
    at: u64,
    left: u64,
    size: u64,
}

impl Pieces {
    fn new(parts: Arc<Vec<Segment>>, range: Range<u64>, size: u64) -> Self {
        let (mut part, mut at) = (0, range.start);
        while part < parts.len() && at >= parts[part].size {
            at -= parts[part].size;
            part += 1;
        }
        Self { parts, part, at, left: range.end - range.start, size }
    }
}

impl Iterator for Pieces {
    type Item = (usize, Range<u64>);

    fn next(&mut self) -> Option<Self::Item> {
        while self.parts.get(self.part).is_some_and(|part| self.at >= part.size) {
            self.part += 1;
            self.at = 0;
        }
        let part = self.parts.get(self.part).filter(|_| self.left > 0)?;
        let size = if self.at == 0 && has_head(part.size) { HEAD.min(self.size) } else { self.size };
        let len = size.min(self.left).min(part.size - self.at);
        let piece = self.at..self.at + len;
        (self.at, self.left) = (piece.end, self.left - len);
        Some((self.part, piece))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parts(sizes: &[u64]) -> Arc<Vec<Segment>> {
        let part = |size: &u64| Segment {
            container: "c".into(),
            name: "n".into(),
            etag: "e".into(),
            size: *size,
            is_list: false,
        };
        Arc::new(sizes.iter().map(part).collect())
    }

    fn listed(names: &[&str]) -> Vec<Listed> {
        let listed =
            |name: &&str| Listed { name: name.to_string(), size: 1, etag: String::new(), modified: 0 };
        names.iter().map(listed).collect()
    }

    #[test]
    fn a_gap_between_segments_is_found() {
        assert!(check_numbers(&listed(&["a-00001", "a-00002"]), "a-").is_ok());
        assert!(check_numbers(&listed(&["a-x", "a-y"]), "a-").is_ok());
        assert!(check_numbers(&listed(&["a/7/00000000", "a/7/00000001"]), "a/7/").is_ok());
        assert!(check_numbers(&listed(&["a/7/1", "a/7/2"]), "a/7/").is_ok());
        assert!(check_numbers(&[], "a-").is_ok());
        for names in [&["a-00002"][..], &["a-00001", "a-00003"]] {
            assert_eq!(check_numbers(&listed(names), "a-").unwrap_err().kind(), ErrorKind::Corrupt);
        }
        for names in [&["a/7/00000000", "a/7/00000002"][..], &["a/7/2"]] {
            assert_eq!(check_numbers(&listed(names), "a/7/").unwrap_err().kind(), ErrorKind::Corrupt);
        }
        // swiftclient says how much there is: each of these has one byte.
        let prefix = "a/1764423.5/2/1/";
        let all = [0, 1].map(|number| format!("{prefix}{number:08}"));
        let all = listed(&all.each_ref().map(String::as_str));
        assert!(check_numbers(&all, prefix).is_ok() && check_numbers(&all[..1], prefix).is_err());
    }

    #[test]
    fn a_blob_beside_segments_is_none_of_them() {
        for (name, prefix, number) in [
            ("id-00001", "id-", Some(1)),
            ("id-raw", "id-", None),
            ("id-1", "id-", None),
            ("id-20260101", "id-", None),
            ("id/17.5/300/100/00000012", "id/17.5/300/100/", Some(12)),
            ("id/slo/00000000", "id/", None),
            ("id/", "id/", None),
        ] {
            assert_eq!(segment_number(name, prefix), number, "{name}");
        }
    }

    #[test]
    fn all_but_the_first_bytes_of_a_segment_are_asked_for_without_them() {
        const MIB: u64 = 1 << 20;
        let pieces: Vec<_> =
            Pieces::new(parts(&[12 * MIB, 4 * MIB, 5 * MIB]), 7..21 * MIB, 12 * MIB).collect();
        assert_eq!(pieces, [(0, 7..12 * MIB), (1, 0..4 * MIB), (2, 0..MIB), (2, MIB..5 * MIB)]);
        assert_eq!(Pieces::new(parts(&[12 * MIB]), 0..9, 12 * MIB).collect::<Vec<_>>(), [(0, 0..9)]);
        // As many bytes as before, on as many requests as that takes.
        assert_eq!(with_heads(4, 12 * MIB, 12 * MIB), 8);
        assert_eq!(with_heads(4, 12 * MIB, 6 * MIB), 6);
        assert_eq!(with_heads(4, 5 << 30, 12 * MIB), 4);
        assert_eq!(with_heads(4, 3 * MIB, 12 * MIB), 4);
    }

    #[test]
    fn projects_become_an_acl() {
        assert_eq!(acl(&["abc".into(), "*".into(), ".r:*".into(), "p:u".into()]), "abc:*,*:*,.r:*,p:u");
    }

    proptest! {
        #[test]
        fn pieces_make_the_range(
            sizes in proptest::collection::vec(0u64..50, 0..8),
            a in 0u64..400,
            b in 0u64..400,
            size in 1u64..60,
        ) {
            let total: u64 = sizes.iter().sum();
            let (start, end) = (a.min(b).min(total), a.max(b).min(total));
            let starts: Vec<u64> = sizes.iter().scan(0, |at, size| { *at += size; Some(*at - size) }).collect();
            let mut at = start;
            for (part, piece) in Pieces::new(parts(&sizes), start..end, size) {
                prop_assert!(!piece.is_empty() && piece.end <= sizes[part] && piece.end - piece.start <= size);
                prop_assert_eq!(starts[part] + piece.start, at);
                at = starts[part] + piece.end;
            }
            prop_assert_eq!(at, end);
        }
    }
}
