//! What drivers of storages on a network have in common: requests that outlive the futures which wait for them, uploads
//! that undo what was given up, pauses between attempts.
//!
//! A driver may do without: [`Backend`](crate::Backend) and [`Upload`](crate::Upload) are all that it has to implement.

mod guarded;
mod payload;
mod request;
mod retry;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use guarded::{Guarded, Steps};
pub use payload::Payload;
pub(crate) use request::tracked;
pub use request::{Gathered, InFlight, Pending, Request, read_ahead, stream_ahead};
pub use retry::{ATTEMPTS, GoingOn, again, pause};

use crate::{Error, ErrorKind, Result};

/// 128 random bits in hexadecimal: what tells an upload from every other one.
pub fn token() -> Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|e| Error::new(ErrorKind::Internal, format!("the system has no random numbers: {e}")))?;
    Ok(hex::encode(bytes))
}

/// What is old enough for a sweep, by times that the storage gives.
#[derive(Clone, Copy, Debug)]
pub struct Cutoff {
    before: Option<i64>,
}

impl Cutoff {
    /// What is older than `age`. No clock is needed to take everything.
    pub fn new(age: Duration) -> Self {
        Self::by(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(), age)
    }

    /// The same by the storage's own clock, which shows so much since 1970.
    pub fn by(now: Duration, age: Duration) -> Self {
        let before = i64::try_from(now.saturating_sub(age).as_secs()).unwrap_or(i64::MAX);
        Self { before: (!age.is_zero()).then_some(before) }
    }

    /// Whether something last touched at `time`, in seconds since 1970, is old.
    pub fn takes(self, time: i64) -> bool {
        self.before.is_none_or(|before| time <= before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_of_zero_takes_what_comes_from_the_future() {
        assert!(Cutoff::new(Duration::ZERO).takes(i64::MAX));
        let hour = Cutoff::new(Duration::from_secs(3600));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        assert!(hour.takes(now - 3700));
        assert!(!hour.takes(now - 3500));
        assert!(Cutoff::new(Duration::MAX).takes(0));
        assert!(!Cutoff::new(Duration::MAX).takes(1));
        let slow = Cutoff::by(Duration::from_secs(10_000), Duration::from_secs(3600));
        assert!(slow.takes(6_400) && !slow.takes(6_401));
    }

    #[test]
    fn tokens_differ() {
        let (one, two) = (token().unwrap(), token().unwrap());
        assert_eq!((one.len(), two.len()), (32, 32));
        assert_ne!(one, two);
    }
}
