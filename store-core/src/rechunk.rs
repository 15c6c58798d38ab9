use bytes::Bytes;

use crate::{Chunk, buffer, chunk::is_zero};

/// Cuts a stream of pieces of any size into the chunks that a backend asks for.
///
/// Bytes are copied only where the source's pieces are smaller than a chunk, or out of step with it. Runs of zeros
/// that cover a whole hole of the backend come out as [`Chunk::Zeros`], wherever they came from.
#[derive(Debug)]
pub(crate) struct Rechunk {
    size: usize,
    hole: Option<u64>,
    /// Where the next chunk starts in the blob.
    offset: u64,
    pool: buffer::Pool,
    partial: buffer::Buffer,
}

/// Zeros come in pieces of at most this much, so that no step over them takes long.
const MOST_ZEROS: u64 = 64 << 20;

impl Rechunk {
    pub(crate) fn new(size: usize, hole: Option<u64>, pool: buffer::Pool) -> Self {
        let size = size.max(1);
        // Holes larger than a chunk could never be found in one.
        let hole =
            hole.filter(|hole| *hole > 0 && *hole <= size as u64 && (size as u64).is_multiple_of(*hole));
        let partial = pool.take();
        Self { size, hole, offset: 0, pool, partial }
    }

    /// Takes from `piece` what makes the next chunk; `None` when more is needed.
    pub(crate) fn next(&mut self, piece: &mut Chunk) -> Option<Chunk> {
        loop {
            if self.partial.len() == self.step() {
                return self.flush();
            }
            match piece {
                Chunk::Data(bytes) if bytes.is_empty() => return None,
                Chunk::Zeros(0) => return None,
                Chunk::Data(bytes) => {
                    let step = self.step();
                    if self.partial.is_empty() && bytes.len() >= step {
                        return Some(self.emit(bytes.split_to(step)));
                    }
                    let wanted = bytes.len().min(step - self.partial.len());
                    let taken = self.partial.fill(&bytes[..wanted]);
                    drop(bytes.split_to(taken));
                }
                Chunk::Zeros(len) => {
                    let room = (self.step() - self.partial.len()) as u64;
                    let wanted = match self.hole {
                        Some(hole) if *len >= hole && self.to_boundary(hole) == hole => {
                            return self.flush().or_else(|| Some(self.emit_hole(len, hole)));
                        }
                        Some(hole) => room.min(self.to_boundary(hole)),
                        None => room,
                    };
                    *len -= self.partial.fill_zeros(wanted.min(*len));
                }
            }
        }
    }

    /// What is left at the end.
    pub(crate) fn flush(&mut self) -> Option<Chunk> {
        if self.partial.is_empty() {
            return None;
        }
        let full = std::mem::replace(&mut self.partial, self.pool.take());
        Some(self.emit(full.freeze()))
    }

    /// How long the next chunk may be: up to the next multiple of the chunk size, so that chunks stay aligned.
    fn step(&self) -> usize {
        self.size - (self.offset % self.size as u64) as usize
    }

    /// How far it is from the end of what is held to the next multiple of `hole`; `hole` itself at one.
    fn to_boundary(&self, hole: u64) -> u64 {
        hole - (self.offset + self.partial.len() as u64) % hole
    }

    /// Cuts the whole holes off a run of `len` zeros.
    fn emit_hole(&mut self, len: &mut u64, hole: u64) -> Chunk {
        let run = (*len).min(MOST_ZEROS.next_multiple_of(hole)) / hole * hole;
        *len -= run;
        self.offset += run;
        Chunk::Zeros(run)
    }

    fn emit(&mut self, bytes: Bytes) -> Chunk {
        self.offset += bytes.len() as u64;
        Chunk::Data(bytes)
    }
}

/// Splits a chunk that starts at `offset` into its runs of data and of zeros that cover whole holes.
pub(crate) fn runs(offset: u64, mut bytes: Bytes, hole: Option<u64>) -> Vec<Chunk> {
    let Some(hole) = hole.filter(|hole| (*hole as usize) <= bytes.len()) else {
        return vec![Chunk::Data(bytes)];
    };
    let mut runs: Vec<Chunk> = Vec::new();
    let lead = (offset.next_multiple_of(hole) - offset).min(bytes.len() as u64) as usize;
    let mut data = lead;
    let mut at = lead;
    while at + hole as usize <= bytes.len() {
        let mut end = at;
        while end + hole as usize <= bytes.len() && is_zero(&bytes[end..end + hole as usize]) {
            end += hole as usize;
        }
        if end == at {
            at += hole as usize;
            data = at;
            continue;
        }
        if data > 0 {
            runs.push(Chunk::Data(bytes.split_to(data)));
        }
        let zeros = end - at;
        drop(bytes.split_to(zeros));
        runs.push(Chunk::Zeros(zeros as u64));
        (data, at) = (0, 0);
    }
    if !bytes.is_empty() {
        runs.push(Chunk::Data(bytes));
    }
    runs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn piece() -> impl Strategy<Value = Chunk> {
        prop_oneof![
            (0u64..300).prop_map(Chunk::Zeros),
            proptest::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..300)
                .prop_map(|v| Chunk::Data(v.into())),
            (0usize..300, 0usize..300, any::<u8>()).prop_map(|(zeros, ones, byte)| {
                let mut bytes = vec![0; zeros];
                bytes.resize(zeros + ones, byte | 1);
                Chunk::Data(bytes.into())
            }),
        ]
    }

    fn flat(chunks: &[Chunk]) -> Vec<u8> {
        chunks.iter().cloned().flat_map(Chunk::into_bytes).flatten().collect()
    }

    proptest! {
        #[test]
        fn the_bytes_stay_and_the_chunks_keep_the_contract(
            pieces in proptest::collection::vec(piece(), 0..20),
            hole in prop_oneof![Just(None), Just(Some(16u64)), Just(Some(64))],
        ) {
            // Chunks of 64 bytes stand for the megabytes of real life; the pool rounds up, the chunks do not.
            let mut rechunk = Rechunk::new(64, hole, buffer::Pool::new(64, 2));
            let mut out = Vec::new();
            for mut piece in pieces.clone() {
                while let Some(chunk) = rechunk.next(&mut piece) {
                    out.push(chunk);
                }
                prop_assert!(piece.is_empty());
            }
            out.extend(rechunk.flush());
            prop_assert_eq!(flat(&out), flat(&pieces));

            let mut offset = 0u64;
            let mut stored = Vec::new();
            for chunk in &out {
                prop_assert!(!chunk.is_empty());
                match chunk {
                    Chunk::Data(bytes) => {
                        prop_assert!(bytes.len() <= 64);
                        prop_assert!(offset % 64 + bytes.len() as u64 <= 64, "crosses a chunk boundary");
                        stored.extend(runs(offset, bytes.clone(), hole));
                    }
                    Chunk::Zeros(_) => stored.push(chunk.clone()),
                }
                offset += chunk.len();
            }
            prop_assert_eq!(flat(&stored), flat(&pieces));

            let mut offset = 0u64;
            for chunk in &stored {
                match (chunk, hole) {
                    (Chunk::Zeros(len), Some(hole)) => prop_assert!(offset.is_multiple_of(hole) && len.is_multiple_of(hole)),
                    (Chunk::Zeros(_), None) => prop_assert!(false, "a hole where there are none"),
                    (Chunk::Data(bytes), Some(hole)) => {
                        // No whole aligned hole is left in the data.
                        let first = (offset.next_multiple_of(hole) - offset) as usize;
                        let rest = bytes.get(first..).unwrap_or_default();
                        prop_assert!(rest.chunks_exact(hole as usize).all(|block| !is_zero(block)));
                    }
                    (Chunk::Data(_), None) => {}
                }
                offset += chunk.len();
            }
        }
    }

    #[test]
    fn pieces_that_fit_are_not_copied() {
        let mut rechunk = Rechunk::new(4096, Some(4096), buffer::Pool::new(4096, 1));
        let source = Bytes::from(vec![1; 3 * 4096 + 5]);
        let mut piece = Chunk::Data(source.clone());
        for i in 0..3 {
            let Some(Chunk::Data(chunk)) = rechunk.next(&mut piece) else { panic!("no chunk {i}") };
            assert_eq!(chunk.as_ptr(), source[i * 4096..].as_ptr());
        }
        assert_eq!(rechunk.next(&mut piece), None);
        assert_eq!(rechunk.flush().map(|chunk| chunk.len()), Some(5));
    }
}
