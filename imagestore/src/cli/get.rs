use std::{
    fs::{File, OpenOptions},
    io::{IsTerminal, Write},
    os::{fd::AsFd, unix::fs::FileTypeExt},
    path::{Path, PathBuf},
};

use futures::TryStreamExt;
use imagestore::{ByteRange, Chunk, ChunkStream, Error, ErrorKind, Result, Size, file};
use serde_json::json;
use tokio::task::{JoinHandle, spawn_blocking};

use super::{
    App,
    args::{self, Target},
    exit::{Outcome, Stop},
    new_file::NewFile,
};

pub(super) async fn run(app: &App, args: args::Get) -> Outcome {
    let sink = Sink::choose(&args)?;
    let found = app.find(&args.target, args.store.store.as_deref()).await?;
    let mut reader = found.open().await?;
    if args.verify {
        reader = reader.thorough();
    }
    let stat = reader.stat().clone();
    let range = args.range.map_or(ByteRange::Full, |range| range.0);
    if args.verify && stat.meta.as_ref().is_none_or(|meta| meta.digests.is_empty()) {
        app.notice("no digests are kept with this image, so there is nothing to compare it with");
    }
    let total = range.within(stat.size).map(|span| span.end - span.start).unwrap_or_default();

    let progress = app.progress("fetching", &args.target.to_string(), Some(total));
    let advance = |bytes| progress.advance(bytes);
    match sink {
        Sink::Stream(out) => {
            copy(out, reader.chunks(range)?, advance, args.sync).await?;
            progress.finish();
            Ok(())
        }
        Sink::File(path) => {
            let new = NewFile::create(&path)?;
            match args.range {
                Some(_) => file::write(new.file(), reader.chunks(range)?, advance).await?,
                None => reader.save(new.file(), advance).await?,
            };
            new.place(args.force, args.sync).await?;
            progress.finish();
            let out = app.output();
            out.object(&json!({
                "file": path, "store": found.store.name(), "location": found.at, "size": total,
            }))?;
            match out.quiet {
                true => Ok(()),
                false => out.line(format_args!("{}  {}", path.display(), Size(total))),
            }
        }
    }
}

/// What an unprivileged process may make a pipe hold (/proc/sys/fs/pipe-max-size).
const PIPE: usize = 1 << 20;

/// Where the image goes.
enum Sink {
    /// A file that is not there before it is complete.
    File(PathBuf),
    /// Standard output, a pipe or a device, which take bytes as they come.
    Stream(File),
}

impl Sink {
    fn choose(args: &args::Get) -> Outcome<Self> {
        let path = match &args.file {
            Some(path) => path,
            None if std::io::stdout().is_terminal() => {
                let hint = "name a FILE, or `-` for the terminal after all";
                return Err(Stop::usage("an image is not printed on a terminal", hint));
            }
            None => Path::new("-"),
        };
        if path == Path::new("-") {
            let out = std::io::stdout().as_fd().try_clone_to_owned().map_err(Stop::output)?;
            // A whole chunk at a time, where it is a pipe and the limit of the user's pipes allows it.
            let _ = rustix::pipe::fcntl_setpipe_size(&out, PIPE);
            return Ok(Self::Stream(out.into()));
        }
        let path = match path.is_dir() {
            true => path.join(name(&args.target)?),
            false => path.to_owned(),
        };
        if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
            let message = format!("there is no directory {}", path.display());
            return Err(Error::new(ErrorKind::NotFound, message)
                .with_hint("create it, or name a file")
                .into());
        }
        let exists = |what: &str| {
            let error = Error::new(ErrorKind::AlreadyExists, format!("{} {what}", path.display()));
            Err(error.with_hint("--force overwrites it").into())
        };
        let Ok(metadata) = path.symlink_metadata() else { return Ok(Self::File(path)) };
        let target = path.metadata().unwrap_or(metadata);
        let kind = target.file_type();
        if kind.is_file() || kind.is_symlink() || kind.is_dir() {
            return if args.force { Ok(Self::File(path)) } else { exists("exists") };
        }
        if kind.is_block_device() && !args.force {
            return exists("is a disk");
        }
        let opened = OpenOptions::new().write(true).open(&path);
        let opened =
            opened.map_err(|e| Error::from_io(format_args!("cannot write to {}", path.display()), e))?;
        Ok(Self::Stream(opened))
    }
}

/// The file name for a blob in a directory.
fn name(target: &Target) -> Result<String> {
    match target {
        Target::Id(id) => Ok(id.to_string()),
        Target::Location(at) => {
            let shown = at.to_string();
            let last = shown.rsplit('/').find(|part| !part.is_empty()).unwrap_or_default();
            let usable =
                !last.is_empty() && last != "." && last != ".." && !last.contains(['%', ':', '?', '#']);
            usable.then(|| last.to_owned()).ok_or_else(|| {
                Error::new(ErrorKind::Invalid, "the location does not end in a file name")
                    .with_hint("name the file, not only its directory")
            })
        }
    }
}

/// Writes all chunks, each while the next one is fetched, and never on an async thread.
async fn copy(out: File, mut chunks: ChunkStream, progress: impl Fn(u64), sync: bool) -> Outcome {
    let mut writing: Option<JoinHandle<std::io::Result<File>>> = None;
    let mut idle = Some(out);
    loop {
        let chunk = chunks.try_next().await?;
        if let Some(writing) = writing.take() {
            idle = Some(ended(writing).await?);
        }
        let Some(out) = idle.take() else { return Ok(()) };
        let Some(chunk) = chunk else {
            ended(spawn_blocking(move || make_durable(out, sync))).await?;
            return Ok(());
        };
        progress(chunk.len());
        writing = Some(spawn_blocking(move || write(out, chunk)));
    }
}

fn write(mut out: File, chunk: Chunk) -> std::io::Result<File> {
    for bytes in chunk.into_bytes() {
        out.write_all(&bytes)?;
    }
    Ok(out)
}

/// What a disk could not take is told with its last write-back only; of a file that is what `--sync` asks for.
fn make_durable(out: File, sync: bool) -> std::io::Result<File> {
    let kind = out.metadata()?.file_type();
    if kind.is_block_device() || (sync && kind.is_file()) {
        out.sync_all()?;
    }
    Ok(out)
}

async fn ended(writing: JoinHandle<std::io::Result<File>>) -> Outcome<File> {
    let written = writing
        .await
        .map_err(|e| Error::new(ErrorKind::Internal, "a write to the output was stopped").with_source(e))?;
    written.map_err(Stop::output)
}
