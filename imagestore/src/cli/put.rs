use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use futures::{Stream, StreamExt, TryStreamExt, stream};
use imagestore::{BlobId, Chunk, Digests, Error, ErrorKind, Expect, Result, Size, buffer::Pool};
use serde_json::json;

use super::{App, args, exit::Outcome, output, shown, source::Source};

/// How many unused buffers are kept: those read ahead, and as many again on their way through the digests.
const SPARE_BUFFERS: usize = 8;

pub(super) async fn run(app: &App, args: args::Put) -> Outcome {
    let name = shown(&args.source);
    let source = Source::open(&args.source)?;
    let expect = expect(&args, &source, &name)?;
    let store = app.store(args.store.store.as_deref()).await?;
    let id = args.id.unwrap_or_else(BlobId::random);

    let progress = app.progress("storing", &name, source.size().or(args.size.map(|size| size.0)));
    let put = match source.whole() {
        Some(file) => store.put_file(&id, file, expect, |bytes| progress.advance(bytes)).await,
        None => {
            let most = args.max_size.map_or(u64::MAX, |most| most.0);
            let counter = Arc::clone(&progress);
            let mut seen = 0;
            // The program before the pipe may have failed without a word: then this is no image.
            let empty = matches!(source, Source::Pipe(_)) && args.size != Some(Size(0));
            let chunks = source.chunks(Pool::new(store.info().chunk, SPARE_BUFFERS)).map(move |chunk| {
                let chunk = chunk?;
                seen += chunk.len();
                counter.advance(chunk.len());
                match seen <= most {
                    true => Ok(chunk),
                    false => Err(too_large(most)),
                }
            });
            store.put(&id, if empty { not_empty(chunks).boxed() } else { chunks.boxed() }, expect).await
        }
    };
    let blob = put.map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => error.with_hint(format!(
            "choose another id, or delete the image that has this one: imagestore rm {id} --store {}",
            store.name()
        )),
        _ => error,
    })?;
    progress.finish();

    if args.format.is_none() {
        let findings = blob.report.iter().flat_map(|report| &report.findings);
        for finding in findings.filter(|finding| finding.rule.blocks()) {
            app.notice(&format!("the image is kept, but not safe: {finding}"));
        }
    }
    let out = app.output();
    let (location, meta) = (&blob.location, &blob.meta);
    out.object(&json!({
        "id": id, "store": store.name(), "location": location, "size": meta.size,
        "meta": meta, "report": blob.report,
    }))?;
    if out.quiet {
        return out.line(id);
    }
    let mut rows = vec![
        ("id", id.to_string()),
        ("store", store.name().to_owned()),
        ("location", location.to_string()),
        ("size", output::size(meta.size)),
    ];
    rows.extend(output::meta_rows(meta));
    out.rows(&rows)
}

/// What is known of the image before it is read.
fn expect(args: &args::Put, source: &Source, name: &str) -> Result<Expect> {
    let mut expect = Expect::new();
    if let (Some(size), Some(Size(wanted))) = (source.size(), args.size)
        && size != wanted
    {
        let message = format!("{name} has {size} bytes, not the {wanted} that --size says");
        return Err(Error::new(ErrorKind::Corrupt, message));
    }
    let size = source.size().or(args.size.map(|size| size.0));
    if let Some(size) = size {
        expect = expect.size(size);
        if let Some(most) = args.max_size.filter(|most| size > most.0) {
            return Err(too_large(most.0));
        }
    }
    if let Some(format) = args.format {
        expect = expect.format(format);
    }
    let mut digests = Digests::default();
    for digest in &args.digests {
        match &digest.hex {
            Some(hex) => digests.insert_hex(digest.algorithm, hex)?,
            None => expect = expect.also(digest.algorithm),
        }
    }
    expect = expect.digests(digests);
    for property in &args.properties {
        expect = expect.property(&property.name, &property.value);
    }
    Ok(expect)
}

/// Lets bytes pass, and fails at the end if there were none.
fn not_empty(chunks: impl Stream<Item = Result<Chunk>> + Send) -> impl Stream<Item = Result<Chunk>> + Send {
    let seen = Arc::new(AtomicBool::new(false));
    let any = Arc::clone(&seen);
    let at_end = stream::once(async move {
        match any.load(Ordering::Relaxed) {
            true => Ok(Chunk::Data(Default::default())),
            false => Err(Error::new(ErrorKind::Corrupt, "nothing came out of the pipe")
                .with_hint("see what the program before it says; --size 0 stores an empty image")),
        }
    });
    chunks
        .inspect_ok(move |chunk| {
            seen.fetch_or(!chunk.is_empty(), Ordering::Relaxed);
        })
        .chain(at_end)
}

fn too_large(most: u64) -> Error {
    let most = output::size(most);
    Error::new(ErrorKind::Rejected, format!("the image is larger than --max-size, {most}"))
}
