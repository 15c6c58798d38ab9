use std::{sync::Arc, time::Duration};

use bytes::{Buf, Bytes};
use object_store::{MultipartUpload, ObjectStoreExt, PutMode, PutPayload, path::Path};
use store_core::{
    BlobId, Chunk, Error, ErrorKind, Location, Meta, Result,
    buffer::Buffer,
    driver::{InFlight, Pending, Request, Steps, token},
};
use tokio::{sync::Mutex, time::Instant};

use crate::{
    backend::{Note, Shared},
    error::from_object,
    place::Folder,
};

/// How old the mark of an upload under way gets: far less than any age that a sweep is told.
const MARK_AGE: Duration = Duration::from_secs(300);

/// Commit point: the note under the blob's id is written with `PutMode::Create`, when the data are complete elsewhere.
pub(crate) struct ObjectUpload {
    target: Arc<Target>,
    filling: Option<Buffer>,
    opening: Pending<()>,
    marked: Instant,
    starting: Pending<Box<dyn MultipartUpload>>,
    /// Here until it is completed, also while a commit has it.
    parts: Parts,
    /// There is such an upload.
    has_parts: bool,
    /// Parts on their way.
    flying: InFlight<Request<()>>,
    copying: Pending<()>,
    copied: bool,
}

type Parts = Arc<Mutex<Option<Box<dyn MultipartUpload>>>>;

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
    /// Prepares an upload; nothing is written yet.
    pub(crate) async fn new(store: Arc<Shared>, id: &BlobId) -> Result<Self> {
        if store.note(id).await?.is_some() {
            return Err(Error::taken(id));
        }
        let token = token()?;
        let data = store.place.of_upload(Folder::Data, id, &token);
        let mark = store.place.of_upload(Folder::Upload, id, &token);
        Ok(Self {
            target: Arc::new(Target { store, id: id.clone(), token, data, mark }),
            filling: None,
            opening: Pending::default(),
            marked: Instant::now(),
            starting: Pending::default(),
            parts: Parts::default(),
            has_parts: false,
            flying: InFlight::default(),
            copying: Pending::default(),
            copied: false,
        })
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

    /// Writes the mark: what is found of a killed process.
    async fn mark(&mut self) -> Result<()> {
        let target = Arc::clone(&self.target);
        let put = async move {
            let put = target.store.objects.put(&target.mark, PutPayload::new()).await;
            put.map(drop).map_err(|error| from_object("mark an upload", error))
        };
        self.opening.run(Request::spawn(put)).await?;
        self.marked = Instant::now();
        Ok(())
    }

    /// Waits for the oldest part on its way.
    async fn land(&mut self) -> Result<()> {
        self.flying.next().await.transpose().map(drop)
    }

    /// Sends what is in the buffer as the next part.
    async fn send(&mut self) -> Result<()> {
        if self.marked.elapsed() > MARK_AGE {
            // No list shows what is written of the data: a sweep goes by the mark's time.
            self.target.check_mark().await?;
            self.mark().await?;
        }
        if !self.has_parts {
            let target = Arc::clone(&self.target);
            let start = async move {
                let started = target.store.objects.put_multipart(&target.data).await;
                started.map_err(|error| from_object("start an upload", error))
            };
            let started = self.starting.run(Request::spawn(start)).await?;
            self.parts = Arc::new(Mutex::new(Some(started)));
            self.has_parts = true;
        }
        let mut parts = self.parts.lock().await;
        let (Some(parts), Some(buffer)) = (parts.as_mut(), self.filling.take()) else { return Ok(()) };
        let part = parts.put_part(PutPayload::from_bytes(buffer.freeze()));
        let send = async move { part.await.map_err(|error| from_object("send a part", error)) };
        self.flying.push(Request::spawn(send), 0);
        Ok(())
    }
}

impl Steps for ObjectUpload {
    async fn begin(&mut self) -> Result<()> {
        self.mark().await
    }

    async fn write(&mut self, chunk: Chunk) -> Result<()> {
        for bytes in chunk.into_bytes() {
            self.fill(bytes).await?;
        }
        Ok(())
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
        let copy = async move {
            let copied = target.store.objects.copy(&source, &target.data).await;
            copied.map_err(|error| from_object("copy a blob", error))
        };
        self.copied = true;
        self.copying.run(Request::spawn(copy)).await
    }

    async fn finish(&mut self, meta: &Meta) -> Result<Request<()>> {
        if self.has_parts && self.filling.as_ref().is_some_and(|buffer| !buffer.is_empty()) {
            self.send().await?;
        }
        while !self.flying.is_empty() {
            self.land().await?;
        }
        let body = match (self.has_parts, self.copied) {
            (true, _) => Body::Parts(Arc::clone(&self.parts)),
            (false, true) => Body::There,
            (false, false) => Body::Whole(self.filling.take().map(Buffer::freeze).unwrap_or_default()),
        };
        let (target, meta) = (Arc::clone(&self.target), meta.clone());
        Ok(Request::spawn(async move { target.commit(body, &meta).await }))
    }

    fn location(&self) -> Result<Location> {
        self.target.store.place.location(&self.target.id)
    }

    async fn discard(&mut self, committed: bool) -> Result<()> {
        let (target, store) = (&self.target, &self.target.store);
        self.flying.stop(Duration::ZERO).await;
        self.opening.left().await; // The mark is removed in any case.
        self.copying.left().await; // So is the copy.
        if let Some(started) = self.starting.left().await {
            self.parts = Arc::new(Mutex::new(Some(started)));
        }
        let mut place = self.parts.lock().await;
        if let Some(parts) = place.as_mut() {
            match parts.abort().await {
                // Of a storage that has no such request, time takes the parts.
                Ok(())
                | Err(object_store::Error::NotSupported { .. } | object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(from_object("abort an upload", error)),
            }
        }
        *place = None;
        if committed {
            let note = store.note(&target.id).await?;
            if note.is_some_and(|note| note.token == target.token) {
                store.remove(&store.place.note(&target.id)).await?;
            }
        }
        store.remove(&target.data).await?;
        store.remove(&target.mark).await
    }
}

/// The data of an upload before its commit.
enum Body {
    Parts(Parts),
    Whole(Bytes),
    /// The storage has copied them.
    There,
}

impl Target {
    /// Completes the data, then writes the note.
    async fn commit(&self, body: Body, meta: &Meta) -> Result<()> {
        match body {
            Body::There => {}
            Body::Whole(bytes) => {
                let put = self.store.objects.put(&self.data, PutPayload::from_bytes(bytes)).await;
                put.map_err(|error| from_object("write a blob", error))?;
            }
            Body::Parts(parts) => self.complete(&parts, meta.size).await?,
        }
        self.publish(meta).await
    }

    /// Completes an upload of parts, which stays in its place for the clean-up if that fails.
    async fn complete(&self, parts: &Parts, size: u64) -> Result<()> {
        let mut place = parts.lock().await;
        if let Some(parts) = place.as_mut()
            && let Err(error) = parts.complete().await
        {
            // The reply may have been lost.
            let found = self.store.objects.head(&self.data).await;
            if !found.is_ok_and(|found| found.size == size) {
                return Err(from_object("write a blob", error));
            }
        }
        *place = None;
        Ok(())
    }

    /// The mark is gone if a sweep took the upload: then its data are gone, or will be.
    async fn check_mark(&self) -> Result<()> {
        match self.store.objects.head(&self.mark).await {
            Ok(_) => Ok(()),
            Err(object_store::Error::NotFound { .. }) => Err(Error::swept()),
            Err(error) => Err(from_object("look at an upload", error)),
        }
    }

    async fn publish(&self, meta: &Meta) -> Result<()> {
        let objects = &self.store.objects;
        let stored = objects.head(&self.data).await.map_err(|error| from_object("look at a blob", error))?;
        if stored.size != meta.size {
            let text = format!("the storage has {} bytes of the {} that it was sent", stored.size, meta.size);
            return Err(Error::new(ErrorKind::Corrupt, text));
        }
        self.check_mark().await?;
        let note = Note { token: self.token.clone(), meta: meta.clone() };
        let payload = PutPayload::from(note.to_json()?);
        let put = objects.put_opts(&self.store.place.note(&self.id), payload, PutMode::Create.into()).await;
        if let Err(error) = put {
            // Whatever is said, the note tells whose blob it is.
            match self.store.note(&self.id).await? {
                Some(found) if found.token == self.token => {}
                Some(_) => return Err(Error::taken(&self.id)),
                None => return Err(from_object("commit a blob", error)),
            }
        }
        // Again: a sweep that took the mark in between saw no note, and takes the data.
        self.check_mark().await?;
        if let Err(error) = self.store.remove(&self.mark).await {
            tracing::warn!(%error, "the mark of a finished upload is still there; sweep will remove it");
        }
        Ok(())
    }
}
