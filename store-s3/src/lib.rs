#![doc = include_str!("../README.md")]

mod backend;
mod client;
mod config;
mod error;
mod location;
mod plan;
mod upload;

pub use backend::S3Backend;
pub use config::{Checksum, Conditional, PathStyle, S3Config, Sse};
