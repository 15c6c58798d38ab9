//! The suite over the reference backend.

use std::sync::Arc;

use conformance_tests::{Fixture, Setup, run};
use store_core::MemoryBackend;

fn main() {
    run("memory", async || {
        let backend = MemoryBackend::new(4 << 30);
        Setup::Ready(Fixture::new(move || Arc::new(backend.clone())).exact_capacity())
    })
}
