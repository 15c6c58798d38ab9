use std::fmt::Display;

use store_core::{Error, ErrorKind};

use crate::ffi::Errno;

/// What Ceph says. librados and librbd answer with error numbers alone; what one means depends on the call only where
/// callers say so.
pub(crate) fn from_errno(what: impl Display, errno: Errno) -> Error {
    use ErrorKind as Kind;
    let (kind, hint) = match errno {
        Errno::ENOENT => (Kind::NotFound, None),
        Errno::EEXIST => (Kind::AlreadyExists, None),
        Errno::EPERM | Errno::EACCES => (Kind::Denied, Some(PERMISSIONS)),
        // librbd's word for a lock that it could not take in time.
        Errno::EROFS => (
            Kind::Unavailable,
            Some("the image's lock was not to be had; `ceph health detail` or `rbd status` tells why"),
        ),
        Errno::EBUSY => (Kind::InUse, Some("another client has the image open; end it, and try again")),
        Errno::ENOTEMPTY => (Kind::InUse, Some("the image has snapshots or clones; remove those first")),
        Errno::ENOSPC => (Kind::NoSpace, Some("the cluster is full; delete blobs, or add OSDs")),
        Errno::EDQUOT => (Kind::NoSpace, Some("the pool is at its quota; delete blobs, or have it raised")),
        Errno::EOPNOTSUPP => (Kind::Unsupported, Some("the cluster is too old, or lacks a feature for this")),
        Errno::ETIMEDOUT => (
            Kind::Unavailable,
            Some("the cluster did not answer in `operation_timeout`; `ceph health detail` tells why"),
        ),
        Errno::EIO => (Kind::Unavailable, Some("an OSD cannot read its disk; see `ceph health detail`")),
        Errno::ENOTCONN => (Kind::Unavailable, None),
        Errno::ESHUTDOWN => (
            Kind::Unavailable,
            Some("the cluster has blocked this client (`ceph osd blocklist ls`); open the store anew"),
        ),
        _ => (Kind::Internal, None),
    };
    let error = Error::new(kind, format!("cannot {what}: {errno}")).with_source(errno);
    match hint {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}

const PERMISSIONS: &str = "the user needs the capabilities mon 'profile rbd' and osd 'profile rbd pool=POOL', and in the \
     latter 'profile rbd pool=DATA_POOL' where `data_pool` is set; see `ceph auth get client.USER`";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_can_act_on_has_its_kind() {
        for (errno, kind) in [
            (Errno::ENOENT, ErrorKind::NotFound),
            (Errno::EPERM, ErrorKind::Denied),
            (Errno::EACCES, ErrorKind::Denied),
            (Errno::EROFS, ErrorKind::Unavailable),
            (Errno::EBUSY, ErrorKind::InUse),
            (Errno::ENOTEMPTY, ErrorKind::InUse),
            (Errno::EEXIST, ErrorKind::AlreadyExists),
            (Errno::ENOSPC, ErrorKind::NoSpace),
            (Errno::EDQUOT, ErrorKind::NoSpace),
            (Errno::ETIMEDOUT, ErrorKind::Unavailable),
            (Errno::ESHUTDOWN, ErrorKind::Unavailable),
            (Errno::EINVAL, ErrorKind::Internal),
        ] {
            let error = from_errno("do it", errno);
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.message().starts_with("cannot do it: "), "{error}");
        }
    }
}
