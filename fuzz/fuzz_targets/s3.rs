//! What S3 servers answer, as far as it is not the SDK that reads it, and locations: no panic, no secret that shows, and a
//! location that leads somewhere does so again when it is written anew.

#![no_main]

use libfuzzer_sys::fuzz_target;
use store_s3::fuzz;

fuzz_target!(|input: &[u8]| {
    fuzz::answers(input);
    if let Ok(text) = std::str::from_utf8(input) {
        fuzz::locations(text);
    }
});
