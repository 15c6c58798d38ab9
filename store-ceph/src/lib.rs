#![doc = include_str!("../README.md")]

mod backend;
mod client;
mod config;
mod error;
mod ffi;
mod location;
mod upload;

#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzz;

pub use backend::{CephBackend, TrashedBlob};
pub use config::{CephConfig, CopyMode, Feature, InUse};
