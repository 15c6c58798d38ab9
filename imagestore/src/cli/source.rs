//! Images on their way in: files, disks and pipes.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::{fd::AsFd, unix::fs::FileTypeExt},
    path::Path,
    sync::Arc,
};

use futures::{StreamExt, stream};
use imagestore::{
    Chunk, ChunkStream, Error, ErrorKind, Result,
    buffer::{Buffer, Pool},
    file,
};
use tokio::sync::mpsc;

use super::shown;

/// An open source of image data.
pub(super) enum Source {
    /// A file or a disk, of which `start..end` is the image.
    File { file: Arc<File>, start: u64, end: u64, regular: bool },
    /// Something that can only be read on.
    Pipe(File),
}

impl Source {
    /// Opens `path`; `-` is standard input, which may well be a file.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let failed = |error: io::Error| {
            let missing = error.kind() == io::ErrorKind::NotFound;
            let error = Error::from_io(format_args!("cannot read {}", shown(path)), error);
            if missing { error.with_hint("check the path; `-` reads standard input") } else { error }
        };
        let mut file = match path == Path::new("-") {
            true => io::stdin().as_fd().try_clone_to_owned().map(File::from),
            false => File::open(path),
        }
        .map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            return Err(Error::new(ErrorKind::Invalid, format!("{} is a directory", shown(path)))
                .with_hint("name one file; a shell loop stores many"));
        }
        if !kind.is_file() && !kind.is_block_device() {
            return Ok(Self::Pipe(file));
        }
        // What the kernel makes up when it is read, such as files of /proc, has no length before.
        if kind.is_file() && metadata.len() == 0 && file.read(&mut [0]).map_err(failed)? > 0 {
            file.rewind().map_err(failed)?;
            return Ok(Self::Pipe(file));
        }
        let start = file.stream_position().map_err(failed)?;
        let end = match kind.is_file() {
            true => metadata.len(),
            false => file.seek(SeekFrom::End(0)).map_err(failed)?,
        };
        Ok(Self::File { file: Arc::new(file), start: start.min(end), end, regular: kind.is_file() })
    }

    /// The image's length, where it is known.
    pub(super) fn size(&self) -> Option<u64> {
        match self {
            Self::File { start, end, .. } => Some(end - start),
            Self::Pipe(_) => None,
        }
    }

    /// The file, where it is a regular one and all of it is the image.
    pub(super) fn whole(&self) -> Option<Arc<File>> {
        match self {
            Self::File { file, start: 0, regular: true, .. } => Some(Arc::clone(file)),
            Self::File { .. } | Self::Pipe(_) => None,
        }
    }

    /// Its bytes and holes, in pieces of the pool's size.
    pub(super) fn chunks(self, pool: Pool) -> ChunkStream {
        match self {
            Self::File { file, start, end, .. } => file::read(file, start..end, pool),
            Self::Pipe(file) => pipe(file, pool),
        }
    }
}

/// How many buffers are read ahead of the one that is being stored.
const READ_AHEAD: usize = 2;

/// Reads on a thread of its own, which a pipe may keep waiting for as long as it likes.
fn pipe(mut file: File, pool: Pool) -> ChunkStream {
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    std::thread::spawn(move || {
        loop {
            let mut buffer = pool.take();
            let filled = fill(&mut file, &mut buffer)
                .map_err(|error| Error::from_io("cannot read the image from the pipe", error));
            let last = filled.is_err() || buffer.room() > 0;
            let piece = filled.map(|()| Chunk::Data(buffer.freeze()));
            if sender.blocking_send(piece).is_err() || last {
                return;
            }
        }
    });
    stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) }).boxed()
}

/// Fills the buffer, up to the end of the file.
fn fill(file: &mut File, buffer: &mut Buffer) -> io::Result<()> {
    while buffer.room() > 0 {
        match buffer.read_with(buffer.room(), |memory| file.read(memory)) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
