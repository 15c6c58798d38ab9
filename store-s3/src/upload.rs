use std::{collections::VecDeque, fs::File, sync::Arc};

use async_trait::async_trait;
use aws_sdk_s3::types::CompletedPart;
use bytes::{Buf, Bytes};
use store_core::{
    BlobId, Chunk, Error, ErrorKind, Location, Meta, Result, Size, SizeHint, Upload,
    buffer::{Buffer, Pool},
};
use tokio::task::{JoinHandle, spawn};

use crate::{
    backend::Shared,
    client::{ATTEMPTS, Only, again, pause},
    config::MAX_PART,
    error::{stopped, swept, taken},
};

/// Commit point: `CompleteMultipartUpload`, or `PutObject` for a small blob, with `If-None-Match: *`.
///
/// Before it, the metadata is in a sidecar that the object's token leads to.
pub(crate) struct S3Upload {
    target: Arc<Target>,
    /// Buffers of the size of the next part.
    pool: Pool,
    /// Parts grow as the upload does, since its length is not known.
    grows: bool,
    filling: Option<Buffer>,
    /// Requests under way stay here while they are awaited, so that none is lost with a future.
    opening: Option<JoinHandle<Result<Option<String>>>>,
    creating: Option<JoinHandle<Result<String>>>,
    upload: Option<String>,
    /// Parts on their way, oldest first, with their lengths.
    flying: VecDeque<(JoinHandle<Result<CompletedPart>>, u64)>,
    parts: Vec<CompletedPart>,
    started: i32,
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

/// What the protocol allows.
const MAX_PARTS: u64 = 10_000;

/// With an unknown length, parts double each time after so many.
const GROW_AFTER: i32 = 1000;

impl S3Upload {
    /// Starts an upload by writing its sidecar, still empty: what is found of a killed process.
    pub(crate) async fn begin(store: Arc<Shared>, id: &BlobId, hint: SizeHint) -> Result<Self> {
        let key = store.place.key(id);
        let part = part_size(&store, hint.total)?;
        if store.client.head(&key).await?.is_some() {
            return Err(taken(id));
        }
        let token = random_token()?;
        let sidecar = store.place.sidecar(id.as_str(), &token);
        let pool = match part == store.pool.size() as u64 {
            true => store.pool.clone(),
            false => Pool::new(part as usize, 1),
        };
        let target = Arc::new(Target { store, id: id.clone(), key, token, sidecar });
        let opening = {
            let target = Arc::clone(&target);
            spawn(async move { target.store.client.put(&target.sidecar, Bytes::new(), Only::Always).await })
        };
        let mut upload = Self {
            target,
            pool,
            grows: hint.total.is_none(),
            filling: None,
            opening: Some(opening),
            creating: None,
            upload: None,
            flying: VecDeque::new(),
            parts: Vec::new(),
            started: 0,
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
        while self.flying.len() >= most
            || self.flying.iter().map(|(_, len)| len).sum::<u64>().saturating_add(part) > window.max(part)
        {
            self.land().await?;
        }
        Ok(())
    }

    /// Waits for the oldest part on its way.
    async fn land(&mut self) -> Result<()> {
        let Some((oldest, _)) = self.flying.front_mut() else { return Ok(()) };
        let outcome = oldest.await;
        self.flying.pop_front();
        self.parts.push(outcome.map_err(stopped).flatten()?);
        Ok(())
    }

    /// Sends what is in the buffer as the next part.
    async fn send(&mut self) -> Result<()> {
        if self.upload.is_none() {
            let target = Arc::clone(&self.target);
            let creating = self.creating.get_or_insert_with(|| {
                spawn(async move { again(|| target.store.client.create(&target.key, &target.token)).await })
            });
            let created = creating.await;
            self.creating = None;
            self.upload = Some(created.map_err(stopped).flatten()?);
        }
        let (Some(upload), Some(buffer)) = (self.upload.clone(), self.filling.take()) else { return Ok(()) };
        if self.started as u64 == MAX_PARTS {
            return Err(too_long(self.target.store.config.window.0));
        }
        self.started += 1;
        let (number, bytes) = (self.started, buffer.freeze());
        let (target, len) = (Arc::clone(&self.target), bytes.len() as u64);
        let part = async move {
            let client = &target.store.client;
            again(|| client.part(&target.key, &upload, number, bytes.clone())).await
        };
        self.flying.push_back((spawn(part), len));
        let larger = self.pool.size() as u64 * 2;
        if self.grows && number % GROW_AFTER == 0 && larger <= self.target.store.config.window.0.min(MAX_PART)
        {
            self.pool = Pool::new(larger as usize, 1);
        }
        Ok(())
    }

    /// Hands all that is under way to a task that removes it.
    fn clean(&mut self) -> JoinHandle<Result<()>> {
        let remains = Remains {
            target: Arc::clone(&self.target),
            opening: self.opening.take(),
            creating: self.creating.take(),
            upload: self.upload.clone(),
            flying: std::mem::take(&mut self.flying).into_iter().map(|(part, _)| part).collect(),
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

    async fn copy(&mut self, _: &Location, _: u64) -> Result<()> {
        Err(Error::unsupported("copying within the storage"))
    }

    async fn commit(&mut self, meta: &Meta) -> Result<Location> {
        let body = if self.upload.is_some() {
            if self.filling.as_ref().is_some_and(|buffer| !buffer.is_empty()) {
                self.send().await?;
            }
            while !self.flying.is_empty() {
                self.land().await?;
            }
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
                Some(etag) if client.conditional => Only::Instead(etag),
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

    /// Makes the object. Whatever is said, and if nothing is said, the object's token tells whose it is.
    async fn publish(&self, body: &Body) -> Result<()> {
        let client = &self.store.client;
        let mut failed = 0;
        loop {
            // Where the server cannot decide, the best that is left is to look just before.
            if !client.conditional
                && let Some(ours) = self.look().await?
            {
                return if ours { Ok(()) } else { Err(taken(&self.id)) };
            }
            let outcome = match body {
                Body::Whole(bytes) => client.put_blob(&self.key, bytes.clone(), &self.token).await,
                Body::Parts(upload, parts) => client.complete(&self.key, upload, parts.clone()).await,
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
            pause(failed).await;
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
        let upload = match self.creating {
            Some(creating) => creating.await.ok().and_then(Result::ok),
            None => self.upload,
        };
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
        again(|| client.delete(&self.target.sidecar)).await
    }
}

/// The size of the first parts of an upload of `total` bytes.
fn part_size(store: &Shared, total: Option<u64>) -> Result<u64> {
    let window = store.config.window.0.min(MAX_PART);
    let needed = total.unwrap_or_default().div_ceil(MAX_PARTS).next_multiple_of(1 << 20);
    match needed <= window {
        true => Ok(needed.max(store.pool.size() as u64)),
        false => Err(too_long(window)),
    }
}

fn too_long(window: u64) -> Error {
    let most = Size(window.saturating_mul(MAX_PARTS));
    let text = format!("the image is too long for {MAX_PARTS} parts of {}", Size(window));
    Error::new(ErrorKind::Unsupported, text)
        .with_hint(format!("parts are held in memory: with this `window`, at most {most}; raise it"))
}

fn random_token() -> Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|e| Error::new(ErrorKind::Internal, format!("the system has no random numbers: {e}")))?;
    Ok(hex::encode(bytes))
}
