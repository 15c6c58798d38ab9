//! Wrong on the way in.

use std::{
    collections::BTreeSet,
    fs::File,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use store_core::{
    BlobId, Capacity, Chunk, Entry, Error, ErrorKind, Location, Meta, Result, SizeHint, Swept, Upload,
};

use super::{Going, Inner, Twist, wrong};

wrong! {
    AbortDoesNothing => abort_does_nothing, caught by an_aborted_upload_leaves_nothing;
    AbortDoesNothing => a_drop_does_nothing, caught by a_dropped_upload_leaves_nothing;
    AbortTakesTheRival => abort_takes_the_rivals_blob, caught by a_lost_race_leaves_only_the_winner;
    AbortKeepsWhatIsThere => abort_keeps_what_is_there, caught by a_source_that_ends_early_is_corrupt;
    SweepLies => sweep_lies, caught by a_forgotten_upload_is_found_by_a_sweep;
    SweepEatsBlobs => sweep_eats_blobs, caught by a_sweep_spares_every_committed_blob;
    SweepTakesTheLiving => sweep_takes_live_uploads, caught by a_sweep_spares_a_live_upload;
    SweptComesBack => a_swept_upload_comes_back, caught by a_swept_upload_cannot_be_finished;
    LastWriterWins => the_last_writer_wins, caught by a_taken_id_is_refused;
    FirstLookDecides => only_the_first_look_decides, caught by the_second_of_two_open_uploads_loses;
    FirstLookDecides => rivals_overwrite_each_other, caught by of_8_simultaneous_commits_one_wins;
    VisibleWhileStaged::default() => visible_while_staged, caught by an_unfinished_upload_is_invisible;
    ListedWhileStaged::default() => listed_while_staged, caught by uploads_under_way_are_not_listed;
    LosesAChunk => loses_a_chunk, caught by blobs_around_several_chunks_come_back;
    LosesTheTail => loses_the_tail, caught by blobs_around_one_chunk_come_back;
    AdoptsNothing => adopts_nothing, caught by a_local_file_becomes_a_blob;
    NothingIsAnError => nothing_is_an_error, caught by an_empty_blob_comes_back;
    NeedsTheSize => needs_the_size, caught by a_blob_of_unknown_size_comes_back;
    WrapsAt32MiB => wraps_at_32_mib, caught by a_blob_of_64_mib_comes_back;
    HoldsEverything => holds_everything, caught by a_source_is_not_read_far_ahead;
    SkipsHoles => skips_holes, caught by a_sparse_source_comes_back;
    FillsHoles => fills_holes, caught by holes_take_no_space;
    ForgetsACancelledCommit => forgets_a_cancelled_commit, caught by a_finish_cancelled_anywhere_leaves_nothing;
    ForgetsACancelledBegin => forgets_a_cancelled_begin, caught by a_put_cancelled_anywhere_leaves_nothing;
    ForgetsACancelledAbort => forgets_a_cancelled_abort, caught by an_abort_cancelled_anywhere_leaves_nothing;
    KeepsTheSpace::default() => keeps_the_space, caught by an_aborted_upload_gives_its_space_back;
    CopiesNothing => copies_nothing, caught by a_copy_is_whole;
    FillsCopies => fills_the_holes_of_copies, caught by a_copy_is_as_sparse_as_its_original;
    LosesNotesOfCopies => loses_the_notes_of_copies, caught by a_copy_keeps_what_is_kept_with_the_blob;
    MovesInsteadOfCopying => moves_instead_of_copying, caught by a_copy_and_its_original_can_both_be_deleted;
    LastWriterWins => a_copy_overwrites, caught by a_copy_replaces_nothing;
    ForgetsACancelledCommit => forgets_a_cancelled_copy, caught by a_copy_cancelled_anywhere_leaves_nothing;
    ForgetsOnCrash => forgets_on_a_crash, caught by a_blob_survives_a_crash_of_the_storage;
}

#[derive(Debug)]
struct AbortDoesNothing;

#[async_trait]
impl Twist for AbortDoesNothing {
    async fn abort(&self, _: &mut Going) -> Result<()> {
        Ok(())
    }
}

/// Says that it has copied.
#[derive(Debug)]
struct CopiesNothing;

#[async_trait]
impl Twist for CopiesNothing {
    async fn copy(&self, _: &mut Going, _: &Location, _: u64) -> Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct FillsCopies;

#[async_trait]
impl Twist for FillsCopies {
    async fn copy(&self, upload: &mut Going, from: &Location, size: u64) -> Result<()> {
        let mut chunks = upload.backend.open(from).await?.read(0..size).await?;
        while let Some(chunk) = chunks.try_next().await? {
            for bytes in chunk.into_bytes() {
                upload.inner.write(Chunk::Data(bytes)).await?;
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
struct LosesNotesOfCopies;

#[async_trait]
impl Twist for LosesNotesOfCopies {
    async fn commit(&self, upload: &mut Going, meta: &Meta) -> Result<Location> {
        let copied = upload.written == 0 && meta.size > 0;
        let mut kept = meta.clone();
        if copied {
            kept.properties.clear();
        }
        upload.inner.commit(&kept).await
    }
}

#[derive(Debug)]
struct MovesInsteadOfCopying;

#[async_trait]
impl Twist for MovesInsteadOfCopying {
    async fn copy(&self, upload: &mut Going, from: &Location, size: u64) -> Result<()> {
        upload.inner.copy(from, size).await?;
        upload.backend.delete(from).await
    }
}

#[derive(Debug)]
struct AbortTakesTheRival;

#[async_trait]
impl Twist for AbortTakesTheRival {
    async fn abort(&self, upload: &mut Going) -> Result<()> {
        if let Ok(at) = upload.backend.locate(&upload.id).await {
            upload.backend.delete(&at).await?;
        }
        upload.inner.abort().await
    }
}

#[derive(Debug)]
struct AbortKeepsWhatIsThere;

#[async_trait]
impl Twist for AbortKeepsWhatIsThere {
    async fn abort(&self, upload: &mut Going) -> Result<()> {
        match upload.inner.commit(&Meta::new(upload.written)).await {
            Ok(_) => Ok(()),
            Err(_) => upload.inner.abort().await,
        }
    }
}

#[derive(Debug)]
struct SweepLies;

#[async_trait]
impl Twist for SweepLies {
    async fn sweep(&self, _: &Inner, _: Duration) -> Result<Swept> {
        Ok(Swept::default())
    }
}

#[derive(Debug)]
struct SweepEatsBlobs;

#[async_trait]
impl Twist for SweepEatsBlobs {
    async fn sweep(&self, inner: &Inner, age: Duration) -> Result<Swept> {
        let entries: Vec<Entry> = inner.list().try_collect().await?;
        for entry in entries.iter().take(1) {
            inner.delete(&entry.location).await?;
        }
        inner.sweep(age).await
    }
}

#[derive(Debug)]
struct SweepTakesTheLiving;

#[async_trait]
impl Twist for SweepTakesTheLiving {
    async fn sweep(&self, inner: &Inner, _: Duration) -> Result<Swept> {
        inner.sweep(Duration::ZERO).await
    }
}

/// Finds its upload gone, and makes do with a new one.
#[derive(Debug)]
struct SweptComesBack;

#[async_trait]
impl Twist for SweptComesBack {
    async fn write(&self, upload: &mut Going, chunk: Chunk) -> Result<()> {
        match upload.inner.write(chunk.clone()).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                upload.inner = upload.backend.begin(&upload.id, upload.size).await?;
                upload.inner.write(chunk).await
            }
            outcome => outcome,
        }
    }
}

async fn make_room(upload: &mut Going) -> Result<()> {
    match upload.backend.locate(&upload.id).await {
        Ok(at) => upload.backend.delete(&at).await,
        Err(_) => Ok(()),
    }
}

#[derive(Debug)]
struct LastWriterWins;

#[async_trait]
impl Twist for LastWriterWins {
    async fn begin(&self, inner: &Inner, id: &BlobId, size: SizeHint) -> Result<Box<dyn Upload>> {
        if let Ok(at) = inner.locate(id).await {
            inner.delete(&at).await?;
        }
        inner.begin(id, size).await
    }

    async fn commit(&self, upload: &mut Going, meta: &Meta) -> Result<Location> {
        make_room(upload).await?;
        upload.inner.commit(meta).await
    }
}

#[derive(Debug)]
struct FirstLookDecides;

#[async_trait]
impl Twist for FirstLookDecides {
    async fn commit(&self, upload: &mut Going, meta: &Meta) -> Result<Location> {
        make_room(upload).await?;
        upload.inner.commit(meta).await
    }
}

#[derive(Debug, Default)]
struct VisibleWhileStaged(Mutex<BTreeSet<BlobId>>);

#[async_trait]
impl Twist for VisibleWhileStaged {
    async fn begin(&self, inner: &Inner, id: &BlobId, size: SizeHint) -> Result<Box<dyn Upload>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone());
        inner.begin(id, size).await
    }

    async fn locate(&self, inner: &Inner, id: &BlobId) -> Result<Location> {
        let begun = self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(id);
        if begun { format!("memory://{id}").parse() } else { inner.locate(id).await }
    }
}

/// Under the name of its staging place, as a directory shows it that is listed whole.
#[derive(Debug, Default)]
struct ListedWhileStaged(Mutex<Vec<BlobId>>);

#[async_trait]
impl Twist for ListedWhileStaged {
    async fn begin(&self, inner: &Inner, id: &BlobId, size: SizeHint) -> Result<Box<dyn Upload>> {
        let staged = format!("{id}.part").parse()?;
        let upload = inner.begin(id, size).await?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(staged);
        Ok(upload)
    }

    fn list<'a>(&'a self, inner: &'a Inner) -> BoxStream<'a, Result<Entry>> {
        let staged = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let staged = staged.into_iter().map(|id| {
            let at = format!("memory://{id}").parse()?;
            Ok(Entry::new(id, at, 0))
        });
        inner.list().chain(futures::stream::iter(staged)).boxed()
    }
}

#[derive(Debug)]
struct LosesAChunk;

#[async_trait]
impl Twist for LosesAChunk {
    async fn write(&self, upload: &mut Going, chunk: Chunk) -> Result<()> {
        // The second one is said to be stored, and is not; zeros stand in its place.
        let chunk = if upload.written == 1 << 20 { Chunk::Zeros(chunk.len()) } else { chunk };
        upload.inner.write(chunk).await
    }
}

#[derive(Debug)]
struct LosesTheTail;

#[async_trait]
impl Twist for LosesTheTail {
    async fn write(&self, upload: &mut Going, chunk: Chunk) -> Result<()> {
        match chunk {
            Chunk::Data(bytes) if bytes.len() % 4096 == 1 => {
                upload.inner.write(Chunk::Data(bytes.slice(..bytes.len() - 1))).await
            }
            chunk => upload.inner.write(chunk).await,
        }
    }
}

/// Says that it shares the blocks of a file, and does not.
#[derive(Debug)]
struct AdoptsNothing;

#[async_trait]
impl Twist for AdoptsNothing {
    async fn adopt(&self, _: &mut Going, source: &Arc<File>) -> Result<Option<Arc<File>>> {
        Ok(Some(Arc::clone(source)))
    }
}

#[derive(Debug)]
struct NothingIsAnError;

#[async_trait]
impl Twist for NothingIsAnError {
    async fn commit(&self, upload: &mut Going, meta: &Meta) -> Result<Location> {
        if upload.written == 0 {
            return Err(Error::new(ErrorKind::Invalid, "an upload needs at least one part"));
        }
        upload.inner.commit(meta).await
    }
}

#[derive(Debug)]
struct NeedsTheSize;

#[async_trait]
impl Twist for NeedsTheSize {
    async fn begin(&self, inner: &Inner, id: &BlobId, size: SizeHint) -> Result<Box<dyn Upload>> {
        if size.total.is_none() {
            return Err(Error::new(ErrorKind::Invalid, "a length is required"));
        }
        inner.begin(id, size).await
    }
}

#[derive(Debug)]
struct WrapsAt32MiB;

#[async_trait]
impl Twist for WrapsAt32MiB {
    async fn write(&self, upload: &mut Going, chunk: Chunk) -> Result<()> {
        match chunk {
            Chunk::Data(bytes) if upload.written == 32 << 20 => {
                let mut bytes = bytes.to_vec();
                bytes.reverse();
                upload.inner.write(Chunk::Data(Bytes::from(bytes))).await
            }
            chunk => upload.inner.write(chunk).await,
        }
    }
}

#[derive(Debug)]
struct HoldsEverything;

#[async_trait]
impl Twist for HoldsEverything {
    async fn write(&self, upload: &mut Going, chunk: Chunk) -> Result<()> {
        upload.held.push(chunk);
        Ok(())
    }

    async fn commit(&self, upload: &mut Going, meta: &Meta) -> Result<Location> {
        for chunk in std::mem::take(&mut upload.held) {
            upload.inner.write(chunk).await?;
        }
        upload.inner.commit(meta).await
    }
}

#[derive(Debug)]
struct SkipsHoles;

#[async_trait]
impl Twist for SkipsHoles {
    async fn write(&self, upload: &mut Going, chunk: Chunk) -> Result<()> {
        match chunk {
            Chunk::Zeros(_) => Ok(()),
            chunk => upload.inner.write(chunk).await,
        }
    }
}

#[derive(Debug)]
struct FillsHoles;

#[async_trait]
impl Twist for FillsHoles {
    async fn write(&self, upload: &mut Going, chunk: Chunk) -> Result<()> {
        for bytes in chunk.into_bytes() {
            upload.inner.write(Chunk::Data(bytes)).await?;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct ForgetsACancelledCommit;

#[async_trait]
impl Twist for ForgetsACancelledCommit {
    async fn commit(&self, upload: &mut Going, meta: &Meta) -> Result<Location> {
        let at = upload.inner.commit(meta).await?;
        // The reply is under way; the abort of who does not wait for it finds nothing staged any more.
        upload.inner = upload.backend.begin(&BlobId::random(), SizeHint::default()).await?;
        tokio::task::yield_now().await;
        upload.inner.abort().await?;
        Ok(at)
    }
}

#[derive(Debug)]
struct ForgetsACancelledBegin;

#[async_trait]
impl Twist for ForgetsACancelledBegin {
    async fn begin(&self, inner: &Inner, id: &BlobId, size: SizeHint) -> Result<Box<dyn Upload>> {
        let upload = inner.begin(id, size).await?;
        tokio::task::yield_now().await;
        Ok(upload)
    }
}

/// Begins only once to remove what it staged.
#[derive(Debug)]
struct ForgetsACancelledAbort;

#[async_trait]
impl Twist for ForgetsACancelledAbort {
    async fn abort(&self, upload: &mut Going) -> Result<()> {
        upload.held.push(Chunk::Zeros(1));
        if upload.held.len() > 1 {
            return Ok(());
        }
        tokio::task::yield_now().await;
        upload.inner.abort().await
    }
}

#[derive(Debug, Default)]
struct KeepsTheSpace(Mutex<u64>);

#[async_trait]
impl Twist for KeepsTheSpace {
    async fn write(&self, upload: &mut Going, chunk: Chunk) -> Result<()> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) += chunk.len();
        upload.inner.write(chunk).await
    }

    async fn capacity(&self, inner: &Inner) -> Result<Capacity> {
        let Capacity { total, .. } = inner.capacity().await?;
        Ok(Capacity { total, free: total - *self.0.lock().unwrap_or_else(PoisonError::into_inner) })
    }
}

#[derive(Debug)]
struct ForgetsOnCrash;

#[async_trait]
impl Twist for ForgetsOnCrash {
    async fn crash(&self, inner: &Inner) -> Result<()> {
        let entries: Vec<Entry> = inner.list().try_collect().await?;
        for entry in entries {
            inner.delete(&entry.location).await?;
        }
        Ok(())
    }
}
