use futures::{StreamExt, stream};
use imagestore::{Algorithm, Error, ErrorKind, Location, Result, Size, Verified};
use serde_json::json;

use super::{
    App, Tally,
    args::{self, Target},
    exit::Outcome,
};

pub(super) async fn run(app: &App, args: args::Verify) -> Outcome {
    let name = args.store.store.as_deref();
    let whole = match args.all {
        true => Some(app.store(name).await?),
        false => None,
    };
    let listed = match &whole {
        Some(store) => store.list().map(|entry| entry.map(|entry| Target::Id(entry.id))).left_stream(),
        None => stream::iter(args.targets).map(Ok).right_stream(),
    };
    let reads = listed.map(async |target| {
        let target = target?;
        let verified = verify(app, &target, name).await;
        Ok::<_, Error>((target, verified))
    });
    let mut reads = std::pin::pin!(reads.buffer_unordered(args.jobs.into()));
    let (out, mut listing) = (app.output(), Ok(()));
    let mut tally = Tally::default();
    let (mut intact, mut unknown, mut damaged, mut bytes) = (0u64, 0u64, 0u64, 0u64);
    while let Some(read) = reads.next().await {
        let (target, (at, verified)) = match read {
            // What is under way goes on.
            Err(error) => {
                listing = Err(error);
                continue;
            }
            Ok((target, Ok(verified))) => (target, verified),
            Ok((_, Err(error))) => {
                damaged += u64::from(error.kind() == ErrorKind::Corrupt);
                app.report(&error, &mut tally);
                continue;
            }
        };
        bytes += verified.size;
        out.object(&json!({
            "target": target.to_string(), "location": at, "size": verified.size,
            "compared": verified.compared, "digests": verified.digests,
        }))?;
        let size = Size(verified.size);
        if verified.compared {
            intact += 1;
            if !out.quiet {
                let compared: Vec<&str> =
                    verified.digests.iter().map(|(a, _)| Algorithm::as_str(a)).collect();
                out.line(format_args!("intact    {target}  {size}  {}", compared.join(" ")))?;
            }
        } else {
            unknown += 1;
            if !out.quiet {
                let why = "readable, but no digests are kept to compare it with";
                out.line(format_args!("readable  {target}  {size}  {why}"))?;
            }
        }
    }
    listing?;
    let failed = tally.failed - damaged;
    if intact + unknown + damaged + failed != 1 && !out.quiet {
        let mut parts = vec![format!("{intact} intact")];
        let others = [(unknown, "without digests"), (damaged, "damaged"), (failed, "not verified")];
        parts.extend(others.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")));
        out.line(format_args!("{} ({} read)", parts.join(", "), Size(bytes)))?;
    }
    tally.outcome()
}

async fn verify(app: &App, target: &Target, store: Option<&str>) -> Result<(Location, Verified)> {
    let found = app.find(target, store).await?;
    let stat = found.store.stat(&found.at).await?;
    let progress = app.progress("verifying", &target.to_string(), Some(stat.size));
    let verified = found.store.verify(&found.at, |bytes| progress.advance(bytes)).await?;
    progress.finish();
    Ok((found.at, verified))
}
