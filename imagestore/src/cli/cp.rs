use futures::{StreamExt, stream};
use imagestore::{BlobId, Digests, Error, ErrorKind, Location, Result, Size, Stat, Store};
use serde_json::json;

use super::{
    App, Tally,
    args::{self, Target},
    exit::{Outcome, Stop},
};

pub(super) async fn run(app: &App, args: args::Cp) -> Outcome {
    if args.id.is_some() && args.targets.len() > 1 {
        return Err(Stop::usage("--id is for one image", "copy the images one by one, or keep their ids"));
    }
    let from = app.store(args.from.as_deref()).await?;
    let to = app.store(Some(&args.to)).await?;
    let listed = match args.all {
        true => from.list().map(|entry| entry.map(|entry| Target::Id(entry.id))).left_stream(),
        false => stream::iter(args.targets).map(Ok).right_stream(),
    };
    let copies = listed.map(async |target| {
        let target = target?;
        let outcome = match &target {
            Target::Location(_) if args.id.is_none() => {
                Err(Error::new(ErrorKind::Invalid, format!("{target} does not tell the copy's id"))
                    .with_hint("add --id"))
            }
            _ => copy(app, &from, &to, &target, args.id.as_ref()).await,
        };
        Ok::<_, Error>(outcome)
    });
    let mut copies = std::pin::pin!(copies.buffer_unordered(args.jobs.into()));
    let (out, mut listing) = (app.output(), Ok(()));
    let (mut tally, mut copied, mut skipped, mut bytes) = (Tally::default(), 0u64, 0u64, 0u64);
    while let Some(outcome) = copies.next().await {
        let (id, copy) = match outcome {
            // What is under way goes on.
            Err(error) => {
                listing = Err(error);
                continue;
            }
            Ok(Ok(done)) => done,
            Ok(Err(error)) => {
                app.report(&error, &mut tally);
                continue;
            }
        };
        let (at, size) = match &copy {
            Copy::Made(at, size) => {
                copied += 1;
                bytes += size;
                (at, *size)
            }
            Copy::There(at, size) => {
                skipped += 1;
                (at, *size)
            }
        };
        let word = match &copy {
            Copy::Made(..) => "copied",
            Copy::There(..) => "skipped",
        };
        out.object(&json!({
            "id": id, "from": from.name(), "to": to.name(), "outcome": word, "location": at, "size": size,
        }))?;
        match &copy {
            Copy::Made(at, size) if !out.quiet => {
                out.line(format_args!("copied {id}  {}  {at}", Size(*size)))?
            }
            Copy::Made(..) => {}
            Copy::There(..) => {
                app.notice(&format!("{id} is in {} already, with the same digests", to.name()))
            }
        }
    }
    listing?;
    if copied + skipped + tally.failed != 1 && !out.quiet {
        let (failed, bytes) = (tally.failed, Size(bytes));
        out.line(format_args!("{copied} copied ({bytes}), {skipped} there already, {failed} failed"))?;
    }
    tally.outcome()
}

enum Copy {
    Made(Location, u64),
    /// The same blob was there already.
    There(Location, u64),
}

async fn copy(
    app: &App,
    from: &Store,
    to: &Store,
    target: &Target,
    id: Option<&BlobId>,
) -> Result<(BlobId, Copy)> {
    let (at, id) = match target {
        Target::Id(own) => {
            let at = from.locate(own).await.map_err(|error| not_from_here(error, from))?;
            (at, id.unwrap_or(own).clone())
        }
        Target::Location(at) => (at.clone(), id.cloned().unwrap_or_else(BlobId::random)),
    };
    let stat = from.stat(&at).await?;
    // Asked before, because a storage may find out only after all bytes were sent.
    if let Some(there) = same(app, (from, &at, &stat), to, &id).await? {
        return Ok((id, Copy::There(there, stat.size)));
    }
    let progress = app.progress("copying", id.as_str(), Some(stat.size));
    let advance = |bytes| progress.advance(bytes);
    let copied = match from.name() == to.name() {
        true => from.copy(&at, &id, advance).await,
        false => from.copy_to(&at, to, &id, advance).await,
    };
    match copied {
        Ok(blob) => {
            progress.finish();
            Ok((id, Copy::Made(blob.location, blob.meta.size)))
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            match same(app, (from, &at, &stat), to, &id).await? {
                Some(there) => Ok((id, Copy::There(there, stat.size))),
                None => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}

/// Where `store` has the blob already; an error if it has another one under this id.
async fn same(
    app: &App,
    (from, source, wanted): (&Store, &Location, &Stat),
    store: &Store,
    id: &BlobId,
) -> Result<Option<Location>> {
    let at = match store.locate(id).await {
        Ok(at) => at,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let there = store.stat(&at).await?;
    let taken = |message: String, hint: &'static str| {
        let error = Error::new(ErrorKind::AlreadyExists, message).with_hint(hint);
        Err(error.in_call(store.name(), "put", Some(id)))
    };
    if there.size != wanted.size {
        return taken("the id is taken by another image".to_owned(), OTHER_ID);
    }
    let wanted_digests = digests(app, from, source, wanted).await?;
    let digests = digests(app, store, &at, &there).await?;
    let common = wanted_digests.iter().any(|(algorithm, _)| digests.get(algorithm).is_some());
    if !wanted_digests.differences(&digests).is_empty() {
        return taken("the id is taken by another image".to_owned(), OTHER_ID);
    }
    match common {
        true => Ok(Some(at)),
        false => taken(
            format!(
                "the id is taken by an image of the same {} bytes, and no digests tell whether it is the same",
                there.size
            ),
            "compare the two, then delete one of them",
        ),
    }
}

const OTHER_ID: &str = "copy it under another id with --id";

/// The digests kept with a blob. One that another program wrote has none: it is read.
async fn digests(app: &App, store: &Store, at: &Location, stat: &Stat) -> Result<Digests> {
    if let Some(meta) = stat.meta.as_ref().filter(|meta| !meta.digests.is_empty()) {
        return Ok(meta.digests.clone());
    }
    let progress = app.progress("comparing", &at.to_string(), Some(stat.size));
    let read = store.verify(at, |bytes| progress.advance(bytes)).await?;
    progress.finish();
    Ok(read.digests)
}

fn not_from_here(error: Error, from: &Store) -> Error {
    match error.kind() {
        ErrorKind::NotFound => {
            error.with_hint(format!("`imagestore ls --store {}` lists what is there", from.name()))
        }
        _ => error,
    }
}
