//! Doors for fuzzers, to every parser of what servers, users and other programs write.

use crate::{auth, client, clouds, error, location};

/// Answers of Swift and of Keystone.
pub fn answers(input: &[u8]) {
    client::parse_all(input);
    auth::parse_all(input);
    let text = String::from_utf8_lossy(input);
    let _ = error::answer("fuzz", 413, None, &text);
}

/// `clouds.yaml`.
pub fn clouds(text: &str) {
    clouds::parse_all(text);
}

/// Locations.
pub fn locations(text: &str) {
    location::parse_all(text);
}
