use imagestore::Result;
use serde_json::json;

use super::{
    App, Tally,
    args::{self, Target},
    exit::Outcome,
    output,
    target::Found,
};

pub(super) async fn run(app: &App, args: args::Stat) -> Outcome {
    let mut tally = Tally::default();
    let out = app.output();
    for (place, target) in args.targets.iter().enumerate() {
        let (found, stat) = match describe(app, target, args.store.store.as_deref()).await {
            Ok(described) => described,
            Err(error) => {
                app.report(&error, &mut tally);
                continue;
            }
        };
        let id = match target {
            Target::Id(id) => Some(id),
            Target::Location(_) => None,
        };
        out.object(&json!({
            "id": id, "store": found.store.name(), "location": found.at, "size": stat.size,
            "allocated": stat.allocated, "meta": stat.meta,
        }))?;
        if place > 0 {
            out.line("")?;
        }
        let mut rows: Vec<(&str, String)> = id.iter().map(|id| ("id", id.to_string())).collect();
        rows.push(("store", found.store.name().to_owned()));
        rows.push(("location", found.at.to_string()));
        rows.push(("size", output::size(stat.size)));
        rows.extend(stat.allocated.map(|bytes| ("on disk", output::size(bytes))));
        match &stat.meta {
            Some(meta) => rows.extend(output::meta_rows(meta)),
            None => rows.push(("digests", "none: another program wrote this image".to_owned())),
        }
        out.rows(&rows)?;
    }
    tally.outcome()
}

async fn describe(app: &App, target: &Target, store: Option<&str>) -> Result<(Found, imagestore::Stat)> {
    let found = app.find(target, store).await?;
    let stat = found.store.stat(&found.at).await?;
    Ok((found, stat))
}
