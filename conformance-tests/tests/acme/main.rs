//! A third party's backend under test: all that it takes is in `main`.

mod acme;
mod server;

use std::sync::Arc;

use conformance_tests::{FaultKind, Fixture, Proxy, Setup, run};

// README: from here
fn main() {
    run("acme", async || {
        let server = server::start().await;
        let proxy = match Proxy::start(server).await {
            Ok(proxy) => Arc::new(proxy),
            Err(why) => return Setup::Missing(format!("no acme server: {why}")),
        };
        let fault = proxy.hook();
        Setup::Ready(
            Fixture::new(move || Arc::new(acme::Acme::new(proxy.addr()))).fault(&FaultKind::ALL, fault),
        )
    })
}
// README: to here
