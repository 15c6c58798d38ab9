use imagestore::Size;
use serde_json::json;

use super::{App, args, exit::Outcome};

pub(super) async fn run(app: &App, args: args::Sweep) -> Outcome {
    let store = app.store(args.store.store.as_deref()).await?;
    let swept = store.sweep(args.older_than.0).await?;
    let out = app.output();
    out.object(&json!({ "store": store.name(), "uploads": swept.uploads, "bytes": swept.bytes }))?;
    if out.quiet {
        return Ok(());
    }
    match swept.uploads {
        0 => out.line(format_args!("nothing to remove in store {}", store.name())),
        1 => out.line(format_args!(
            "removed 1 unfinished upload ({}) from store {}",
            Size(swept.bytes),
            store.name()
        )),
        n => out.line(format_args!(
            "removed {n} unfinished uploads ({}) from store {}",
            Size(swept.bytes),
            store.name()
        )),
    }
}
