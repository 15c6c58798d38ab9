use std::path::Path;

use futures::TryStreamExt;
use imagestore::{Chunk, ChunkStream, Error, ErrorKind, Result, buffer::Pool, inspect::Inspector};
use serde_json::json;

use super::{
    App,
    args::{self, Target},
    exit::{self, Outcome, Stop},
    output, shown,
    source::Source,
};

/// The pieces in which a file is read: one positioned read each.
const PIECE: usize = 1 << 20;

pub(super) async fn run(app: &App, args: args::Inspect) -> Outcome {
    let (name, size, mut chunks) = open(app, &args).await?;
    let progress = app.progress("inspecting", &name, size);
    let mut inspector = Inspector::new();
    while let Some(chunk) = chunks.try_next().await? {
        progress.advance(chunk.len());
        match chunk {
            Chunk::Data(bytes) => inspector.push(&bytes),
            Chunk::Zeros(len) => inspector.push_zeros(len),
        }
    }
    progress.finish();

    let report = inspector.finish();
    let refused = report.violations(args.format);
    let out = app.output();
    out.object(&json!({ "report": report, "declared": args.format, "refused": refused }))?;
    let mut rows = vec![("format", report.format.to_string()), ("size", output::size(report.size))];
    if !report.also.is_empty() {
        let also: Vec<&str> = report.also.iter().map(|format| format.as_str()).collect();
        rows.push(("also", also.join(", ")));
    }
    let disk = report.virtual_size.filter(|disk| *disk != report.size);
    rows.extend(disk.map(|size| ("disk", output::size(size))));
    // Everything that was found, and what only the declared format makes wrong.
    let declared = refused.iter().filter(|finding| !report.findings.contains(finding));
    for finding in report.findings.iter().chain(declared) {
        rows.push((if finding.rule.blocks() { "refused" } else { "note" }, finding.to_string()));
    }
    let verdict = match args.format {
        _ if refused.is_empty() => "safe to keep".to_owned(),
        Some(format) => format!("refused by a put with --format {format}"),
        None => "refused by a store with `inspect = \"strict\"`".to_owned(),
    };
    rows.push(("verdict", verdict));
    out.rows(&rows)?;
    match refused.is_empty() {
        true => Ok(()),
        false => Err(Stop::Code(exit::code(ErrorKind::Rejected))),
    }
}

async fn open(app: &App, args: &args::Inspect) -> Outcome<(String, Option<u64>, ChunkStream)> {
    let store = args.store.store.as_deref();
    if store.is_none() && is_file(&args.target) {
        let source = Source::open(&args.target)?;
        return Ok((shown(&args.target), source.size(), source.chunks(Pool::new(PIECE, 4))));
    }
    let text = args.target.to_string_lossy();
    let target: Target = text.parse().map_err(|why: String| {
        Stop::usage(format!("{text} is no file, and no id or location either: {why}"), "check the name")
    })?;
    let (size, chunks) = read(app, &target, store).await?;
    Ok((target.to_string(), Some(size), chunks))
}

async fn read(app: &App, target: &Target, store: Option<&str>) -> Result<(u64, ChunkStream)> {
    let found = app.find(target, store).await.map_err(|error| match (error.kind(), target) {
        (ErrorKind::NotFound, Target::Id(id)) if store.is_none() => {
            let hint =
                format!("check the name; {}", error.hint().unwrap_or("`imagestore ls` lists the images"));
            Error::new(ErrorKind::NotFound, format!("{id} is neither a file nor an image"))
                .with_hint(hint)
                .with_source(error)
        }
        _ => error,
    })?;
    let reader = found.open().await?;
    Ok((reader.stat().size, reader.chunks(..)?))
}

/// Whether the argument can only mean a file, or is one.
fn is_file(path: &Path) -> bool {
    let looks = path.to_string_lossy();
    let uri = looks.contains("://");
    path == Path::new("-") || path.exists() || (looks.contains('/') && !uri)
}
