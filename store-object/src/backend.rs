use std::{collections::BTreeSet, fmt, fs::File, ops::Range, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use object_store::{
    DynObjectStore, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutPayload, parse_url_opts, path::Path,
};
use serde::{Deserialize, Serialize};
use store_core::{
    Backend, BlobId, Capacity, Chunk, ChunkStream, Download, Entry, Error, ErrorKind, Info, Location, Meta,
    Result, Secret, Size, SizeHint, Stat, Swept, Upload,
    buffer::Pool,
    driver::{Cutoff, Guarded, Request, read_ahead},
};

use crate::{
    ObjectConfig,
    error::{from_object, from_opening},
    place::{Folder, Place},
    upload::ObjectUpload,
};

/// Notes that a list reads at once.
const NOTES_AT_ONCE: usize = 16;

/// Blobs over whatever the crate `object_store` reaches.
#[derive(Clone)]
pub struct ObjectBackend {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    info: Info,
    pub(crate) objects: Arc<DynObjectStore>,
    pub(crate) place: Place,
    /// Buffers of a part.
    pub(crate) pool: Pool,
    pub(crate) concurrency: usize,
    /// The most parts that a blob can have, where that is known.
    most_parts: Option<u64>,
}

/// What stands under a blob's id: that it is there, where its bytes are, and what it says of itself.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Note {
    pub(crate) token: String,
    pub(crate) meta: Meta,
}

impl Note {
    pub(crate) fn to_json(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self)
            .map_err(|e| Error::new(ErrorKind::Internal, "metadata that JSON cannot show").with_source(e))
    }
}

impl ObjectBackend {
    /// Opens the storage that `config` names, and fails if it cannot be used.
    pub async fn connect(config: &ObjectConfig) -> Result<Self> {
        let checked = config.check()?;
        if let Some(feature) = checked.lacks() {
            let text = format!("{}: is not built in", checked.url.scheme());
            return Err(Error::new(ErrorKind::Unsupported, text)
                .with_hint(format!("build with the Cargo feature `{feature}`")));
        }
        let (objects, _) = parse_url_opts(&checked.url, config.all_options()).map_err(from_opening)?;
        let most_parts = checked.most_parts();
        let place = Place { name: checked.name, prefix: checked.prefix };
        Self::over(objects.into(), place, config, most_parts).await
    }

    /// A store over any object store, in the folder `prefix`; `name` stands for the storage in locations.
    ///
    /// It keeps the guarantees of a backend as far as `objects` keeps its own: `PutMode::Create` must be atomic. Where there is
    /// none, as in the crate's `HttpStore`, each commit fails as `Unsupported`, whatever [`Backend::info`] says.
    pub async fn new(objects: Arc<DynObjectStore>, prefix: Path, name: &str) -> Result<Self> {
        let mut config = ObjectConfig::new("memory:///");
        config.location_name = Some(name.to_owned());
        let name = config.check()?.name;
        Self::over(objects, Place { name, prefix }, &config, None).await
    }

    async fn over(
        objects: Arc<DynObjectStore>,
        place: Place,
        config: &ObjectConfig,
        most_parts: Option<u64>,
    ) -> Result<Self> {
        let mut info = Info::new("object");
        info.chunk = 4 << 20;
        info.can.write = true;
        info.can.delete = true;
        info.can.list = true;
        info.can.metadata = true;
        info.can.atomic_create = true;
        info.can.staging = true;
        info.can.copy = true;
        let concurrency = config.concurrency as usize;
        let pool = Pool::new(config.part_size.0 as usize, concurrency);
        let shared = Shared { info, objects, place, pool, concurrency, most_parts };
        // A blob of that name there is not; but whether the storage answers.
        shared.note(&BlobId::random()).await?;
        Ok(Self { shared: Arc::new(shared) })
    }
}

impl Shared {
    /// Fails if so many bytes are more than the parts of a blob can hold.
    fn check_size(&self, total: u64) -> Result<()> {
        let part = self.pool.size() as u64;
        match self.most_parts {
            Some(most) if total.div_ceil(part) > most => {
                let text = format!("the image is too long: {most} parts of {} hold no more", Size(part));
                let least = total.div_ceil(most).div_ceil(1 << 20);
                Err(Error::new(ErrorKind::Unsupported, text)
                    .with_hint(format!("set `part_size` to {least}MiB")))
            }
            _ => Ok(()),
        }
    }

    /// The note of a blob, if there is such a blob.
    pub(crate) async fn note(&self, id: &BlobId) -> Result<Option<Note>> {
        let read = async { self.objects.get(&self.place.note(id)).await?.bytes().await };
        match read.await {
            Ok(json) => serde_json::from_slice(&json).map(Some).map_err(|e| {
                Error::new(ErrorKind::Corrupt, "the blob's stored metadata is damaged").with_source(e)
            }),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(from_object("look at a blob", error)),
        }
    }

    /// Removes an object; a missing one is none the less removed.
    pub(crate) async fn remove(&self, path: &Path) -> Result<()> {
        match self.objects.delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(from_object("delete an object", error)),
        }
    }

    async fn delete(&self, at: &Location) -> Result<()> {
        let id = self.place.find(at)?;
        let note = self.note(&id).await?.ok_or_else(|| Error::not_found(at))?;
        let data = self.place.of_upload(Folder::Data, &id, &note.token);
        // So that a process that is killed in between leaves what sweep finds.
        let mark = self.place.of_upload(Folder::Upload, &id, &note.token);
        let marked = self.objects.put(&mark, PutPayload::new()).await;
        marked.map_err(|error| from_object("delete a blob", error))?;
        self.remove(&self.place.note(&id)).await?;
        let left = async {
            self.remove(&data).await?;
            self.remove(&mark).await
        };
        if let Err(error) = left.await {
            tracing::warn!(%error, "the bytes of a deleted blob are still there; sweep will remove them");
        }
        Ok(())
    }

    /// Whether a mark is old still: an upload under way writes it anew.
    async fn is_old(&self, mark: &Path, old: Cutoff) -> Result<bool> {
        match self.objects.head(mark).await {
            Ok(found) => Ok(old.takes(found.last_modified.timestamp())),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(from_object("look at an upload", error)),
        }
    }

    async fn is_there(&self, mark: &Path) -> Result<bool> {
        match self.objects.head(mark).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(from_object("look at an upload", error)),
        }
    }

    async fn sweep(&self, age: Duration) -> Result<Swept> {
        let (mut swept, old) = (Swept::default(), Cutoff::new(age));
        let mut done = BTreeSet::new();
        for folder in [Folder::Upload, Folder::Data] {
            let mut found = self.objects.list(Some(&self.place.folder(folder)));
            while let Some(object) = found.next().await {
                let object = object.map_err(|error| from_object("list uploads", error))?;
                let Some((id, token)) = self.place.upload(&object.location) else { continue };
                if !old.takes(object.last_modified.timestamp()) {
                    continue;
                }
                // Of an upload that is going on, the mark is there until the note is. What the data's own time says is nothing
                // to go by: a copy may have that of its source, and an upload that of its beginning.
                let mark = self.place.of_upload(Folder::Upload, &id, &token);
                if matches!(folder, Folder::Data) && self.is_there(&mark).await? {
                    continue;
                }
                if self.note(&id).await?.is_some_and(|note| note.token == token) {
                    if matches!(folder, Folder::Upload) {
                        self.remove(&object.location).await?;
                    }
                    continue;
                }
                if matches!(folder, Folder::Upload) && !self.is_old(&object.location, old).await? {
                    continue;
                }
                swept.bytes += if matches!(folder, Folder::Data) { object.size } else { 0 };
                // The mark goes first: an upload without one cannot be committed.
                self.remove(&object.location).await?;
                swept.uploads += u64::from(done.insert(token));
            }
        }
        Ok(swept)
    }
}

impl fmt::Debug for ObjectBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ObjectBackend").field(&self.shared.place).finish()
    }
}

#[async_trait]
impl Backend for ObjectBackend {
    fn info(&self) -> &Info {
        &self.shared.info
    }

    async fn begin(&self, id: &BlobId, size: SizeHint) -> Result<Box<dyn Upload>> {
        self.shared.check_size(size.total.unwrap_or_default())?;
        let steps = ObjectUpload::new(Arc::clone(&self.shared), id).await?;
        Ok(Box::new(Guarded::begin(steps).await?))
    }

    async fn locate(&self, id: &BlobId) -> Result<Location> {
        match self.shared.note(id).await? {
            Some(_) => self.shared.place.location(id),
            None => Err(Error::no_blob(id)),
        }
    }

    async fn open(&self, at: &Location) -> Result<Arc<dyn Download>> {
        let shared = Arc::clone(&self.shared);
        let id = shared.place.find(at)?;
        let note = shared.note(&id).await?.ok_or_else(|| Error::not_found(at))?;
        let data = shared.place.of_upload(Folder::Data, &id, &note.token);
        let found = match shared.objects.head(&data).await {
            Ok(found) => found,
            // It may have been deleted between the two.
            Err(object_store::Error::NotFound { .. })
                if shared.note(&id).await?.is_none_or(|now| now.token != note.token) =>
            {
                return Err(Error::not_found(at));
            }
            Err(object_store::Error::NotFound { .. }) => {
                return Err(Error::new(ErrorKind::Corrupt, "the bytes of the blob are missing"));
            }
            Err(error) => return Err(from_object("look at a blob", error)),
        };
        let mut stat = Stat::new(found.size);
        stat.meta = Some(note.meta);
        Ok(Arc::new(ObjectDownload { shared, data, etag: found.e_tag, stat }))
    }

    async fn delete(&self, at: &Location) -> Result<()> {
        let (shared, at) = (Arc::clone(&self.shared), at.clone());
        // A task of its own: a dropped future must not leave the bytes behind.
        Request::spawn(async move { shared.delete(&at).await }).await
    }

    fn list(&self) -> BoxStream<'_, Result<Entry>> {
        let shared = &*self.shared;
        let notes = shared.objects.list(Some(&shared.place.folder(Folder::Blob)));
        notes
            .map_err(|error| from_object("list blobs", error))
            .try_filter_map(|note| std::future::ready(Ok(shared.place.id(&note.location))))
            .map_ok(move |id| async move {
                // One that was deleted since it was listed is no error.
                let Some(note) = shared.note(&id).await? else { return Ok(None) };
                Ok(Some(Entry::new(id.clone(), shared.place.location(&id)?, note.meta.size)))
            })
            .try_buffer_unordered(NOTES_AT_ONCE)
            .try_filter_map(|entry| std::future::ready(Ok(entry)))
            .boxed()
    }

    async fn sweep(&self, age: Duration) -> Result<Swept> {
        self.shared.sweep(age).await
    }

    async fn capacity(&self) -> Result<Capacity> {
        Err(Error::unsupported("measuring the space left: object stores have no request for it"))
    }

    async fn presign(&self, _: &Location, _: Duration) -> Result<Secret> {
        Err(Error::unsupported("URLs for its blobs"))
    }
}

struct ObjectDownload {
    shared: Arc<Shared>,
    data: Path,
    etag: Option<String>,
    stat: Stat,
}

impl fmt::Debug for ObjectDownload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectDownload").field("data", &self.data).finish_non_exhaustive()
    }
}

#[async_trait]
impl Download for ObjectDownload {
    fn stat(&self) -> &Stat {
        &self.stat
    }

    async fn read(&self, range: Range<u64>) -> Result<ChunkStream> {
        // Storages refuse an empty range.
        if range.is_empty() {
            return Ok(stream::empty().boxed());
        }
        let (objects, data, etag) = (Arc::clone(&self.shared.objects), self.data.clone(), self.etag.clone());
        let piece = self.shared.pool.size() as u64;
        let pieces = (range.start..range.end)
            .step_by(piece as usize)
            .map(move |start| start..range.end.min(start + piece));
        let gets = pieces.map(move |piece| {
            let (objects, data, etag) = (Arc::clone(&objects), data.clone(), etag.clone());
            async move { get(&*objects, &data, etag, piece).await }
        });
        Ok(read_ahead(gets, self.shared.concurrency).map_ok(Chunk::Data).boxed())
    }

    fn file(&self) -> Option<&Arc<File>> {
        None
    }
}

/// Reads `range`, exactly.
async fn get(
    objects: &dyn ObjectStore,
    data: &Path,
    etag: Option<String>,
    range: Range<u64>,
) -> Result<bytes::Bytes> {
    let wanted = range.end - range.start;
    let options =
        GetOptions { range: Some(GetRange::Bounded(range)), if_match: etag, ..GetOptions::default() };
    let read = async { objects.get_opts(data, options).await?.bytes().await };
    let bytes = read.await.map_err(|error| from_object("read a blob", error))?;
    match bytes.len() as u64 == wanted {
        true => Ok(bytes),
        false => {
            let text = format!("cannot read a blob: {} bytes came of {wanted}", bytes.len());
            Err(Error::new(ErrorKind::Unavailable, text))
        }
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    #[tokio::test]
    async fn an_image_that_is_too_long_is_refused_at_once() {
        let place = Place { name: "az/images".into(), prefix: Path::default() };
        let config = ObjectConfig::new("memory:///");
        let backend = ObjectBackend::over(Arc::new(InMemory::new()), place, &config, Some(10)).await.unwrap();
        let id = BlobId::random();
        let long = backend.begin(&id, SizeHint::exactly((80 << 20) + 1)).await.map(drop).unwrap_err();
        assert_eq!((long.kind(), long.hint()), (ErrorKind::Unsupported, Some("set `part_size` to 9MiB")));
        let mut fits = backend.begin(&id, SizeHint::exactly(80 << 20)).await.unwrap();
        fits.abort().await.unwrap();
    }

    #[tokio::test]
    async fn what_cannot_be_opened_says_what_to_change() {
        let mut wrong = ObjectConfig::new("az://images");
        wrong.options = [("azure_storage_account_name", "acme"), ("timeout", "soon")]
            .map(|(key, value)| (key.to_owned(), Secret::new(value)))
            .into();
        let error = ObjectBackend::connect(&wrong).await.unwrap_err();
        assert_eq!((error.kind(), error.hint()), (ErrorKind::Invalid, Some("check `url` and `options`")));
        if !cfg!(feature = "gcp") {
            let error = ObjectBackend::connect(&ObjectConfig::new("gs://images")).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert_eq!(error.hint(), Some("build with the Cargo feature `gcp`"));
        }
    }
}
