//! Image data that costs nothing to make, to send and to check, at any size.

use std::{
    fmt,
    fs::File,
    ops::Range,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use store_core::{Chunk, Error, ErrorKind, Location, Reader, Store, is_zero};

use crate::case::{Failure, Outcome, ensure};

/// After how many bytes a pattern comes again. A prime, so that of two blocks that a storage might take for each
/// other, at multiples of a power of two, none look the same below 4 PiB.
const PERIOD: usize = 1_048_573;

/// The longest slice of a pattern that is there without being copied.
const TILE: usize = 20 << 20;

/// The pattern, over and over.
static PATTERN: LazyLock<Bytes> = LazyLock::new(|| {
    let mut rng = Rng::new(0x1357_9bdf);
    let mut tile: Vec<u8> =
        std::iter::repeat_with(|| rng.next().to_le_bytes()).take(PERIOD / 8 + 1).flatten().collect();
    tile.truncate(PERIOD);
    while tile.len() < TILE {
        tile.extend_from_within(..PERIOD.min(TILE - tile.len()));
    }
    tile.into()
});

/// A small generator of numbers that look random (splitmix64): the same ones for the same seed.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// What a blob holds: bytes that can be computed at any offset, with holes where it has some.
#[derive(Clone)]
pub struct Content {
    len: u64,
    kind: Kind,
    holes: Arc<[Range<u64>]>,
}

#[derive(Clone)]
enum Kind {
    /// The pattern from this place on.
    Pattern(usize),
    Literal(Bytes),
}

impl Content {
    /// `len` bytes that look random; two seeds give two blobs that differ nearly everywhere.
    pub fn new(seed: u64, len: u64) -> Self {
        let shift = Rng::new(seed).below(PERIOD as u64) as usize;
        Self { len, kind: Kind::Pattern(shift), holes: Arc::default() }
    }

    /// These bytes.
    pub fn literal(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self { len: bytes.len() as u64, kind: Kind::Literal(bytes), holes: Arc::default() }
    }

    /// Nothing but zeros, in one hole.
    pub fn zeros(len: u64) -> Self {
        Self::new(0, len).with_hole(0..len)
    }

    /// The same with zeros in this range.
    #[must_use]
    pub fn with_hole(self, hole: Range<u64>) -> Self {
        self.with_holes(std::iter::once(hole))
    }

    /// The same with zeros in these ranges, which come in order and do not touch.
    #[must_use]
    pub fn with_holes(mut self, holes: impl IntoIterator<Item = Range<u64>>) -> Self {
        self.holes = holes.into_iter().filter(|hole| hole.start < hole.end).collect();
        self
    }

    /// The same with about `count` holes of up to `longest` bytes at places that no boundary is near to.
    #[must_use]
    pub fn with_random_holes(self, seed: u64, count: u64, longest: u64) -> Self {
        let mut rng = Rng::new(seed);
        let stride = (self.len / count.max(1)).max(2);
        let mut holes = Vec::new();
        for start in (0..self.len.saturating_sub(1)).step_by(stride as usize) {
            let from = start + rng.below(stride / 2 + 1);
            let to = (from + 1 + rng.below(longest)).min(start + stride - 1).min(self.len);
            if from < to {
                holes.push(from..to);
            }
        }
        self.with_holes(holes)
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many of the bytes are in no hole.
    pub fn data_len(&self) -> u64 {
        self.len - self.holes.iter().map(|hole| hole.end - hole.start).sum::<u64>()
    }

    /// Its holes.
    pub fn holes(&self) -> &[Range<u64>] {
        &self.holes
    }

    /// The bytes of `range` in memory, without a copy where they are one run of data.
    pub fn bytes(&self, range: Range<u64>) -> Bytes {
        let mut runs = self.runs(range);
        match (runs.next(), runs.next()) {
            (None, _) => Bytes::new(),
            (Some(Chunk::Data(bytes)), None) => bytes,
            (first, second) => joined(first.into_iter().chain(second).chain(runs)),
        }
    }

    /// `range` as runs of data and of holes; those of data are at most some megabytes long, and not copied.
    pub fn runs(&self, range: Range<u64>) -> impl Iterator<Item = Chunk> + Send + use<> {
        let this = self.clone();
        let mut at = range.start;
        std::iter::from_fn(move || {
            if at >= range.end {
                return None;
            }
            let next = this.holes.partition_point(|hole| hole.end <= at);
            let run = match this.holes.get(next) {
                Some(hole) if hole.start <= at => Chunk::Zeros(hole.end.min(range.end) - at),
                Some(hole) => this.data(at, hole.start.min(range.end)),
                None => this.data(at, range.end),
            };
            at += run.len();
            Some(run)
        })
    }

    /// Data from `from` on, up to `to` at most.
    fn data(&self, from: u64, to: u64) -> Chunk {
        Chunk::Data(match &self.kind {
            Kind::Literal(bytes) => bytes.slice(from as usize..to as usize),
            Kind::Pattern(shift) => {
                let start = (from % PERIOD as u64) as usize + shift;
                let start = start % PERIOD;
                let len = (to - from).min((TILE - start) as u64) as usize;
                PATTERN.slice(start..start + len)
            }
        })
    }

    /// It as a local file, with the same holes, that goes when it is closed.
    pub(crate) async fn as_file(&self) -> Result<Arc<File>, Failure> {
        let file = tempfile::tempfile();
        let file = file.map_err(|error| Failure::broken(format!("there is no temporary file: {error}")))?;
        let file = Arc::new(file);
        self.write_into(Arc::clone(&file)).await?;
        Ok(file)
    }

    /// Makes a local file this.
    pub(crate) async fn write_into(&self, file: Arc<File>) -> Outcome {
        store_core::file::write(file, self.source().stream().boxed(), |_| {}).await?;
        Ok(())
    }

    /// A source of it, in pieces of a megabyte.
    pub fn source(&self) -> Source {
        Source::of(self)
    }

    /// Something that is fed bytes as they come and knows whether they are those of `range`.
    pub fn checker(&self, range: Range<u64>) -> Checker {
        Checker { content: self.clone(), at: range.start, range }
    }

    /// Fails unless the whole blob at `at` reads as this.
    pub(crate) async fn is_at(&self, store: &Store, at: &Location) -> Outcome {
        self.is_read_by(&store.open(at).await?, 0..self.len).await
    }

    /// Fails unless `range` of an open blob reads as the same range of this.
    pub(crate) async fn is_read_by(&self, reader: &Reader, range: Range<u64>) -> Outcome {
        ensure!(reader.stat().size == self.len, "a size of {} instead of {}", reader.stat().size, self.len);
        let mut checker = self.checker(range.clone());
        let mut stream = reader.stream(range)?;
        while let Some(bytes) = stream.try_next().await? {
            checker.feed(&bytes)?;
        }
        checker.end()
    }
}

fn joined(chunks: impl IntoIterator<Item = Chunk>) -> Bytes {
    let mut all = BytesMut::new();
    for bytes in chunks.into_iter().flat_map(Chunk::into_bytes) {
        all.extend_from_slice(&bytes);
    }
    all.freeze()
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Content").field("len", &self.len).field("holes", &self.holes).finish_non_exhaustive()
    }
}

/// Compares bytes with a [`Content`] as they come.
#[derive(Debug)]
pub struct Checker {
    content: Content,
    range: Range<u64>,
    at: u64,
}

impl Checker {
    /// Takes the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) -> Outcome {
        let end = self.at + bytes.len() as u64;
        ensure!(end <= self.range.end, "{} byte(s) too many", end - self.range.end);
        let mut rest = bytes;
        for run in self.content.runs(self.at..end) {
            let (head, tail) = rest.split_at(run.len() as usize);
            let same = match &run {
                Chunk::Data(wanted) => head == wanted,
                Chunk::Zeros(_) => is_zero(head),
            };
            if !same {
                return Err(self.difference(head, &run));
            }
            self.at += run.len();
            rest = tail;
        }
        Ok(())
    }

    /// Fails if bytes are missing.
    pub fn end(self) -> Outcome {
        ensure!(
            self.at == self.range.end,
            "the read ended {} byte(s) early, without an error",
            self.range.end - self.at
        );
        Ok(())
    }

    /// How far it has come.
    pub fn offset(&self) -> u64 {
        self.at
    }

    fn difference(&self, found: &[u8], run: &Chunk) -> Failure {
        let wanted = joined([run.clone()]);
        let place = found.iter().zip(&wanted).position(|(a, b)| a != b).unwrap_or_default();
        let offset = self.at + place as u64;
        Failure::broken(format!(
            "wrong bytes from offset {offset} on: {} instead of {}",
            found[place], wanted[place]
        ))
    }
}

/// A stream of a [`Content`], in the manner that a case wants to have it come.
#[derive(Clone, Debug)]
#[must_use]
pub struct Source {
    content: Content,
    pieces: Pieces,
    with_empty: bool,
    zeros_as_bytes: bool,
    pause: Option<(u64, Duration)>,
    end: End,
    alive: Option<Arc<Alive>>,
}

#[derive(Clone, Copy, Debug)]
enum Pieces {
    Of(u64),
    Odd(u64),
}

#[derive(Clone, Copy, Debug)]
enum End {
    Well,
    At(u64),
    Failing(u64, ErrorKind),
}

impl Source {
    fn of(content: &Content) -> Self {
        Self {
            content: content.clone(),
            pieces: Pieces::Of(1 << 20),
            with_empty: false,
            zeros_as_bytes: false,
            pause: None,
            end: End::Well,
            alive: None,
        }
    }

    /// In pieces of `len` bytes.
    pub fn pieces(mut self, len: u64) -> Self {
        self.pieces = Pieces::Of(len.max(1));
        self
    }

    /// In pieces of many lengths, most of them odd.
    pub fn odd_pieces(mut self, seed: u64) -> Self {
        self.pieces = Pieces::Odd(seed);
        self
    }

    /// With pieces of no bytes in between.
    pub fn empty_pieces(mut self) -> Self {
        self.with_empty = true;
        self
    }

    /// With holes as bytes, as a source that knows of no holes sends them.
    pub fn plain(mut self) -> Self {
        self.zeros_as_bytes = true;
        self
    }

    /// With a pause after every so many pieces.
    pub fn slow(mut self, pieces: u64, pause: Duration) -> Self {
        self.pause = Some((pieces.max(1), pause));
        self
    }

    /// Ending, as if that were all, after so many bytes.
    pub fn ending_at(mut self, offset: u64) -> Self {
        self.end = End::At(offset);
        self
    }

    /// Failing after so many bytes.
    pub fn failing_at(mut self, offset: u64, kind: ErrorKind) -> Self {
        self.end = End::Failing(offset, kind);
        self
    }

    /// Counting how many of its bytes somebody still holds.
    pub fn counted(mut self, alive: &Arc<Alive>) -> Self {
        self.alive = Some(Arc::clone(alive));
        self
    }

    /// The stream. Its errors say "the source failed".
    pub fn stream(self) -> impl Stream<Item = store_core::Result<Chunk>> + Send + Unpin + 'static {
        let end = match self.end {
            End::Well => self.content.len,
            End::At(offset) | End::Failing(offset, _) => offset.min(self.content.len),
        };
        let failure = match self.end {
            End::Failing(_, kind) => Some(Err(Error::new(kind, "the source failed"))),
            End::Well | End::At(_) => None,
        };
        let (pause, alive) = (self.pause, self.alive.clone());
        let pieces = stream::iter(self.cut(end)).enumerate().then(move |(count, piece)| async move {
            if let Some((pieces, pause)) = pause
                && (count as u64 + 1).is_multiple_of(pieces)
            {
                tokio::time::sleep(pause).await;
            }
            piece
        });
        pieces.map(move |piece| Ok(watched(piece, alive.as_ref()))).chain(stream::iter(failure)).boxed()
    }

    fn cut(self, end: u64) -> impl Iterator<Item = Chunk> + Send {
        let mut rng = match self.pieces {
            Pieces::Of(_) => Rng::new(0),
            Pieces::Odd(seed) => Rng::new(seed),
        };
        let mut at = 0;
        let pieces = std::iter::from_fn(move || {
            let wanted = match self.pieces {
                Pieces::Of(len) => len,
                // Mostly small, sometimes large.
                Pieces::Odd(_) => 1 + rng.next() % (1 << (4 + rng.below(17))),
            };
            let piece = self.content.runs(at..end.min(at.saturating_add(wanted))).next()?;
            at += piece.len();
            Some(match piece {
                Chunk::Zeros(len) if self.zeros_as_bytes => Chunk::Data(vec![0; len as usize].into()),
                piece => piece,
            })
        });
        let empty = move || self.with_empty.then(|| Chunk::Data(Bytes::new()));
        pieces.flat_map(move |piece| empty().into_iter().chain(Some(piece))).chain(empty())
    }
}

/// How many bytes of a source are held by somebody.
#[derive(Debug, Default)]
pub struct Alive {
    now: AtomicU64,
    most: AtomicU64,
}

impl Alive {
    /// The most at any time.
    pub fn most(&self) -> u64 {
        self.most.load(Ordering::Relaxed)
    }
}

struct Held(Bytes, Arc<Alive>);

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.1.now.fetch_sub(self.0.len() as u64, Ordering::Relaxed);
    }
}

fn watched(piece: Chunk, alive: Option<&Arc<Alive>>) -> Chunk {
    match (piece, alive) {
        (Chunk::Data(bytes), Some(alive)) => {
            let now = alive.now.fetch_add(bytes.len() as u64, Ordering::Relaxed) + bytes.len() as u64;
            alive.most.fetch_max(now, Ordering::Relaxed);
            Chunk::Data(Bytes::from_owner(Held(bytes, Arc::clone(alive))))
        }
        (piece, _) => piece,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().build().unwrap()
    }

    fn gathered(source: Source) -> Vec<Chunk> {
        runtime().block_on(source.stream().try_collect()).unwrap()
    }

    #[test]
    fn any_range_is_a_part_of_the_whole() {
        let content = Content::new(7, 30 << 20).with_random_holes(1, 40, 300_000);
        let whole = content.bytes(0..content.len());
        let mut rng = Rng::new(2);
        for _ in 0..200 {
            let from = rng.below(content.len());
            let to = from + rng.below(content.len() - from);
            assert!(content.bytes(from..to) == whole[from as usize..to as usize], "{from}..{to}");
        }
        assert!(content.data_len() < content.len());
        assert!(content.holes().iter().all(|hole| is_zero(&whole[hole.start as usize..hole.end as usize])));
    }

    #[test]
    fn seeds_differ_and_come_again() {
        let (a, b) = (Content::new(1, 4096), Content::new(2, 4096));
        assert_eq!(a.bytes(0..4096), Content::new(1, 9999).bytes(0..4096));
        assert_ne!(a.bytes(0..4096), b.bytes(0..4096));
    }

    #[test]
    fn every_manner_of_sending_sends_the_same() {
        let content = Content::new(3, 100_000).with_random_holes(1, 9, 4000);
        let whole = content.bytes(0..content.len());
        for source in [
            content.source(),
            content.source().pieces(1),
            content.source().odd_pieces(5),
            content.source().empty_pieces(),
            content.source().odd_pieces(5).empty_pieces().plain(),
            content.source().counted(&Arc::default()),
        ] {
            let chunks = gathered(source.clone());
            assert!(joined(chunks.clone()) == whole, "{source:?}");
            if source.with_empty {
                assert!(chunks.iter().filter(|chunk| chunk.is_empty()).count() > 2);
            }
            if source.zeros_as_bytes {
                assert!(chunks.iter().all(|chunk| matches!(chunk, Chunk::Data(_))));
            }
        }
        assert_eq!(gathered(Content::literal("").source()), []);
        assert!(gathered(Content::literal("").source().empty_pieces()).len() < 9);
        assert_eq!(joined(gathered(content.source().pieces(7).ending_at(50))), &whole[..50]);
    }

    #[test]
    fn a_failing_source_fails_where_it_should() {
        let content = Content::new(3, 1000);
        let mut stream = content.source().pieces(300).failing_at(700, ErrorKind::Denied).stream();
        runtime().block_on(async {
            let mut sent = 0;
            let error = loop {
                match stream.next().await.unwrap() {
                    Ok(piece) => sent += piece.len(),
                    Err(error) => break error,
                }
            };
            assert_eq!((sent, error.kind()), (700, ErrorKind::Denied));
        });
    }

    #[test]
    fn what_is_held_is_counted() {
        let alive = Arc::default();
        let chunks = gathered(Content::new(3, 1000).source().pieces(100).counted(&alive));
        assert_eq!((alive.most(), alive.now.load(Ordering::Relaxed)), (1000, 1000));
        drop(chunks);
        assert_eq!(alive.now.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn one_wrong_byte_is_found_and_so_is_a_missing_one() {
        let content = Content::new(3, 100_000).with_hole(5000..6000);
        let whole = content.bytes(0..content.len());
        for at in [0, 4999, 5000, 5999, 99_999] {
            let mut bad = whole.to_vec();
            bad[at] ^= 0x10;
            let failure = content.checker(0..100_000).feed(&bad).unwrap_err();
            assert!(failure.to_string().contains(&format!("offset {at} ")), "{failure}");
        }
        let mut checker = content.checker(0..100_000);
        checker.feed(&whole[..99_999]).unwrap();
        assert!(checker.end().is_err());
        assert!(content.checker(0..10).feed(&whole[..11]).is_err());
    }
}
