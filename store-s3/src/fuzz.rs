//! Doors for fuzzers, to every parser of what servers, users and other programs write. XML is the SDK's to read.

use crate::{client, error, location};

/// What servers answer: regions, codes, ranges, tokens.
pub fn answers(input: &[u8]) {
    error::parse_all(input);
    client::parse_all(input);
}

/// Locations, and keys in lists.
pub fn locations(text: &str) {
    location::parse_all(text);
}
