use std::{fmt, path::Path};

use rustix::io::Errno;
use store_core::{Error, ErrorKind, Size};

/// What a system call on a blob or data directory says.
pub(crate) fn io(what: impl fmt::Display, errno: Errno) -> Error {
    match errno {
        Errno::LOOP | Errno::MLINK => Error::new(
            ErrorKind::Denied,
            format!("{what}: it is a symbolic link, which the store does not follow"),
        ),
        Errno::BUSY | Errno::TXTBSY => Error::new(ErrorKind::InUse, format!("{what}: {errno}")),
        _ => Error::from_io(what, errno.into()),
    }
}

/// `free` is without what is to be left free.
pub(crate) fn no_space(path: &Path, needed: u64, free: u64, reserve: u64) -> Error {
    let (needed, free) = (Size(needed), Size(free));
    let besides = match reserve {
        0 => String::new(),
        reserve => format!(" besides the {} of `reserve`", Size(reserve)),
    };
    Error::new(
        ErrorKind::NoSpace,
        format!("{needed} do not fit: {} has {free} left{besides}", path.display()),
    )
    .with_hint("delete blobs, or add a directory to the store")
}

pub(crate) fn not_mounted(path: &Path) -> Error {
    let path = path.display();
    Error::new(ErrorKind::Unavailable, format!("{path} has no marker: the share on it is not mounted"))
        .with_hint(format!(
            "mount it; for a new share: mkdir -p {path}/.imagestore && touch {path}/.imagestore/marker"
        ))
}

pub(crate) fn missing_mount(path: &Path, mount: &Path) -> Error {
    let (path, mount) = (path.display(), mount.display());
    let message =
        format!("nothing is mounted on {mount}, where /etc/fstab or a unit of systemd expects {path} to be");
    Error::new(ErrorKind::Unavailable, message)
        .with_hint(format!("mount {mount}, or take it out of there if {path} is to be on the disk below"))
}

pub(crate) fn no_directory(path: &Path, errno: Errno) -> Error {
    let path = path.display();
    let error = io("cannot open the data directory", errno);
    let kind = if error.kind() == ErrorKind::NotFound { ErrorKind::Unavailable } else { error.kind() };
    Error::new(kind, format!("cannot open the data directory {path}: {errno}"))
        .with_hint("mount it; or, if it is to be on this disk, create it or set `create = true`")
        .with_source(std::io::Error::from(errno))
}
