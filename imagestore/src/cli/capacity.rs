use imagestore::Capacity;
use serde_json::json;

use super::{App, args, exit::Outcome, output};

pub(super) async fn run(app: &App, args: args::Capacity) -> Outcome {
    let store = app.store(args.store.store.as_deref()).await?;
    let Capacity { total, free } = store.capacity().await?;
    let out = app.output();
    out.object(&json!({ "store": store.name(), "total": total, "free": free }))?;
    let percent = u128::from(free) * 100 / u128::from(total.max(1));
    out.rows(&[
        ("store", store.name().to_owned()),
        ("total", output::size(total)),
        ("free", format!("{}, {percent}%", output::size(free))),
    ])
}
