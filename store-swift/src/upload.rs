use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::FutureExt;
use store_core::{
    BlobId, Chunk, Error, ErrorKind, Location, Meta, Result, Size, SizeHint,
    driver::{ATTEMPTS, InFlight, Payload, Pending, Request, Steps, again, pause, token},
};
use tokio::sync::OnceCell;

use crate::{
    backend::{CHUNK, Shared},
    client::{Object, Segment, Tags, total},
    sums::{Sums, md5},
};

/// Commit point: the `PUT` of the manifest, or of all of a small blob, with `If-None-Match: *`.
///
/// What was stored of a killed process is found by a sweep, whichever of its segments that is. Of an upload whose length
/// is not known, the first segment is small and stored before any other is sent: so does a pipe that nothing comes from
/// any more leave something that tells of it.
pub(crate) struct SwiftUpload {
    target: Arc<Target>,
    /// The size of the next segment.
    next: u64,
    /// The size of segments after the first, and how large they may become.
    size: u64,
    most: u64,
    /// Its length. If it is not known, segments grow as the upload does.
    total: Option<u64>,
    /// How much of it has come.
    taken: u64,
    /// Whether the id is taken, while the first bytes come or are on their way.
    looking: Option<Request<Option<bool>>>,
    /// What the next segment has so far.
    filling: Payload,
    /// Segments on their way.
    flying: InFlight<Request<(usize, Segment)>>,
    /// Those that are stored before one with a lower number is.
    early: BTreeMap<usize, Segment>,
    segments: Vec<Segment>,
    /// Segments that are lists of segments, where there are too many for one.
    groups: Vec<Segment>,
    grouping: Pending<Segment>,
    started: usize,
    /// How many are stored, without a gap.
    stored: usize,
}

/// Where an upload goes.
pub(crate) struct Target {
    pub(crate) store: Arc<Shared>,
    pub(crate) id: BlobId,
    pub(crate) container: String,
    pub(crate) object: String,
    /// Random; in the object's metadata and in the names of its segments.
    pub(crate) token: String,
    pub(crate) segments: String,
    /// What the names of all that is staged start with.
    pub(crate) staged: String,
    /// The MD5s of segments on their way.
    sums: Sums,
    /// The container of segments is there.
    ready: OnceCell<()>,
}

/// With an unknown length, segments double each time after so many.
const GROW_AFTER: usize = 200;

/// How long segments on their way may take to end when an upload is given up. A request that was sent whole is carried
/// out even if its connection is closed, and then must not be after the clean-up.
const PATIENCE: Duration = Duration::from_secs(5);

impl SwiftUpload {
    /// Prepares an upload; nothing is sent but a look whether the id is taken, which nobody waits for here.
    pub(crate) fn new(store: Arc<Shared>, id: &BlobId, hint: SizeHint) -> Result<Self> {
        let target = Arc::new(Target::new(Arc::clone(&store), id)?);
        let limits = &store.client.limits;
        let most = largest(&store);
        let size = store.config.segment_size.0.min(limits.max_file_size);
        let size = fitting(size, most, hint.total.unwrap_or_default(), limits.max_segments as u64);
        if hint.total.is_some_and(|total| total > longest(&store, size)) {
            return Err(too_long(&store));
        }
        // A blob that is known to be short takes one request, which says whether the name was free.
        let short = hint.total.is_some_and(|total| total <= size);
        let looking = (!short || !limits.conditional).then(|| {
            let target = Arc::clone(&target);
            Request::spawn(async move { target.look().await })
        });
        Ok(Self {
            target,
            next: if hint.total.is_some() { size } else { size.min(CHUNK as u64) },
            size,
            most,
            total: hint.total,
            taken: 0,
            looking,
            filling: Payload::default(),
            flying: InFlight::default(),
            early: BTreeMap::new(),
            segments: Vec::new(),
            groups: Vec::new(),
            grouping: Pending::default(),
            started: 0,
            stored: 0,
        })
    }

    async fn fill(&mut self, mut bytes: Bytes) -> Result<()> {
        while !bytes.is_empty() {
            if self.filling.len() == self.next {
                self.send().await?;
            }
            if self.filling.is_empty() {
                self.make_room().await?;
            }
            let before = bytes.len();
            self.filling.fill(&mut bytes, self.next);
            self.taken += (before - bytes.len()) as u64;
        }
        // Without waiting for more, or for digests: unless that may be all of a blob that takes one request.
        let large = self.started > 0 || self.total.is_some_and(|total| total > self.size);
        match large && (self.filling.len() == self.next || Some(self.taken) == self.total) {
            true => self.send().await,
            false => Ok(()),
        }
    }

    /// Fails if the id was found to be taken; `waits` for the look.
    async fn check_free(&mut self, waits: bool) -> Result<()> {
        let Some(looking) = &mut self.looking else { return Ok(()) };
        let found = match waits {
            true => looking.await,
            false => match looking.now_or_never() {
                Some(found) => found,
                None => return Ok(()),
            },
        };
        self.looking = None;
        match found? {
            Some(_) => Err(Error::taken(&self.target.id)),
            None => Ok(()),
        }
    }

    /// Waits until one more segment fits into the window.
    async fn make_room(&mut self) -> Result<()> {
        let config = &self.target.store.config;
        let (window, most) = (config.window.0, config.concurrency as usize);
        while !self.flying.has_room(self.next, window, most) {
            self.land().await?;
        }
        Ok(())
    }

    /// Waits for one segment on its way, whichever is stored first.
    async fn land(&mut self) -> Result<()> {
        self.early.extend(self.flying.first().await.transpose()?);
        while self.early.contains_key(&self.stored) {
            if self.segments.len() == self.target.store.client.limits.max_segments {
                self.group().await?;
            }
            self.segments.extend(self.early.remove(&self.stored));
            self.stored += 1;
        }
        self.check_free(true).await
    }

    /// Makes one segment of all that have landed, a static large object itself.
    async fn group(&mut self) -> Result<()> {
        let limits = &self.target.store.client.limits;
        if !limits.nested || limits.dynamic || self.groups.len() == limits.max_segments {
            if limits.dynamic {
                return Ok(());
            }
            return Err(too_long(&self.target.store));
        }
        let (target, segments) = (Arc::clone(&self.target), self.segments.clone());
        let name = group_name(&target, self.groups.len());
        let group = async move {
            let client = &target.store.client;
            let etag = again(|| client.put_manifest(&target.segments, &name, &segments, None)).await?;
            let size = total(segments.iter().map(|segment| segment.size));
            Ok(Segment { container: target.segments.clone(), name: name.clone(), etag, size, is_list: true })
        };
        self.groups.push(self.grouping.run(Request::spawn(group)).await?);
        self.segments.clear();
        Ok(())
    }

    /// Sends what has been gathered as the next segment.
    async fn send(&mut self) -> Result<()> {
        if self.filling.is_empty() {
            return Ok(());
        }
        self.check_free(false).await?;
        let (number, payload) = (self.started, std::mem::take(&mut self.filling));
        let len = payload.len();
        self.started += 1;
        let target = Arc::clone(&self.target);
        let segment = async move { Ok((number, target.segment(number, payload).await?)) };
        self.flying.push(Request::spawn(segment), len);
        if self.total.is_none() {
            if number == 0 {
                self.land().await?;
            }
            self.size = grown(self.size, self.most, self.started);
            self.next = self.size;
        }
        Ok(())
    }

    /// What a commit makes visible.
    async fn body(&mut self) -> Result<Body> {
        self.check_free(false).await?;
        if self.started == 0 {
            return Ok(Body::Whole(std::mem::take(&mut self.filling)));
        }
        self.send().await?;
        while !self.flying.is_empty() {
            self.land().await?;
        }
        if self.groups.is_empty() {
            return Ok(Body::Segments(std::mem::take(&mut self.segments)));
        }
        self.group().await?;
        Ok(Body::Segments(self.groups.clone()))
    }
}

impl Steps for SwiftUpload {
    /// Nothing is written before the first segment.
    async fn begin(&mut self) -> Result<()> {
        Ok(())
    }

    async fn write(&mut self, chunk: Chunk) -> Result<()> {
        for bytes in chunk.into_bytes() {
            self.fill(bytes).await?;
        }
        Ok(())
    }

    /// Copies the segments, each within the server; a plain object becomes one.
    async fn copy(&mut self, from: &Location, size: u64) -> Result<()> {
        let store = Arc::clone(&self.target.store);
        let found = store.place.find(from)?;
        let parts = store.describe(&found, from).await?.parts();
        if total(parts.iter().map(|part| part.size)) != size {
            return Err(Error::new(ErrorKind::NotFound, "the blob was replaced since it was opened"));
        }
        if parts.iter().any(|part| part.is_list) && !store.client.limits.nested {
            // Ceph would copy the list, and both blobs would lean on the same segments.
            return Err(Error::unsupported(
                "copying a large object that another program wrote, on this server",
            ));
        }
        for part in parts.iter().filter(|part| part.size > 0) {
            while self.flying.len() >= store.config.concurrency as usize {
                self.land().await?;
            }
            let (target, part, number) = (Arc::clone(&self.target), part.clone(), self.started);
            self.started += 1;
            let copied = async move { Ok((number, target.copy_segment(number, part).await?)) };
            self.flying.push(Request::spawn(copied), 0);
        }
        Ok(())
    }

    async fn finish(&mut self, meta: &Meta) -> Result<Request<()>> {
        let body = self.body().await?;
        let (target, meta) = (Arc::clone(&self.target), meta.clone());
        Ok(Request::spawn(async move { target.commit(body, &meta).await }))
    }

    fn location(&self) -> Result<Location> {
        self.target.location()
    }

    async fn discard(&mut self, committed: bool) -> Result<()> {
        let target = &self.target;
        self.flying.stop(PATIENCE).await;
        self.grouping.left().await;
        if committed
            && let Some(head) = target.head().await?
            && head.token.as_ref() == Some(&target.token)
        {
            let client = &target.store.client;
            let delete = || client.delete(&target.container, &target.object);
            client.delete_seen(&target.container, &target.object, &head, delete).await?;
        }
        // A commit may have stored metadata beside the blob.
        if committed || self.started > 0 {
            target.remove_staged(self.started, self.groups.len() + 1).await?;
        }
        target.store.tidy(&target.container).await
    }
}

/// What a sweep writes before it takes an upload.
pub(crate) const MARK: &str = "swept";

/// What a commit makes visible.
pub(crate) enum Body {
    /// Objects that are there.
    Segments(Vec<Segment>),
    /// All of a small blob.
    Whole(Payload),
}

fn segment_name(target: &Target, number: usize) -> String {
    format!("{}{number:08}", target.staged)
}

fn group_name(target: &Target, number: usize) -> String {
    format!("{}list-{number:08}", target.staged)
}

impl Target {
    pub(crate) fn new(store: Arc<Shared>, id: &BlobId) -> Result<Self> {
        let token = token()?;
        let container = store.place.container(id.as_str());
        Ok(Self {
            id: id.clone(),
            object: store.place.object(id.as_str()),
            segments: store.place.segments(&container),
            staged: store.place.staged(id.as_str(), &token),
            container,
            token,
            store,
            sums: Sums::default(),
            ready: OnceCell::new(),
        })
    }

    pub(crate) fn location(&self) -> Result<Location> {
        self.store.place.location(&self.container, self.id.as_str())
    }

    /// What keeps the metadata that finds no room in headers.
    fn sidecar(&self) -> String {
        format!("{}meta", self.staged)
    }

    fn mark(&self) -> String {
        format!("{}{MARK}", self.staged)
    }

    /// Stores one segment, however often it takes.
    async fn segment(&self, number: usize, payload: Payload) -> Result<Segment> {
        let name = segment_name(self, number);
        let checked = self.store.client.limits.checksum;
        let full = checked && self.sums.add(number, payload.pieces());
        let sum = OnceCell::new();
        // The server says the MD5 of what it has stored. It is not told ours: what comes of the wait until several
        // segments are under way is that their MD5s cost a quarter.
        let put = || async {
            let etag = self.store.client.put(&self.segments, &name, &payload).await?;
            match checked {
                true => same(sum.get_or_try_init(|| self.sums.of(number)).await?, etag),
                false => Ok(etag),
            }
        };
        let stored = async {
            self.ready.get_or_try_init(|| self.store.make_sure(&self.segments)).await?;
            match again(put).await {
                // It was there when the store was opened.
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    self.store.create_again(&self.segments).await?;
                    again(put).await
                }
                outcome => outcome,
            }
        };
        let (stored, ()) = tokio::join!(stored, async {
            if full {
                self.sums.compute(number).await;
            }
        });
        let etag = stored.map_err(|error| no_container(error, &self.segments))?;
        Ok(Segment { container: self.segments.clone(), name, etag, size: payload.len(), is_list: false })
    }

    /// Has the server copy an object to where a segment belongs.
    async fn copy_segment(&self, number: usize, from: Segment) -> Result<Segment> {
        let name = segment_name(self, number);
        let client = &self.store.client;
        self.ready.get_or_try_init(|| self.store.make_sure(&self.segments)).await?;
        let etag = again(|| client.copy(&from, &self.segments, &name)).await?;
        // What was a list of segments is one object now.
        if !from.is_list && !etag.is_empty() && !from.etag.is_empty() && etag != from.etag {
            let text = "the blob has changed while it was copied, or is damaged";
            return Err(Error::new(ErrorKind::Corrupt, text).with_hint("verify it"));
        }
        Ok(Segment { container: self.segments.clone(), name, etag, size: from.size, is_list: false })
    }

    /// Makes the object, and looks whether it is there and this upload's.
    pub(crate) async fn commit(&self, body: Body, meta: &Meta) -> Result<()> {
        let (tags, beside) = Tags::new(&self.token, meta, self.store.config.expire.map(|span| span.0));
        let client = &self.store.client;
        if beside {
            let json = Payload::from(Bytes::from(meta.to_json()));
            let sidecar = self.sidecar();
            let put = || client.put(&self.segments, &sidecar, &json);
            if let Err(error) = again(put).await {
                if error.kind() != ErrorKind::NotFound {
                    return Err(error);
                }
                self.store.create_again(&self.segments).await?;
                again(put).await?;
            }
        }
        if self.store.place.many() || self.store.config.create_container {
            self.store.create(&self.container).await?;
        }
        let dynamic = match (&body, client.limits.dynamic) {
            (Body::Segments(_), true) => {
                self.wait_for_list(meta.size).await?;
                Some(self.list_prefix())
            }
            _ => None,
        };
        let md5 = match &body {
            Body::Whole(payload) if client.limits.checksum => Some(md5(payload.clone()).await?),
            _ => None,
        };
        self.publish(&body, md5.as_deref(), &tags, dynamic.as_deref()).await?;
        let swept = async {
            match &body {
                Body::Segments(_) => {
                    let of = dynamic.is_some().then_some(meta.size);
                    self.check_sweep(&segment_name(self, 0), of).await
                }
                Body::Whole(_) if beside => self.check_sweep(&self.sidecar(), None).await,
                Body::Whole(_) => Ok(()),
            }
        };
        let (swept, checked) = tokio::join!(swept, self.check(meta.size, dynamic.is_some()));
        swept.and(checked)
    }

    fn list_prefix(&self) -> String {
        let parts = std::iter::once(self.segments.as_str()).chain(self.staged.split('/'));
        parts.map(Location::encode_segment).collect::<Vec<_>>().join("/")
    }

    /// A dynamic large object is what the list of the container shows: a list that lags behind would cut it short.
    async fn wait_for_list(&self, size: u64) -> Result<()> {
        for failed in 1..=8 {
            if self.listed().await? == size {
                return Ok(());
            }
            pause(failed, None).await;
        }
        let text = "the container's list does not show all segments yet";
        Err(Error::new(ErrorKind::Unavailable, text).with_hint("a container server is behind, or away"))
    }

    async fn listed(&self) -> Result<u64> {
        let all = again(|| self.store.client.list_all(&self.segments, &self.staged)).await?;
        Ok(total(all.iter().filter(|listed| is_segment(&listed.name)).map(|listed| listed.size)))
    }

    /// Makes the object. Whatever is said, and if nothing is said, the object's token tells whose it is.
    async fn publish(
        &self,
        body: &Body,
        md5: Option<&str>,
        tags: &Tags,
        dynamic: Option<&str>,
    ) -> Result<()> {
        let client = &self.store.client;
        let (container, object) = (&self.container, &self.object);
        let mut failed = 0;
        loop {
            // Where the server does not decide, the best that is left is to look just before.
            if !client.limits.conditional
                && let Some(ours) = self.look().await?
            {
                return if ours { Ok(()) } else { Err(Error::taken(&self.id)) };
            }
            let outcome = match body {
                Body::Whole(payload) => client.put_blob(container, object, payload, md5, tags, None).await,
                Body::Segments(_) if dynamic.is_some() => {
                    client.put_blob(container, object, &Payload::default(), None, tags, dynamic).await
                }
                Body::Segments(segments) => {
                    client.put_manifest(container, object, segments, Some(tags)).await.map(drop)
                }
            };
            let Err(error) = outcome else { return Ok(()) };
            tracing::debug!(%error, "looking what became of a commit");
            match self.look().await? {
                Some(true) => return Ok(()),
                Some(false) => return Err(Error::taken(&self.id)),
                None if error.kind() == ErrorKind::NotFound => {
                    // Swift names the segments that are missing, Ceph does not.
                    let there = again(|| client.container(container)).await?.is_some();
                    let ours = self.store.place.many() || self.store.config.create_container;
                    match (there, body) {
                        (true, Body::Segments(_)) => return Err(Error::swept()),
                        // An empty container is tidied away by whoever finds it, be there a commit on its way or not.
                        (false, _) if ours => self.store.create_again(container).await?,
                        _ => return Err(no_container(error, container)),
                    }
                }
                // The one that was in the way is gone by now.
                None if error.kind() == ErrorKind::AlreadyExists => {}
                None if error.is_retryable() => {}
                None => return Err(error),
            }
            failed += 1;
            if failed == ATTEMPTS {
                return Err(match error.is_retryable() {
                    true => error,
                    false => {
                        Error::new(ErrorKind::Unavailable, error.message().to_owned()).with_source(error)
                    }
                });
            }
            pause(failed, Some(&error)).await;
        }
    }

    /// Whether there is an object, and if it is this upload's.
    pub(crate) async fn look(&self) -> Result<Option<bool>> {
        Ok(self.head().await?.map(|object| object.token.as_deref() == Some(&self.token)))
    }

    async fn head(&self) -> Result<Option<Object>> {
        again(|| self.store.client.head(&self.container, &self.object)).await
    }

    /// A sweep may have begun to take what is staged while the commit was on its way: either it has seen the blob, or its
    /// mark is there now, or it has come to its end. The mark goes last, so `first` is looked at after it.
    async fn check_sweep(&self, first: &str, dynamic: Option<u64>) -> Result<()> {
        let client = &self.store.client;
        let mark = self.mark();
        if again(|| client.head(&self.segments, &mark)).await?.is_some()
            || again(|| client.head(&self.segments, first)).await?.is_none()
        {
            return Err(Error::swept());
        }
        match dynamic {
            Some(size) if self.listed().await? != size => Err(Error::swept()),
            _ => Ok(()),
        }
    }

    /// Trusts no status alone: two writers that come in the same moment may both be told that the name was free, and
    /// then the later one stays.
    async fn check(&self, size: u64, dynamic: bool) -> Result<()> {
        match self.head().await {
            Ok(Some(object)) if object.token.as_deref() != Some(&self.token) => Err(Error::taken(&self.id)),
            Ok(Some(object)) if object.size != size && !dynamic => {
                let text = format!("the server stored {} bytes of the {size} that it was sent", object.size);
                Err(Error::new(ErrorKind::Corrupt, text)
                    .with_hint("it does not speak Swift's protocol as this store does"))
            }
            Ok(Some(_)) => Ok(()),
            Ok(None) => {
                let text = "the server has no object where it confirmed one";
                Err(Error::new(ErrorKind::Internal, text).with_hint("or something deleted it at once"))
            }
            // It was confirmed before the server went away.
            Err(error) if error.is_retryable() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes what is staged: so many segments and lists.
    pub(crate) async fn remove_staged(&self, segments: usize, groups: usize) -> Result<()> {
        let names = (0..segments).map(|number| segment_name(self, number));
        let names = names.chain((0..groups).filter(|_| segments > 0).map(|number| group_name(self, number)));
        let names: Vec<String> = names.chain([self.sidecar(), self.mark()]).collect();
        // A name that is not there is deleted all the same: Swift then refuses what was sent before and comes later.
        self.store.client.delete_all(&self.segments, &names).await
    }
}

/// The entity tag of a segment, if the server has stored what it was sent.
fn same(md5: &str, etag: String) -> Result<String> {
    if etag == md5 {
        return Ok(etag);
    }
    if etag.is_empty() {
        let text = "the server does not say the MD5 of a segment that it stored";
        return Err(Error::new(ErrorKind::Unsupported, text).with_hint("set `checksum` to \"none\""));
    }
    Err(Error::new(ErrorKind::Unavailable, "the server stored another segment than it was sent")
        .with_hint("the bytes were damaged on their way"))
}

pub(crate) fn is_segment(name: &str) -> bool {
    name.rsplit_once('/').is_some_and(|(_, last)| last.bytes().all(|b| b.is_ascii_digit()))
}

fn no_container(error: Error, container: &str) -> Error {
    match error.kind() {
        ErrorKind::NotFound => Error::new(ErrorKind::Invalid, format!("there is no container {container:?}"))
            .with_hint("check `container`, or set `create_container = true` to have a missing one created"),
        _ => error,
    }
}

/// The size of segments, from `least` on, of which no more than `count` make `total` bytes, if that may be.
fn fitting(least: u64, most: u64, total: u64, count: u64) -> u64 {
    let wanted = total.div_ceil(count).checked_next_multiple_of(1 << 20);
    wanted.unwrap_or(most).clamp(least, most.max(least))
}

/// The size of the next segments, after so many of a blob whose length is not known.
fn grown(size: u64, most: u64, started: usize) -> u64 {
    if started.is_multiple_of(GROW_AFTER) && size * 2 <= most { size * 2 } else { size }
}

/// The longest blob with segments of `size`.
fn longest(store: &Shared, size: u64) -> u64 {
    let most = store.client.limits.max_segments as u64;
    let each = size.saturating_mul(most);
    let lists = store.client.limits.nested && !store.client.limits.dynamic;
    if lists { each.saturating_mul(most) } else { each }
}

/// The largest segment. Where lists of lists do without, they stay small enough for several at once.
fn largest(store: &Shared) -> u64 {
    let limits = &store.client.limits;
    let share =
        if limits.nested && !limits.dynamic { store.config.window.0 / 4 } else { store.config.window.0 };
    share.max(store.config.segment_size.0).min(limits.max_file_size)
}

fn too_long(store: &Shared) -> Error {
    let most = Size(longest(store, largest(store)));
    Error::new(ErrorKind::Unsupported, "the image is too long for the segments that one object may have")
        .with_hint(format!(
            "segments are held in memory: with these settings, at most {most}; raise `window`"
        ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn segments_are_as_large_as_a_length_needs() {
        for (total, size) in
            [(0, 16), (16_000 * MIB, 16), (16_000 * MIB + 1, 17), (63_999 * MIB, 64), (u64::MAX, 64)]
        {
            assert_eq!(fitting(16 * MIB, 64 * MIB, total, 1000), size * MIB, "{total}");
        }
        assert_eq!(fitting(16 * MIB, 3 * MIB, 1 << 40, 1000), 16 * MIB);
    }

    #[test]
    fn segments_grow_while_the_length_is_not_known() {
        let all = |most: u64| {
            let (mut size, mut all) = (16 * MIB, CHUNK as u64);
            for started in 1..1000 {
                size = grown(size, most, started);
                all += size;
            }
            (size / MIB, all >> 30)
        };
        // What the README says of one list of segments; where there may be lists of lists, they stay as they are.
        assert_eq!(all(64 * MIB), (64, 46));
        assert_eq!(all(16 * MIB), (16, 15));
    }
}
