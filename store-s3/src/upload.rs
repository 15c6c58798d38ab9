use std::{collections::VecDeque, fs::File, ops::Range, sync::Arc};

use async_trait::async_trait;
use aws_sdk_s3::types::CompletedPart;
use bytes::{Buf, Bytes};
use store_core::{
    BlobId, Chunk, Error, ErrorKind, Location, Meta, Result, SizeHint, Upload,
    buffer::{Buffer, Pool},
};
use tokio::task::{JoinHandle, spawn};

use crate::{
    backend::Shared,
    client::{ATTEMPTS, Creation, Only, Source, again, pause},
    error::{stopped, swept, taken},
    plan::{MAX_PARTS, Plan},
};

/// Commit point: `CompleteMultipartUpload`, or `PutObject` for a small blob, with `If-None-Match: *`.
///
/// Before it, the metadata is in a sidecar that the object's token leads to. Where the server honours the header with
/// `PutObject` only, a commit first takes a claim on the id, an object that one upload at a time can create.
///
/// A part that is longer than the window's share is gathered: its pieces become an object of their own, which the server
/// then copies to where the part belongs. So each piece can be sent again, and none has to be held for long.
pub(crate) struct S3Upload {
    target: Arc<Target>,
    plan: Plan,
    /// Buffers of the size of the next piece.
    pool: Pool,
    filling: Option<Buffer>,
    /// Requests under way stay here while they are awaited, so that none is lost with a future.
    opening: Option<JoinHandle<Result<Option<String>>>>,
    creating: Option<JoinHandle<Result<String>>>,
    upload: Option<String>,
    /// Parts on their way, oldest first.
    flying: VecDeque<Flying>,
    parts: Vec<CompletedPart>,
    started: i32,
    /// The server keeps the checksums of the parts: of none it copies.
    kept: bool,
    /// The part that is being gathered.
    gathering: Option<Gathering>,
    /// Some part was gathered.
    gathered: bool,
    committing: Option<JoinHandle<Result<()>>>,
    /// The entity tag that the sidecar had before the commit.
    sidecar_etag: Option<String>,
    cleaning: Option<JoinHandle<Result<()>>>,
    over: bool,
}

/// Where an upload goes.
#[derive(Clone)]
struct Target {
    store: Arc<Shared>,
    id: BlobId,
    key: String,
    /// Random; in the object's user metadata and the sidecar's key.
    token: String,
    sidecar: String,
}

/// A request that ends in a part.
struct Flying {
    task: JoinHandle<Result<CompletedPart>>,
    /// The bytes that it holds in memory.
    held: u64,
    /// It is a piece of the part that is being gathered.
    piece: bool,
}

/// A long part on its way: an upload of its own.
struct Gathering {
    key: String,
    upload: String,
    pieces: Vec<CompletedPart>,
    started: i32,
    len: u64,
}

/// The server copies within itself in parts of this size, some at once.
const COPIED_PART: u64 = 256 << 20;

/// How often an upload asks for an id that another one has claimed: for about a minute.
const CLAIM_ATTEMPTS: u32 = 12;

impl S3Upload {
    /// Starts an upload by writing its sidecar, still empty: what is found of a killed process.
    pub(crate) async fn begin(store: Arc<Shared>, id: &BlobId, hint: SizeHint) -> Result<Self> {
        let key = store.place.key(id);
        let plan = Plan::new(&store.config, hint.total)?;
        if store.client.head(&key).await?.is_some() {
            return Err(taken(id));
        }
        let token = random_token()?;
        let sidecar = store.place.sidecar(id.as_str(), &token);
        let pool = pool_of(&store, plan.piece(1));
        let target = Arc::new(Target { store, id: id.clone(), key, token, sidecar });
        let opening = {
            let target = Arc::clone(&target);
            spawn(async move { target.store.client.put(&target.sidecar, Bytes::new(), Only::Always).await })
        };
        let mut upload = Self {
            target,
            plan,
            pool,
            filling: None,
            opening: Some(opening),
            creating: None,
            upload: None,
            flying: VecDeque::new(),
            parts: Vec::new(),
            started: 0,
            kept: !plan.may_gather(),
            gathering: None,
            gathered: false,
            committing: None,
            sidecar_etag: None,
            cleaning: None,
            over: false,
        };
        if let Some(opening) = &mut upload.opening {
            let opened = opening.await;
            upload.opening = None;
            upload.sidecar_etag = opened.map_err(stopped).flatten()?;
        }
        Ok(upload)
    }

    async fn fill(&mut self, mut bytes: Bytes) -> Result<()> {
        while !bytes.is_empty() {
            if self.filling.is_none() {
                self.make_room().await?;
            }
            let pool = &self.pool;
            let buffer = self.filling.get_or_insert_with(|| pool.take());
            let taken = buffer.fill(&bytes);
            bytes.advance(taken);
            if buffer.room() == 0 {
                self.send().await?;
            }
        }
        Ok(())
    }

    /// Waits until one more part fits into the window.
    async fn make_room(&mut self) -> Result<()> {
        let config = &self.target.store.config;
        let (window, most) = (config.window.0, config.concurrency as usize);
        let part = self.pool.size() as u64;
        let held = |flying: &VecDeque<Flying>| flying.iter().map(|request| request.held).sum::<u64>();
        while self.flying.len() >= most || held(&self.flying).saturating_add(part) > window.max(part) {
            self.land().await?;
        }
        Ok(())
    }

    /// Waits for the oldest part on its way.
    async fn land(&mut self) -> Result<()> {
        let Some(oldest) = self.flying.front_mut() else { return Ok(()) };
        let outcome = (&mut oldest.task).await;
        let piece = oldest.piece;
        self.flying.pop_front();
        let part = outcome.map_err(stopped).flatten()?;
        match &mut self.gathering {
            Some(gathering) if piece => gathering.pieces.push(part),
            _ => self.parts.push(part),
        }
        Ok(())
    }

    async fn land_all(&mut self) -> Result<()> {
        while !self.flying.is_empty() {
            self.land().await?;
        }
        Ok(())
    }

    /// Sends what is in the buffer: as the next part, or as a piece of one.
    async fn send(&mut self) -> Result<()> {
        let upload = self.upload().await?;
        let number = self.next()?;
        let Some(buffer) = self.filling.take() else { return Ok(()) };
        let bytes = buffer.freeze();
        if self.plan.is_gathered(number) {
            self.gather(number, bytes).await?;
        } else {
            self.started = number;
            self.spawn_part(None, upload, number, bytes);
        }
        let next = self.plan.piece(self.started + 1);
        if next != self.pool.size() as u64 {
            self.pool = pool_of(&self.target.store, next);
        }
        Ok(())
    }

    /// The id of the multipart upload, which is started when it is first needed.
    async fn upload(&mut self) -> Result<String> {
        if self.upload.is_none() {
            self.upload = Some(self.create(self.target.key.clone()).await?);
        }
        Ok(self.upload.clone().unwrap_or_default())
    }

    async fn create(&mut self, key: String) -> Result<String> {
        let (target, kept) = (Arc::clone(&self.target), self.kept);
        let creating = self.creating.insert(spawn(async move {
            again(|| target.store.client.create(&key, &target.token, kept)).await
        }));
        let created = creating.await;
        self.creating = None;
        created.map_err(stopped).flatten()
    }

    /// The number of the part after the last one that was started.
    fn next(&self) -> Result<i32> {
        match i64::from(self.started) < MAX_PARTS as i64 {
            true => Ok(self.started + 1),
            false => Err(self.plan.too_long()),
        }
    }

    fn spawn_part(&mut self, piece_of: Option<String>, upload: String, number: i32, bytes: Bytes) {
        let (target, held, piece) = (Arc::clone(&self.target), bytes.len() as u64, piece_of.is_some());
        let kept = self.kept;
        let task = spawn(async move {
            let key = piece_of.as_ref().unwrap_or(&target.key);
            again(|| target.store.client.part(key, &upload, number, bytes.clone(), kept)).await
        });
        self.flying.push_back(Flying { task, held, piece });
    }

    /// Sends a piece of the part `number`, and ends that part if it is long enough.
    async fn gather(&mut self, number: i32, bytes: Bytes) -> Result<()> {
        if self.gathering.is_none() {
            self.gathered = true;
            let key = self.target.store.place.gathered(self.target.id.as_str(), &self.target.token, number);
            let upload = self.create(key.clone()).await?;
            self.gathering = Some(Gathering { key, upload, pieces: Vec::new(), started: 0, len: 0 });
        }
        let Some(gathering) = &mut self.gathering else { return Ok(()) };
        gathering.started += 1;
        gathering.len += bytes.len() as u64;
        let (key, upload, piece) = (gathering.key.clone(), gathering.upload.clone(), gathering.started);
        let ends = self.plan.ends(number, gathering.len);
        self.spawn_part(Some(key), upload, piece, bytes);
        match ends {
            true => self.end_gathering().await,
            false => Ok(()),
        }
    }

    /// Has the server copy what was gathered to where it belongs. While it does, the next part is gathered elsewhere.
    async fn end_gathering(&mut self) -> Result<()> {
        // Also the copy before this one, whose place the next part takes.
        self.land_all().await?;
        let Some(gathering) = self.gathering.take() else { return Ok(()) };
        let (number, upload) = (self.next()?, self.upload.clone().unwrap_or_default());
        self.started = number;
        let target = Arc::clone(&self.target);
        let task = spawn(async move { target.take_gathered(gathering, &upload, number).await });
        self.flying.push_back(Flying { task, held: 0, piece: false });
        Ok(())
    }

    /// Hands all that is under way to a task that removes it.
    fn clean(&mut self) -> JoinHandle<Result<()>> {
        let remains = Remains {
            target: Arc::clone(&self.target),
            opening: self.opening.take(),
            creating: self.creating.take(),
            upload: self.upload.clone(),
            flying: std::mem::take(&mut self.flying).into_iter().map(|request| request.task).collect(),
            gathered: self.gathered,
            committing: self.committing.take(),
        };
        spawn(remains.remove())
    }
}

#[async_trait]
impl Upload for S3Upload {
    async fn write(&mut self, chunk: Chunk) -> Result<()> {
        for bytes in chunk.into_bytes() {
            self.fill(bytes).await?;
        }
        Ok(())
    }

    async fn adopt(&mut self, _: &Arc<File>) -> Result<Option<Arc<File>>> {
        Ok(None)
    }

    async fn copy(&mut self, from: &Location, size: u64) -> Result<()> {
        let store = Arc::clone(&self.target.store);
        let key = format!("{}{}", store.place.prefix, store.place.find(from)?);
        let object = again(|| store.client.head(&key)).await?.ok_or_else(|| Error::not_found(from))?;
        if object.size != size {
            return Err(Error::not_found(from).with_hint("it was replaced meanwhile; try again"));
        }
        // Never an empty part: some servers refuse one.
        if size == 0 {
            return Ok(());
        }
        self.kept = false;
        let upload = self.upload().await?;
        let etag = object.etag;
        for range in copied_parts(size) {
            while self.flying.len() >= store.config.concurrency as usize {
                self.land().await?;
            }
            let number = self.next()?;
            self.started = number;
            let (target, key, etag, upload) =
                (Arc::clone(&self.target), key.clone(), etag.clone(), upload.clone());
            let task = spawn(async move {
                // A range of all is not what every server takes.
                let range = (range != (0..size)).then_some(range);
                let from = Source { key: &key, etag: etag.as_deref(), range };
                again(|| target.store.client.part_copy(&target.key, &upload, number, from.clone())).await
            });
            self.flying.push_back(Flying { task, held: 0, piece: false });
        }
        let outcome = self.land_all().await;
        outcome.map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::AlreadyExists => {
                Error::not_found(from).with_hint("it was deleted or replaced meanwhile")
            }
            _ => error,
        })
    }

    async fn commit(&mut self, meta: &Meta) -> Result<Location> {
        let body = if self.upload.is_some() {
            if self.filling.as_ref().is_some_and(|buffer| !buffer.is_empty()) {
                self.send().await?;
            }
            self.end_gathering().await?;
            self.land_all().await?;
            Body::Parts(self.upload.clone().unwrap_or_default(), std::mem::take(&mut self.parts))
        } else {
            // Never an empty part: some servers refuse one.
            Body::Whole(self.filling.take().map(Buffer::freeze).unwrap_or_default())
        };
        let (target, etag, meta) = (Arc::clone(&self.target), self.sidecar_etag.clone(), meta.clone());
        let committing = self.committing.insert(spawn(async move { target.commit(body, etag, &meta).await }));
        let outcome = committing.await.map_err(stopped).flatten();
        // A failed one stays known: what became of it is looked up in the clean-up.
        if outcome.is_err() {
            self.committing = Some(spawn(std::future::ready(Ok(()))));
        }
        outcome?;
        // No await from here on: a future dropped now would lose a blob that is there.
        self.committing = None;
        self.over = true;
        self.target.store.place.location(&self.target.key)
    }

    async fn abort(&mut self) -> Result<()> {
        if self.over {
            return Ok(());
        }
        if self.cleaning.is_none() {
            self.cleaning = Some(self.clean());
        }
        let Some(cleaning) = &mut self.cleaning else { return Ok(()) };
        let outcome = cleaning.await.map_err(stopped).flatten();
        self.over = true;
        outcome
    }
}

impl Drop for S3Upload {
    /// For a `begin` that was dropped, and for an abort that was given up: it goes on, and nobody waits for it.
    fn drop(&mut self) {
        if !self.over && self.cleaning.is_none() && tokio::runtime::Handle::try_current().is_ok() {
            drop(self.clean());
        }
    }
}

/// What a commit makes visible.
enum Body {
    /// The parts of a multipart upload.
    Parts(String, Vec<CompletedPart>),
    /// All of a small blob.
    Whole(Bytes),
}

impl Target {
    /// Writes the metadata, then makes the object.
    async fn commit(&self, body: Body, etag: Option<String>, meta: &Meta) -> Result<()> {
        self.describe(etag.as_deref(), meta).await?;
        self.publish(&body).await?;
        self.check(meta.size).await
    }

    /// Replaces the empty sidecar. If it is gone, so is the upload: a sweep took it.
    async fn describe(&self, etag: Option<&str>, meta: &Meta) -> Result<()> {
        let client = &self.store.client;
        let json = Bytes::from(meta.to_json());
        let written = again(|| async {
            let only = match etag {
                Some(etag) if client.matches() => Only::Instead(etag),
                _ if client.head(&self.sidecar).await?.is_none() => return Err(swept()),
                _ => Only::Always,
            };
            client.put(&self.sidecar, json.clone(), only).await
        });
        match written.await {
            // An earlier attempt came through, and its reply was lost.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                match again(|| client.get(&self.sidecar)).await? {
                    Some(found) if found == json => Ok(()),
                    _ => Err(swept()),
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Err(swept()),
            outcome => outcome.map(drop),
        }
    }

    /// Has the server copy the object that was gathered, as the part `number`.
    async fn take_gathered(&self, from: Gathering, upload: &str, number: i32) -> Result<CompletedPart> {
        let client = &self.store.client;
        let completed = again(|| client.complete(&from.key, &from.upload, from.pieces.clone(), Only::Always));
        if let Err(error) = completed.await {
            // The reply to an earlier attempt may have been lost.
            let there = again(|| client.head(&from.key)).await?;
            if there.is_none_or(|object| object.size != from.len) {
                return Err(if error.kind() == ErrorKind::NotFound { swept() } else { error });
            }
        }
        let source = Source { key: &from.key, etag: None, range: None };
        let part = again(|| client.part_copy(&self.key, upload, number, source.clone())).await?;
        again(|| client.delete(&from.key)).await?;
        Ok(part)
    }

    /// Makes the object, under a claim where the server needs one to decide between two.
    async fn publish(&self, body: &Body) -> Result<()> {
        if self.store.client.creation != Creation::Claimed {
            return self.make(body).await;
        }
        self.claim().await?;
        // After a failure, the clean-up gives it up, when nothing can come any more.
        self.make(body).await?;
        let claim = self.store.place.claim(&self.id);
        if let Err(error) = again(|| self.store.client.delete(&claim)).await {
            tracing::warn!(%error, "the claim of a finished upload is still there; sweep will remove it");
        }
        Ok(())
    }

    /// Takes the claim on the id, which is waited for while a rival has it.
    async fn claim(&self) -> Result<()> {
        let (client, key) = (&self.store.client, self.store.place.claim(&self.id));
        for attempt in 1..=CLAIM_ATTEMPTS {
            match again(|| client.put(&key, Bytes::from(self.token.clone()), Only::New)).await {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                outcome => return outcome.map(drop),
            }
            // A reply may have been lost.
            if self.has_claim().await? {
                return Ok(());
            }
            if self.look().await?.is_some() {
                return Err(taken(&self.id));
            }
            if attempt < CLAIM_ATTEMPTS {
                pause(attempt, None).await;
            }
        }
        Err(Error::new(ErrorKind::Unavailable, format!("another upload of {} is being committed", self.id))
            .with_hint("if its process was killed, sweep the store: that removes what it left"))
    }

    async fn has_claim(&self) -> Result<bool> {
        let key = self.store.place.claim(&self.id);
        let found = again(|| self.store.client.get(&key)).await?;
        Ok(found.is_some_and(|token| token == self.token.as_bytes()))
    }

    /// Makes the object. Whatever is said, and if nothing is said, the object's token tells whose it is.
    async fn make(&self, body: &Body) -> Result<()> {
        let client = &self.store.client;
        let mut failed = 0;
        loop {
            // Where the server does not decide, a look just before does: under the claim, or as the best that is left.
            if client.creation != Creation::Atomic
                && let Some(ours) = self.look().await?
            {
                return if ours { Ok(()) } else { Err(taken(&self.id)) };
            }
            let outcome = match body {
                Body::Whole(bytes) => client.put_blob(&self.key, bytes.clone(), &self.token).await,
                Body::Parts(upload, parts) => {
                    client.complete(&self.key, upload, parts.clone(), Only::New).await
                }
            };
            let Err(error) = outcome else { return Ok(()) };
            tracing::debug!(%error, "looking what became of a commit");
            match self.look().await? {
                Some(true) => return Ok(()),
                Some(false) => return Err(taken(&self.id)),
                None if error.kind() == ErrorKind::NotFound => return Err(swept()),
                // The one that was in the way is gone by now.
                None if error.kind() == ErrorKind::AlreadyExists => {}
                None if error.is_retryable() => {}
                None => return Err(error),
            }
            failed += 1;
            if failed == ATTEMPTS {
                return Err(Error::new(ErrorKind::Unavailable, error.message().to_owned()).with_source(error));
            }
            pause(failed, Some(&error)).await;
        }
    }

    /// Whether there is an object, and if it is this upload's.
    async fn look(&self) -> Result<Option<bool>> {
        let found = again(|| self.store.client.head(&self.key)).await?;
        Ok(found.map(|object| object.token.as_deref() == Some(&self.token)))
    }

    /// Trusts no status alone: servers have stored other than what they were sent, and some let the last writer win.
    async fn check(&self, size: u64) -> Result<()> {
        match again(|| self.store.client.head(&self.key)).await {
            Ok(Some(object)) if object.token.as_deref() != Some(&self.token) => Err(taken(&self.id)),
            Ok(Some(object)) if object.size != size => {
                let text = format!("the server stored {} bytes of the {size} that it was sent", object.size);
                Err(Error::new(ErrorKind::Corrupt, text).with_hint("it does not speak S3 as this store does"))
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
}

/// What an upload that is not wanted leaves.
struct Remains {
    target: Arc<Target>,
    opening: Option<JoinHandle<Result<Option<String>>>>,
    creating: Option<JoinHandle<Result<String>>>,
    upload: Option<String>,
    flying: Vec<JoinHandle<Result<CompletedPart>>>,
    gathered: bool,
    committing: Option<JoinHandle<Result<()>>>,
}

impl Remains {
    async fn remove(self) -> Result<()> {
        let client = &self.target.store.client;
        for part in &self.flying {
            part.abort();
        }
        for part in self.flying {
            let _ = part.await; // Whatever it wrote goes away now.
        }
        if let Some(opening) = self.opening {
            let _ = opening.await; // The sidecar is removed in any case.
        }
        let created = match self.creating {
            Some(creating) => creating.await.ok().and_then(Result::ok),
            None => None,
        };
        // What was created after the upload is one for a part, and is found by its key.
        let upload = self.upload.or(created);
        // It is not stopped: a request that was sent may be carried out later, and must not be after this.
        let committed = self.committing.is_some();
        if let Some(committing) = self.committing {
            let _ = committing.await; // What counts is what is there.
        }
        if let Some(upload) = upload {
            again(|| client.abort(&self.target.key, &upload)).await?;
        }
        if committed && self.target.look().await? == Some(true) {
            again(|| client.delete(&self.target.key)).await?;
        }
        if self.gathered {
            for turn in 0..2 {
                let place = &self.target.store.place;
                let key = place.gathered(self.target.id.as_str(), &self.target.token, turn);
                again(|| client.clear(&key)).await?;
            }
        }
        if committed && client.creation == Creation::Claimed && self.target.has_claim().await? {
            let claim = self.target.store.place.claim(&self.target.id);
            again(|| client.delete(&claim)).await?;
        }
        again(|| client.delete(&self.target.sidecar)).await
    }
}

/// Cuts a blob into the parts that the server copies.
fn copied_parts(size: u64) -> impl Iterator<Item = Range<u64>> + Send {
    let part = COPIED_PART.max(size.div_ceil(MAX_PARTS));
    (0..size.div_ceil(part)).map(move |part_index| {
        let start = part_index * part;
        start..size.min(start + part)
    })
}

/// Buffers of `size`: those that all uploads share, or others.
fn pool_of(store: &Shared, size: u64) -> Pool {
    match size == store.pool.size() as u64 {
        true => store.pool.clone(),
        false => Pool::new(size as usize, 1),
    }
}

fn random_token() -> Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|e| Error::new(ErrorKind::Internal, format!("the system has no random numbers: {e}")))?;
    Ok(hex::encode(bytes))
}
