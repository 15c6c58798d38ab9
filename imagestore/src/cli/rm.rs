use imagestore::{ErrorKind, Location, Result};
use serde_json::json;

use super::{
    App, Tally,
    args::{self, Target},
    exit::Outcome,
};

pub(super) async fn run(app: &App, args: args::Rm) -> Outcome {
    let mut tally = Tally::default();
    let out = app.output();
    for target in &args.targets {
        match remove(app, target, args.store.store.as_deref()).await {
            Ok((store, at)) => {
                out.object(&json!({ "target": target.to_string(), "store": store, "location": at }))?;
                if !out.quiet {
                    out.line(format_args!("deleted {target} from {store}"))?;
                }
            }
            Err(error) if args.force && error.kind() == ErrorKind::NotFound => {
                out.object(&json!({ "target": target.to_string(), "missing": true }))?;
                app.notice(&format!("{target} is not there"));
            }
            Err(error) => app.report(&error, &mut tally),
        }
    }
    tally.outcome()
}

async fn remove(app: &App, target: &Target, store: Option<&str>) -> Result<(String, Location)> {
    let found = app.find(target, store).await?;
    found.store.delete(&found.at).await?;
    Ok((found.store.name().to_owned(), found.at))
}
