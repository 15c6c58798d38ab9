//! MD5 of several texts at once.
//!
//! Each step of MD5 waits for the one before, so a core does little else but wait. Four texts that take their steps
//! together in vector registers cost what one costs alone.

use bytes::Bytes;
use wide::u32x4;

/// How many texts.
pub(crate) const LANES: usize = 4;

const BLOCK: usize = 64;

/// The MD5s of at most [`LANES`] texts, each in any pieces, in hexadecimal.
pub(crate) fn md5s(texts: &[&[Bytes]]) -> Vec<String> {
    let mut lanes: Vec<Lane<'_>> = texts.iter().take(LANES).map(|text| Lane::new(text)).collect();
    let mut sums = vec![String::new(); lanes.len()];
    let mut state = INITIAL.map(u32x4::splat);
    loop {
        lanes.iter_mut().for_each(Lane::prepare);
        let left = || lanes.iter().map(Lane::blocks).filter(|blocks| !blocks.is_empty());
        let Some(least) = left().map(<[u8]>::len).min() else { return sums };
        // A lane without blocks takes those of another, and what comes of it is not looked at.
        let other = left().next().unwrap_or_default();
        compress(
            &mut state,
            std::array::from_fn(|lane| match lanes.get(lane).map(Lane::blocks) {
                Some(blocks) if !blocks.is_empty() => &blocks[..least],
                _ => &other[..least],
            }),
        );
        for (number, lane) in lanes.iter_mut().enumerate().filter(|(_, lane)| !lane.blocks().is_empty()) {
            lane.consume(least);
            if lane.padded && lane.blocks().is_empty() {
                let words = state.map(|word| word.to_array()[number].to_le_bytes());
                sums[number] = hex::encode(words.concat());
            }
        }
    }
}

/// A text on its way, as runs of whole blocks.
struct Lane<'a> {
    pieces: std::slice::Iter<'a, Bytes>,
    piece: &'a [u8],
    /// A block that lies in several pieces; at last what is left over and what MD5 adds.
    gathered: Vec<u8>,
    len: u64,
    padded: bool,
}

impl<'a> Lane<'a> {
    fn new(text: &'a [Bytes]) -> Self {
        Self {
            pieces: text.iter(),
            piece: &[],
            gathered: Vec::with_capacity(2 * BLOCK),
            len: 0,
            padded: false,
        }
    }

    /// Sees to it that there are blocks, unless the text has ended.
    fn prepare(&mut self) {
        loop {
            let whole = self.gathered.is_empty() && self.piece.len() >= BLOCK;
            if whole || self.gathered.len() >= BLOCK || self.padded {
                return;
            }
            let taken = self.piece.len().min(BLOCK - self.gathered.len());
            let (taken, rest) = self.piece.split_at(taken);
            self.gathered.extend_from_slice(taken);
            self.piece = rest;
            if self.gathered.len() == BLOCK {
                return;
            }
            match self.pieces.next() {
                Some(piece) => {
                    self.piece = piece;
                    self.len += piece.len() as u64;
                }
                None => {
                    self.gathered.push(0x80);
                    let room = if self.gathered.len() > BLOCK - 8 { 2 * BLOCK } else { BLOCK };
                    self.gathered.resize(room - 8, 0);
                    self.gathered.extend(self.len.wrapping_mul(8).to_le_bytes());
                    self.padded = true;
                }
            }
        }
    }

    fn blocks(&self) -> &[u8] {
        match self.gathered.is_empty() {
            true => &self.piece[..self.piece.len() / BLOCK * BLOCK],
            false => &self.gathered,
        }
    }

    fn consume(&mut self, len: usize) {
        match self.gathered.is_empty() {
            true => self.piece = &self.piece[len..],
            false => drop(self.gathered.drain(..len)),
        }
    }
}

// RFC 1321, section 3.4.

const INITIAL: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];

const SHIFTS: [[u32; 4]; 4] = [[7, 12, 17, 22], [5, 9, 14, 20], [4, 11, 16, 23], [6, 10, 15, 21]];

#[rustfmt::skip]
const SINES: [u32; 64] = [
    0xd76a_a478, 0xe8c7_b756, 0x2420_70db, 0xc1bd_ceee, 0xf57c_0faf, 0x4787_c62a, 0xa830_4613, 0xfd46_9501,
    0x6980_98d8, 0x8b44_f7af, 0xffff_5bb1, 0x895c_d7be, 0x6b90_1122, 0xfd98_7193, 0xa679_438e, 0x49b4_0821,
    0xf61e_2562, 0xc040_b340, 0x265e_5a51, 0xe9b6_c7aa, 0xd62f_105d, 0x0244_1453, 0xd8a1_e681, 0xe7d3_fbc8,
    0x21e1_cde6, 0xc337_07d6, 0xf4d5_0d87, 0x455a_14ed, 0xa9e3_e905, 0xfcef_a3f8, 0x676f_02d9, 0x8d2a_4c8a,
    0xfffa_3942, 0x8771_f681, 0x6d9d_6122, 0xfde5_380c, 0xa4be_ea44, 0x4bde_cfa9, 0xf6bb_4b60, 0xbebf_bc70,
    0x289b_7ec6, 0xeaa1_27fa, 0xd4ef_3085, 0x0488_1d05, 0xd9d4_d039, 0xe6db_99e5, 0x1fa2_7cf8, 0xc4ac_5665,
    0xf429_2244, 0x432a_ff97, 0xab94_23a7, 0xfc93_a039, 0x655b_59c3, 0x8f0c_cc92, 0xffef_f47d, 0x8584_5dd1,
    0x6fa8_7e4f, 0xfe2c_e6e0, 0xa301_4314, 0x4e08_11a1, 0xf753_7e82, 0xbd3a_f235, 0x2ad7_d2bb, 0xeb86_d391,
];

type Words = [u32x4; 4];

/// Takes whole blocks, as many of each text.
fn compress(state: &mut Words, texts: [&[u8]; LANES]) {
    let [first, second, third, fourth] = texts.map(|text| text.as_chunks::<BLOCK>().0);
    for (((first, second), third), fourth) in first.iter().zip(second).zip(third).zip(fourth) {
        let words = transposed([first, second, third, fourth]);
        let before = *state;
        round::<0, 1, 0>(state, &words, |b, c, d| d ^ (b & (c ^ d)));
        round::<1, 5, 1>(state, &words, |b, c, d| c ^ (d & (b ^ c)));
        round::<2, 3, 5>(state, &words, |b, c, d| b ^ c ^ d);
        round::<3, 7, 0>(state, &words, |b, c, d| c ^ (b | !d));
        for (word, before) in state.iter_mut().zip(before) {
            *word += before;
        }
    }
}

#[inline(always)]
fn round<const ROUND: usize, const FACTOR: usize, const FIRST: usize>(
    state: &mut Words,
    words: &[u32x4; 16],
    mix: impl Fn(u32x4, u32x4, u32x4) -> u32x4,
) {
    let [mut a, mut b, mut c, mut d] = *state;
    // Written out, since the compiler keeps a loop of this length as one.
    macro_rules! steps {
        ($($step:literal)*) => {$(
            let word = words[($step * FACTOR + FIRST) % 16] + u32x4::splat(SINES[ROUND * 16 + $step]);
            // In this order: what was mixed is there last.
            let sum = (a + word) + mix(b, c, d);
            let shift = SHIFTS[ROUND][$step % 4];
            let turned = (sum << shift) | (sum >> (32 - shift));
            (a, b, c, d) = (d, b + turned, b, c);
        )*};
    }
    steps!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    *state = [a, b, c, d];
}

/// The words of a block of each text: the first ones, the second ones, ..
///
/// In plain loops: what the closures of arrays become is not always inlined, and then takes as long as all the rest.
#[inline(always)]
fn transposed(blocks: [&[u8; BLOCK]; LANES]) -> [u32x4; 16] {
    let mut words = [u32x4::ZERO; 16];
    for (number, words) in words.iter_mut().enumerate() {
        let mut row = [0; LANES];
        for (word, block) in row.iter_mut().zip(blocks) {
            let at = number * 4;
            *word = u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
        }
        *words = u32x4::new(row);
    }
    words
}

#[cfg(test)]
mod tests {
    use md5::{Digest, Md5};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_texts_have_their_sums() {
        let text = |text: &'static str| [Bytes::from_static(text.as_bytes())];
        let (one, two) = (
            text("abc"),
            text("12345678901234567890123456789012345678901234567890123456789012345678901234567890"),
        );
        assert_eq!(
            md5s(&[&[], &one, &two]),
            [
                "d41d8cd98f00b204e9800998ecf8427e",
                "900150983cd24fb0d6963f7d28e17f72",
                "57edf4a22be3c955ac49da2e2107b67a"
            ]
        );
        assert!(md5s(&[]).is_empty());
    }

    proptest! {
        #[test]
        fn they_are_those_of_a_library(
            texts in proptest::collection::vec(
                proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..6), 0..=LANES,
            ),
        ) {
            let texts: Vec<Vec<Bytes>> =
                texts.into_iter().map(|pieces| pieces.into_iter().map(Bytes::from).collect()).collect();
            let expected: Vec<String> = texts.iter().map(|pieces| hex::encode(Md5::digest(pieces.concat()))).collect();
            let texts: Vec<&[Bytes]> = texts.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(md5s(&texts), expected);
        }
    }
}
