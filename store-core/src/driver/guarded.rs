use std::{fs::File, sync::Arc};

use async_trait::async_trait;
use tokio::runtime::Handle;

use super::Request;
use crate::{Chunk, Error, ErrorKind, Location, Meta, Result, Upload};

/// The steps of an upload to a storage on a network, of which [`Guarded`] makes an [`Upload`].
///
/// Any future but that of `discard` may be dropped at any await point; `discard` is then the next call, and no other comes
/// after it. So what is under way has to be kept here while it is awaited, in [`InFlight`](super::InFlight) or [`Pending`](super::Pending).
pub trait Steps: Send + 'static {
    /// Leaves in the storage what a sweep finds if this process is killed.
    fn begin(&mut self) -> impl Future<Output = Result<()>> + Send;

    /// See [`Upload::write`].
    fn write(&mut self, chunk: Chunk) -> impl Future<Output = Result<()>> + Send;

    /// See [`Upload::copy`].
    fn copy(&mut self, from: &Location, size: u64) -> impl Future<Output = Result<()>> + Send;

    /// Waits until all bytes are stored, then starts what makes them visible: the commit itself, which is never stopped,
    /// since a request that was sent may be carried out later.
    fn finish(&mut self, meta: &Meta) -> impl Future<Output = Result<Request<()>>> + Send;

    /// Where the blob is once it is committed.
    fn location(&self) -> Result<Location>;

    /// Waits for what is under way, then removes all of the upload and nothing else. If a commit was started, it has
    /// ended, and what became of it has to be looked up: the blob may be this upload's or a rival's.
    ///
    /// Called again if it fails, with what it has left here: so nothing that it needs to find the rest may be taken out.
    fn discard(&mut self, committed: bool) -> impl Future<Output = Result<()>> + Send;
}

/// An upload that undoes what was given up: on `abort`, and in the background where the upload, or the future that
/// begins it, is dropped.
#[derive(Debug)]
pub struct Guarded<S: Steps> {
    /// `None` when the blob is committed or handed to the clean-up.
    steps: Option<S>,
    committing: Option<Request<()>>,
    /// A commit was started, and has not succeeded as far as is known.
    committed: bool,
    /// Gives the steps back, and what has become of the clean-up.
    cleaning: Option<Request<(S, Result<()>)>>,
}

impl<S: Steps> Guarded<S> {
    /// Starts the upload.
    pub async fn begin(steps: S) -> Result<Self> {
        let mut upload = Self { steps: Some(steps), committing: None, committed: false, cleaning: None };
        upload.steps()?.begin().await?;
        Ok(upload)
    }

    fn steps(&mut self) -> Result<&mut S> {
        self.steps.as_mut().ok_or_else(|| Error::new(ErrorKind::Internal, "the upload has ended"))
    }

    /// Hands all that is under way to a task that removes it.
    fn clean(&mut self) -> Option<Request<(S, Result<()>)>> {
        let (mut steps, committed) = (self.steps.take()?, self.committed);
        let committing = self.committing.take();
        Some(Request::spawn(async move {
            if let Some(committing) = committing {
                let _ = committing.await; // What counts is what is there.
            }
            let outcome = steps.discard(committed).await;
            Ok((steps, outcome))
        }))
    }
}

#[async_trait]
impl<S: Steps> Upload for Guarded<S> {
    async fn write(&mut self, chunk: Chunk) -> Result<()> {
        self.steps()?.write(chunk).await
    }

    async fn adopt(&mut self, _: &Arc<File>) -> Result<Option<Arc<File>>> {
        Ok(None)
    }

    async fn copy(&mut self, from: &Location, size: u64) -> Result<()> {
        self.steps()?.copy(from, size).await
    }

    async fn commit(&mut self, meta: &Meta) -> Result<Location> {
        let committing = self.steps()?.finish(meta).await?;
        self.committed = true;
        let outcome = self.committing.insert(committing).await;
        self.committing = None;
        outcome?;
        // No await from here on: a future dropped now would lose a blob that is there.
        let location = self.steps()?.location()?;
        self.steps = None;
        Ok(location)
    }

    async fn abort(&mut self) -> Result<()> {
        if self.cleaning.is_none() {
            self.cleaning = self.clean();
        }
        let Some(cleaning) = &mut self.cleaning else { return Ok(()) };
        let ended = cleaning.await;
        self.cleaning = None;
        let (steps, outcome) = ended?;
        if outcome.is_err() {
            // Whoever aborts again gets the rest removed.
            self.steps = Some(steps);
        }
        outcome
    }
}

impl<S: Steps> Drop for Guarded<S> {
    /// The clean-up goes on, and nobody waits for it.
    fn drop(&mut self) {
        if Handle::try_current().is_ok() {
            drop(self.clean());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Mutex, time::Duration};

    use tokio::time::{sleep, timeout};

    use super::*;

    /// What has happened, in order.
    type Log = Arc<Mutex<Vec<&'static str>>>;

    /// An upload whose every step takes a second, and whose steps named in `fails` do not work.
    struct Slow {
        log: Log,
        fails: &'static str,
    }

    impl Slow {
        async fn step(log: Log, name: &'static str, fails: &'static str) -> Result<()> {
            sleep(Duration::from_secs(1)).await;
            log.lock().unwrap().push(name);
            match name == fails {
                true => Err(Error::new(ErrorKind::Unavailable, name)),
                false => Ok(()),
            }
        }
    }

    impl Steps for Slow {
        async fn begin(&mut self) -> Result<()> {
            Self::step(Arc::clone(&self.log), "begin", self.fails).await
        }

        async fn write(&mut self, _: Chunk) -> Result<()> {
            Self::step(Arc::clone(&self.log), "write", self.fails).await
        }

        async fn copy(&mut self, _: &Location, _: u64) -> Result<()> {
            Self::step(Arc::clone(&self.log), "copy", self.fails).await
        }

        async fn finish(&mut self, _: &Meta) -> Result<Request<()>> {
            Self::step(Arc::clone(&self.log), "finish", self.fails).await?;
            Ok(Request::spawn(Self::step(Arc::clone(&self.log), "commit", self.fails)))
        }

        fn location(&self) -> Result<Location> {
            "slow:blob".parse()
        }

        async fn discard(&mut self, committed: bool) -> Result<()> {
            let name = if committed { "discard the commit" } else { "discard" };
            // A storage that is away comes back.
            let fails = std::mem::take(&mut self.fails);
            Self::step(Arc::clone(&self.log), name, fails).await
        }
    }

    async fn begin(fails: &'static str) -> (Guarded<Slow>, Log) {
        let log = Log::default();
        let upload = Guarded::begin(Slow { log: Arc::clone(&log), fails }).await.unwrap();
        (upload, log)
    }

    fn seen(log: &Log) -> Vec<&'static str> {
        std::mem::take(&mut log.lock().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_committed_is_left_alone() {
        let (mut upload, log) = begin("").await;
        upload.write(Chunk::Zeros(1)).await.unwrap();
        upload.commit(&Meta::new(1)).await.unwrap();
        upload.abort().await.unwrap();
        drop(upload);
        sleep(Duration::from_secs(9)).await;
        assert_eq!(seen(&log), ["begin", "write", "finish", "commit"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_commit_that_nobody_waits_for_ends_before_the_clean_up() {
        let (mut upload, log) = begin("").await;
        let meta = Meta::new(1);
        assert!(timeout(Duration::from_millis(1500), upload.commit(&meta)).await.is_err());
        upload.abort().await.unwrap();
        assert_eq!(seen(&log), ["begin", "finish", "commit", "discard the commit"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_commit_is_looked_up_and_a_failed_finish_is_none() {
        for (fails, clean_up) in [("commit", "discard the commit"), ("finish", "discard")] {
            let (mut upload, log) = begin(fails).await;
            assert_eq!(upload.commit(&Meta::new(1)).await.unwrap_err().message(), fails);
            upload.abort().await.unwrap();
            assert_eq!(seen(&log).last(), Some(&clean_up));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_clean_up_goes_on_where_it_was_and_happens_once() {
        let (mut upload, log) = begin("").await;
        assert!(timeout(Duration::from_millis(500), upload.abort()).await.is_err());
        upload.abort().await.unwrap();
        upload.abort().await.unwrap();
        assert_eq!(seen(&log), ["begin", "discard"]);
        assert_eq!(upload.write(Chunk::Zeros(1)).await.unwrap_err().kind(), ErrorKind::Internal);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clean_up_that_failed_is_made_again() {
        let (mut upload, log) = begin("discard").await;
        assert_eq!(upload.abort().await.unwrap_err().kind(), ErrorKind::Unavailable);
        upload.abort().await.unwrap();
        upload.abort().await.unwrap();
        assert_eq!(seen(&log), ["begin", "discard", "discard"]);

        let (mut upload, log) = begin("discard").await;
        upload.abort().await.unwrap_err();
        drop(upload);
        sleep(Duration::from_secs(2)).await;
        assert_eq!(seen(&log), ["begin", "discard", "discard"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_dropped_is_cleaned_up_in_the_background() {
        let (upload, log) = begin("").await;
        drop(upload);
        sleep(Duration::from_secs(2)).await;
        assert_eq!(seen(&log), ["begin", "discard"]);

        let log = Log::default();
        let begin = Guarded::begin(Slow { log: Arc::clone(&log), fails: "" });
        assert!(timeout(Duration::from_millis(500), begin).await.is_err());
        sleep(Duration::from_secs(2)).await;
        assert_eq!(seen(&log), ["discard"]);
    }
}
