#![doc = include_str!("../README.md")]

mod backend;
mod client;
mod config;
mod error;
mod location;
mod upload;

pub use backend::FsBackend;
pub use config::{Directory, FsConfig, Staging};
