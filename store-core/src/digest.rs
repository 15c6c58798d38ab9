use std::{collections::BTreeMap, fmt, str::FromStr, sync::LazyLock};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{Chunk, Error, ErrorKind, Result};

/// A way to tell whether bytes are the bytes that were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Algorithm {
    /// CRC-64/NVME (NVM Express, as in S3): costs next to nothing, so every blob has it and every full read is
    /// checked with it. A guard against accidents, not against attackers.
    Crc64Nvme,
    /// MD5 (RFC 1321), what Glance calls `checksum`.
    Md5,
    /// SHA-256 (FIPS 180-4).
    Sha256,
    /// SHA-512 (FIPS 180-4), what Glance calls `os_hash_value` by default.
    Sha512,
    /// BLAKE3.
    Blake3,
}

impl Algorithm {
    /// Every algorithm, the cheapest to compute first.
    pub const ALL: [Self; 5] = [Self::Crc64Nvme, Self::Blake3, Self::Sha256, Self::Md5, Self::Sha512];

    /// Its name in lower case, as in configuration and metadata.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Crc64Nvme => "crc64nvme",
            Self::Md5 => "md5",
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
            Self::Blake3 => "blake3",
        }
    }

    /// The length of its digests in bytes.
    pub fn digest_len(self) -> usize {
        match self {
            Self::Crc64Nvme => 8,
            Self::Md5 => 16,
            Self::Sha256 | Self::Blake3 => 32,
            Self::Sha512 => 64,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Algorithm {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.as_str() == name).ok_or_else(|| {
            let known = Self::ALL.map(Self::as_str).join(", ");
            Error::new(ErrorKind::Invalid, format!("unknown digest {name:?}; known are {known}"))
        })
    }
}

impl Serialize for Algorithm {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Algorithm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(|e: Error| de::Error::custom(e.message()))
    }
}

/// Digests of one blob, by algorithm; as text they are lower-case hexadecimal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Digests(BTreeMap<Algorithm, Vec<u8>>);

impl Digests {
    /// The digest by `algorithm`, if it is known.
    pub fn get(&self, algorithm: Algorithm) -> Option<&[u8]> {
        self.0.get(&algorithm).map(Vec::as_slice)
    }

    /// The digest by `algorithm` in hexadecimal, if it is known.
    pub fn hex(&self, algorithm: Algorithm) -> Option<String> {
        self.get(algorithm).map(hex::encode)
    }

    /// Adds one from its hexadecimal text, in either case.
    pub fn insert_hex(&mut self, algorithm: Algorithm, text: &str) -> Result<()> {
        let digest = hex::decode(text).ok().filter(|digest| digest.len() == algorithm.digest_len());
        let digest = digest.ok_or_else(|| {
            let digits = 2 * algorithm.digest_len();
            Error::new(ErrorKind::Invalid, format!("a {algorithm} digest is {digits} hexadecimal digits"))
        })?;
        self.0.insert(algorithm, digest);
        Ok(())
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (Algorithm, &[u8])> {
        self.0.iter().map(|(algorithm, digest)| (*algorithm, digest.as_slice()))
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The known one that costs least to compute again.
    pub fn cheapest(&self) -> Option<Algorithm> {
        Algorithm::ALL.into_iter().find(|algorithm| self.0.contains_key(algorithm))
    }

    /// Compares what both know, and names each algorithm in which they differ.
    pub fn differences(&self, other: &Self) -> Vec<Algorithm> {
        self.iter()
            .filter(|(a, digest)| other.get(*a).is_some_and(|o| o != *digest))
            .map(|(a, _)| a)
            .collect()
    }

    pub(crate) fn insert(&mut self, algorithm: Algorithm, digest: Vec<u8>) {
        self.0.insert(algorithm, digest);
    }
}

impl Serialize for Digests {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(algorithm, digest)| (algorithm, hex::encode(digest))))
    }
}

impl<'de> Deserialize<'de> for Digests {
    /// Digests by algorithms that this version does not know are left out, so that a newer writer is no error.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut digests = Self::default();
        for (name, text) in BTreeMap::<String, String>::deserialize(deserializer)? {
            if let Ok(algorithm) = name.parse() {
                digests.insert_hex(algorithm, &text).map_err(|e| de::Error::custom(e.message()))?;
            }
        }
        Ok(digests)
    }
}

/// The CRCs of runs of zeros: of this length first, and each of twice the length of the one before, up to 2 TiB.
const CRC_ZEROS: u64 = 64 << 20;
static ZEROS_CRC: LazyLock<[(u64, crc_fast::Digest); 16]> = LazyLock::new(|| {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
    Chunk::Zeros(CRC_ZEROS).into_bytes().for_each(|bytes| digest.update(&bytes));
    let mut len = CRC_ZEROS;
    std::array::from_fn(|_| {
        let this = (len, digest);
        digest.combine(&this.1);
        len *= 2;
        this
    })
});

/// One digest being computed.
pub struct Hasher {
    algorithm: Algorithm,
    state: State,
}

impl Hasher {
    /// Starts a digest.
    pub fn new(algorithm: Algorithm) -> Self {
        let state = match algorithm {
            Algorithm::Crc64Nvme => {
                State::Crc(Box::new(crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme)))
            }
            Algorithm::Blake3 => State::Blake3(Box::new(blake3::Hasher::new())),
            Algorithm::Md5 => State::Md5(imp::Md5::new()),
            Algorithm::Sha256 => State::Sha256(imp::Sha256::new()),
            Algorithm::Sha512 => State::Sha512(imp::Sha512::new()),
        };
        Self { algorithm, state }
    }

    /// What it computes.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Adds bytes; slow for megabytes, so not on an async thread.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.state {
            State::Crc(state) => state.update(bytes),
            State::Blake3(state) => drop(state.update(bytes)),
            State::Md5(state) => state.update(bytes),
            State::Sha256(state) => state.update(bytes),
            State::Sha512(state) => state.update(bytes),
        }
    }

    /// Whether a run of zeros of any length takes it some steps of arithmetic.
    pub(crate) fn skips_zeros(&self) -> bool {
        matches!(self.state, State::Crc(_))
    }

    /// Adds a chunk.
    pub fn update_chunk(&mut self, chunk: &Chunk) {
        let mut chunk = chunk.clone();
        // A CRC goes on after a run of zeros by arithmetic, in some steps of half a millisecond.
        if let (State::Crc(state), Chunk::Zeros(len)) = (&mut self.state, &mut chunk)
            && *len >= CRC_ZEROS
        {
            for (run, digest) in ZEROS_CRC.iter().rev() {
                while *len >= *run {
                    state.combine(digest);
                    *len -= *run;
                }
            }
        }
        for bytes in chunk.into_bytes() {
            self.update(&bytes);
        }
    }

    /// The digest.
    pub fn finish(self) -> Vec<u8> {
        match self.state {
            State::Crc(state) => state.finalize().to_be_bytes().to_vec(),
            State::Blake3(state) => state.finalize().as_bytes().to_vec(),
            State::Md5(state) => state.finish(),
            State::Sha256(state) => state.finish(),
            State::Sha512(state) => state.finish(),
        }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Hasher").field(&self.algorithm).finish()
    }
}

enum State {
    Crc(Box<crc_fast::Digest>),
    Blake3(Box<blake3::Hasher>),
    Md5(imp::Md5),
    Sha256(imp::Sha256),
    Sha512(imp::Sha512),
}

/// MD5 in pure Rust, and SHA-2 where nothing that is faster is linked.
#[cfg(not(feature = "openssl"))]
mod imp {
    #[cfg(feature = "aws-lc")]
    pub(super) use super::aws_lc::{Sha256, Sha512};

    pub(super) struct Pure<D>(D);

    pub(super) type Md5 = Pure<md5::Md5>;
    #[cfg(not(feature = "aws-lc"))]
    pub(super) type Sha256 = Pure<sha2::Sha256>;
    #[cfg(not(feature = "aws-lc"))]
    pub(super) type Sha512 = Pure<sha2::Sha512>;

    impl<D: sha2::Digest> Pure<D> {
        pub(super) fn new() -> Self {
            Self(D::new())
        }
        pub(super) fn update(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
        pub(super) fn finish(self) -> Vec<u8> {
            self.0.finalize().to_vec()
        }
    }
}

/// SHA-2 from AWS-LC, which has no MD5 for safe Rust.
#[cfg(all(feature = "aws-lc", not(feature = "openssl")))]
mod aws_lc {
    use aws_lc_rs::digest::{Context, SHA256, SHA512};

    macro_rules! sha {
        ($name:ident, $algorithm:ident) => {
            pub(super) struct $name(Context);

            impl $name {
                pub(super) fn new() -> Self {
                    Self(Context::new(&$algorithm))
                }
                pub(super) fn update(&mut self, bytes: &[u8]) {
                    self.0.update(bytes);
                }
                pub(super) fn finish(self) -> Vec<u8> {
                    self.0.finish().as_ref().to_vec()
                }
            }
        };
    }
    sha!(Sha256, SHA256);
    sha!(Sha512, SHA512);
}

/// MD5 and SHA-2 from the system's OpenSSL.
#[cfg(feature = "openssl")]
mod imp {
    use openssl::{
        hash::{Hasher, MessageDigest},
        sha,
    };

    /// In FIPS mode OpenSSL has no MD5; here it guards against accidents, not against attackers.
    pub(super) enum Md5 {
        Fast(Hasher),
        Pure(md5::Md5),
    }
    pub(super) struct Sha256(sha::Sha256);
    pub(super) struct Sha512(sha::Sha512);

    impl Md5 {
        pub(super) fn new() -> Self {
            match Hasher::new(MessageDigest::md5()) {
                Ok(hasher) => Self::Fast(hasher),
                Err(_) => Self::Pure(sha2::Digest::new()),
            }
        }
        #[expect(
            clippy::expect_used,
            reason = "EVP_DigestUpdate(3) fails only before its init, which `new` has checked"
        )]
        pub(super) fn update(&mut self, bytes: &[u8]) {
            match self {
                Self::Fast(hasher) => hasher.update(bytes).expect("an initialised digest takes bytes"),
                Self::Pure(hasher) => sha2::Digest::update(hasher, bytes),
            }
        }
        #[expect(clippy::expect_used, reason = "as above, for EVP_DigestFinal(3)")]
        pub(super) fn finish(self) -> Vec<u8> {
            match self {
                Self::Fast(mut hasher) => hasher.finish().expect("an initialised digest ends").to_vec(),
                Self::Pure(hasher) => sha2::Digest::finalize(hasher).to_vec(),
            }
        }
    }

    macro_rules! sha {
        ($name:ident) => {
            impl $name {
                pub(super) fn new() -> Self {
                    Self(sha::$name::new())
                }
                pub(super) fn update(&mut self, bytes: &[u8]) {
                    self.0.update(bytes);
                }
                pub(super) fn finish(self) -> Vec<u8> {
                    self.0.finish().to_vec()
                }
            }
        };
    }
    sha!(Sha256);
    sha!(Sha512);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex_of(algorithm: Algorithm, bytes: &[u8]) -> String {
        let mut hasher = Hasher::new(algorithm);
        for piece in bytes.chunks(2) {
            hasher.update(piece);
        }
        hex::encode(hasher.finish())
    }

    /// RFC 1321 appendix A.5, FIPS 180-4 examples, the CRC RevEng catalogue, the BLAKE3 paper's test vectors.
    #[test]
    fn known_answers() {
        assert_eq!(hex_of(Algorithm::Crc64Nvme, b"123456789"), "ae8b14860a799888");
        assert_eq!(hex_of(Algorithm::Md5, b"abc"), "900150983cd24fb0d6963f7d28e17f72");
        assert_eq!(
            hex_of(Algorithm::Sha256, b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert!(hex_of(Algorithm::Sha512, b"abc").starts_with("ddaf35a193617abacc417349ae204131"));
        assert!(hex_of(Algorithm::Blake3, b"").starts_with("af1349b9f5f9a1a6a0404dea36dcc949"));
    }

    #[test]
    fn zeros_hash_like_bytes() {
        for algorithm in Algorithm::ALL {
            let mut hasher = Hasher::new(algorithm);
            hasher.update_chunk(&Chunk::Zeros((1 << 20) + 7));
            assert_eq!(hex::encode(hasher.finish()), hex_of(algorithm, &vec![0; (1 << 20) + 7]));
            assert_eq!(Hasher::new(algorithm).finish().len(), algorithm.digest_len());
        }
    }

    #[test]
    fn long_runs_of_zeros_have_the_crc_of_their_bytes() {
        let (mut runs, mut bytes) = (Hasher::new(Algorithm::Crc64Nvme), Hasher::new(Algorithm::Crc64Nvme));
        for len in [2 * CRC_ZEROS + 77, 5, CRC_ZEROS, 7 * CRC_ZEROS] {
            runs.update_chunk(&Chunk::Zeros(len));
            Chunk::Zeros(len).into_bytes().for_each(|zeros| bytes.update(&zeros));
            for hasher in [&mut runs, &mut bytes] {
                hasher.update(b"data");
            }
        }
        assert_eq!(hex::encode(runs.finish()), hex::encode(bytes.finish()));
    }

    #[test]
    fn digests_survive_json_and_unknown_ones_are_left_out() {
        let json = r#"{"md5":"900150983cd24fb0d6963f7d28e17f72","sha3":"00"}"#;
        let digests: Digests = serde_json::from_str(json).unwrap();
        assert_eq!(digests.hex(Algorithm::Md5).unwrap(), "900150983cd24fb0d6963f7d28e17f72");
        assert_eq!(serde_json::to_string(&digests).unwrap(), json.replace(r#","sha3":"00""#, ""));
        assert!(serde_json::from_str::<Digests>(r#"{"md5":"9001"}"#).is_err());
    }
}
