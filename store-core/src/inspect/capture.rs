//! The few bytes of a stream that the formats look at, kept while the rest flows by.

use std::cell::RefCell;

/// How many of the stream's last bytes stay at hand: VMDK's footer is three sectors, VHD's is one.
pub(super) const TAIL: usize = 1536;

/// No region is longer: hostile headers choose lengths, and this bounds what they make us keep.
pub(super) const MAX_REGION: usize = 1 << 20;

/// Regions are asked for by straight-line code, so a stream never has more; a limit keeps it provable.
const MAX_REGIONS: usize = 64;

/// A read of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read<'a> {
    /// The bytes; fewer than asked for where the stream ended inside them.
    Bytes(&'a [u8]),
    /// Not all of them have arrived yet.
    Later,
    /// They went by before anything told that they matter.
    Missed,
}

/// The captured regions of one stream, and its last bytes.
#[derive(Debug, Default)]
pub(super) struct Tape {
    position: u64,
    ended: bool,
    regions: Vec<Region>,
    tail: Vec<u8>,
}

impl Tape {
    /// How many bytes went by.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// How many bytes until a region is complete and may ask for the next one.
    ///
    /// Stopping exactly there is what makes a report independent of how the stream was cut into chunks.
    pub(super) fn until_next(&self) -> Option<u64> {
        self.regions
            .iter()
            .filter_map(|region| region.end.checked_sub(self.position))
            .filter(|&n| n > 0)
            .min()
    }

    /// Whether a region has just become complete.
    pub(super) fn reached(&self) -> bool {
        self.regions.iter().any(|region| region.end == self.position)
    }

    /// Takes the stream's next bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        for region in &mut self.regions {
            region.push(self.position, bytes);
        }
        let last = bytes.get(bytes.len().saturating_sub(TAIL)..).unwrap_or_default();
        self.tail.extend_from_slice(last);
        self.trim_tail();
        self.position = self.position.saturating_add(bytes.len() as u64);
    }

    /// Takes `len` zero bytes, at the price of the captured ones among them.
    pub(super) fn push_zeros(&mut self, len: u64) {
        for region in &mut self.regions {
            region.push_zeros(self.position, len);
        }
        let kept = len.min(TAIL as u64) as usize;
        self.tail.resize(self.tail.len() + kept, 0);
        self.trim_tail();
        self.position = self.position.saturating_add(len);
    }

    /// No more bytes will come: cut reads now return what there is.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    /// Captures what the formats asked for in vain; says whether anything new is captured or known to be missed.
    pub(super) fn capture(&mut self, wants: Vec<(u64, u64)>) -> bool {
        let before = self.regions.len();
        for (start, end) in wants {
            let known = self.regions.iter().any(|region| region.start == start && region.end == end);
            if known || self.regions.len() >= MAX_REGIONS {
                continue;
            }
            let passed = self.position.min(end);
            let bytes = match start < passed {
                true => self.find(start, passed).map(<[u8]>::to_vec),
                false => Some(Vec::new()),
            };
            self.regions.push(Region { start, end, bytes });
        }
        self.regions.len() > before
    }

    /// What is kept right now, in bytes.
    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        let regions: usize = self.regions.iter().filter_map(|r| r.bytes.as_ref()).map(Vec::capacity).sum();
        regions + self.tail.capacity()
    }

    /// Lets the tail grow to twice its size, so that one-byte chunks do not each move all of it.
    fn trim_tail(&mut self) {
        if self.tail.len() > 2 * TAIL {
            self.tail.drain(..self.tail.len() - TAIL);
        }
    }

    /// The bytes from `start` to `end`, if one region holds them all.
    fn find(&self, start: u64, end: u64) -> Option<&[u8]> {
        self.regions.iter().find_map(|region| {
            let from = usize::try_from(start.checked_sub(region.start)?).ok()?;
            let to = usize::try_from(end.checked_sub(region.start)?).ok()?;
            region.bytes.as_deref()?.get(from..to)
        })
    }
}

/// One captured span; `bytes` holds what has arrived of it, or nothing if its start was missed.
#[derive(Debug)]
struct Region {
    start: u64,
    end: u64,
    bytes: Option<Vec<u8>>,
}

impl Region {
    fn push(&mut self, position: u64, chunk: &[u8]) {
        let (from, to) = self.overlap(position, chunk.len() as u64);
        if let (Some(bytes), Some(part)) = (&mut self.bytes, chunk.get(from as usize..to as usize)) {
            reserve(bytes, part.len(), self.end - self.start);
            bytes.extend_from_slice(part);
        }
    }

    fn push_zeros(&mut self, position: u64, len: u64) {
        let (from, to) = self.overlap(position, len);
        if let Some(bytes) = &mut self.bytes {
            let len = (to - from) as usize;
            reserve(bytes, len, self.end - self.start);
            bytes.resize(bytes.len() + len, 0);
        }
    }

    /// The part of `len` bytes at `position` that is in this region, relative to `position`.
    fn overlap(&self, position: u64, len: u64) -> (u64, u64) {
        let from = self.start.saturating_sub(position).min(len);
        let to = self.end.saturating_sub(position).min(len);
        (from, to.max(from))
    }
}

/// Makes room for `more`, doubling as `Vec` would, but never beyond the region's own length.
fn reserve(bytes: &mut Vec<u8>, more: usize, region: u64) {
    if bytes.capacity() - bytes.len() < more {
        let rest = (region as usize).saturating_sub(bytes.len());
        bytes.reserve_exact(more.max(bytes.len()).min(rest));
    }
}

/// What the formats see of a [`Tape`]. A read that cannot be answered yet is remembered, to be captured.
#[derive(Debug)]
pub(super) struct View<'a> {
    tape: &'a Tape,
    wants: RefCell<Vec<(u64, u64)>>,
}

impl<'a> View<'a> {
    pub(super) fn new(tape: &'a Tape) -> Self {
        Self { tape, wants: RefCell::default() }
    }

    /// `len` bytes from `start`; at most [`MAX_REGION`].
    pub(super) fn read(&self, start: u64, len: usize) -> Read<'a> {
        let end = start.saturating_add(len.min(MAX_REGION) as u64);
        let have = if self.tape.ended { end.min(self.tape.position) } else { end };
        if start >= have {
            return Read::Bytes(&[]);
        }
        if let Some(bytes) = self.tape.find(start, have) {
            return Read::Bytes(bytes);
        }
        let missed = |region: &Region| region.start == start && region.end == end && region.bytes.is_none();
        if self.tape.ended || self.tape.regions.iter().any(missed) {
            return Read::Missed;
        }
        self.wants.borrow_mut().push((start, end));
        Read::Later
    }

    /// The stream's last bytes, [`TAIL`] of them or all of a shorter stream, once it has ended.
    pub(super) fn tail(&self) -> Option<&'a [u8]> {
        let tail = &self.tape.tail;
        self.tape.ended.then(|| tail.get(tail.len().saturating_sub(TAIL)..)).flatten()
    }

    /// The stream's length, once it has ended.
    pub(super) fn size(&self) -> Option<u64> {
        self.tape.ended.then_some(self.tape.position)
    }

    /// The reads that could not be answered yet, as (start, end).
    pub(super) fn into_wants(self) -> Vec<(u64, u64)> {
        self.wants.into_inner()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Captures `wants` at the current position.
    fn want(tape: &mut Tape, start: u64, len: usize) {
        let view = View::new(tape);
        assert_eq!(view.read(start, len), Read::Later);
        let wants = view.into_wants();
        assert!(tape.capture(wants));
    }

    #[test]
    fn a_region_collects_across_chunks_and_zeros() {
        let mut tape = Tape::default();
        want(&mut tape, 2, 6);
        tape.push(b"abc");
        assert_eq!(tape.until_next(), Some(5));
        assert_eq!(View::new(&tape).read(2, 6), Read::Later);
        tape.push_zeros(3);
        tape.push(b"defg");
        assert_eq!(View::new(&tape).read(2, 6), Read::Bytes(b"c\0\0\0de"));
        assert_eq!(View::new(&tape).read(3, 2), Read::Bytes(b"\0\0"));
        assert_eq!(tape.until_next(), None);
    }

    #[test]
    fn a_late_want_starts_in_what_is_already_captured_or_is_missed() {
        let mut tape = Tape::default();
        want(&mut tape, 0, 4);
        tape.push(b"abcdef");
        want(&mut tape, 4, 4);
        tape.push(b"gh");
        assert_eq!(View::new(&tape).read(4, 4), Read::Missed);

        let mut tape = Tape::default();
        want(&mut tape, 0, 4);
        tape.push(b"abcd");
        want(&mut tape, 2, 4);
        tape.push(b"ef");
        assert_eq!(View::new(&tape).read(2, 4), Read::Bytes(b"cdef"));
    }

    #[test]
    fn the_end_cuts_reads_short() {
        let mut tape = Tape::default();
        want(&mut tape, 0, 8);
        tape.push(b"abc");
        assert_eq!((View::new(&tape).size(), View::new(&tape).tail()), (None, None));
        tape.end();
        assert_eq!(View::new(&tape).read(0, 8), Read::Bytes(b"abc"));
        assert_eq!(View::new(&tape).read(1, 8), Read::Bytes(b"bc"));
        assert_eq!(View::new(&tape).read(u64::MAX - 1, 8), Read::Bytes(b""));
        assert_eq!(View::new(&tape).tail(), Some(&b"abc"[..]));
        assert_eq!(View::new(&tape).size(), Some(3));
    }

    #[test]
    fn the_tail_is_the_last_bytes_whatever_the_chunks() {
        let all: Vec<u8> = (0..10_000u32).map(|i| i as u8).collect();
        for chunk in [1, 7, TAIL, 5000, 10_000] {
            let mut tape = Tape::default();
            all.chunks(chunk).for_each(|part| tape.push(part));
            tape.end();
            assert_eq!(View::new(&tape).tail(), Some(&all[10_000 - TAIL..]), "chunks of {chunk}");
            assert!(tape.memory() <= 8 * TAIL);
        }
    }

    #[test]
    fn a_run_of_zeros_costs_nothing_and_never_overflows() {
        let mut tape = Tape::default();
        want(&mut tape, u64::MAX - 10, 100);
        tape.push_zeros(u64::MAX - 5);
        tape.push_zeros(u64::MAX);
        assert_eq!(tape.position(), u64::MAX);
        assert!(tape.memory() < 16 * TAIL);
    }
}
