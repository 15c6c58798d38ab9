//! The system calls: one open data directory and what can be done in it.

use std::{
    ffi::{CStr, OsStr},
    fs::File,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use rustix::{
    fs::{
        self, AtFlags, Dir, FallocateFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, XattrFlags,
    },
    io::Errno,
};
use store_core::{BlobId, Error, Meta, Result, Size, Swept};

use crate::{
    FsConfig,
    config::Directory,
    error::{io, missing_mount, no_directory, not_mounted},
};

/// Where the store keeps what is not a blob, and what there is in it.
const PRIVATE: &str = ".imagestore";
const MARKER: &str = "marker";
const STAGING: &str = "staging";
const SIDECARS: &str = "meta";
const LOCK: &str = "lock";

/// How a directory is opened that is not to be a link.
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// The most bytes of metadata that are read: what an extended attribute can hold (xattr(7)).
const LARGEST_META: usize = 64 << 10;

/// The extended attribute that holds a blob's [`Meta`] as JSON.
const ATTRIBUTE: &str = "user.imagestore";

/// A data directory by its path; opened anew for each call, so that a share that went away is noticed.
#[derive(Clone, Debug)]
pub(crate) struct DataDir {
    pub(crate) path: PathBuf,
    pub(crate) priority: i32,
    create: bool,
    require_marker: bool,
    read_only: bool,
    /// Set when it was first opened: whether the marker was there, or was made. Without it the share is gone.
    marked: OnceLock<bool>,
}

impl DataDir {
    pub(crate) fn new(directory: Directory, config: &FsConfig) -> Self {
        let Directory { path, priority } = directory;
        let FsConfig { create, require_marker, read_only, .. } = *config;
        Self { path, priority, create, require_marker, read_only, marked: OnceLock::new() }
    }

    /// Opens the directory, and checks that it is the one that was opened first; the first time, that it may be used.
    pub(crate) fn open(&self) -> Result<OpenDir> {
        let Some(marked) = self.marked.get() else { return self.open_first() };
        let open = self.open_path()?;
        match *marked && !open.is_marked()? {
            false => Ok(open),
            true => Err(not_mounted(&self.path)),
        }
    }

    fn open_first(&self) -> Result<OpenDir> {
        if let Some(mount) = mount_that_is_missing(&self.path) {
            return Err(missing_mount(&self.path, &mount));
        }
        if self.create && !self.read_only && !self.require_marker && !self.path.exists() {
            // What cannot be created cannot be opened either, and that says why.
            let _ = std::fs::create_dir_all(&self.path);
            // Blobs are no more durable than the names of the directories above them.
            for parent in self.path.ancestors().skip(1) {
                let _ = File::open(parent).and_then(|parent| parent.sync_all());
            }
        }
        let open = self.open_path()?;
        let marked = match open.is_marked()? {
            true => true,
            false if self.require_marker => return Err(not_mounted(&self.path)),
            false => !self.read_only && open.make_marker()?,
        };
        self.marked.get_or_init(|| marked);
        Ok(open)
    }

    fn open_path(&self) -> Result<OpenDir> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd =
            fs::open(&self.path, flags, Mode::empty()).map_err(|errno| no_directory(&self.path, errno))?;
        Ok(OpenDir { fd, path: self.path.clone() })
    }
}

/// Where administrators and other programs keep units of systemd (systemd.unit(5)).
const UNITS: [&str; 2] = ["/etc/systemd/system", "/run/systemd/system"];

/// A mount point at or above `path` that fstab(5) or a unit of systemd names and on which nothing is mounted: what is written
/// there would go to the disk underneath, and be hidden once it is mounted.
fn mount_that_is_missing(path: &Path) -> Option<PathBuf> {
    let fstab = std::fs::read_to_string("/etc/fstab").unwrap_or_default();
    let mut known = mount_points_of_fstab(&fstab);
    UNITS.iter().for_each(|units| known.extend(mount_points_of_units(Path::new(units))));
    let mounted = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    // A data directory that is reached by links lies elsewhere.
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    missing_mount_point(known, &mounted, &path)
}

fn mount_points_of_fstab(fstab: &str) -> Vec<PathBuf> {
    let known = fstab.lines().map(str::trim_start).filter(|line| !line.starts_with('#'));
    known.filter_map(|line| line.split_ascii_whitespace().nth(1)).map(unescaped).collect()
}

/// What the units of one directory mount, or would on access (systemd.mount(5)).
fn mount_points_of_units(units: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(units).into_iter().flatten().flatten().map(|entry| entry.path());
    let units =
        files.filter(|file| file.extension().is_some_and(|kind| kind == "mount" || kind == "automount"));
    let read = units.filter_map(|file| std::fs::read_to_string(file).ok());
    let point = |unit: String| {
        let mut settings = unit.lines().filter_map(|line| line.split_once('='));
        let (_, point) = settings.rfind(|(key, _)| key.trim() == "Where")?;
        Some(PathBuf::from(point.trim().trim_matches(['"', '\''])))
    };
    read.filter_map(point).collect()
}

fn missing_mount_point(known: Vec<PathBuf>, mounted: &str, path: &Path) -> Option<PathBuf> {
    let mounted: Vec<PathBuf> =
        mounted.lines().filter_map(|line| line.split_ascii_whitespace().nth(4)).map(unescaped).collect();
    // Without those of no mount point at all, such as swap.
    known
        .into_iter()
        .filter(|point| point.is_absolute() && path.starts_with(point))
        // There is always something on `/`; within a chroot it has no line of its own.
        .filter(|point| point != Path::new("/"))
        .find(|point| !mounted.contains(point))
}

/// A path as fstab(5) and proc(5) write it, with an octal number for each blank and backslash in it.
fn unescaped(field: &str) -> PathBuf {
    let mut path = field.to_owned();
    for (octal, character) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        path = path.replace(octal, character);
    }
    path.into()
}

/// Creates a directory where it is missing, and makes its name durable: what will be in it is no use without.
fn make_dir(dir: &OwnedFd, name: &str) -> rustix::io::Result<()> {
    match fs::mkdirat(dir, name, Mode::from_raw_mode(0o755)) {
        Ok(()) => fs::fsync(dir),
        Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// An open data directory. Names are single components, and links are not followed, so nothing outside is reached.
#[derive(Debug)]
pub(crate) struct OpenDir {
    fd: OwnedFd,
    pub(crate) path: PathBuf,
}

/// A committed blob's file, opened.
#[derive(Debug)]
pub(crate) struct OpenBlob {
    pub(crate) file: File,
    pub(crate) size: u64,
    pub(crate) allocated: u64,
    pub(crate) meta: Option<Meta>,
}

impl OpenDir {
    /// Opens a directory of the store's own; no part of its path may be a link.
    fn private(&self, name: &str) -> rustix::io::Result<OwnedFd> {
        let private = fs::openat(&self.fd, PRIVATE, DIRECTORY, Mode::empty())?;
        fs::openat(private, name, DIRECTORY, Mode::empty())
    }

    /// The same, and makes what is missing of it.
    fn make_private(&self, name: &str) -> rustix::io::Result<OwnedFd> {
        make_dir(&self.fd, PRIVATE)?;
        let private = fs::openat(&self.fd, PRIVATE, DIRECTORY, Mode::empty())?;
        make_dir(&private, name)?;
        fs::openat(private, name, DIRECTORY, Mode::empty())
    }

    fn is_marked(&self) -> Result<bool> {
        let found = fs::openat(&self.fd, PRIVATE, DIRECTORY, Mode::empty())
            .and_then(|private| fs::statat(private, MARKER, AtFlags::SYMLINK_NOFOLLOW));
        match found {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(io("cannot check the data directory's marker", errno)),
        }
    }

    /// Creates the marker; false where the directory cannot be written to.
    fn make_marker(&self) -> Result<bool> {
        let make = || {
            make_dir(&self.fd, PRIVATE)?;
            let private = fs::openat(&self.fd, PRIVATE, DIRECTORY, Mode::empty())?;
            fs::fsync(open_or_create(&private, MARKER, OFlags::WRONLY)?)?;
            fs::fsync(private)
        };
        match make() {
            Ok(()) => Ok(true),
            Err(Errno::ROFS | Errno::ACCESS | Errno::PERM) => Ok(false),
            Err(errno) => Err(io("cannot create the data directory's marker", errno)),
        }
    }

    /// Total and free space in bytes; both endless where the file system has no limit of its own, such as ramfs.
    pub(crate) fn space(&self) -> Result<(u64, u64)> {
        let space = fs::fstatvfs(&self.fd).map_err(|errno| {
            io(format_args!("cannot measure the file system of {}", self.path.display()), errno)
        })?;
        if space.f_blocks == 0 {
            return Ok((u64::MAX, u64::MAX));
        }
        Ok((space.f_blocks.saturating_mul(space.f_frsize), space.f_bavail.saturating_mul(space.f_frsize)))
    }

    /// Which file system it is on.
    pub(crate) fn device(&self) -> Result<u64> {
        Ok(fs::fstat(&self.fd).map_err(|errno| io("cannot examine the data directory", errno))?.st_dev)
    }

    pub(crate) fn holds(&self, id: &BlobId) -> Result<bool> {
        match fs::statat(&self.fd, id.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(io("cannot look for the blob", errno)),
        }
    }

    /// Opens a blob; `None` where there is none.
    pub(crate) fn open_blob(&self, name: &OsStr) -> Result<Option<OpenBlob>> {
        // Not blocking, because the name may turn out to be a named pipe.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let fd = match fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(io("cannot open the blob", errno)),
        };
        let stat = fs::fstat(&fd).map_err(|errno| io("cannot examine the blob", errno))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io("cannot open the blob, which is no regular file", Errno::INVAL));
        }
        let meta = self.read_meta(&fd, name, stat.st_ino)?;
        let size = stat.st_size.try_into().unwrap_or_default();
        let allocated = u64::try_from(stat.st_blocks).unwrap_or_default().saturating_mul(512);
        Ok(Some(OpenBlob { file: File::from(fd), size, allocated, meta }))
    }

    /// Removes a blob durably; false where there is none.
    pub(crate) fn remove_blob(&self, name: &OsStr) -> Result<bool> {
        let stat = match fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(false),
            Err(errno) => return Err(io("cannot examine the blob", errno)),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {}
            FileType::Symlink => return Err(io("cannot delete the blob", Errno::LOOP)),
            _ => return Err(io("cannot delete the blob, which is no regular file", Errno::INVAL)),
        }
        match fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(false),
            Err(errno) => return Err(io("cannot delete the blob", errno)),
        }
        self.remove_sidecar(name, stat.st_ino);
        self.sync("cannot make the deletion durable")?;
        Ok(true)
    }

    pub(crate) fn sync(&self, what: &'static str) -> Result<()> {
        fs::fsync(&self.fd).map_err(|errno| io(what, errno))
    }

    /// Serialises the commits of a store with several data directories, over all its processes; the lock goes with
    /// the returned file, or with the process.
    pub(crate) fn lock(&self) -> Result<OwnedFd> {
        let lock = || {
            make_dir(&self.fd, PRIVATE)?;
            let private = fs::openat(&self.fd, PRIVATE, DIRECTORY, Mode::empty())?;
            let fd = open_or_create(&private, LOCK, OFlags::RDWR)?;
            fs::flock(&fd, FlockOperation::LockExclusive)?;
            Ok(fd)
        };
        lock().map_err(|errno| {
            io(format_args!("cannot lock the data directory {}", self.path.display()), errno)
        })
    }

    /// Lists directory entries, blobs and others.
    pub(crate) fn entries(&self) -> Result<Dir> {
        Dir::read_from(&self.fd).map_err(|errno| {
            io(format_args!("cannot list the data directory {}", self.path.display()), errno)
        })
    }

    /// The size of the blob named `name`, where that is a regular file.
    pub(crate) fn size_of(&self, name: &CStr) -> Result<Option<u64>> {
        match fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {
                Ok(stat.st_size.try_into().ok())
            }
            Ok(_) | Err(Errno::NOENT) => Ok(None), // Deleted since it was listed.
            Err(errno) => Err(io("cannot examine a blob", errno)),
        }
    }

    /// Removes staged files, and sidecars without their blob, that were last written to over `age` ago.
    pub(crate) fn sweep(&self, age: Duration) -> Result<Swept> {
        let mut swept = Swept::default();
        self.each_old(STAGING, age, |staging, name, size| {
            match fs::unlinkat(staging, name, AtFlags::empty()) {
                Ok(()) => {
                    swept.uploads += 1;
                    swept.bytes += size;
                }
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(io("cannot remove a staged file", errno)),
            }
            Ok(())
        })?;
        self.each_old(SIDECARS, age, |sidecars, name, _| {
            // At worst it stays until the next sweep.
            let _ = self.sweep_sidecar(sidecars, name);
            Ok(())
        })?;
        Ok(swept)
    }

    /// Does something to each file of a directory of the store's own that was last written to over `age` ago; it is given
    /// the directory, and the file's name in it and size on disk.
    fn each_old(
        &self,
        name: &str,
        age: Duration,
        mut act: impl FnMut(&OwnedFd, &str, u64) -> Result<()>,
    ) -> Result<()> {
        let cannot =
            |what: &str, errno| io(format_args!("cannot {what} the directory {PRIVATE}/{name}"), errno);
        let dir = match self.private(name) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(cannot("open", errno)),
        };
        let now = SystemTime::now();
        for entry in Dir::read_from(&dir).map_err(|errno| cannot("list", errno))? {
            let entry = entry.map_err(|errno| cannot("list", errno))?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            let Ok(stat) = fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                continue;
            }
            let written =
                SystemTime::UNIX_EPOCH + Duration::from_secs(stat.st_mtime.try_into().unwrap_or_default());
            // A clock that went backwards makes a file look as if it was from the future: then it is not old.
            if now.duration_since(written).is_ok_and(|since| since >= age) {
                act(&dir, name, u64::try_from(stat.st_blocks).unwrap_or_default() * 512)?;
            }
        }
        Ok(())
    }

    fn read_meta(&self, fd: &OwnedFd, name: &OsStr, inode: u64) -> Result<Option<Meta>> {
        let json = match read_attribute(fd) {
            Err(Errno::NODATA | Errno::OPNOTSUPP) => self.read_sidecar(name, inode),
            read => read.map(Some),
        };
        let json = json.map_err(|errno| io("cannot read the blob's metadata", errno))?;
        // Not left out: what is kept to check the bytes with is part of the blob.
        json.map(|json| Meta::from_json(&json)).transpose().map_err(|error| {
            error.with_hint(format!(
                "the attribute {ATTRIBUTE} of the file is damaged, or its file in {PRIVATE}/{SIDECARS}; without that the \
                 bytes can be read, unchecked"
            ))
        })
    }

    fn read_sidecar(&self, name: &OsStr, inode: u64) -> rustix::io::Result<Option<Vec<u8>>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let found = self
            .private(SIDECARS)
            .and_then(|dir| fs::openat(dir, sidecar(name, inode), flags, Mode::empty()));
        let fd = match found {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let mut json = Vec::with_capacity(LARGEST_META);
        while json.len() < LARGEST_META
            && rustix::io::read(&fd, rustix::buffer::spare_capacity(&mut json))? > 0
        {}
        Ok(Some(json))
    }

    fn remove_sidecar(&self, name: &OsStr, inode: u64) {
        // Most blobs have none. One that stays names an inode that is gone, and `sweep` removes it.
        if let Ok(dir) = self.private(SIDECARS) {
            let _ = fs::unlinkat(dir, sidecar(name, inode), AtFlags::empty());
        }
    }
}

fn read_attribute(fd: &OwnedFd) -> rustix::io::Result<Vec<u8>> {
    let mut json = Vec::with_capacity(4096);
    match fs::fgetxattr(fd, ATTRIBUTE, rustix::buffer::spare_capacity(&mut json)) {
        Err(Errno::RANGE) => {
            json.reserve(LARGEST_META);
            fs::fgetxattr(fd, ATTRIBUTE, rustix::buffer::spare_capacity(&mut json))?;
        }
        outcome => drop(outcome?),
    }
    Ok(json)
}

/// The file in [`SIDECARS`] that keeps the metadata of a blob on a file system without extended attributes: by name and
/// inode, so that it can be written before the commit and yet belongs to no rival's blob.
fn sidecar(name: &OsStr, inode: u64) -> PathBuf {
    let mut file = name.to_owned();
    file.push(format!(".{inode}"));
    file.into()
}

/// Opens a file in a directory of the store's own, and creates it if it is missing.
fn open_or_create(dir: &OwnedFd, name: &str, access: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = access | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    fs::openat(dir, name, flags, Mode::from_raw_mode(0o644))
}

/// A file on its way to become a blob.
#[derive(Debug)]
pub(crate) struct Staged {
    pub(crate) file: Arc<File>,
    /// Whether the file was opened with `O_DIRECT`.
    pub(crate) direct: bool,
    /// The staging directory and its name there, unless it has no name.
    name: Option<(OwnedFd, String)>,
}

impl OpenDir {
    /// Creates a file for an upload of `id`, without a name or in the staging directory.
    pub(crate) fn stage(&self, id: &BlobId, named: bool, direct: bool) -> Result<Staged> {
        let stage = || {
            let staging = if named { Some(self.make_private(STAGING)?) } else { None };
            let name = named.then(|| format!("{id}.{}", random_suffix()));
            let (dir, path) = (staging.as_ref().unwrap_or(&self.fd), name.as_deref().unwrap_or("."));
            let kind = if named { OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW } else { OFlags::TMPFILE };
            let open = |extra| {
                let flags = OFlags::RDWR | OFlags::CLOEXEC | kind | extra;
                fs::openat(dir, path, flags, Mode::from_raw_mode(0o600))
            };
            let (fd, direct) = match direct.then(|| open(OFlags::DIRECT)) {
                Some(Ok(fd)) => (fd, true),
                Some(Err(Errno::INVAL)) => {
                    // The file system has no O_DIRECT; some create the file before they say so.
                    if named {
                        let _ = fs::unlinkat(dir, path, AtFlags::empty());
                    }
                    (open(OFlags::empty())?, false)
                }
                Some(Err(errno)) => return Err(errno),
                None => (open(OFlags::empty())?, false),
            };
            Ok(Staged { file: Arc::new(fd.into()), direct, name: staging.zip(name) })
        };
        stage().map_err(|errno| io(format_args!("cannot create a file in {}", self.path.display()), errno))
    }

    /// Whether files without a name can be made, and can be given one.
    pub(crate) fn has_unnamed_files(&self) -> bool {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::TMPFILE;
        let made = fs::openat(&self.fd, ".", flags, Mode::from_raw_mode(0o600));
        made.is_ok() && Path::new("/proc/self/fd").exists()
    }

    /// Makes the blob and its metadata durable, gives it its name without replacing another, and makes that durable
    /// too: the three steps belong together, in this order.
    ///
    /// On an error the name is not there, or is a rival's.
    pub(crate) fn publish(
        &self,
        id: &BlobId,
        staged: &Staged,
        size: u64,
        meta: &Meta,
    ) -> Result<(), Publish> {
        let step = |what| move |errno| Publish::Failed(io(what, errno));
        let file = &*staged.file;
        // Sets the length where the end is a hole, and gives back what was reserved beyond it.
        fs::ftruncate(file, size).map_err(step("cannot set the blob's length"))?;
        let beside = self.write_meta(id, file, meta).map_err(step("cannot write the blob's metadata"))?;
        // fdatasync(2) would do for the bytes, but need not make the attribute durable.
        fs::fsync(file).map_err(step("cannot make the blob durable"))?;
        self.link(id, staged).map_err(|errno| match errno {
            Errno::EXIST => Publish::Taken,
            // The staged file is all that can be missing.
            Errno::NOENT => Publish::Failed(Error::swept()),
            errno => Publish::Failed(io(
                format_args!("cannot give the blob its name in {}", self.path.display()),
                errno,
            )),
        })?;
        let last = || {
            // A sweep that saw no blob of the name may have taken the metadata; one that looks from now on gives it back.
            if beside
                && !self.has_sidecar(id, file).map_err(|errno| io("cannot look at the metadata", errno))?
            {
                return Err(Error::swept());
            }
            self.sync("cannot make the blob's name durable")
        };
        last().map_err(|error| {
            self.unpublish(id, staged);
            Publish::Failed(error)
        })
    }

    /// Takes the name away from the blob that was published from `staged`, and from no other.
    pub(crate) fn unpublish(&self, id: &BlobId, staged: &Staged) {
        if self.is_named(id, &staged.file) {
            let _ = fs::unlinkat(&self.fd, id.as_str(), AtFlags::empty());
            let _ = fs::fsync(&self.fd);
        }
        self.discard(id, staged);
    }

    /// Removes what is left of `staged` beside the blob.
    pub(crate) fn discard(&self, id: &BlobId, staged: &Staged) {
        if let Some((staging, name)) = &staged.name {
            let _ = fs::unlinkat(staging, &**name, AtFlags::empty());
        }
        if let Ok(stat) = fs::fstat(&*staged.file)
            && !self.is_named(id, &staged.file)
        {
            self.remove_sidecar(OsStr::new(id.as_str()), stat.st_ino);
        }
    }

    /// Removes the staging name of a blob that has its own.
    pub(crate) fn unstage(&self, staged: &Staged) {
        if let Some((staging, name)) = &staged.name {
            // At worst it stays until the next sweep, which leaves the blob alone: it is a second name of it.
            let _ = fs::unlinkat(staging, &**name, AtFlags::empty());
        }
    }

    fn link(&self, id: &BlobId, staged: &Staged) -> rustix::io::Result<()> {
        let Some((staging, name)) = &staged.name else {
            // open(2), "O_TMPFILE": the way that needs no privilege.
            let path = format!("/proc/self/fd/{}", staged.file.as_raw_fd());
            return fs::linkat(fs::CWD, path, &self.fd, id.as_str(), AtFlags::SYMLINK_FOLLOW);
        };
        match fs::linkat(staging, &**name, &self.fd, id.as_str(), AtFlags::empty()) {
            // NFS sends a request again when the reply was lost: then the name is taken by this very file.
            Err(Errno::EXIST) if self.is_named(id, &staged.file) => Ok(()),
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK) => {
                fs::renameat_with(staging, &**name, &self.fd, id.as_str(), RenameFlags::NOREPLACE)
            }
            outcome => outcome,
        }
    }

    fn is_named(&self, id: &BlobId, file: &File) -> bool {
        let named = fs::statat(&self.fd, id.as_str(), AtFlags::SYMLINK_NOFOLLOW);
        let ours = fs::fstat(file);
        named
            .ok()
            .zip(ours.ok())
            .is_some_and(|(named, ours)| (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino))
    }

    /// Writes the metadata to the file, or beside it, and says whether that was beside.
    fn write_meta(&self, id: &BlobId, file: &File, meta: &Meta) -> rustix::io::Result<bool> {
        let json = meta.to_json();
        match fs::fsetxattr(file, ATTRIBUTE, json.as_bytes(), XattrFlags::empty()) {
            Err(Errno::OPNOTSUPP | Errno::NOSPC | Errno::TOOBIG) => {}
            outcome => return outcome.map(|()| false),
        }
        let sidecars = self.make_private(SIDECARS)?;
        let name = sidecar(OsStr::new(id.as_str()), fs::fstat(file)?.st_ino);
        write_sidecar(&sidecars, &name, json.as_bytes()).map(|()| true)
    }

    fn has_sidecar(&self, id: &BlobId, file: &File) -> rustix::io::Result<bool> {
        let name = sidecar(OsStr::new(id.as_str()), fs::fstat(file)?.st_ino);
        match self.private(SIDECARS).and_then(|dir| fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Removes metadata that belongs to no blob.
    fn sweep_sidecar(&self, sidecars: &OwnedFd, name: &str) -> rustix::io::Result<()> {
        let Some((blob, inode)) = name.rsplit_once('.') else { return Ok(()) };
        let is_there = || {
            let stat = fs::statat(&self.fd, blob, AtFlags::SYMLINK_NOFOLLOW);
            stat.is_ok_and(|stat| stat.st_ino.to_string() == inode)
        };
        if is_there() {
            return Ok(());
        }
        let Some(json) =
            inode.parse().ok().map(|inode| self.read_sidecar(OsStr::new(blob), inode)).transpose()?
        else {
            return fs::unlinkat(sidecars, name, AtFlags::empty());
        };
        fs::unlinkat(sidecars, name, AtFlags::empty())?;
        // Committed in between: a commit looks for its metadata after it has made the name.
        match json.filter(|_| is_there()) {
            Some(json) => write_sidecar(sidecars, Path::new(name), &json),
            None => Ok(()),
        }
    }
}

fn write_sidecar(sidecars: &OwnedFd, name: &Path, json: &[u8]) -> rustix::io::Result<()> {
    let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let sidecar = fs::openat(sidecars, name, flags, Mode::from_raw_mode(0o644))?;
    let mut left = json;
    while !left.is_empty() {
        left = &left[rustix::io::write(&sidecar, left)?..];
    }
    fs::fsync(&sidecar)?;
    fs::fsync(sidecars)
}

/// Why a blob did not get its name.
#[derive(Debug)]
pub(crate) enum Publish {
    Taken,
    Failed(Error),
}

/// Allocates `size` bytes now, so that a full disk is noticed now; false where the file system cannot.
pub(crate) fn reserve(file: &File, size: u64) -> Result<bool> {
    // The length is set too, because ext4 makes no holes beyond it.
    match fs::fallocate(file, FallocateFlags::empty(), 0, size) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INTR) => Ok(false),
        Err(errno) => Err(io("cannot reserve space", errno)
            .with_hint(format!("{} are needed: delete blobs, or add a directory", Size(size)))),
    }
}

/// Gives back what was reserved for a run of zeros.
pub(crate) fn punch(file: &File, offset: u64, len: u64) -> Result<()> {
    match fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len) {
        // What stays allocated still reads as zeros.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(errno) => Err(io("cannot make a hole", errno)),
    }
}

/// Shares the blocks of `source` with `target` (ioctl_ficlone(2)); false where that is not possible.
pub(crate) fn share_blocks(target: &File, source: &File) -> bool {
    // Other file systems, other devices, odd files: whatever is in the way, the bytes can still be written.
    fs::ioctl_ficlone(target, source).is_ok()
}

/// Sets group and permissions, whatever the umask.
pub(crate) fn dress(file: &File, mode: u32, group: Option<u32>) -> Result<()> {
    if let Some(group) = group {
        fs::fchown(file, None, Some(fs::Gid::from_raw(group))).map_err(|errno| {
            io("cannot set the blob's group", errno).with_hint("the process must be in that group")
        })?;
    }
    fs::fchmod(file, Mode::from_raw_mode(mode))
        .map_err(|errno| io("cannot set the blob's permissions", errno))
}

/// Ends direct I/O on an open file.
pub(crate) fn make_buffered(file: &File) -> Result<()> {
    let change = || fs::fcntl_setfl(file, fs::fcntl_getfl(file)? - OFlags::DIRECT);
    change().map_err(|errno| io("cannot end direct I/O", errno))
}

/// Starts the write-back of a range and lets the page cache forget what is written of it (posix_fadvise(2)).
pub(crate) fn forget(file: &File, offset: u64, len: u64) {
    let _ = fs::fadvise(file.as_fd(), offset, std::num::NonZero::new(len), fs::Advice::DontNeed);
}

/// Makes the bytes so far durable, so that they do not fill the page cache.
pub(crate) fn sync_data(file: &File) -> Result<()> {
    fs::fdatasync(file).map_err(|errno| io("cannot write the blob", errno))
}

fn random_suffix() -> String {
    let mut bytes = [0; 8];
    // Without randomness the names of two uploads of one id clash, which O_EXCL finds.
    let _ = getrandom::fill(&mut bytes);
    hex::encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_a_lost_request_gave_is_no_rivals() {
        let dir = tempfile::tempdir().unwrap();
        let config = FsConfig::new(dir.path());
        let directory = Directory { path: dir.path().to_owned(), priority: 0 };
        let open = DataDir::new(directory, &config).open().unwrap();
        let stage = |id: &BlobId| open.stage(id, true, false).unwrap();
        let id: BlobId = "blob".parse().unwrap();
        let (ours, rival) = (stage(&id), stage(&id));
        // The server of a share has made the link, but its reply was lost; the client asks again.
        let (staging, name) = ours.name.as_ref().unwrap();
        fs::linkat(staging, &**name, &open.fd, id.as_str(), AtFlags::empty()).unwrap();
        assert!(open.publish(&id, &ours, 0, &Meta::new(0)).is_ok());
        assert!(matches!(open.publish(&id, &rival, 0, &Meta::new(0)), Err(Publish::Taken)));
        open.discard(&id, &rival);
        open.unstage(&ours);
        assert!(open.is_named(&id, &ours.file), "the rival took the name away");
    }

    #[test]
    fn a_mount_that_is_missing_is_found_in_fstab() {
        let fstab = "# /dev/sdz /srv/gone ext4\n/dev/sda1 / ext4 defaults 0 1\nnfs:/a /srv/images nfs4 noauto\n\
                     nfs:/b\t/srv/two\\040words nfs4 defaults\nUUID=1 none swap sw 0 0\nbroken\n";
        let mounted = "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n22 21 0:40 / /srv/here rw - nfs4 nfs:/c rw\n";
        let missing =
            |path: &str| missing_mount_point(mount_points_of_fstab(fstab), mounted, Path::new(path));
        assert_eq!(missing("/srv/images/glance"), Some("/srv/images".into()));
        assert_eq!(missing("/srv/images"), Some("/srv/images".into()));
        assert_eq!(missing("/srv/two words/x"), Some("/srv/two words".into()));
        assert_eq!(missing("/srv/images-too"), None);
        assert_eq!(missing("/srv/gone"), None);
        assert_eq!(missing("/none"), None);
        let mounted = format!("{mounted}23 21 0:41 / /srv/images rw - autofs systemd-1 rw\n");
        let known = mount_points_of_fstab(fstab);
        assert_eq!(missing_mount_point(known, &mounted, Path::new("/srv/images/glance")), None);
    }

    #[test]
    fn a_mount_that_is_missing_is_found_in_units() {
        let dir = tempfile::tempdir().unwrap();
        for (name, unit) in [
            (
                "srv-images.mount",
                "[Unit]\nDescription=Where=/no\n[Mount]\nWhat=nfs:/a\nWhere=/srv/images\nType=nfs4\n",
            ),
            ("srv-auto.automount", "[Automount]\nWhere=\nWhere = \"/srv/auto\"\n"),
            ("srv.service", "Where=/srv/service\n"),
            ("empty.mount", ""),
        ] {
            std::fs::write(dir.path().join(name), unit).unwrap();
        }
        let mut known = mount_points_of_units(dir.path());
        known.sort();
        assert_eq!(known, [PathBuf::from("/srv/auto"), "/srv/images".into()]);
        assert_eq!(mount_points_of_units(Path::new("/does/not/exist")), Vec::<PathBuf>::new());
        let mounted = "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n";
        let missing = missing_mount_point(known, mounted, Path::new("/srv/images/glance"));
        assert_eq!(missing, Some("/srv/images".into()));
    }
}
