//! Wrong when the storage goes away.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use store_core::{BlobId, Chunk, ChunkStream, Download, Entry, Error, ErrorKind, Location, Meta, Result};

use crate::Fault;

use super::{Going, Inner, Twist, wrong};

wrong! {
    AwayIsMissing => away_is_missing, caught by a_storage_that_is_away_is_unavailable;
    AwayIsEmpty => away_is_empty, caught by a_list_of_a_storage_that_is_away_is_no_empty_list;
    BrokenIsTheEnd => broken_is_the_end, caught by a_read_of_a_storage_that_is_away_is_unavailable;
    ResumesAtTheStart::default() => resumes_at_the_start, caught by a_download_goes_on_after_a_cut;
    BreaksAreBugs => breaks_are_bugs, caught by a_download_cut_at_any_byte_is_exact_or_unavailable;
    GivesUpAtOnce::default() => gives_up_at_once, caught by an_upload_goes_on_after_a_cut;
    LosesWhatWasCut::default() => loses_what_was_cut, caught by an_upload_cut_at_any_byte_is_whole_or_absent;
    GuessesTheReply => guesses_the_reply, caught by a_commit_whose_reply_gets_lost_is_looked_up;
    LosesToItself => loses_to_itself, caught by an_upload_whose_replies_get_lost_is_whole_or_absent;
    DeletionIsLost => deletion_is_lost, caught by a_deletion_whose_reply_gets_lost_is_no_error;
    StalledComesThrough::default() => what_stalled_comes_through, caught by a_stalled_upload_ends_at_its_deadline;
    Impatient => impatient, caught by a_slow_storage_is_waited_for;
}

fn away(error: Error, kind: ErrorKind) -> Error {
    if error.is_retryable() { Error::new(kind, "there is no answer").with_source(error) } else { error }
}

#[derive(Debug)]
struct AwayIsMissing;

#[async_trait]
impl Twist for AwayIsMissing {
    async fn locate(&self, inner: &Inner, id: &BlobId) -> Result<Location> {
        inner.locate(id).await.map_err(|error| away(error, ErrorKind::NotFound))
    }
}

#[derive(Debug)]
struct AwayIsEmpty;

impl Twist for AwayIsEmpty {
    fn list<'a>(&'a self, inner: &'a Inner) -> BoxStream<'a, Result<Entry>> {
        inner.list().take_while(|entry| std::future::ready(entry.is_ok())).boxed()
    }
}

/// Fills up what does not come with zeros.
#[derive(Debug)]
struct BrokenIsTheEnd;

#[async_trait]
impl Twist for BrokenIsTheEnd {
    async fn read(&self, download: &Arc<dyn Download>, range: Range<u64>) -> Result<ChunkStream> {
        let len = range.end - range.start;
        let Ok(chunks) = download.read(range).await else {
            return Ok(stream::iter([Ok(Chunk::Zeros(len))]).boxed());
        };
        let filled = chunks.scan(len, |left, chunk| {
            let chunk = chunk.unwrap_or(Chunk::Zeros(*left));
            *left -= chunk.len();
            std::future::ready(Some(Ok(chunk)))
        });
        Ok(filled.boxed())
    }
}

/// Ignores where a later read begins.
#[derive(Debug, Default)]
struct ResumesAtTheStart(Mutex<Option<u64>>);

#[async_trait]
impl Twist for ResumesAtTheStart {
    async fn read(&self, download: &Arc<dyn Download>, range: Range<u64>) -> Result<ChunkStream> {
        let first = *self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(range.start);
        download.read(first..first + range.end - range.start).await
    }
}

#[derive(Debug)]
struct BreaksAreBugs;

#[async_trait]
impl Twist for BreaksAreBugs {
    async fn read(&self, download: &Arc<dyn Download>, range: Range<u64>) -> Result<ChunkStream> {
        let chunks = download.read(range).await.map_err(|error| away(error, ErrorKind::Internal))?;
        Ok(chunks.map_err(|error| away(error, ErrorKind::Internal)).boxed())
    }
}

/// Does not send again what got lost, although all of it is still at hand.
#[derive(Debug, Default)]
struct GivesUpAtOnce(AtomicBool);

#[async_trait]
impl Twist for GivesUpAtOnce {
    fn fault(&self, fault: Fault) {
        self.0.fetch_or(fault == Fault::Cut, Ordering::Relaxed);
    }

    async fn write(&self, upload: &mut Going, chunk: Chunk) -> Result<()> {
        match self.0.load(Ordering::Relaxed) {
            true => {
                Err(Error::new(ErrorKind::Unavailable, "the connection that the upload began on is gone"))
            }
            false => upload.inner.write(chunk).await,
        }
    }
}

/// Takes what it handed to a connection for stored.
#[derive(Debug, Default)]
struct LosesWhatWasCut(Mutex<Option<u64>>);

#[async_trait]
impl Twist for LosesWhatWasCut {
    fn fault(&self, fault: Fault) {
        let after = if let Fault::CutAfter(bytes) = fault { Some(bytes) } else { None };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = after;
    }

    async fn write(&self, upload: &mut Going, chunk: Chunk) -> Result<()> {
        let end = upload.written + chunk.len();
        let cut =
            self.0.lock().unwrap_or_else(PoisonError::into_inner).take_if(|after| *after < end).is_some();
        upload.inner.write(if cut { Chunk::Zeros(chunk.len()) } else { chunk }).await
    }
}

/// Takes a lost reply for a failure, and does not look.
#[derive(Debug)]
struct GuessesTheReply;

#[async_trait]
impl Twist for GuessesTheReply {
    async fn commit(&self, upload: &mut Going, meta: &Meta) -> Result<Location> {
        upload.inner.commit(meta).await?;
        upload.backend.capacity().await?;
        upload.backend.locate(&upload.id).await
    }

    async fn abort(&self, _: &mut Going) -> Result<()> {
        Ok(())
    }
}

/// Commits again after a lost reply, and takes its own blob for a rival's.
#[derive(Debug)]
struct LosesToItself;

#[async_trait]
impl Twist for LosesToItself {
    async fn commit(&self, upload: &mut Going, meta: &Meta) -> Result<Location> {
        let at = upload.inner.commit(meta).await?;
        match upload.backend.capacity().await {
            Ok(_) => Ok(at),
            Err(_) => Err(Error::new(ErrorKind::AlreadyExists, "somebody was faster")),
        }
    }
}

#[derive(Debug)]
struct DeletionIsLost;

#[async_trait]
impl Twist for DeletionIsLost {
    async fn delete(&self, inner: &Inner, at: &Location) -> Result<()> {
        inner.delete(at).await.map_err(|error| away(error, ErrorKind::Internal))
    }
}

/// What it had sent before it was told to stop has its effect afterwards.
#[derive(Debug, Default)]
struct StalledComesThrough(AtomicBool);

#[async_trait]
impl Twist for StalledComesThrough {
    fn fault(&self, fault: Fault) {
        self.0.fetch_or(fault == Fault::Stall, Ordering::Relaxed);
    }

    async fn abort(&self, upload: &mut Going) -> Result<()> {
        match self.0.swap(false, Ordering::Relaxed) {
            true => upload.inner.commit(&Meta::new(upload.written)).await.map(drop),
            false => upload.inner.abort().await,
        }
    }
}

/// Takes slowness for a failure.
#[derive(Debug)]
struct Impatient;

#[async_trait]
impl Twist for Impatient {
    async fn write(&self, upload: &mut Going, chunk: Chunk) -> Result<()> {
        let late = |_| Error::new(ErrorKind::Unavailable, "this takes too long");
        tokio::time::timeout(Duration::from_millis(100), upload.inner.write(chunk)).await.map_err(late)?
    }
}
