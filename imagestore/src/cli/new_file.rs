//! A file that is not there before it is complete.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use imagestore::{BlobId, Error, Result, file::blocking};
use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, RenameFlags},
    io::Errno,
};

/// A file being written: without a name where the file system can do that (open(2), `O_TMPFILE`), so that not even a
/// crash leaves anything behind; else beside its final place, and removed when it is dropped.
pub(super) struct NewFile {
    file: Arc<File>,
    target: PathBuf,
    temporary: Option<Temporary>,
}

/// The name of an unfinished file, which goes away with it.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // Renamed, or never created.
        let _ = fs::remove_file(&self.0);
    }
}

impl NewFile {
    /// An empty file that is to become `target`.
    pub(super) fn create(target: &Path) -> Result<Self> {
        let failed = |error| failed(target, error);
        let (file, temporary) = match unnamed(directory(target)) {
            Some(file) => (file, None),
            None => {
                let path = beside(target);
                let file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(failed)?;
                (file, Some(Temporary(path)))
            }
        };
        Ok(Self { file: Arc::new(file), target: target.to_owned(), temporary })
    }

    pub(super) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// Makes the file visible in one atomic step, and durable before that if `sync`; what is at its place survives
    /// unless `replace`.
    pub(super) async fn place(self, replace: bool, sync: bool) -> Result<()> {
        blocking(move || {
            if sync {
                self.file.sync_data().map_err(|error| failed(&self.target, error))?;
            }
            self.link(replace).map_err(|error| failed(&self.target, error.into()))?;
            if !sync {
                return Ok(());
            }
            let directory = File::open(directory(&self.target)).and_then(|directory| directory.sync_all());
            directory.map_err(|error| failed(&self.target, error))
        })
        .await
    }

    fn link(&self, replace: bool) -> rustix::io::Result<()> {
        match (&self.temporary, replace) {
            (None, false) => self.name(&self.target),
            (None, true) => {
                let temporary = Temporary(beside(&self.target));
                self.name(&temporary.0)?;
                rustix::fs::rename(&temporary.0, &self.target)
            }
            (Some(temporary), true) => rustix::fs::rename(&temporary.0, &self.target),
            (Some(temporary), false) => {
                let flags = RenameFlags::NOREPLACE;
                match rustix::fs::renameat_with(CWD, &temporary.0, CWD, &self.target, flags) {
                    // Not every file system knows the flag; all that lack it have hard links.
                    Err(Errno::INVAL | Errno::NOSYS) => rustix::fs::link(&temporary.0, &self.target),
                    outcome => outcome,
                }
            }
        }
    }

    /// Gives a file without a name its first one (linkat(2), on `AT_EMPTY_PATH`).
    fn name(&self, path: &Path) -> rustix::io::Result<()> {
        let file = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        rustix::fs::linkat(CWD, file, CWD, path, AtFlags::SYMLINK_FOLLOW)
    }
}

fn failed(target: &Path, error: io::Error) -> Error {
    let reason = error.kind();
    let error = Error::from_io(format_args!("cannot write {}", target.display()), error);
    let parent = directory(target).display();
    match reason {
        io::ErrorKind::AlreadyExists => error.with_hint("--force overwrites it"),
        io::ErrorKind::NotFound => {
            error.with_hint(format!("there is no directory {parent}: create it, or name another FILE"))
        }
        io::ErrorKind::NotADirectory => {
            error.with_hint(format!("{parent} is no directory: name another FILE"))
        }
        io::ErrorKind::IsADirectory => error.with_hint("name a file in that directory"),
        io::ErrorKind::InvalidFilename => error.with_hint("choose a shorter name"),
        _ => error,
    }
}

/// A file without a name, where the file system has such and `/proc` can give it one.
fn unnamed(directory: &Path) -> Option<File> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open(directory, flags, Mode::from_raw_mode(0o666)).ok()?;
    let file = File::from(file);
    Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())).symlink_metadata().ok()?;
    Some(file)
}

fn directory(target: &Path) -> &Path {
    target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A hidden name in the same directory that nobody else has.
fn beside(target: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    // A name that is too long with more behind it is worse than one that says less.
    match target.file_name().filter(|name| name.len() <= 200) {
        Some(target) => name.push(target),
        None => name.push("image"),
    }
    let random = BlobId::random().to_string();
    name.push(format!(".imagestore-{}", random.get(..8).unwrap_or(&random)));
    target.with_file_name(name)
}
