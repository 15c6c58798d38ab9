use std::{collections::BTreeSet, fmt};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures::{
    SinkExt, StreamExt, TryStreamExt,
    channel::{mpsc, oneshot},
    stream::BoxStream,
};
use object_store::{
    Attribute, Attributes, CopyMode, CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result, UploadPart, path::Path,
};
use store_core::{BlobId, ErrorKind, Expect, Location, Meta, Store, Writer};
use tokio::task::JoinHandle;

const NAME: &str = "imagestore";

/// Descriptions that a list reads at once.
const STATS_AT_ONCE: usize = 16;

/// Objects over one of our stores: for programs that speak `object_store`.
///
/// A path becomes a blob's id: letters, digits, dots and dashes stand for themselves, all else is written as `_` and two
/// hexadecimal digits. Blobs of other names are not shown.
#[derive(Clone, Debug)]
pub struct StoreObjects {
    store: Store,
}

impl StoreObjects {
    /// Objects in `store`, which has to keep metadata with its blobs.
    pub fn new(store: Store) -> store_core::Result<Self> {
        match store.info().can.metadata {
            true => Ok(Self { store }),
            false => Err(store_core::Error::new(
                ErrorKind::Unsupported,
                "objects have a time and attributes, for which this store has no place",
            )),
        }
    }

    async fn find(&self, path: &Path) -> Result<Location> {
        self.store.locate(&id_of(path)?).await.map_err(|error| into_object(path, error))
    }

    async fn write(
        &self,
        id: &BlobId,
        payload: PutPayload,
        attributes: &Attributes,
    ) -> store_core::Result<Meta> {
        let size = payload.content_length() as u64;
        let source = futures::stream::iter(payload.into_iter().map(Ok));
        Ok(self.store.put(id, source, expect(attributes)?.size(size)).await?.meta)
    }

    async fn remove(&self, id: &BlobId) -> store_core::Result<()> {
        let gone = async { self.store.delete(&self.store.locate(id).await?).await };
        match gone.await {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    async fn copy_to(&self, from: &Location, id: &BlobId, mode: CopyMode) -> store_core::Result<()> {
        loop {
            match self.store.copy(from, id, |_| {}).await {
                Err(error) if error.kind() == ErrorKind::AlreadyExists && mode == CopyMode::Overwrite => {
                    self.remove(id).await?;
                }
                outcome => return outcome.map(drop),
            }
        }
    }
}

impl fmt::Display for StoreObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "imagestore({})", self.store.name())
    }
}

#[async_trait]
impl ObjectStore for StoreObjects {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let id = id_of(path)?;
        if let PutMode::Update(_) = options.mode {
            return Err(not_implemented("updating an object"));
        }
        if !options.tags.encoded().is_empty() {
            return Err(not_implemented("tags"));
        }
        loop {
            match self.write(&id, payload.clone(), &options.attributes).await {
                Ok(meta) => return Ok(put_result(&meta)),
                Err(error)
                    if error.kind() == ErrorKind::AlreadyExists && options.mode == PutMode::Overwrite =>
                {
                    self.remove(&id).await.map_err(|error| into_object(path, error))?;
                }
                Err(error) => return Err(into_object(path, error)),
            }
        }
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        if !options.tags.encoded().is_empty() {
            return Err(not_implemented("tags"));
        }
        let id = id_of(path)?;
        let taken = match self.store.locate(&id).await {
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => return Err(into_object(path, error)),
        };
        // What is there stays there until the new bytes are complete.
        let written = if taken { BlobId::random() } else { id.clone() };
        let expect = expect(&options.attributes).map_err(|error| into_object(path, error))?;
        let writer = self.store.upload(&written, expect).await.map_err(|error| into_object(path, error))?;
        let (parts, received) = mpsc::unbounded();
        let writing = tokio::spawn(write_parts(writer, received));
        Ok(Box::new(Parts {
            objects: self.clone(),
            path: path.clone(),
            id,
            written,
            parts: Some(parts),
            writing: Some(writing),
        }))
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        if options.version.is_some() {
            return Err(not_implemented("versions"));
        }
        let at = self.find(path).await?;
        let reader = self.store.open(&at).await.map_err(|error| into_object(path, error))?;
        let kept = reader.stat().meta.as_ref().ok_or_else(|| no_metadata(path))?;
        let (meta, attributes) = (object_meta(path, kept), attributes_of(kept));
        options.check_preconditions(&meta)?;
        let range = match &options.range {
            Some(range) => range.as_range(meta.size).map_err(generic)?,
            None => 0..meta.size,
        };
        let stream = match options.head || range.is_empty() {
            true => futures::stream::empty().boxed(),
            false => {
                let (stream, path) = (reader.stream(range.clone()), path.clone());
                let stream = stream.map_err(|error| into_object(&path, error))?;
                stream.map_err(move |error| into_object(&path, error)).boxed()
            }
        };
        let payload = GetResultPayload::Stream(stream);
        Ok(GetResult { payload, meta, range, attributes, extensions: Default::default() })
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let objects = self.clone();
        paths
            .and_then(move |path| {
                let objects = objects.clone();
                async move {
                    objects.remove(&id_of(&path)?).await.map_err(|error| into_object(&path, error))?;
                    Ok(path)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (store, prefix) = (self.store.clone(), prefix.cloned().unwrap_or_default());
        let (mut found, listed) = mpsc::channel(STATS_AT_ONCE);
        // A task of its own, since the store's list borrows the store. It ends when nobody listens any more.
        tokio::spawn(async move {
            let store = &store;
            let mut entries = store
                .list()
                .map_err(|error| into_object(&Path::default(), error))
                .try_filter_map(|entry| {
                    let path = path_of(&entry.id).filter(|path| is_within(path, &prefix));
                    std::future::ready(Ok(path.map(|path| (path, entry.location))))
                })
                .map_ok(|(path, at)| async move {
                    match store.stat(&at).await {
                        Ok(stat) => Ok(stat.meta.map(|meta| object_meta(&path, &meta))),
                        // It was deleted since it was listed.
                        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                        Err(error) => Err(into_object(&path, error)),
                    }
                })
                .try_buffer_unordered(STATS_AT_ONCE)
                .try_filter_map(|meta| std::future::ready(Ok(meta)))
                .boxed();
            while let Some(object) = entries.next().await {
                if found.send(object).await.is_err() {
                    break;
                }
            }
        });
        listed.boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let prefix = prefix.cloned().unwrap_or_default();
        let (mut objects, mut folders) = (Vec::new(), BTreeSet::new());
        let mut all = self.list(Some(&prefix));
        while let Some(object) = all.try_next().await? {
            let mut parts = object.location.prefix_match(&prefix).into_iter().flatten();
            let (first, deeper) = (parts.next(), parts.next().is_some());
            match first {
                Some(folder) if deeper => drop(folders.insert(prefix.clone().join(folder))),
                Some(_) => {
                    drop(parts);
                    objects.push(object);
                }
                None => {}
            }
        }
        let common_prefixes = folders.into_iter().collect();
        Ok(ListResult { objects, common_prefixes, extensions: Default::default() })
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let at = self.find(from).await?;
        // Over itself there is nothing to do, and the first step would be to delete it.
        if from == to && options.mode == CopyMode::Overwrite {
            return Ok(());
        }
        self.copy_to(&at, &id_of(to)?, options.mode).await.map_err(|error| into_object(to, error))
    }
}

type Part = (PutPayload, oneshot::Sender<()>);

/// An upload whose parts are written in the order in which they were made.
#[derive(Debug)]
struct Parts {
    objects: StoreObjects,
    path: Path,
    id: BlobId,
    /// Another one than `id` if that was taken.
    written: BlobId,
    parts: Option<mpsc::UnboundedSender<Part>>,
    writing: Option<JoinHandle<store_core::Result<Writer>>>,
}

async fn write_parts(
    mut writer: Writer,
    mut parts: mpsc::UnboundedReceiver<Part>,
) -> store_core::Result<Writer> {
    while let Some((payload, done)) = parts.next().await {
        for bytes in payload {
            writer.write(bytes).await?;
        }
        let _ = done.send(()); // Nobody has to wait for it.
    }
    Ok(writer)
}

impl Parts {
    /// The writer, when all parts have been written.
    async fn writer(&mut self) -> Result<Writer> {
        self.parts = None;
        let writing = self.writing.take().ok_or_else(|| generic("the upload is over"))?;
        writing.await.map_err(generic)?.map_err(|error| into_object(&self.path, error))
    }

    async fn replace(&self, at: &Location) -> store_core::Result<Meta> {
        self.objects.copy_to(at, &self.id, CopyMode::Overwrite).await?;
        self.objects.store.delete(at).await?;
        let now = self.objects.store.locate(&self.id).await?;
        let stat = self.objects.store.stat(&now).await?;
        stat.meta.ok_or_else(|| store_core::Error::new(ErrorKind::Internal, "a copy without its metadata"))
    }
}

#[async_trait]
impl MultipartUpload for Parts {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (done, written) = oneshot::channel();
        let sent = self.parts.as_ref().is_some_and(|parts| parts.unbounded_send((data, done)).is_ok());
        Box::pin(async move {
            match sent && written.await.is_ok() {
                true => Ok(()),
                // The reason comes with `complete`.
                false => Err(generic("the part was not written; the upload has failed")),
            }
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let writer = self.writer().await?;
        // Of two uploads of a path that was free, the first one wins.
        let blob = writer.finish().await.map_err(generic)?;
        if self.written == self.id {
            return Ok(put_result(&blob.meta));
        }
        match self.replace(&blob.location).await {
            Ok(meta) => Ok(put_result(&meta)),
            Err(error) => {
                // The old object may be gone by now: then the new bytes are all there is.
                if self.objects.store.locate(&self.id).await.is_ok() {
                    let _ = self.objects.store.delete(&blob.location).await;
                } else {
                    tracing::warn!(blob = %blob.location, "an object could not be replaced; its new bytes are here");
                }
                Err(into_object(&self.path, error))
            }
        }
    }

    async fn abort(&mut self) -> Result<()> {
        match self.writer().await {
            Ok(writer) => writer.abort().await.map_err(|error| into_object(&self.path, error)),
            // It has failed, and has cleaned up.
            Err(_) => Ok(()),
        }
    }
}

fn is_within(path: &Path, prefix: &Path) -> bool {
    path.prefix_match(prefix).is_some_and(|mut rest| rest.next().is_some())
}

/// The id of the blob that an object is.
fn id_of(path: &Path) -> Result<BlobId> {
    let mut id = String::new();
    for byte in path.as_ref().bytes() {
        let plain = byte.is_ascii_alphanumeric() || (b".-".contains(&byte) && !id.is_empty());
        match plain {
            true => id.push(char::from(byte)),
            false => id.push_str(&format!("_{byte:02x}")),
        }
    }
    id.parse().map_err(|error: store_core::Error| Error::NotSupported { source: error.into() })
}

/// The path of the object that a blob is, if it is one.
fn path_of(id: &BlobId) -> Option<Path> {
    let mut bytes = Vec::new();
    let mut rest = id.as_str().bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'_' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            plain => plain,
        });
    }
    let path = Path::parse(String::from_utf8(bytes).ok()?).ok()?;
    // Each object has one id.
    (id_of(&path).ok().as_ref() == Some(id)).then_some(path)
}

fn object_meta(path: &Path, meta: &Meta) -> ObjectMeta {
    let nanos = u32::try_from(meta.created.subsec_nanosecond()).unwrap_or_default();
    let last_modified: DateTime<Utc> =
        DateTime::from_timestamp(meta.created.as_second(), nanos).unwrap_or_default();
    ObjectMeta {
        location: path.clone(),
        last_modified,
        size: meta.size,
        e_tag: Some(etag(meta)),
        version: None,
    }
}

/// No two blobs of one id were committed in the same nanosecond.
fn etag(meta: &Meta) -> String {
    format!("\"{:x}-{:x}\"", meta.created.as_nanosecond(), meta.size)
}

fn put_result(meta: &Meta) -> PutResult {
    PutResult { e_tag: Some(etag(meta)), version: None, extensions: Default::default() }
}

/// Attributes become properties, which all stores keep.
fn expect(attributes: &Attributes) -> store_core::Result<Expect> {
    attributes.iter().try_fold(Expect::new(), |expect, (name, value)| {
        let name = match name {
            Attribute::Metadata(name) => format!("object.metadata.{name}"),
            known => format!(
                "object.{}",
                known_name(known).ok_or_else(|| store_core::Error::unsupported("this attribute"))?
            ),
        };
        Ok(expect.property(name, &**value))
    })
}

fn attributes_of(meta: &Meta) -> Attributes {
    let known = KNOWN.iter().filter_map(|(name, attribute)| {
        Some((attribute.clone(), meta.properties.get(&format!("object.{name}"))?.clone()))
    });
    let own = meta.properties.iter().filter_map(|(name, value)| {
        let name = name.strip_prefix("object.metadata.")?;
        Some((Attribute::Metadata(name.to_owned().into()), value.clone()))
    });
    known.chain(own).collect()
}

const KNOWN: [(&str, Attribute); 6] = [
    ("cache-control", Attribute::CacheControl),
    ("content-disposition", Attribute::ContentDisposition),
    ("content-encoding", Attribute::ContentEncoding),
    ("content-language", Attribute::ContentLanguage),
    ("content-type", Attribute::ContentType),
    ("storage-class", Attribute::StorageClass),
];

fn known_name(attribute: &Attribute) -> Option<&'static str> {
    KNOWN.iter().find(|(_, known)| known == attribute).map(|(name, _)| *name)
}

fn into_object(path: &Path, error: store_core::Error) -> Error {
    let path = path.to_string();
    match error.kind() {
        ErrorKind::NotFound => Error::NotFound { path, source: error.into() },
        ErrorKind::AlreadyExists => Error::AlreadyExists { path, source: error.into() },
        ErrorKind::Denied => Error::PermissionDenied { path, source: error.into() },
        ErrorKind::Unsupported => Error::NotSupported { source: error.into() },
        _ => generic(error),
    }
}

fn generic(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Generic { store: NAME, source: source.into() }
}

fn not_implemented(operation: &str) -> Error {
    Error::NotImplemented { operation: operation.to_owned(), implementer: NAME.to_owned() }
}

fn no_metadata(path: &Path) -> Error {
    generic(format!("{path} was not written by a store: it has no time"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_path_comes_back(text in "\\PC{1,10}") {
            let path = Path::from(text);
            prop_assume!(!path.as_ref().is_empty());
            let id = id_of(&path).unwrap();
            prop_assert_eq!(path_of(&id), Some(path));
        }

        #[test]
        fn no_id_makes_a_parser_panic(id in "[A-Za-z0-9_][A-Za-z0-9._-]{0,60}") {
            let _ = path_of(&id.parse().unwrap());
        }
    }
}
