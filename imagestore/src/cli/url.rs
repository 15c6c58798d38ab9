use imagestore::Secret;
use serde_json::json;

use super::{
    App,
    args::{self, Target},
    exit::Outcome,
};

pub(super) async fn run(app: &App, args: args::Url) -> Outcome {
    let url = presign(app, &args).await?;
    let out = app.output();
    // What the command is for is to print it; whoever has it can read the image.
    let seconds = args.lifetime.0.as_secs();
    out.object(&json!({ "target": args.target.to_string(), "url": url.expose(), "seconds": seconds }))?;
    out.line(url.expose())
}

async fn presign(app: &App, args: &args::Url) -> imagestore::Result<Secret> {
    let target: &Target = &args.target;
    let found = app.find(target, args.store.store.as_deref()).await?;
    found.store.presign(&found.at, args.lifetime.0).await
}
