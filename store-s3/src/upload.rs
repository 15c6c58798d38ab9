use std::{ops::Range, sync::Arc, time::Duration};

use aws_sdk_s3::types::CompletedPart;
use bytes::Bytes;
use store_core::{
    Algorithm, BlobId, Chunk, Error, ErrorKind, Location, Meta, Result, SizeHint,
    driver::{ATTEMPTS, InFlight, Payload, Pending, Request, Steps, again, pause, token},
};

use crate::{
    backend::Shared,
    client::{Creation, Only, Source},
    plan::{MAX_PARTS, Plan},
};

/// How long an upload that is given up waits for a gathered part to be complete, which a server may take minutes for.
const PATIENCE: Duration = Duration::from_secs(120);

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
    /// What the next part, or piece of one, has so far.
    filling: Payload,
    opening: Pending<Opened>,
    creating: Pending<String>,
    /// It will be longer than one part, as far as is known.
    long: bool,
    upload: Option<String>,
    /// Finding out what the server does with conditions, which a commit has to know.
    probing: Option<Request<()>>,
    /// Parts on their way.
    flying: InFlight<Request<Landed>>,
    parts: Vec<CompletedPart>,
    started: i32,
    /// The server keeps the checksums of the parts: of none it copies.
    kept: bool,
    /// The part that is being gathered.
    gathering: Option<Gathering>,
    /// Some part was gathered.
    gathered: bool,
    /// The entity tag that the sidecar had before the commit.
    sidecar_etag: Option<String>,
    /// The metadata on its way into the sidecar.
    describing: InFlight<Request<()>>,
}

/// What there is of an upload when it has begun.
#[derive(Default)]
struct Opened {
    sidecar_etag: Option<String>,
    upload: Option<String>,
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

/// What a request ends in.
enum Landed {
    Part(CompletedPart),
    /// A piece of the part that is being gathered.
    Piece(CompletedPart),
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
    /// Prepares an upload; nothing is written yet.
    pub(crate) fn new(store: Arc<Shared>, id: &BlobId, hint: SizeHint) -> Result<Self> {
        let key = store.place.key(id);
        let plan = Plan::new(&store.config, hint.total)?;
        let token = token()?;
        let sidecar = store.place.sidecar(id.as_str(), &token);
        let target = Arc::new(Target { store, id: id.clone(), key, token, sidecar });
        Ok(Self {
            target,
            plan,
            filling: Payload::default(),
            opening: Pending::default(),
            creating: Pending::default(),
            long: hint.total.is_some_and(|total| total > plan.piece(1)),
            upload: None,
            probing: None,
            flying: InFlight::default(),
            parts: Vec::new(),
            started: 0,
            kept: !plan.may_gather(),
            gathering: None,
            gathered: false,
            sidecar_etag: None,
            describing: InFlight::default(),
        })
    }

    async fn fill(&mut self, mut bytes: Bytes) -> Result<()> {
        while !bytes.is_empty() {
            let full = self.plan.piece(self.started + 1);
            if self.filling.is_empty() {
                self.make_room(full).await?;
            }
            if self.filling.fill(&mut bytes, full) {
                self.send().await?;
            }
        }
        Ok(())
    }

    /// Waits until `len` more bytes fit into the window.
    async fn make_room(&mut self, len: u64) -> Result<()> {
        let config = &self.target.store.config;
        let (window, most) = (config.window.0, config.concurrency as usize);
        while !self.flying.has_room(len, window, most) {
            self.land().await?;
        }
        Ok(())
    }

    /// Waits for one part on its way, whichever is stored first.
    async fn land(&mut self) -> Result<()> {
        match self.flying.first().await.transpose()? {
            Some(Landed::Part(part)) => keep(&mut self.parts, part),
            Some(Landed::Piece(piece)) => {
                if let Some(gathering) = &mut self.gathering {
                    keep(&mut gathering.pieces, piece);
                }
            }
            None => {}
        }
        Ok(())
    }

    async fn land_all(&mut self) -> Result<()> {
        while !self.flying.is_empty() {
            self.land().await?;
        }
        Ok(())
    }

    /// Sends what has come: as the next part, or as a piece of one.
    async fn send(&mut self) -> Result<()> {
        let upload = self.upload().await?;
        let number = self.next()?;
        let payload = std::mem::take(&mut self.filling);
        if self.plan.is_gathered(number) {
            return self.gather(number, payload).await;
        }
        self.started = number;
        self.spawn_part(None, upload, number, payload);
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
        let create = async move { again(|| target.store.client.create(&key, &target.token, kept)).await };
        self.creating.run(Request::spawn(create)).await
    }

    /// The number of the part after the last one that was started.
    fn next(&self) -> Result<i32> {
        match i64::from(self.started) < MAX_PARTS as i64 {
            true => Ok(self.started + 1),
            false => Err(self.plan.too_long()),
        }
    }

    fn spawn_part(&mut self, piece_of: Option<String>, upload: String, number: i32, payload: Payload) {
        let (target, held, kept) = (Arc::clone(&self.target), payload.len(), self.kept);
        let request = Request::spawn(async move {
            let key = piece_of.as_ref().unwrap_or(&target.key);
            let part = again(|| target.store.client.part(key, &upload, number, &payload, kept)).await?;
            Ok(if piece_of.is_some() { Landed::Piece(part) } else { Landed::Part(part) })
        });
        self.flying.push(request, held);
    }

    /// Sends a piece of the part `number`, and ends that part if it is long enough.
    async fn gather(&mut self, number: i32, payload: Payload) -> Result<()> {
        if self.gathering.is_none() {
            self.gathered = true;
            let key = self.target.store.place.gathered(self.target.id.as_str(), &self.target.token, number);
            let upload = self.create(key.clone()).await?;
            self.gathering = Some(Gathering { key, upload, pieces: Vec::new(), started: 0, len: 0 });
        }
        let Some(gathering) = &mut self.gathering else { return Ok(()) };
        gathering.started += 1;
        gathering.len += payload.len();
        let (key, upload, piece) = (gathering.key.clone(), gathering.upload.clone(), gathering.started);
        let ends = self.plan.ends(number, gathering.len);
        self.spawn_part(Some(key), upload, piece, payload);
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
        let copy = async move { target.take_gathered(gathering, &upload, number).await.map(Landed::Part) };
        self.flying.push(Request::spawn(copy), 0);
        Ok(())
    }
}

impl Steps for S3Upload {
    /// Writes the sidecar, still empty: what is found of a killed process. Only then anything else is created.
    async fn begin(&mut self) -> Result<()> {
        let store = Arc::clone(&self.target.store);
        self.probing = store.probing();
        // Kept checksums are not for parts that are copied, and whether there will be any is not known yet.
        let creates = self.long && (!self.kept || !self.target.store.client.keeps_checksums());
        let target = Arc::clone(&self.target);
        let opening = Request::spawn(async move { Box::pin(target.open(creates)).await });
        let opened = self.opening.run(opening).await?;
        (self.sidecar_etag, self.upload) = (opened.sidecar_etag, opened.upload);
        Ok(())
    }

    async fn write(&mut self, chunk: Chunk) -> Result<()> {
        for bytes in chunk.into_bytes() {
            self.fill(bytes).await?;
        }
        Ok(())
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
        if let Some(probing) = &mut self.probing {
            let ended = probing.await;
            self.probing = None;
            ended?;
        }
        let matches = store.committer().await?.matches();
        // Swift knows objects made of parts by two tags, and compares with the other one.
        let etag = object.etag.clone().filter(|_| matches);
        for range in copied_parts(size) {
            while self.flying.len() >= store.config.concurrency as usize {
                self.land().await?;
            }
            let number = self.next()?;
            self.started = number;
            let (target, key, etag, upload) =
                (Arc::clone(&self.target), key.clone(), etag.clone(), upload.clone());
            let request = Request::spawn(async move {
                // A range of all is not what every server takes.
                let range = (range != (0..size)).then_some(range);
                let from = Source { key: &key, etag: etag.as_deref(), range };
                let copy = || target.store.client.part_copy(&target.key, &upload, number, from.clone());
                again(copy).await.map(Landed::Part)
            });
            self.flying.push(request, 0);
        }
        let replaced = || Error::not_found(from).with_hint("it was deleted or replaced meanwhile");
        self.land_all().await.map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::AlreadyExists => replaced(),
            _ => error,
        })?;
        if etag.is_none() {
            let found = again(|| store.client.head(&key)).await?;
            found.filter(|found| found.etag == object.etag).ok_or_else(replaced)?;
        }
        Ok(())
    }

    async fn finish(&mut self, meta: &Meta) -> Result<Request<()>> {
        if self.upload.is_some() && !self.filling.is_empty() {
            self.send().await?;
        }
        // The metadata goes along with the last parts: nothing is visible yet.
        let (target, etag, described) = (Arc::clone(&self.target), self.sidecar_etag.clone(), meta.clone());
        let describing = async move { target.describe(etag.as_deref(), &described).await };
        self.describing.push(Request::spawn(describing), 0);
        self.end_gathering().await?;
        self.land_all().await?;
        self.describing.next().await.transpose()?;
        // Never an empty part: some servers refuse one. Less may have come than was announced.
        if let Some(upload) = self.upload.as_ref().filter(|_| self.parts.is_empty()) {
            again(|| self.target.store.client.abort(&self.target.key, upload)).await?;
            self.upload = None;
        }
        let (target, parts) = (Arc::clone(&self.target), std::mem::take(&mut self.parts));
        let checksum = target.store.client.checksum_of(&parts, meta.digests.get(Algorithm::Crc64Nvme));
        let whole = Whole { size: meta.size, checksum };
        let body = match &self.upload {
            Some(upload) => Body::Parts(upload.clone(), parts),
            None => Body::Whole(std::mem::take(&mut self.filling)),
        };
        Ok(Request::spawn(async move { Box::pin(target.commit(body, whole)).await }))
    }

    fn location(&self) -> Result<Location> {
        self.target.store.place.location(&self.target.key)
    }

    async fn discard(&mut self, committed: bool) -> Result<()> {
        let target = Arc::clone(&self.target);
        let client = &target.store.client;
        // An object that a server is still making of a gathered part would appear after it was looked for.
        self.flying.stop(if self.gathered { PATIENCE } else { Duration::ZERO }).await;
        while self.describing.next().await.is_some() {}
        let opened = self.opening.left().await.unwrap_or_default(); // The sidecar is removed in any case.
        // What was created after the upload is one for a part, and is found by its key.
        let created = self.creating.left().await;
        self.upload = self.upload.take().or(opened.upload).or(created);
        if committed {
            // Looked at before each try: what comes after this upload's blob is none of its business.
            again(|| target.retract()).await?;
        }
        if let Some(upload) = &self.upload {
            again(|| client.abort(&target.key, upload)).await?;
        }
        if self.gathered {
            for turn in 0..2 {
                let key = target.store.place.gathered(target.id.as_str(), &target.token, turn);
                again(|| client.clear(&key)).await?;
            }
        }
        // The claim is taken with a commit, which has made sure that it is known whether there are claims.
        let claims =
            target.store.known_committer().is_some_and(|client| client.creation == Creation::Claimed);
        if committed && claims && target.has_claim().await? {
            let claim = target.store.place.claim(&target.id);
            again(|| client.delete(&claim)).await?;
        }
        again(|| client.delete(&target.sidecar)).await?;
        // Last, since it takes the longest, and no sweep minds it. Whatever it finds out, it removes what it writes.
        if let Some(probing) = self.probing.take() {
            let _ = probing.await;
        }
        Ok(())
    }
}

/// What a commit makes visible.
enum Body {
    /// The parts of a multipart upload.
    Parts(String, Vec<CompletedPart>),
    /// All of a small blob.
    Whole(Payload),
}

/// What the server must say of a finished blob.
struct Whole {
    size: u64,
    checksum: Option<String>,
}

impl Target {
    /// Writes the sidecar, then starts the upload if it `creates` one, while it looks whether the id is free. After an
    /// error, nothing of that is left.
    async fn open(&self, creates: bool) -> Result<Opened> {
        let client = &self.store.client;
        let mut opened = Opened::default();
        let start = async {
            opened.sidecar_etag = self.place_sidecar().await?;
            if creates {
                opened.upload = Some(again(|| client.create(&self.key, &self.token, false)).await?);
            }
            Ok(())
        };
        let (started, there) = tokio::join!(start, again(|| client.find(&self.key)));
        let error = match (started, there) {
            (Ok(()), Ok(None)) => return Ok(opened),
            (_, Ok(Some(_))) => Error::taken(&self.id),
            (Err(error), _) | (_, Err(error)) => error,
        };
        let undone = async {
            if let Some(upload) = &opened.upload {
                again(|| client.abort(&self.key, upload)).await?;
            }
            again(|| client.delete(&self.sidecar)).await
        };
        if let Err(error) = undone.await {
            tracing::warn!(%error, "an upload that did not begin is still there; sweep will remove it");
        }
        Err(error)
    }

    /// Writes the empty sidecar, and gives its entity tag. A request that is given up and arrives late must not empty it
    /// when the metadata is in it: it asks for a free key, of servers that are not known to ignore this.
    async fn place_sidecar(&self) -> Result<Option<String>> {
        let client = self.store.known_committer().unwrap_or(&self.store.client);
        let placed = match again(|| client.put(&self.sidecar, Bytes::new(), Only::New)).await {
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                again(|| client.put(&self.sidecar, Bytes::new(), Only::Always)).await
            }
            placed => placed,
        };
        match placed {
            // By an attempt whose reply was lost: nobody else knows the token.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let sidecar = again(|| client.head(&self.sidecar)).await?;
                Ok(sidecar.ok_or_else(Error::swept)?.etag)
            }
            placed => placed,
        }
    }

    /// Makes the object, whose metadata is written.
    async fn commit(&self, body: Body, whole: Whole) -> Result<()> {
        if self.store.committer().await?.creation != Creation::Claimed {
            self.make(&body).await?;
            return self.check(&whole).await;
        }
        // One upload at a time: the server needs a claim to decide between two.
        self.claim().await?;
        // After a failure, the clean-up gives it up, when nothing can come any more.
        self.make(&body).await?;
        let claim = self.store.place.claim(&self.id);
        let (given_up, checked) =
            tokio::join!(again(|| self.store.client.delete(&claim)), self.check(&whole));
        if let Err(error) = given_up {
            tracing::warn!(%error, "the claim of a finished upload is still there; sweep will remove it");
        }
        checked
    }

    /// Replaces the empty sidecar. If it is gone, so is the upload: a sweep took it.
    async fn describe(&self, etag: Option<&str>, meta: &Meta) -> Result<()> {
        let client = self.store.committer().await?;
        let json = Bytes::from(meta.to_json());
        let written = again(|| async {
            let only = match etag {
                Some(etag) if client.matches() => Only::Instead(etag),
                _ if client.head(&self.sidecar).await?.is_none() => return Err(Error::swept()),
                _ => Only::Always,
            };
            client.put(&self.sidecar, json.clone(), only).await
        });
        match written.await {
            // An earlier attempt came through, and its reply was lost.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                match again(|| client.get(&self.sidecar)).await? {
                    Some(found) if found == json => Ok(()),
                    _ => Err(Error::swept()),
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Err(Error::swept()),
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
                return Err(if error.kind() == ErrorKind::NotFound { Error::swept() } else { error });
            }
        }
        let source = Source { key: &from.key, etag: None, range: None };
        let part = again(|| client.part_copy(&self.key, upload, number, source.clone())).await?;
        again(|| client.delete(&from.key)).await?;
        Ok(part)
    }

    /// Takes the claim on the id, which is waited for while a rival has it.
    async fn claim(&self) -> Result<()> {
        let (client, key) = (self.store.committer().await?, self.store.place.claim(&self.id));
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
                return Err(Error::taken(&self.id));
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
        let client = self.store.committer().await?;
        let (mut failed, mut before) = (0, None);
        loop {
            // Where the server does not decide, a look just before does: under the claim, or as the best that is left.
            if client.creation != Creation::Atomic
                && let Some(ours) = self.look().await?
            {
                return if ours { Ok(()) } else { Err(Error::taken(&self.id)) };
            }
            let outcome = match body {
                Body::Whole(payload) => client.put_blob(&self.key, payload, &self.token).await,
                Body::Parts(upload, parts) => {
                    client.complete(&self.key, upload, parts.clone(), Only::New).await
                }
            };
            let Err(error) = outcome else { return Ok(()) };
            tracing::debug!(%error, "looking what became of a commit");
            match self.look().await? {
                Some(true) => return Ok(()),
                Some(false) => return Err(Error::taken(&self.id)),
                // A conflict with another writer ends the upload, too.
                None if error.kind() == ErrorKind::NotFound => {
                    return Err(before.unwrap_or_else(Error::swept));
                }
                // The one that was in the way is gone by now.
                None if error.kind() == ErrorKind::AlreadyExists => {}
                None if error.is_retryable() => {}
                // The request before, whose reply was lost, may be at work still: MinIO then misses the parts that it has
                // moved already. Where it gave up in the middle, since nobody waited, it misses them for ever. Any other
                // reason is one for itself.
                None if before.is_some() && error.kind() == ErrorKind::Internal => {}
                None => return Err(error),
            }
            failed += 1;
            if failed < ATTEMPTS {
                pause(failed, Some(&error)).await;
            }
            let text = error.message().to_owned();
            let error =
                Error::new(ErrorKind::Unavailable, text).with_source(error).with_hint("send the image again");
            if failed == ATTEMPTS {
                return Err(error);
            }
            before = Some(error);
        }
    }

    /// Whether there is an object, and if it is this upload's.
    async fn look(&self) -> Result<Option<bool>> {
        let found = again(|| self.store.client.find(&self.key)).await?;
        Ok(found.map(|object| object.token.as_deref() == Some(&self.token)))
    }

    /// Removes the blob, if this upload's is there.
    async fn retract(&self) -> Result<()> {
        match self.look().await? {
            Some(true) => self.store.client.delete(&self.key).await,
            _ => Ok(()),
        }
    }

    /// Trusts no status alone: servers have stored other than what they were sent, and some let the last writer win.
    async fn check(&self, whole: &Whole) -> Result<()> {
        let size = whole.size;
        let client = &self.store.client;
        let (object, sidecar) =
            tokio::join!(again(|| client.head(&self.key)), again(|| client.head(&self.sidecar)));
        // A sweep that saw no blob may have taken its metadata; one that looks from now on gives it back.
        if let Ok(None) = sidecar {
            return Err(Error::swept());
        }
        match object {
            Ok(Some(object)) if object.token.as_deref() != Some(&self.token) => Err(Error::taken(&self.id)),
            Ok(Some(object)) if object.size != size => {
                let text = format!("the server stored {} bytes of the {size} that it was sent", object.size);
                Err(Error::new(ErrorKind::Corrupt, text).with_hint("it does not speak S3 as this store does"))
            }
            Ok(Some(object)) if another(whole.checksum.as_deref(), object.checksum.as_deref()) => {
                let text = "the server's checksum of the stored object is not that of what it was sent";
                Err(Error::new(ErrorKind::Corrupt, text)
                    .with_hint("the bytes were damaged there; send the image again"))
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

/// Adds a part that was stored, before or after others, where it belongs.
fn keep(parts: &mut Vec<CompletedPart>, part: CompletedPart) {
    let at = parts.partition_point(|other| other.part_number() < part.part_number());
    parts.insert(at, part);
}

/// Whether two checksums differ, if both are there and of one kind: of all bytes, or of so many parts.
fn another(ours: Option<&str>, theirs: Option<&str>) -> bool {
    let count = |sum: &str| sum.split_once('-').map(|(_, count)| count.to_owned());
    ours.zip(theirs).is_some_and(|(ours, theirs)| count(ours) == count(theirs) && ours != theirs)
}

/// Cuts a blob into the parts that the server copies.
fn copied_parts(size: u64) -> impl Iterator<Item = Range<u64>> + Send {
    let part = COPIED_PART.max(size.div_ceil(MAX_PARTS));
    (0..size.div_ceil(part)).map(move |part_index| {
        let start = part_index * part;
        start..size.min(start + part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copied_parts_make_the_blob() {
        for size in [1, COPIED_PART - 1, COPIED_PART, COPIED_PART + 1, 5 << 40] {
            let parts: Vec<_> = copied_parts(size).collect();
            assert_eq!((parts[0].start, parts[parts.len() - 1].end), (0, size));
            assert!(parts.windows(2).all(|two| two[0].end == two[1].start), "{size}");
            assert!(parts.len() as u64 <= MAX_PARTS && parts.iter().all(|part| !part.is_empty()), "{size}");
        }
        assert_eq!(
            copied_parts(COPIED_PART + 7).collect::<Vec<_>>(),
            [0..COPIED_PART, COPIED_PART..COPIED_PART + 7]
        );
        assert_eq!(copied_parts(0).count(), 0);
    }
}
