use std::time::Duration;

use tokio::time::sleep;

use crate::{Error, Result};

/// How often a driver makes a request before it gives up, with pauses in between.
pub const ATTEMPTS: u32 = 5;

/// The longest that a server's wish for a pause is obeyed: some ask for a minute, and mean the next moment.
const PATIENCE: Duration = Duration::from_secs(10);

/// Repeats what failed for a reason that may pass.
pub async fn again<T, F: Future<Output = Result<T>>>(mut call: impl FnMut() -> F) -> Result<T> {
    let mut failed = 0;
    loop {
        match call().await {
            Err(error) if error.is_retryable() && failed + 1 < ATTEMPTS => {
                tracing::debug!(%error, "trying again");
                failed += 1;
                pause(failed, Some(&error)).await;
            }
            outcome => return outcome,
        }
    }
}

/// Whether a read of a range goes on.
///
/// One that broke off does so where it was. Where nothing came, only what the server asks to be repeated later is repeated:
/// whoever reads resumes the rest, but then asks for all that is read ahead once more, of which a server that is short of time
/// has had too much already.
#[derive(Debug, Default)]
pub struct GoingOn {
    failed: u32,
}

impl GoingOn {
    /// Whether there is more to ask for after an attempt that ended so, when the time has come; `came` tells whether it
    /// brought anything.
    pub async fn after(&mut self, outcome: Result<()>, came: bool) -> Result<bool> {
        match outcome {
            Ok(()) => Ok(false),
            Err(error) if error.is_retryable() && came => {
                tracing::debug!(%error, "going on with a read");
                Ok(true)
            }
            Err(error)
                if error.is_retryable() && error.retry_after().is_some() && self.failed + 1 < ATTEMPTS =>
            {
                self.failed += 1;
                pause(self.failed, Some(&error)).await;
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }
}

/// 200 ms after the first failure, doubled with each one, and up to as much again at random; longer if the server asks
/// for it.
pub async fn pause(failed: u32, error: Option<&Error>) {
    let mut random = [0; 1];
    // Without randomness the pause is merely the shortest one.
    let _ = getrandom::fill(&mut random);
    let base = Duration::from_millis(100 << failed.min(6));
    let asked = error.and_then(Error::retry_after).unwrap_or_default().min(PATIENCE);
    sleep((base + base.mul_f64(f64::from(random[0]) / 255.0)).max(asked)).await;
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::time::Instant;

    use super::*;
    use crate::ErrorKind;

    #[tokio::test(start_paused = true)]
    async fn only_what_may_pass_is_repeated() {
        for (kind, attempts) in [(ErrorKind::Unavailable, ATTEMPTS), (ErrorKind::Denied, 1)] {
            let made = AtomicU32::new(0);
            let outcome: Result<()> = again(|| async {
                made.fetch_add(1, Ordering::Relaxed);
                Err(Error::new(kind, "no"))
            })
            .await;
            assert_eq!(outcome.unwrap_err().kind(), kind);
            assert_eq!(made.into_inner(), attempts);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn reads_are_repeated_where_the_server_asks_for_it() {
        let busy = || Error::new(ErrorKind::Unavailable, "busy");
        let mut reading = GoingOn::default();
        for _ in 1..ATTEMPTS {
            let asked = Err(busy().with_retry_after(Duration::from_secs(1)));
            assert!(reading.after(asked, false).await.unwrap());
        }
        assert!(reading.after(Err(busy().with_retry_after(Duration::from_secs(1))), false).await.is_err());
        assert!(GoingOn::default().after(Err(busy()), false).await.is_err());
    }

    #[tokio::test]
    async fn reads_go_on_as_long_as_something_comes() {
        let mut reading = GoingOn::default();
        for _ in 0..30 {
            let broken = Err(Error::new(ErrorKind::Unavailable, "the line is down"));
            assert!(reading.after(broken, true).await.unwrap());
        }
        assert!(!reading.after(Ok(()), true).await.unwrap());
        let deleted = Err(Error::new(ErrorKind::NotFound, "deleted"));
        assert_eq!(reading.after(deleted, true).await.unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_is_obeyed_within_reason() {
        for (asked, least, most) in [(5, 5, 6), (600, 10, 11), (0, 0, 1)] {
            let error =
                Error::new(ErrorKind::Unavailable, "busy").with_retry_after(Duration::from_secs(asked));
            let start = Instant::now();
            pause(1, Some(&error)).await;
            let paused = start.elapsed();
            assert!(paused >= Duration::from_secs(least) && paused < Duration::from_secs(most), "{paused:?}");
        }
    }
}
