//! Layers: backends that hold a backend. Each does one thing to every call that passes.

mod limit;
mod metrics;
mod read_only;
mod retry;
mod timeout;

use std::sync::Arc;

pub use self::{limit::Limit, metrics::Metrics, read_only::ReadOnly, retry::Retrying, timeout::Deadline};
use crate::{Backend, Options};

/// The one place that says in which order layers stand, from the outside in:
/// `metrics(read_only(retry(limit(timeout(backend)))))`.
///
/// Metrics see what a program sees. A back-off holds no permit. A wait for a permit counts against no deadline.
pub fn compose(name: &str, backend: Arc<dyn Backend>, options: &Options) -> Arc<dyn Backend> {
    let mut backend: Arc<dyn Backend> = Arc::new(Deadline::new(backend, options.timeout));
    if let Some(most) = options.max_transfers {
        backend = Arc::new(Limit::new(backend, most));
    }
    backend = Arc::new(Retrying::new(name, backend, options.retry));
    if options.read_only {
        backend = Arc::new(ReadOnly::new(backend));
    }
    Arc::new(Metrics::new(name, backend))
}
