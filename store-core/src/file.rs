//! Local files as sources and targets of image data, holes included, off the async threads.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt, sync::Arc};

use futures::{
    StreamExt, TryStreamExt,
    stream::{self},
};
use rustix::{
    fs::{FallocateFlags, SeekFrom},
    io::Errno,
};
use tokio::{
    sync::Semaphore,
    task::{JoinHandle, spawn_blocking},
};

use crate::{Chunk, ChunkStream, Error, ErrorKind, Result, buffer::Pool, rechunk::runs};

/// How many pieces are read ahead of the one that is being used.
const READ_AHEAD: usize = 4;

/// Streams `range` of an open file in pieces of the pool's size, each read by one positioned read on a blocking
/// thread; the file's offset is not used. Holes come as [`Chunk::Zeros`] without being read.
///
/// A file that ends before the range does is [`Corrupt`](ErrorKind::Corrupt).
pub fn read(file: Arc<File>, range: Range<u64>, pool: Pool) -> ChunkStream {
    read_within(file, range, pool, Arc::new(Semaphore::new(READ_AHEAD)))
}

/// The same, with as many reads on blocking threads as `calls` has room for: those of a share that does not answer hold
/// their threads.
pub fn read_within(file: Arc<File>, range: Range<u64>, pool: Pool, calls: Arc<Semaphore>) -> ChunkStream {
    let pieces = pieces(Arc::clone(&file), range, pool.size() as u64);
    pieces
        .map_ok(move |piece| {
            let (file, pool, calls) = (Arc::clone(&file), pool.clone(), Arc::clone(&calls));
            async move {
                match piece {
                    Piece::Hole(len) => Ok(Chunk::Zeros(len)),
                    Piece::Data(range) => {
                        let call = calls.acquire_owned().await.ok(); // It is never closed.
                        blocking(move || {
                            let _until_it_ends = call;
                            read_piece(&file, range, &pool)
                        })
                        .await
                    }
                }
            }
        })
        .try_buffered(READ_AHEAD)
        .boxed()
}

/// Runs of zeros that are left out of a file, also where they came as bytes: the block of most file systems, some times over.
const HOLE: u64 = 64 << 10;

/// Writes `chunks` into an empty file, leaving zeros out, and sets its length; says how long that is.
///
/// `progress` is told the length of each chunk. Nothing is synced. If the future is dropped, one write may still be
/// under way.
pub async fn write(
    file: Arc<File>,
    mut chunks: ChunkStream,
    progress: impl Fn(u64) + Send + Sync,
) -> Result<u64> {
    let target = Arc::clone(&file);
    let ahead = blocking(move || Ok(allocates_late(&target))).await?;
    let mut offset = 0;
    let mut pending: Option<JoinHandle<Result<()>>> = None;
    while let Some(chunk) = chunks.try_next().await? {
        let at = offset;
        offset += chunk.len();
        progress(chunk.len());
        if let Chunk::Data(bytes) = chunk {
            if let Some(write) = pending.take() {
                write.await.map_err(Error::stopped)??;
            }
            let file = Arc::clone(&file);
            pending = Some(spawn_blocking(move || {
                let mut at = at;
                for run in runs(at, bytes, Some(HOLE)) {
                    let len = run.len();
                    if let Chunk::Data(bytes) = run {
                        let write = || {
                            if ahead {
                                allocate(&file, at, len)?;
                            }
                            file.write_all_at(&bytes, at)
                        };
                        write().map_err(|e| Error::from_io("cannot write the file", e))?;
                    }
                    at += len;
                }
                Ok(())
            }));
        }
    }
    if let Some(write) = pending.take() {
        write.await.map_err(Error::stopped)??;
    }
    blocking(move || file.set_len(offset).map_err(|e| Error::from_io("cannot set the file's length", e)))
        .await?;
    Ok(offset)
}

/// Shorter runs of bytes get their blocks as they are written.
const ALLOCATED: u64 = 256 << 10;

/// Whether a file system looks for the place of each block by itself when it is written: ext4, where a GiB whose blocks
/// were allocated before is written in two thirds of the time. Others gain nothing by it, and a share would be asked
/// each time.
fn allocates_late(file: &File) -> bool {
    const EXT4: u32 = 0xef53;
    rustix::fs::fstatfs(file).is_ok_and(|found| found.f_type as u32 == EXT4)
}

/// Allocates the blocks of what is about to be written (fallocate(2)). Fails where there is no room for it; what else is
/// in the way, the write tells.
fn allocate(file: &File, at: u64, len: u64) -> io::Result<()> {
    if len < ALLOCATED {
        return Ok(());
    }
    match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, at, len) {
        Err(error @ (Errno::NOSPC | Errno::DQUOT)) => Err(error.into()),
        _ => Ok(()),
    }
}

/// Makes a file share all blocks of another (ioctl_ficlone(2)); false where the file system cannot.
pub(crate) async fn share(source: Arc<File>, target: Arc<File>) -> Result<bool> {
    blocking(move || Ok(rustix::fs::ioctl_ficlone(&*target, &*source).is_ok())).await
}

/// How much is copied in one call.
const COPIED: u64 = 16 << 20;

/// Lets the kernel copy the first data of a file of `size` bytes, with the hole before it, and says how far that is; `None`,
/// with nothing done, where it cannot copy between the two. Only data tells: a hole asks nothing of the kernel.
pub(crate) async fn copy_first(source: Arc<File>, target: Arc<File>, size: u64) -> Result<Option<u64>> {
    let file = Arc::clone(&source);
    let first = blocking(move || {
        let extent =
            next_extent(&file, 0, size).map_err(|e| Error::from_io("cannot find the file's holes", e))?;
        Ok(extent.map_or(size, |extent| extent.end.min(extent.start + COPIED)))
    });
    let first = first.await?;
    Ok(copy(source, target, 0..first).await?.then_some(first))
}

/// Lets the kernel copy a range of one file to the same place in another, without its holes; false, with nothing done,
/// where it cannot. Where the range ends with the source, so does the target. If the future is dropped, the copy stops
/// soon.
pub async fn copy(source: Arc<File>, target: Arc<File>, range: Range<u64>) -> Result<bool> {
    let wanted = Arc::new(());
    let still_wanted = Arc::downgrade(&wanted);
    let copied = blocking(move || {
        let failed = |error| Error::from_io("cannot copy the file", error);
        let whole = source.metadata().map_err(failed)?.len();
        let ahead = allocates_late(&target);
        let (mut at, mut any) = (range.start, false);
        while let Some(extent) = next_extent(&source, at, range.end).map_err(failed)? {
            at = extent.start;
            while at < extent.end && still_wanted.strong_count() > 0 {
                let (mut from, mut to) = (at, at);
                let step = (extent.end - at).min(COPIED);
                if ahead {
                    allocate(&target, at, step).map_err(failed)?;
                }
                match rustix::fs::copy_file_range(
                    &source,
                    Some(&mut from),
                    &target,
                    Some(&mut to),
                    step as usize,
                ) {
                    Ok(0) => {
                        let message = format!(
                            "the file ends at {at}, before the {} bytes that it should have",
                            range.end
                        );
                        return Err(Error::new(ErrorKind::Corrupt, message));
                    }
                    Ok(copied) => {
                        at += copied as u64;
                        any = true;
                    }
                    Err(Errno::INTR) => {}
                    Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM)
                        if !any =>
                    {
                        return Ok(false);
                    }
                    // Which of the two files it is, a read tells.
                    Err(Errno::IO) => {
                        let mut byte = [0];
                        source.read_at(&mut byte, at).map_err(|error| read_failed(&source, at, error))?;
                        return Err(failed(Errno::IO.into()));
                    }
                    Err(error) => return Err(failed(error.into())),
                }
            }
            if still_wanted.strong_count() == 0 {
                return Ok(true);
            }
        }
        if range.end == whole {
            target.set_len(whole).map_err(failed)?;
        }
        Ok(true)
    });
    let copied = copied.await;
    drop(wanted);
    copied
}

/// How many bytes of a file are not in holes.
pub fn data_size(file: &File) -> io::Result<u64> {
    let end = file.metadata()?.len();
    let (mut data, mut at) = (0, 0);
    while let Some(extent) = next_extent(file, at, end)? {
        data += extent.end - extent.start;
        at = extent.end;
    }
    Ok(data)
}

/// Runs `work` on a blocking thread. If the future is dropped, the work still ends by itself.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    spawn_blocking(work).await.map_err(Error::stopped)?
}

enum Piece {
    Data(Range<u64>),
    Hole(u64),
}

/// Cuts a range of a file into holes and pieces of data that end at multiples of `size`.
fn pieces(
    file: Arc<File>,
    range: Range<u64>,
    size: u64,
) -> impl futures::Stream<Item = Result<Piece>> + Send {
    stream::try_unfold((range, None::<Range<u64>>), move |(mut left, extent)| {
        let file = Arc::clone(&file);
        async move {
            if left.is_empty() {
                return Ok(None);
            }
            let extent = match extent.filter(|extent| extent.start < extent.end) {
                Some(extent) => extent,
                None => {
                    let (start, end) = (left.start, left.end);
                    let found = blocking(move || {
                        next_extent(&file, start, end)
                            .map_err(|e| Error::from_io("cannot find the file's holes", e))
                    });
                    found.await?.unwrap_or(end..end)
                }
            };
            if extent.start > left.start {
                let hole = extent.start - left.start;
                left.start = extent.start;
                return Ok(Some((Piece::Hole(hole), (left, Some(extent)))));
            }
            let end = ((left.start / size + 1) * size).min(extent.end);
            let piece = left.start..end;
            left.start = end;
            Ok(Some((Piece::Data(piece), (left, Some(end..extent.end)))))
        }
    })
}

/// The next run of data at or after `at` and before `end` (lseek(2), `SEEK_DATA`).
fn next_extent(file: &File, at: u64, end: u64) -> io::Result<Option<Range<u64>>> {
    if at >= end {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return hole_or_short(file, at, end),
        Err(Errno::INVAL | Errno::NOTSUP) => return Ok(Some(at..end)),
        Err(error) => return Err(error.into()),
    };
    if start >= end {
        return Ok(None);
    }
    match rustix::fs::seek(file, SeekFrom::Hole(start)) {
        // At the file's end a hole always starts: a short file is found when its data is read.
        Ok(hole) if hole >= file.metadata()?.len() => Ok(Some(start..end)),
        Ok(hole) => Ok(Some(start..hole.min(end))),
        Err(Errno::INVAL | Errno::NOTSUP | Errno::NXIO) => Ok(Some(start..end)),
        Err(error) => Err(error.into()),
    }
}

/// There is no data from `at` on: a hole, unless the file ends too early.
fn hole_or_short(file: &File, at: u64, end: u64) -> io::Result<Option<Range<u64>>> {
    let short = file.metadata()?.len() < end;
    Ok(short.then_some(at..end))
}

fn read_piece(file: &File, range: Range<u64>, pool: &Pool) -> Result<Chunk> {
    let mut buffer = pool.take();
    let mut at = range.start;
    while at < range.end {
        let wanted = (range.end - at) as usize;
        match buffer.read_with(wanted, |memory| file.read_at(memory, at)) {
            Ok(0) => {
                let message =
                    format!("the file ends at {at}, before the {} bytes that it should have", range.end);
                return Err(Error::new(ErrorKind::Corrupt, message));
            }
            Ok(got) => at += got as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(read_failed(file, at, error)),
        }
    }
    Ok(Chunk::Data(buffer.freeze()))
}

/// What a read at `at` ended in. EIO is a lost sector: another copy may have the bytes, another try has not. Of a share it is
/// also a server that does not answer (nfs(5), `soft`).
fn read_failed(file: &File, at: u64, error: io::Error) -> Error {
    if error.raw_os_error() != Some(Errno::IO.raw_os_error()) {
        return Error::from_io("cannot read the file", error);
    }
    let (kind, what, hint) = match is_remote(file) {
        true => {
            (ErrorKind::Unavailable, "share", "see whether its server answers; the kernel's log says more")
        }
        false => (ErrorKind::Corrupt, "disk", "the kernel's log says more; use another copy of the image"),
    };
    Error::new(kind, format!("the {what} cannot read the file at {at}: {error}"))
        .with_source(error)
        .with_hint(hint)
}

/// Whether a file is on a network, or behind a process that may be (statfs(2)).
fn is_remote(file: &File) -> bool {
    const AFS: u32 = 0x5346_414f;
    const CEPH: u32 = 0x00c3_6400;
    const CIFS: u32 = 0xff53_4d42;
    const FUSE: u32 = 0x6573_5546;
    const NFS: u32 = 0x6969;
    const PLAN_9: u32 = 0x0102_1997;
    const SMB: u32 = 0x517b;
    const SMB2: u32 = 0xfe53_4d42;
    let found = rustix::fs::fstatfs(file).map(|found| found.f_type as u32);
    found.is_ok_and(|found| [AFS, CEPH, CIFS, FUSE, NFS, PLAN_9, SMB, SMB2].contains(&found))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn sparse() -> (tempfile::NamedTempFile, Vec<u8>) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[7; 100_000]).unwrap();
        file.as_file().set_len(10 << 20).unwrap();
        file.as_file().write_all_at(&[9; 5000], 3 << 20).unwrap();
        let content = std::fs::read(file.path()).unwrap();
        (file, content)
    }

    fn flat(chunks: Vec<Chunk>) -> Vec<u8> {
        chunks.into_iter().flat_map(Chunk::into_bytes).flatten().collect()
    }

    #[tokio::test]
    async fn any_range_reads_like_the_file_and_holes_stay_holes() {
        let (file, content) = sparse();
        let open = Arc::new(file.reopen().unwrap());
        for range in
            [0..10 << 20, 0..0, 99_999..100_001, 3 << 20..(3 << 20) + 1, 5 << 20..10 << 20, 65_536..65_537]
        {
            let chunks: Vec<Chunk> =
                read(Arc::clone(&open), range.clone(), Pool::new(65_536, 4)).try_collect().await.unwrap();
            assert!(flat(chunks) == content[range.start as usize..range.end as usize], "{range:?}");
        }
        let target = tempfile::NamedTempFile::new().unwrap();
        let chunks = read(Arc::clone(&open), 0..10 << 20, Pool::new(65_536, 4));
        assert_eq!(write(Arc::new(target.reopen().unwrap()), chunks, |_| {}).await.unwrap(), 10 << 20);
        assert!(std::fs::read(target.path()).unwrap() == content);
        assert!(data_size(target.as_file()).unwrap() < 1 << 20);
    }

    /// As storages on a network give them, which know no holes.
    #[tokio::test]
    async fn zeros_that_come_as_bytes_become_holes() {
        let (_, content) = sparse();
        for piece in [1 << 20, (1 << 20) + 70_001] {
            let target = tempfile::NamedTempFile::new().unwrap();
            let chunks = content.chunks(piece).map(|bytes| Ok(Chunk::Data(bytes.to_vec().into())));
            let chunks = stream::iter(chunks.collect::<Vec<_>>()).boxed();
            write(Arc::new(target.reopen().unwrap()), chunks, |_| {}).await.unwrap();
            assert!(std::fs::read(target.path()).unwrap() == content);
            assert!(data_size(target.as_file()).unwrap() < 3 << 20, "pieces of {piece}");
        }
    }

    #[tokio::test]
    async fn a_file_that_is_too_short_is_corrupt() {
        let (file, _) = sparse();
        for end in [(10 << 20) + 1, 20 << 20] {
            let chunks = read(Arc::new(file.reopen().unwrap()), 0..end, Pool::new(65_536, 4));
            let error = chunks.try_collect::<Vec<_>>().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt);
        }
    }
}
