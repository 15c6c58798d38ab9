use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::{Algorithm, Error, Size, Span};

/// What every store understands, whatever its backend: the keys that may stand beside a backend's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Options {
    /// A line for people.
    pub description: String,
    /// Which store to prefer for reading, the higher the better, where several hold a blob.
    pub weight: i32,
    /// Refuses uploads, deletions and sweeps.
    pub read_only: bool,
    /// Digests computed on the way in and kept with the blob, besides CRC-64/NVME.
    pub digests: Vec<Algorithm>,
    /// Compares every read of a whole blob with the cheapest digest that is kept with it.
    pub verify_reads: bool,
    /// What is done with hostile images, and with those that are not of the declared format.
    pub inspect: Inspect,
    /// The largest image, in bytes; an upload is stopped when it passes it.
    pub max_size: Option<Size>,
    /// What is tried again, and how often.
    pub retry: Retry,
    /// After which time a call is given up.
    pub timeout: Timeout,
    /// How many uploads run at once, and how many downloads; the others wait for their turn, however long that takes.
    #[serde(deserialize_with = "some_at_least_one")]
    pub max_transfers: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            description: String::new(),
            weight: 0,
            read_only: false,
            digests: vec![Algorithm::Md5, Algorithm::Sha512],
            verify_reads: true,
            inspect: Inspect::default(),
            max_size: None,
            retry: Retry::default(),
            timeout: Timeout::default(),
            max_transfers: None,
        }
    }
}

impl Options {
    /// The configuration keys, to tell them from a backend's own.
    pub const KEYS: [&'static str; 10] = [
        "description",
        "weight",
        "read_only",
        "digests",
        "verify_reads",
        "inspect",
        "max_size",
        "retry",
        "timeout",
        "max_transfers",
    ];
}

/// What a store does with what the format inspector finds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Inspect {
    /// Looks at nothing.
    Off,
    /// Refuses an image whose format was declared if it is of another format, or hostile; reports the others.
    #[default]
    Declared,
    /// Refuses every hostile image, declared or not.
    Strict,
}

/// How often a call that failed with [`Unavailable`](crate::ErrorKind::Unavailable) is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retry {
    /// Attempts in all; for a download, attempts without a single byte of progress.
    #[serde(deserialize_with = "at_least_one")]
    pub attempts: u32,
    /// The pause after the first failure; it doubles each time, less up to half of it at random.
    pub delay: Span,
    /// The longest pause.
    pub max_delay: Span,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 5,
            delay: Span(Duration::from_millis(200)),
            max_delay: Span(Duration::from_secs(10)),
        }
    }
}

impl Retry {
    /// The pause after the `failed`th failure, or `None` when it was the last attempt; longer if the storage asks for it,
    /// up to the longest one.
    pub(crate) fn pause(&self, failed: u32, error: &Error) -> Option<Duration> {
        if failed >= self.attempts {
            return None;
        }
        let factor = 1u32.checked_shl(failed.saturating_sub(1)).unwrap_or(u32::MAX);
        let full = self.delay.0.saturating_mul(factor).min(self.max_delay.0);
        let mut random = [0; 1];
        // Without randomness the pause is merely the longest one.
        let _ = getrandom::fill(&mut random);
        let asked = error.retry_after().unwrap_or_default().min(self.max_delay.0);
        Some((full - full.mul_f64(f64::from(random[0]) / 512.0)).max(asked))
    }
}

/// After which time a call is given up as [`Unavailable`](crate::ErrorKind::Unavailable).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeout {
    /// For a call that moves no image data.
    #[serde(deserialize_with = "some_time")]
    pub call: Span,
    /// For each chunk of a transfer: the longest silence.
    #[serde(deserialize_with = "some_time")]
    pub chunk: Span,
    /// For a commit, which may have gigabytes to make durable.
    #[serde(deserialize_with = "some_time")]
    pub commit: Span,
}

impl Default for Timeout {
    fn default() -> Self {
        Self {
            call: Span(Duration::from_secs(60)),
            chunk: Span(Duration::from_secs(60)),
            commit: Span(Duration::from_secs(900)),
        }
    }
}

// Zero is what people write for "no limit" and "for ever"; it would be none at all, and no time at all.

fn at_least_one<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    match u32::deserialize(deserializer)? {
        0 => Err(de::Error::invalid_value(de::Unexpected::Unsigned(0), &"at least 1")),
        number => Ok(number),
    }
}

fn some_at_least_one<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    at_least_one(deserializer).map(Some)
}

fn some_time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
    match Span::deserialize(deserializer)? {
        Span(Duration::ZERO) => {
            Err(de::Error::invalid_value(de::Unexpected::Str("0s"), &"more than no time, such as \"60s\""))
        }
        span => Ok(span),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn pauses_grow_to_their_limit_and_end() {
        let retry = Retry { attempts: 9, ..Retry::default() };
        let busy = Error::new(ErrorKind::Unavailable, "busy");
        for failed in 1..9 {
            let full = Duration::from_millis(200 << (failed - 1)).min(Duration::from_secs(10));
            let pause = retry.pause(failed, &busy).unwrap();
            assert!(pause <= full && pause >= full / 2, "{failed}: {pause:?}");
        }
        assert_eq!(retry.pause(9, &busy), None);
        assert!(Retry { attempts: u32::MAX, ..retry }.pause(1000, &busy).is_some());
    }

    #[test]
    fn a_storage_may_ask_for_a_longer_pause_up_to_the_limit() {
        let (retry, busy) = (Retry::default(), Error::new(ErrorKind::Unavailable, "busy"));
        let pause =
            |seconds, error: Error| retry.pause(1, &error.with_retry_after(Duration::from_secs(seconds)));
        assert_eq!(pause(3, busy), Some(Duration::from_secs(3)));
        assert_eq!(pause(60, Error::new(ErrorKind::Unavailable, "busy")), Some(Duration::from_secs(10)));
    }

    #[test]
    fn the_list_of_keys_is_whole() {
        let json = serde_json::to_value(Options::default()).unwrap();
        let keys: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
        let mut listed = Options::KEYS.to_vec();
        listed.sort();
        assert_eq!(keys, listed);
    }
}
