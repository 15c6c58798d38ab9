//! The suite over each layer by itself, and over the reference backend as third parties see it.

use std::sync::Arc;

use conformance_tests::{Fixture, Setup, Suites};
use store_core::{Backend, BlobId, Expect, MemoryBackend, Options, Retry, Span, Store, Timeout, layer, once};

/// A suite over `wrap`ped memory.
async fn over(wrap: impl Fn(Arc<dyn Backend>) -> Arc<dyn Backend> + Send + Sync + 'static) -> Setup {
    let backend = MemoryBackend::new(1 << 30);
    // One handle is one stack of layers.
    Setup::Ready(Fixture::new(move || wrap(Arc::new(backend.clone()))).exact_capacity())
}

fn main() {
    let minute = Span(std::time::Duration::from_secs(60));
    Suites::new()
        .with("retry", async || {
            over(|inner| Arc::new(layer::Retrying::new("retry", inner, Retry::default()))).await
        })
        .with("limit", async || over(|inner| Arc::new(layer::Limit::new(inner, 16))).await)
        .with("timeout", async move || {
            let limits = Timeout { call: minute, chunk: minute, commit: minute };
            over(move |inner| Arc::new(layer::Deadline::new(inner, limits))).await
        })
        .with("metrics", async || over(|inner| Arc::new(layer::Metrics::new("metrics", inner))).await)
        .with("all_twice", async || {
            over(|inner| {
                let mut options = Options::default();
                options.max_transfers = Some(16);
                layer::compose("inner", inner, &options)
            })
            .await
        })
        .with("read_only", read_only)
        .run()
}

/// Seeded through a handle that may write.
async fn read_only() -> Setup {
    let backend = MemoryBackend::new(1 << 30);
    let seeded = Arc::new(backend.clone());
    let fixture = Fixture::new(move || Arc::new(layer::ReadOnly::new(Arc::new(backend.clone()))));
    Setup::Ready(fixture.seed(move |id: BlobId, bytes| {
        let store = Store::new("seed", Arc::clone(&seeded) as _, Options::default());
        async move {
            let blob = store.put(&id, once(bytes), Expect::new()).await;
            blob.map(|blob| blob.location).map_err(|error| error.to_string())
        }
    }))
}
