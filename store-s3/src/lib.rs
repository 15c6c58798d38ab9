#![doc = include_str!("../README.md")]

mod backend;
mod client;
mod config;
mod error;
mod location;
mod plan;
mod upload;

#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzz;

pub use backend::S3Backend;
pub use config::{Checksum, Conditional, PathStyle, S3Config, Sse};
