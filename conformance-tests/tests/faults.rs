//! The suite over a backend that has every hook: the fault, damage and crash cases too.

use std::sync::Arc;

use conformance_tests::{FaultKind, Fixture, Flaky, Setup, run};
use store_core::MemoryBackend;

fn main() {
    run("flaky", async || {
        let flaky = Flaky::new(Arc::new(MemoryBackend::new(4 << 30)));
        let hooks = (flaky.fault_hook(), flaky.damage_hook(), flaky.crash_hook());
        let fixture = Fixture::new(move || Arc::new(flaky.clone()))
            .exact_capacity()
            .fault(&FaultKind::ALL, hooks.0)
            .damage(hooks.1)
            .crash(hooks.2);
        Setup::Ready(fixture)
    })
}
