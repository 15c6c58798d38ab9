#![doc = include_str!("../README.md")]

mod configuration;

pub use configuration::{CONFIG_VARIABLE, Origin, built_in, configuration, data_dir, open};
pub use store_core::{
    Algorithm, Backend, Blob, BlobId, ByteRange, ByteStream, Capabilities, Capacity, Chunk, ChunkStream,
    Config, Digests, Download, Entry, Error, ErrorKind, Expect, Info, Inspect, Location, MemoryBackend,
    MemoryConfig, Meta, Options, Reader, Registry, Result, Retry, Secret, Settings, Size, SizeHint, Span,
    Stat, Store, Stores, Swept, Tap, Timeout, Upload, Verified, Writer, buffer, config, driver, file,
    inspect, once,
};

/// The backends that this build has, each behind the Cargo feature of its name.
///
/// A program adds its own with [`Registry::with`]:
///
/// ```
/// let registry = imagestore::registry();
/// assert!(registry.types().any(|kind| kind == "memory"));
/// ```
pub fn registry() -> Registry {
    let registry = Registry::default().with::<MemoryConfig>();
    #[cfg(feature = "ceph")]
    let registry = registry.with::<store_ceph::CephConfig>();
    #[cfg(not(feature = "ceph"))]
    let registry = registry.without("ceph", "build it with the Cargo feature `ceph`");
    #[cfg(feature = "fs")]
    let registry = registry.with::<store_fs::FsConfig>();
    #[cfg(not(feature = "fs"))]
    let registry = registry.without("fs", "build it with the Cargo feature `fs`");
    #[cfg(feature = "object")]
    let registry = registry.with::<store_object::ObjectConfig>();
    #[cfg(not(feature = "object"))]
    let registry = registry.without("object", "build it with the Cargo feature `object`");
    #[cfg(feature = "s3")]
    let registry = registry.with::<store_s3::S3Config>();
    #[cfg(not(feature = "s3"))]
    let registry = registry.without("s3", "build it with the Cargo feature `s3`");
    #[cfg(feature = "swift")]
    let registry = registry.with::<store_swift::SwiftConfig>();
    #[cfg(not(feature = "swift"))]
    let registry = registry.without("swift", "build it with the Cargo feature `swift`");
    // What Glance calls them.
    registry
        .without("file", "Glance's `file` is the type `fs` here")
        .without("filesystem", "Glance's `filesystem` is the type `fs` here")
        .without("rbd", "Glance's `rbd` is the type `ceph` here")
}

/// The examples of the project's README compile.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct ProjectReadme;
