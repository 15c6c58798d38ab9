#![doc = include_str!("../README.md")]

mod auth;
mod backend;
mod client;
mod clouds;
mod config;
mod error;
mod location;
mod md5;
mod sums;
mod upload;

#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzz;

pub use backend::SwiftBackend;
pub use config::{AuthVersion, Checksum, Interface, LargeObjects, SwiftConfig};
