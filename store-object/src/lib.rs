#![doc = include_str!("../README.md")]

mod adaptor;
mod backend;
mod config;
mod error;
mod place;
mod upload;

pub use adaptor::StoreObjects;
pub use backend::ObjectBackend;
pub use config::ObjectConfig;
