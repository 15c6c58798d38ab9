use std::sync::LazyLock;

use bytes::Bytes;

/// A piece of a blob: bytes, or a run of zeros that nobody needs to hold, send or store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// Bytes.
    Data(Bytes),
    /// So many zero bytes.
    Zeros(u64),
}

/// A megabyte of zeros, shared by all who need some to read.
static ZEROS: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(vec![0; 1 << 20]));

impl Chunk {
    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Data(bytes) => bytes.len() as u64,
            Self::Zeros(len) => *len,
        }
    }

    /// Whether it holds no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Splits off the first `at` bytes, or all where there are fewer.
    pub fn split_to(&mut self, at: u64) -> Self {
        let at = at.min(self.len());
        match self {
            Self::Data(bytes) => Self::Data(bytes.split_to(at as usize)),
            Self::Zeros(len) => {
                *len -= at;
                Self::Zeros(at)
            }
        }
    }

    /// The same content as byte slices of at most 1 MiB for zeros; no memory is allocated.
    pub fn into_bytes(self) -> impl Iterator<Item = Bytes> + Send {
        let (data, mut zeros) = match self {
            Self::Data(bytes) => (Some(bytes), 0),
            Self::Zeros(len) => (None, len),
        };
        data.into_iter().chain(std::iter::from_fn(move || {
            let len = zeros.min(ZEROS.len() as u64);
            zeros -= len;
            (len > 0).then(|| ZEROS.slice(..len as usize))
        }))
    }
}

impl From<Bytes> for Chunk {
    fn from(bytes: Bytes) -> Self {
        Self::Data(bytes)
    }
}

/// Whether all of `bytes` are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    // The first word decides for nearly all data; the 64-byte blocks let the compiler use vector registers.
    let (blocks, rest) = bytes.as_chunks::<64>();
    bytes.first().is_none_or(|first| *first == 0)
        && blocks.iter().all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_read_as_bytes() {
        let all: Vec<Bytes> = Chunk::Zeros((2 << 20) + 5).into_bytes().collect();
        assert_eq!(all.iter().map(Bytes::len).collect::<Vec<_>>(), [1 << 20, 1 << 20, 5]);
        assert!(all.iter().all(|bytes| is_zero(bytes)));
        assert_eq!(Chunk::Zeros(0).into_bytes().count(), 0);
    }

    #[test]
    fn one_bit_anywhere_is_not_zero() {
        for len in [1, 63, 64, 65, 200] {
            assert!(is_zero(&vec![0; len]));
            for at in 0..len {
                let mut bytes = vec![0; len];
                bytes[at] = 0x80;
                assert!(!is_zero(&bytes), "{at} of {len}");
            }
        }
        assert!(is_zero(&[]));
    }
}
