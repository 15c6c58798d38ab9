use store_core::{Error, ErrorKind, Result, Size};

use crate::{S3Config, config::MAX_PART};

/// What the protocol allows.
pub(crate) const MAX_PARTS: u64 = 10_000;

/// With an unknown length, parts double each time after so many: ten times, from 5 MiB to 5 GiB.
const GROW_AFTER: u64 = 900;

/// How long the parts of an upload are, so that 10,000 of them suffice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// The length of the first parts.
    first: u64,
    /// Parts grow as the upload does, since its length is not known.
    grows: bool,
    /// The longest part that is sent as it is; longer ones are gathered from pieces of `least`.
    held: u64,
    least: u64,
}

impl Plan {
    pub(crate) fn new(config: &S3Config, total: Option<u64>) -> Result<Self> {
        let least = config.part_size.0;
        let needed = total.unwrap_or_default().div_ceil(MAX_PARTS).next_multiple_of(1 << 20);
        // Two on their way while one is filled.
        let held = (config.window.0 / 3).clamp(least, MAX_PART) >> 20 << 20;
        let plan = Self { first: needed.max(least), grows: total.is_none(), held: held.max(least), least };
        match needed <= MAX_PART {
            true => Ok(plan),
            false => Err(plan.too_long()),
        }
    }

    /// The length of the part `number`, counted from 1.
    fn part(&self, number: i32) -> u64 {
        let times = if self.grows { (number.max(1) as u64 - 1) / GROW_AFTER } else { 0 };
        (self.first << times.min(16)).min(MAX_PART)
    }

    /// Whether it is too long to be held in memory.
    pub(crate) fn is_gathered(&self, number: i32) -> bool {
        self.part(number) > self.held
    }

    /// Whether any part may be.
    pub(crate) fn may_gather(&self) -> bool {
        self.is_gathered(MAX_PARTS as i32)
    }

    /// How many bytes of it are sent at once.
    pub(crate) fn piece(&self, number: i32) -> u64 {
        if self.is_gathered(number) { self.least } else { self.part(number) }
    }

    /// Whether a gathered part that has `len` bytes is long enough, or would be too long with one more piece.
    pub(crate) fn ends(&self, number: i32, len: u64) -> bool {
        len >= self.part(number) || len + self.least > MAX_PART
    }

    pub(crate) fn too_long(&self) -> Error {
        let text = format!("the image is too long: {MAX_PARTS} parts of {} hold no more", Size(MAX_PART));
        Error::new(ErrorKind::Unsupported, text).with_hint("S3 has no larger objects")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(part_size: u64, window: u64) -> S3Config {
        let mut config = S3Config::new("bucket");
        (config.part_size, config.window) = (Size(part_size), Size(window));
        config
    }

    /// The most bytes that it makes room for.
    fn most(plan: &Plan) -> u64 {
        (1..=MAX_PARTS as i32)
            .map(|number| {
                let (part, piece) = (plan.part(number), plan.piece(number));
                assert!((5 << 20..=MAX_PART).contains(&part), "part {number} has {part} bytes");
                if plan.is_gathered(number) {
                    let pieces = (1..).find(|pieces| plan.ends(number, pieces * piece)).unwrap();
                    assert!(pieces <= MAX_PARTS && pieces * piece <= MAX_PART, "{pieces} pieces");
                    pieces * piece
                } else {
                    part
                }
            })
            .sum()
    }

    #[test]
    fn ten_thousand_parts_hold_any_image_within_any_window() {
        for (part_size, window) in [(5 << 20, 5 << 20), (8 << 20, 64 << 20), (7 << 20, 1 << 30)] {
            let config = config(part_size, window);
            for total in [0, 1, 1 << 30, 80 << 30, 200 << 30, 5 << 40, 45 << 40] {
                let plan = Plan::new(&config, Some(total)).unwrap();
                assert!(plan.piece(1) <= window);
                assert!(most(&plan) >= total, "{total} bytes in parts of {part_size}");
            }
            let unknown = Plan::new(&config, None).unwrap();
            assert!((1..=10_000).all(|number| unknown.piece(number) <= window));
            assert!(most(&unknown) >= 5 << 40, "{} bytes", most(&unknown));
            let error = Plan::new(&config, Some(49 << 40)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
        }
    }

    /// Some servers take no others.
    #[test]
    fn parts_of_a_known_length_are_equal() {
        for total in [1, 9 << 20, 80 << 30, 200 << 30, 5 << 40] {
            let plan = Plan::new(&config(8 << 20, 64 << 20), Some(total)).unwrap();
            assert!((1..=MAX_PARTS as i32).all(|number| plan.part(number) == plan.part(1)), "{total}");
        }
    }

    #[test]
    fn what_the_window_holds_is_not_gathered() {
        let plan = |total| Plan::new(&config(8 << 20, 64 << 20), Some(total)).unwrap();
        assert!(!plan(205 << 30).may_gather());
        assert!(plan(206 << 30).may_gather());
    }
}
