//! What Swift and Keystone answer, `clouds.yaml`, and locations: no panic, and a location that leads somewhere does so
//! again when it is written anew.

#![no_main]

use libfuzzer_sys::fuzz_target;
use store_swift::fuzz;

fuzz_target!(|input: &[u8]| {
    fuzz::answers(input);
    if let Ok(text) = std::str::from_utf8(input) {
        fuzz::clouds(text);
        fuzz::locations(text);
    }
});
