mod error;
pub mod inspect;
mod location;

pub use error::{Error, ErrorKind, Result};
pub use location::{BlobId, Location};
