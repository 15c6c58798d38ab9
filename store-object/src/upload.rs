use std::{collections::VecDeque, fs::File, sync::Arc};

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use object_store::{MultipartUpload, ObjectStoreExt, PutMode, PutPayload, path::Path};
use store_core::{BlobId, Chunk, Error, ErrorKind, Location, Meta, Result, SizeHint, Upload, buffer::Buffer};
use tokio::task::{JoinHandle, spawn};

use crate::{
    backend::{Note, Shared},
    error::{from_object, stopped},
    place::Folder,
};

/// Commit point: the note under the blob's id is written with `PutMode::Create`, when the data are complete elsewhere.
pub(crate) struct ObjectUpload {
    target: Arc<Target>,
    filling: Option<Buffer>,
    /// Requests under way stay here while they are awaited, so that none is lost with a future.
    opening: Option<JoinHandle<Result<()>>>,
    starting: Option<JoinHandle<Result<Box<dyn MultipartUpload>>>>,
    parts: Option<Box<dyn MultipartUpload>>,
    /// Parts on their way, oldest first.
    flying: VecDeque<JoinHandle<Result<()>>>,
    copying: Option<JoinHandle<Result<()>>>,
    copied: bool,
    committing: Option<JoinHandle<Committed>>,
    cleaning: Option<JoinHandle<Result<()>>>,
    over: bool,
}

/// What became of a commit, and an upload of parts that it could not complete.
type Committed = (Result<()>, Option<Box<dyn MultipartUpload>>);

/// Where an upload goes.
struct Target {
    store: Arc<Shared>,
    id: BlobId,
    /// Random; in the note and in the names of the other objects.
    token: String,
    data: Path,
    mark: Path,
}

impl ObjectUpload {
    /// Starts an upload by writing its mark: what is found of a killed process.
    pub(crate) async fn begin(store: Arc<Shared>, id: &BlobId, _: SizeHint) -> Result<Self> {
        if store.note(id).await?.is_some() {
            return Err(taken(id));
        }
        let token = random_token()?;
        let data = store.place.of_upload(Folder::Data, id, &token);
        let mark = store.place.of_upload(Folder::Upload, id, &token);
        let target = Arc::new(Target { store, id: id.clone(), token, data, mark });
        let marking = Arc::clone(&target);
        let opening = spawn(async move {
            let put = marking.store.objects.put(&marking.mark, PutPayload::new()).await;
            put.map(drop).map_err(|error| from_object("start an upload", error))
        });
        let mut upload = Self {
            target,
            filling: None,
            opening: Some(opening),
            starting: None,
            parts: None,
            flying: VecDeque::new(),
            copying: None,
            copied: false,
            committing: None,
            cleaning: None,
            over: false,
        };
        if let Some(opening) = &mut upload.opening {
            let opened = opening.await;
            upload.opening = None;
            opened.map_err(stopped).flatten()?;
        }
        Ok(upload)
    }

    async fn fill(&mut self, mut bytes: Bytes) -> Result<()> {
        while !bytes.is_empty() {
            if self.filling.is_none() {
                while self.flying.len() >= self.target.store.concurrency {
                    self.land().await?;
                }
            }
            let pool = &self.target.store.pool;
            let buffer = self.filling.get_or_insert_with(|| pool.take());
            let taken = buffer.fill(&bytes);
            bytes.advance(taken);
            if buffer.room() == 0 {
                self.send().await?;
            }
        }
        Ok(())
    }

    /// Waits for the oldest part on its way.
    async fn land(&mut self) -> Result<()> {
        let Some(oldest) = self.flying.front_mut() else { return Ok(()) };
        let outcome = oldest.await;
        self.flying.pop_front();
        outcome.map_err(stopped).flatten()
    }

    /// Sends what is in the buffer as the next part.
    async fn send(&mut self) -> Result<()> {
        if self.parts.is_none() {
            let target = Arc::clone(&self.target);
            let starting = self.starting.get_or_insert_with(|| {
                spawn(async move {
                    let started = target.store.objects.put_multipart(&target.data).await;
                    started.map_err(|error| from_object("start an upload", error))
                })
            });
            let started = starting.await;
            self.starting = None;
            self.parts = Some(started.map_err(stopped).flatten()?);
        }
        let (Some(parts), Some(buffer)) = (&mut self.parts, self.filling.take()) else { return Ok(()) };
        let part = parts.put_part(PutPayload::from_bytes(buffer.freeze()));
        self.flying
            .push_back(spawn(async move { part.await.map_err(|error| from_object("send a part", error)) }));
        Ok(())
    }

    /// Hands all that is under way to a task that removes it.
    fn clean(&mut self) -> JoinHandle<Result<()>> {
        let remains = Remains {
            target: Arc::clone(&self.target),
            opening: self.opening.take(),
            starting: self.starting.take(),
            parts: self.parts.take(),
            flying: std::mem::take(&mut self.flying).into(),
            copying: self.copying.take(),
            committing: self.committing.take(),
        };
        spawn(remains.remove())
    }
}

#[async_trait]
impl Upload for ObjectUpload {
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
        let store = &self.target.store;
        let id = store.place.find(from)?;
        let note = store.note(&id).await?.ok_or_else(|| Error::not_found(from))?;
        if note.meta.size != size {
            return Err(Error::not_found(from).with_hint("it was replaced meanwhile; try again"));
        }
        let source = store.place.of_upload(Folder::Data, &id, &note.token);
        let target = Arc::clone(&self.target);
        let copying = self.copying.insert(spawn(async move {
            let copied = target.store.objects.copy(&source, &target.data).await;
            copied.map_err(|error| from_object("copy a blob", error))
        }));
        let outcome = copying.await;
        self.copying = None;
        self.copied = true;
        outcome.map_err(stopped).flatten()
    }

    async fn commit(&mut self, meta: &Meta) -> Result<Location> {
        if self.parts.is_some() && self.filling.as_ref().is_some_and(|buffer| !buffer.is_empty()) {
            self.send().await?;
        }
        while !self.flying.is_empty() {
            self.land().await?;
        }
        let body = match (self.parts.take(), self.copied) {
            (Some(parts), _) => Body::Parts(parts),
            (None, true) => Body::There,
            (None, false) => Body::Whole(self.filling.take().map(Buffer::freeze).unwrap_or_default()),
        };
        let (target, meta) = (Arc::clone(&self.target), meta.clone());
        let committing = self.committing.insert(spawn(async move { target.commit(body, &meta).await }));
        let (outcome, left) = committing.await.map_err(stopped)?;
        if outcome.is_err() {
            // What became of it is looked up in the clean-up.
            self.committing = Some(spawn(std::future::ready((Ok(()), left))));
        }
        outcome?;
        // No await from here on: a future dropped now would lose a blob that is there.
        self.committing = None;
        self.over = true;
        self.target.store.place.location(&self.target.id)
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

impl Drop for ObjectUpload {
    /// For a `begin` that was dropped, and for an abort that was given up: it goes on, and nobody waits for it.
    fn drop(&mut self) {
        if !self.over && self.cleaning.is_none() && tokio::runtime::Handle::try_current().is_ok() {
            drop(self.clean());
        }
    }
}

/// The data of an upload before its commit.
enum Body {
    Parts(Box<dyn MultipartUpload>),
    Whole(Bytes),
    /// The storage has copied them.
    There,
}

impl Target {
    /// Completes the data, then writes the note. An upload of parts that was not completed is given back.
    async fn commit(&self, body: Body, meta: &Meta) -> Committed {
        let objects = &self.store.objects;
        let wrote = |error| from_object("write a blob", error);
        match body {
            Body::There => {}
            Body::Whole(bytes) => {
                if let Err(error) = objects.put(&self.data, PutPayload::from_bytes(bytes)).await {
                    return (Err(wrote(error)), None);
                }
            }
            Body::Parts(mut parts) => {
                if let Err(error) = parts.complete().await {
                    // The reply may have been lost.
                    if !objects.head(&self.data).await.is_ok_and(|found| found.size == meta.size) {
                        return (Err(wrote(error)), Some(parts));
                    }
                }
            }
        }
        (self.publish(meta).await, None)
    }

    async fn publish(&self, meta: &Meta) -> Result<()> {
        let objects = &self.store.objects;
        let stored = objects.head(&self.data).await.map_err(|error| from_object("look at a blob", error))?;
        if stored.size != meta.size {
            let text = format!("the storage has {} bytes of the {} that it was sent", stored.size, meta.size);
            return Err(Error::new(ErrorKind::Corrupt, text));
        }
        // Gone if a sweep took the upload: then its data are gone, or will be.
        let mark = objects.head(&self.mark).await.map_err(|error| from_object("look at an upload", error));
        mark.map_err(|error| match error.kind() {
            ErrorKind::NotFound => swept(),
            _ => error,
        })?;
        let note = Note { token: self.token.clone(), meta: meta.clone() };
        let payload = PutPayload::from(note.to_json()?);
        let put = objects.put_opts(&self.store.place.note(&self.id), payload, PutMode::Create.into()).await;
        if let Err(error) = put {
            // Whatever is said, the note tells whose blob it is.
            match self.store.note(&self.id).await? {
                Some(found) if found.token == self.token => {}
                Some(_) => return Err(taken(&self.id)),
                None => return Err(from_object("commit a blob", error)),
            }
        }
        if let Err(error) = self.store.remove(&self.mark).await {
            tracing::warn!(%error, "the mark of a finished upload is still there; sweep will remove it");
        }
        Ok(())
    }
}

/// What an upload that is not wanted leaves.
struct Remains {
    target: Arc<Target>,
    opening: Option<JoinHandle<Result<()>>>,
    starting: Option<JoinHandle<Result<Box<dyn MultipartUpload>>>>,
    parts: Option<Box<dyn MultipartUpload>>,
    flying: Vec<JoinHandle<Result<()>>>,
    copying: Option<JoinHandle<Result<()>>>,
    committing: Option<JoinHandle<Committed>>,
}

impl Remains {
    async fn remove(self) -> Result<()> {
        let store = &self.target.store;
        for part in &self.flying {
            part.abort();
        }
        for part in self.flying {
            let _ = part.await; // Whatever it wrote goes away now.
        }
        if let Some(opening) = self.opening {
            let _ = opening.await; // The mark is removed in any case.
        }
        if let Some(copying) = self.copying {
            let _ = copying.await; // So is the copy.
        }
        let mut parts = self.parts;
        if let Some(starting) = self.starting {
            parts = starting.await.ok().and_then(Result::ok);
        }
        // It is not stopped: a request that was sent may be carried out later, and must not be after this.
        let committed = self.committing.is_some();
        if let Some(committing) = self.committing {
            parts = committing.await.ok().and_then(|(_, left)| left);
        }
        if let Some(mut parts) = parts {
            match parts.abort().await {
                // Of a storage that has no such request, time takes the parts.
                Ok(())
                | Err(object_store::Error::NotSupported { .. } | object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(from_object("abort an upload", error)),
            }
        }
        if committed {
            let note = store.note(&self.target.id).await?;
            if note.is_some_and(|note| note.token == self.target.token) {
                store.remove(&store.place.note(&self.target.id)).await?;
            }
        }
        store.remove(&self.target.data).await?;
        store.remove(&self.target.mark).await
    }
}

fn taken(id: &BlobId) -> Error {
    Error::new(ErrorKind::AlreadyExists, format!("{id} exists"))
}

fn swept() -> Error {
    Error::new(ErrorKind::NotFound, "the upload has been swept away").with_hint("send the image again")
}

fn random_token() -> Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|e| Error::new(ErrorKind::Internal, format!("the system has no random numbers: {e}")))?;
    Ok(hex::encode(bytes))
}
