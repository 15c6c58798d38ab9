#![doc = include_str!("../README.md")]

mod backend;
pub mod buffer;
mod chunk;
pub mod config;
mod digest;
pub mod driver;
mod error;
pub mod file;
pub mod inspect;
mod lanes;
pub mod layer;
mod location;
mod memory;
mod meta;
mod options;
mod policy;
mod reader;
mod rechunk;
mod registry;
mod store;
mod units;
mod writer;

pub use backend::{
    Backend, ByteRange, Capabilities, Capacity, ChunkStream, Download, Entry, Info, SizeHint, Swept, Upload,
};
pub use chunk::{Chunk, is_zero};
pub use config::{Secret, Settings};
pub use digest::{Algorithm, Digests, Hasher};
pub use error::{Error, ErrorKind, Result};
pub use lanes::Tap;
pub use location::{BlobId, Location};
pub use memory::{MemoryBackend, MemoryConfig};
pub use meta::{Meta, Stat};
pub use options::{Inspect, Options, Retry, Timeout};
pub use reader::{ByteStream, Reader};
pub use registry::{Config, Registry, Stores};
pub use store::{Store, Verified, once};
pub use units::{Size, Span};
pub use writer::{Blob, Expect, Writer};
