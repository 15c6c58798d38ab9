//! Every parser of text, and of what Ceph answers: no panic, and what parses says the same when it is printed and parsed
//! again. A location of RBD names the same image when it is written anew.

#![no_main]

use std::{fmt::Display, str::FromStr};

use libfuzzer_sys::fuzz_target;
use store_core::{Algorithm, BlobId, Digests, Location, Meta, Settings, Size, Span, inspect::Format};

fuzz_target!(|input: &[u8]| {
    store_ceph::fuzz::answers(input);
    if let Ok(meta) = Meta::from_json(input) {
        assert_eq!(Meta::from_json(meta.to_json().as_bytes()).ok(), Some(meta));
    }
    let Ok(text) = std::str::from_utf8(input) else { return };
    again::<BlobId>(text);
    again::<Algorithm>(text);
    again::<Format>(text);
    again::<Span>(text);
    let _ = text.parse::<Size>();
    if let Ok(at) = text.parse::<Location>() {
        // Credentials are not printed, so only the parts can be compared.
        assert!(text.len() == at.scheme().len() + 1 + at.rest().len());
        if let Ok(path) = at.to_path() {
            assert!(Location::from_path(&path).is_ok_and(|again| again.to_path().is_ok_and(|same| same == path)));
        }
    }
    store_ceph::fuzz::locations(text);
    let mut digests = Digests::default();
    for algorithm in Algorithm::ALL {
        if digests.insert_hex(algorithm, text).is_ok() {
            assert_eq!(digests.hex(algorithm), Some(text.to_ascii_lowercase()));
        }
    }
    if let Ok(settings) = Settings::parse(text) {
        for section in settings.sections() {
            let _ = (section.options().map(drop), section.backend::<store_core::MemoryConfig>().map(drop));
        }
    }
});

fn again<T: FromStr + Display + PartialEq + std::fmt::Debug>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert_eq!(value.to_string().parse::<T>().ok(), Some(value));
    }
}
