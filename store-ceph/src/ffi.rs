//! The border to C: librados and librbd, looked up at run time. All `unsafe` of this crate is here.
//!
//! Signatures and constants are those of `rados/librados.h` and `rbd/librbd.h` of Ceph 16; later versions only add.
//! All functions block, but for those of [`Image`] that give a receiver.
#![allow(unsafe_code, reason = "a C library is called; each block says why it is sound")]

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    fmt,
    mem::{self, ManuallyDrop},
    ops::Range,
    path::Path,
    ptr::{null, null_mut},
    sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError, mpsc},
    time::Duration,
};

use bytes::Bytes;
use store_core::buffer::Buffer;
use tokio::sync::oneshot;

/// An error number of Linux, positive; `0` never is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) i32);

impl Errno {
    pub(crate) const EPERM: Self = Self(1);
    pub(crate) const ENOENT: Self = Self(2);
    pub(crate) const EIO: Self = Self(5);
    pub(crate) const EACCES: Self = Self(13);
    pub(crate) const EBUSY: Self = Self(16);
    pub(crate) const EEXIST: Self = Self(17);
    pub(crate) const EINVAL: Self = Self(22);
    pub(crate) const ENOSPC: Self = Self(28);
    pub(crate) const EROFS: Self = Self(30);
    pub(crate) const EDOM: Self = Self(33);
    pub(crate) const ERANGE: Self = Self(34);
    pub(crate) const ENOTEMPTY: Self = Self(39);
    pub(crate) const ENODATA: Self = Self(61);
    pub(crate) const EOPNOTSUPP: Self = Self(95);
    pub(crate) const ENOTCONN: Self = Self(107);
    pub(crate) const ESHUTDOWN: Self = Self(108);
    pub(crate) const ETIMEDOUT: Self = Self(110);
    pub(crate) const ESTALE: Self = Self(116);
    pub(crate) const EDQUOT: Self = Self(122);
    pub(crate) const ECANCELED: Self = Self(125);
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

impl std::error::Error for Errno {}

pub(crate) type Result<T, E = Errno> = std::result::Result<T, E>;

fn check(status: c_int) -> Result<usize> {
    usize::try_from(status).map_err(|_| Errno(status.saturating_neg()))
}

/// What C calls `rados_t`, `rados_ioctx_t`, `rbd_image_t`, `rbd_image_options_t` and `rbd_completion_t`.
type Handle = *mut c_void;

type Callback = unsafe extern "C" fn(Handle, *mut c_void);
type DiffCallback = unsafe extern "C" fn(u64, usize, c_int, *mut c_void) -> c_int;

/// `rbd_trash_image_info_t`.
#[repr(C)]
struct TrashInfo {
    id: *mut c_char,
    name: *mut c_char,
    source: c_int,
    deletion_time: i64,
    deferment_end_time: i64,
}

/// `struct timespec`.
#[repr(C)]
#[derive(Default)]
struct TimeSpec {
    seconds: i64,
    nanoseconds: i64,
}

macro_rules! api {
    ($($library:ident: $name:ident($($type:ty),*) $(-> $result:ty)?;)*) => {
        /// The functions that are called, found once.
        struct Api { $($name: unsafe extern "C" fn($($type),*) $(-> $result)?,)* }

        impl Api {
            fn load() -> Result<Self, libloading::Error> {
                // SAFETY: the initialisers of both libraries are those of well-behaved shared objects, and the types
                // in the table are those of the headers that the file's first comment names.
                unsafe {
                    let rados = libloading::Library::new("librados.so.2")?;
                    let rbd = libloading::Library::new("librbd.so.1")?;
                    let api = Self { $($name: {
                        let library = if stringify!($library) == "rbd" { &rbd } else { &rados };
                        *library.get(concat!(stringify!($name), "\0"))?
                    },)* };
                    // Never unloaded: their threads and exit handlers run until the process ends.
                    mem::forget((rados, rbd));
                    Ok(api)
                }
            }
        }
    };
}

api! {
    rados: rados_create(*mut Handle, *const c_char) -> c_int;
    rados: rados_conf_read_file(Handle, *const c_char) -> c_int;
    rados: rados_conf_set(Handle, *const c_char, *const c_char) -> c_int;
    rados: rados_conf_get(Handle, *const c_char, *mut c_char, usize) -> c_int;
    rados: rados_connect(Handle) -> c_int;
    rados: rados_shutdown(Handle);
    rados: rados_cluster_fsid(Handle, *mut c_char, usize) -> c_int;
    rados: rados_mon_command(Handle, *const *const c_char, usize, *const c_char, usize,
        *mut *mut c_char, *mut usize, *mut *mut c_char, *mut usize) -> c_int;
    rados: rados_buffer_free(*mut c_char);
    rados: rados_ioctx_create(Handle, *const c_char, *mut Handle) -> c_int;
    rados: rados_ioctx_destroy(Handle);
    rados: rados_ioctx_set_namespace(Handle, *const c_char);
    rados: rados_set_pool_full_try(Handle);
    rados: rados_stat(Handle, *const c_char, *mut u64, *mut i64) -> c_int;
    rados: rados_read(Handle, *const c_char, *mut c_char, usize, u64) -> c_int;
    rados: rados_write_full(Handle, *const c_char, *const c_char, usize) -> c_int;
    rados: rados_remove(Handle, *const c_char) -> c_int;
    rados: rados_getxattr(Handle, *const c_char, *const c_char, *mut c_char, usize) -> c_int;
    rados: rados_rmxattr(Handle, *const c_char, *const c_char) -> c_int;
    rados: rados_aio_create_completion2(*mut c_void, Callback, *mut Handle) -> c_int;
    rados: rados_aio_release(Handle);
    rados: rados_aio_flush_async(Handle, Handle) -> c_int;
    rados: rados_create_write_op() -> Handle;
    rados: rados_write_op_assert_exists(Handle);
    rados: rados_write_op_cmpxattr(Handle, *const c_char, u8, *const c_char, usize);
    rados: rados_write_op_setxattr(Handle, *const c_char, *const c_char, usize);
    rados: rados_write_op_create(Handle, c_int, *const c_char);
    rados: rados_write_op_write_full(Handle, *const c_char, usize);
    rados: rados_write_op_operate(Handle, Handle, *const c_char, *mut i64, c_int) -> c_int;
    rados: rados_release_write_op(Handle);
    rados: rados_exec(Handle, *const c_char, *const c_char, *const c_char, *const c_char, usize,
        *mut c_char, usize) -> c_int;
    rbd: rbd_image_options_create(*mut Handle);
    rbd: rbd_image_options_destroy(Handle);
    rbd: rbd_image_options_set_uint64(Handle, c_int, u64) -> c_int;
    rbd: rbd_image_options_set_string(Handle, c_int, *const c_char) -> c_int;
    rbd: rbd_create4(Handle, *const c_char, u64, Handle) -> c_int;
    rbd: rbd_clone3(Handle, *const c_char, *const c_char, Handle, *const c_char, Handle) -> c_int;
    rbd: rbd_namespace_create(Handle, *const c_char) -> c_int;
    rbd: rbd_namespace_exists(Handle, *const c_char, *mut bool) -> c_int;
    rbd: rbd_trash_move(Handle, *const c_char, u64) -> c_int;
    rbd: rbd_trash_restore(Handle, *const c_char, *const c_char) -> c_int;
    rbd: rbd_trash_remove(Handle, *const c_char, bool) -> c_int;
    rbd: rbd_trash_list(Handle, *mut TrashInfo, *mut usize) -> c_int;
    rbd: rbd_trash_list_cleanup(*mut TrashInfo, usize);
    rbd: rbd_open(Handle, *const c_char, *mut Handle, *const c_char) -> c_int;
    rbd: rbd_open_read_only(Handle, *const c_char, *mut Handle, *const c_char) -> c_int;
    rbd: rbd_open_by_id(Handle, *const c_char, *mut Handle, *const c_char) -> c_int;
    rbd: rbd_open_by_id_read_only(Handle, *const c_char, *mut Handle, *const c_char) -> c_int;
    rbd: rbd_close(Handle) -> c_int;
    rbd: rbd_get_size(Handle, *mut u64) -> c_int;
    rbd: rbd_get_id(Handle, *mut c_char, usize) -> c_int;
    rbd: rbd_get_overlap(Handle, *mut u64) -> c_int;
    rbd: rbd_get_stripe_unit(Handle, *mut u64) -> c_int;
    rbd: rbd_get_create_timestamp(Handle, *mut TimeSpec) -> c_int;
    rbd: rbd_get_modify_timestamp(Handle, *mut TimeSpec) -> c_int;
    rbd: rbd_resize(Handle, u64) -> c_int;
    rbd: rbd_flush(Handle) -> c_int;
    rbd: rbd_snap_create(Handle, *const c_char) -> c_int;
    rbd: rbd_snap_remove(Handle, *const c_char) -> c_int;
    rbd: rbd_snap_unprotect(Handle, *const c_char) -> c_int;
    rbd: rbd_snap_exists(Handle, *const c_char, *mut bool) -> c_int;
    rbd: rbd_snap_list(Handle, *mut c_void, *mut c_int) -> c_int;
    rbd: rbd_list_children3(Handle, *mut c_void, *mut usize) -> c_int;
    rbd: rbd_watchers_list(Handle, *mut c_void, *mut usize) -> c_int;
    rbd: rbd_metadata_get(Handle, *const c_char, *mut c_char, *mut usize) -> c_int;
    rbd: rbd_diff_iterate2(Handle, *const c_char, u64, u64, u8, u8, DiffCallback, *mut c_void) -> c_int;
    rbd: rbd_aio_create_completion(*mut c_void, Callback, *mut Handle) -> c_int;
    rbd: rbd_aio_get_return_value(Handle) -> isize;
    rbd: rbd_aio_release(Handle);
    rbd: rbd_aio_write2(Handle, u64, usize, *const c_char, Handle, c_int) -> c_int;
    rbd: rbd_aio_read2(Handle, u64, usize, *mut c_char, Handle, c_int) -> c_int;
}

/// `RBD_IMAGE_OPTION_*`.
mod option {
    use super::c_int;

    pub(super) const FORMAT: c_int = 0;
    pub(super) const FEATURES: c_int = 1;
    pub(super) const ORDER: c_int = 2;
    pub(super) const DATA_POOL: c_int = 10;
    pub(super) const CLONE_FORMAT: c_int = 12;
}

/// `LIBRADOS_OP_FLAG_FADVISE_SEQUENTIAL`, and with `..._NOCACHE`.
const SEQUENTIAL: c_int = 0x8;
const SEQUENTIAL_ONCE: c_int = 0x48;

/// The API; why it cannot be had is what the dynamic loader says.
fn api() -> Result<&'static Api, libloading::Error> {
    static API: OnceLock<Api> = OnceLock::new();
    if let Some(api) = API.get() {
        return Ok(api);
    }
    let api = Api::load()?;
    Ok(API.get_or_init(|| {
        // SAFETY: registered after the libraries' own destructors, so that it runs before them, and does not unwind.
        unsafe { atexit(at_exit) };
        api
    }))
}

unsafe extern "C" {
    fn atexit(call: extern "C" fn()) -> c_int;
}

/// librados' threads must not outlive what the libraries destroy at exit: processes died of that after their work was done.
extern "C" fn at_exit() {
    // No cluster that does not answer may hold up the end. What is dropped from now on stays open.
    all_closed(LAST_CALL).over = true;
    crate::client::shut_down();
}

/// How long the end of the process waits for images to be closed.
const LAST_CALL: Duration = Duration::from_secs(5);

/// What is to be closed: first an image, then its pool, at last the cluster, each one when that before it is closed.
struct Closing {
    left: usize,
    over: bool,
}

static CLOSING: Mutex<Closing> = Mutex::new(Closing { left: 0, over: false });
static CLOSED: Condvar = Condvar::new();

fn closing() -> MutexGuard<'static, Closing> {
    CLOSING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until all that was dropped is closed, but not for long.
fn all_closed(most: Duration) -> MutexGuard<'static, Closing> {
    let waited = CLOSED.wait_timeout_while(closing(), most, |closing| closing.left > 0);
    waited.unwrap_or_else(PoisonError::into_inner).0
}

/// A pointer that C gave out.
#[derive(Clone, Copy)]
struct Pointer(Handle);

// SAFETY: librados and librbd lock their own state: handles may be used by any thread, also at the same time. That none
// is used after it was closed is seen to by the types below, which alone hold pointers.
unsafe impl Send for Pointer {}
// SAFETY: as above.
unsafe impl Sync for Pointer {}

/// Text for C. Whatever has a NUL in it names nothing.
fn text(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Errno::EINVAL)
}

/// The text that `call` writes into a buffer of `len` bytes.
fn text_of(len: usize, call: impl FnOnce(*mut c_char, usize) -> c_int) -> Result<String> {
    let mut buffer = vec![0u8; len];
    check(call(buffer.as_mut_ptr().cast(), len))?;
    let text = CStr::from_bytes_until_nul(&buffer).map_err(|_| Errno::ERANGE)?;
    Ok(text.to_string_lossy().into_owned())
}

/// Closes what takes time to be closed, on a thread of its own: a last handle may be dropped on an async thread, or on
/// one of librbd's own, which must not wait for itself.
fn close_later(close: impl FnOnce() + Send + 'static) {
    type Job = Box<dyn FnOnce() + Send>;
    static CLOSER: LazyLock<Option<mpsc::Sender<Job>>> = LazyLock::new(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        let thread = std::thread::Builder::new().name("rbd-close".to_owned());
        thread.spawn(move || jobs.into_iter().for_each(|job| job())).ok().map(|_| sender)
    });
    // Where there is no thread for it, it is better never closed than on a thread that it waits for.
    let Some(closer) = &*CLOSER else { return mem::forget(close) };
    {
        let mut closing = closing();
        if closing.over {
            return mem::forget(close);
        }
        closing.left += 1;
    }
    let job: Job = Box::new(move || {
        close();
        self::closing().left -= 1;
        CLOSED.notify_all();
    });
    // The thread takes jobs for as long as the process lives.
    let _ = closer.send(job);
}

/// A client of a cluster (`rados_t`). Each has threads of its own and costs some MiB.
pub(crate) struct Cluster {
    api: &'static Api,
    handle: Pointer,
}

/// Why there is no [`Cluster`].
pub(crate) enum NoCluster {
    Library(libloading::Error),
    Errno(Errno),
}

impl Cluster {
    /// A client that is `client.USER`; not yet connected.
    pub(crate) fn new(user: &str) -> Result<Self, NoCluster> {
        let api = api().map_err(NoCluster::Library)?;
        let user = text(user).map_err(NoCluster::Errno)?;
        let mut handle = null_mut();
        // SAFETY: both pointers are valid for the call.
        check(unsafe { (api.rados_create)(&raw mut handle, user.as_ptr()) }).map_err(NoCluster::Errno)?;
        Ok(Self { api, handle: Pointer(handle) })
    }

    /// Ends the connection, now.
    pub(crate) fn shut_down(self) {
        let cluster = ManuallyDrop::new(self);
        // SAFETY: nobody else has the handle, and it is not dropped again.
        unsafe { (cluster.api.rados_shutdown)(cluster.handle.0) };
    }

    pub(crate) fn read_conf(&self, path: &Path) -> Result<()> {
        let path = text(path.to_str().ok_or(Errno::EINVAL)?)?;
        // SAFETY: the handle is open, the text is valid for the call.
        check(unsafe { (self.api.rados_conf_read_file)(self.handle.0, path.as_ptr()) }).map(drop)
    }

    pub(crate) fn set(&self, key: &str, value: &str) -> Result<()> {
        let (key, value) = (text(key)?, text(value)?);
        // SAFETY: as above.
        check(unsafe { (self.api.rados_conf_set)(self.handle.0, key.as_ptr(), value.as_ptr()) }).map(drop)
    }

    pub(crate) fn setting(&self, key: &str) -> Result<String> {
        let key = text(key)?;
        // SAFETY: as above; the buffer is as long as is said.
        text_of(4096, |buffer, len| unsafe {
            (self.api.rados_conf_get)(self.handle.0, key.as_ptr(), buffer, len)
        })
    }

    pub(crate) fn connect(&self) -> Result<()> {
        // SAFETY: the handle is open.
        check(unsafe { (self.api.rados_connect)(self.handle.0) }).map(drop)
    }

    pub(crate) fn fsid(&self) -> Result<String> {
        // SAFETY: as above; the buffer is as long as is said. A UUID has 36 characters.
        text_of(64, |buffer, len| unsafe { (self.api.rados_cluster_fsid)(self.handle.0, buffer, len) })
    }

    /// Sends a command, in JSON, to a monitor, and gives what it answers.
    pub(crate) fn mon_command(&self, command: &str) -> Result<Vec<u8>> {
        let command = text(command)?;
        let commands = [command.as_ptr()];
        let (mut out, mut out_len) = (null_mut(), 0);
        let (mut status, mut status_len) = (null_mut(), 0);
        // SAFETY: the handle is open; the command and the four places for answers are valid for the call. Answers are
        // null or have the length that is told, and are freed once, after they were copied.
        unsafe {
            let outcome = (self.api.rados_mon_command)(
                self.handle.0,
                commands.as_ptr(),
                1,
                null(),
                0,
                &raw mut out,
                &raw mut out_len,
                &raw mut status,
                &raw mut status_len,
            );
            let mut answer = Vec::new();
            if !out.is_null() {
                answer.extend_from_slice(std::slice::from_raw_parts(out.cast::<u8>(), out_len));
                (self.api.rados_buffer_free)(out);
            }
            if !status.is_null() {
                (self.api.rados_buffer_free)(status);
            }
            check(outcome).map(|_| answer)
        }
    }

    /// A pool, or a namespace of one; without a name, the pool itself.
    ///
    /// Writes to a full pool fail instead of waiting for space, and removals work (`rados_set_pool_full_try`).
    pub(crate) fn pool(self: &Arc<Self>, name: &str, namespace: &str) -> Result<Pool> {
        let (name, namespace) = (text(name)?, text(namespace)?);
        let mut handle = null_mut();
        // SAFETY: the handle is open, the texts and the place for the new handle are valid for the calls.
        unsafe {
            check((self.api.rados_ioctx_create)(self.handle.0, name.as_ptr(), &raw mut handle))?;
            (self.api.rados_ioctx_set_namespace)(handle, namespace.as_ptr());
            (self.api.rados_set_pool_full_try)(handle);
        }
        Ok(Pool { api: self.api, handle: Pointer(handle), _cluster: Arc::clone(self) })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let (api, handle) = (self.api, self.handle);
        // SAFETY: nobody has the handle any more: pools hold their cluster.
        close_later(move || unsafe { (api.rados_shutdown)({ handle }.0) });
    }
}

/// A pool (`rados_ioctx_t`).
pub(crate) struct Pool {
    api: &'static Api,
    handle: Pointer,
    _cluster: Arc<Cluster>,
}

/// How an image is made; what is not set is as the cluster's configuration has it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layout {
    /// The length of its objects, as a power of two.
    pub(crate) order: Option<u8>,
    /// Bits of `RBD_FEATURE_*`.
    pub(crate) features: Option<u64>,
    pub(crate) data_pool: Option<String>,
}

impl Layout {
    /// Calls `call` with these options and one more.
    fn with(&self, api: &Api, extra: (c_int, u64), call: impl FnOnce(Handle) -> c_int) -> Result<()> {
        let data_pool = self.data_pool.as_deref().map(text).transpose()?;
        let mut options = null_mut();
        // SAFETY: the options are made here and destroyed here; the text is valid for the call.
        unsafe {
            (api.rbd_image_options_create)(&raw mut options);
            let number = |key, value| check((api.rbd_image_options_set_uint64)(options, key, value));
            let outcome = number(extra.0, extra.1)
                .and_then(|_| self.order.map_or(Ok(0), |order| number(option::ORDER, order.into())))
                .and_then(|_| self.features.map_or(Ok(0), |features| number(option::FEATURES, features)))
                .and_then(|_| match &data_pool {
                    Some(name) => {
                        check((api.rbd_image_options_set_string)(options, option::DATA_POOL, name.as_ptr()))
                    }
                    None => Ok(0),
                })
                .and_then(|_| check(call(options)));
            (api.rbd_image_options_destroy)(options);
            outcome.map(drop)
        }
    }
}

/// What an image is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// To read. Nobody else takes notice.
    Read,
    /// To write. It registers a watcher, which keeps others from removing the image.
    Write,
}

/// Which image is opened.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Which<'a> {
    Name(&'a str),
    /// By what a name stands for; also in the trash.
    Id(&'a str),
}

/// The condition of a change to an attribute.
#[derive(Clone, Copy, Debug)]
pub(crate) enum When<'a> {
    Always,
    Is(&'a [u8]),
    /// Or there is none.
    IsNot(&'a [u8]),
}

/// An image in the trash.
#[derive(Clone, Debug)]
pub(crate) struct Trashed {
    pub(crate) id: String,
    pub(crate) name: String,
    /// When it was moved there: seconds since 1970.
    pub(crate) at: i64,
}

impl Pool {
    pub(crate) fn create(&self, name: &str, size: u64, layout: &Layout) -> Result<()> {
        let name = text(name)?;
        // SAFETY: handle and options are open, the text is valid for the call.
        layout.with(self.api, (option::FORMAT, 2), |options| unsafe {
            (self.api.rbd_create4)(self.handle.0, name.as_ptr(), size, options)
        })
    }

    /// Makes `name` a copy-on-write clone of a snapshot.
    pub(crate) fn clone_image(
        &self,
        parent: &str,
        snapshot: &str,
        name: &str,
        layout: &Layout,
    ) -> Result<()> {
        let (parent, snapshot, name) = (text(parent)?, text(snapshot)?, text(name)?);
        let pool = self.handle.0;
        // SAFETY: as above.
        layout.with(self.api, (option::CLONE_FORMAT, 2), |options| unsafe {
            (self.api.rbd_clone3)(pool, parent.as_ptr(), snapshot.as_ptr(), pool, name.as_ptr(), options)
        })
    }

    pub(crate) fn create_namespace(&self, name: &str) -> Result<()> {
        let name = text(name)?;
        // SAFETY: as above.
        check(unsafe { (self.api.rbd_namespace_create)(self.handle.0, name.as_ptr()) }).map(drop)
    }

    pub(crate) fn has_namespace(&self, name: &str) -> Result<bool> {
        let name = text(name)?;
        let mut exists = false;
        // SAFETY: as above; the place for the answer is valid for the call.
        check(unsafe { (self.api.rbd_namespace_exists)(self.handle.0, name.as_ptr(), &raw mut exists) })?;
        Ok(exists)
    }

    pub(crate) fn trash_move(&self, name: &str) -> Result<()> {
        let name = text(name)?;
        // SAFETY: the handle is open, the text is valid for the call.
        check(unsafe { (self.api.rbd_trash_move)(self.handle.0, name.as_ptr(), 0) }).map(drop)
    }

    pub(crate) fn trash_restore(&self, id: &str, name: &str) -> Result<()> {
        let (id, name) = (text(id)?, text(name)?);
        // SAFETY: as above.
        check(unsafe { (self.api.rbd_trash_restore)(self.handle.0, id.as_ptr(), name.as_ptr()) }).map(drop)
    }

    pub(crate) fn trash_remove(&self, id: &str) -> Result<()> {
        let id = text(id)?;
        // SAFETY: as above.
        check(unsafe { (self.api.rbd_trash_remove)(self.handle.0, id.as_ptr(), true) }).map(drop)
    }

    pub(crate) fn trash(&self) -> Result<Vec<Trashed>> {
        let mut room = 64;
        loop {
            let mut entries: Vec<TrashInfo> = Vec::with_capacity(room);
            let mut count = room;
            // SAFETY: there is room for as many entries as is said; as many as are told are then initialised, with texts
            // that are valid until the clean-up, which comes once.
            unsafe {
                let listed = (self.api.rbd_trash_list)(self.handle.0, entries.as_mut_ptr(), &raw mut count);
                match check(listed) {
                    // The count tells how many there are.
                    Err(Errno::ERANGE) if count > room => room = count,
                    Err(error) => return Err(error),
                    Ok(_) => {
                        let count = count.min(room);
                        entries.set_len(count);
                        let owned = |text: *const c_char| match text.is_null() {
                            true => String::new(),
                            false => CStr::from_ptr(text).to_string_lossy().into_owned(),
                        };
                        let trashed = entries.iter().map(|entry| Trashed {
                            id: owned(entry.id),
                            name: owned(entry.name),
                            at: entry.deletion_time,
                        });
                        let trashed = trashed.collect();
                        (self.api.rbd_trash_list_cleanup)(entries.as_mut_ptr(), count);
                        return Ok(trashed);
                    }
                }
            }
        }
    }

    /// The time at which an object was last written to, in seconds since 1970, if it exists.
    pub(crate) fn stat_object(&self, object: &str) -> Result<Option<i64>> {
        let object = text(object)?;
        let (mut size, mut time) = (0, 0);
        // SAFETY: as above; the places for the answers are valid for the call.
        let found =
            unsafe { (self.api.rados_stat)(self.handle.0, object.as_ptr(), &raw mut size, &raw mut time) };
        found_or_none(check(found)).map(|found| found.map(|_| time))
    }

    /// The first `most` bytes of an object, if it exists.
    pub(crate) fn read_object(&self, object: &str, most: usize) -> Result<Option<Vec<u8>>> {
        let object = text(object)?;
        let mut bytes = vec![0; most];
        // SAFETY: as above; the buffer is as long as is said.
        let read = unsafe {
            (self.api.rados_read)(self.handle.0, object.as_ptr(), bytes.as_mut_ptr().cast(), most, 0)
        };
        Ok(found_or_none(check(read))?.map(|len| {
            bytes.truncate(len);
            bytes
        }))
    }

    /// Makes an object without content, or lets it have none; its attributes and its map stay.
    pub(crate) fn empty_object(&self, object: &str) -> Result<()> {
        let object = text(object)?;
        // SAFETY: as above; nothing is read from the empty text.
        check(unsafe { (self.api.rados_write_full)(self.handle.0, object.as_ptr(), c"".as_ptr(), 0) })
            .map(drop)
    }

    /// Makes an object with this content; fails with [`Errno::EEXIST`] where there is one of this name.
    pub(crate) fn create_object(&self, object: &str, content: &[u8]) -> Result<()> {
        /// `LIBRADOS_CREATE_EXCLUSIVE`.
        const EXCLUSIVE: c_int = 1;
        // SAFETY: the operation is open, the content valid for the call, and null means no category.
        self.operate(object, |operation| unsafe {
            (self.api.rados_write_op_create)(operation, EXCLUSIVE, null());
            (self.api.rados_write_op_write_full)(operation, content.as_ptr().cast(), content.len());
        })
    }

    /// Does to an object, in one step, what `prepare` adds to an operation, or nothing.
    fn operate(&self, object: &str, prepare: impl FnOnce(Handle)) -> Result<()> {
        let object = text(object)?;
        // SAFETY: the operation is made here and released here, and has copied what was added to it; the text is valid
        // for the calls, and null means no time.
        check(unsafe {
            let operation = (self.api.rados_create_write_op)();
            prepare(operation);
            let outcome =
                (self.api.rados_write_op_operate)(operation, self.handle.0, object.as_ptr(), null_mut(), 0);
            (self.api.rados_release_write_op)(operation);
            outcome
        })
        .map(drop)
    }

    pub(crate) fn remove_object(&self, object: &str) -> Result<()> {
        let object = text(object)?;
        // SAFETY: as above.
        check(unsafe { (self.api.rados_remove)(self.handle.0, object.as_ptr()) }).map(drop)
    }

    /// The value of an object's attribute, if there is one of at most 16 bytes.
    pub(crate) fn attribute(&self, object: &str, name: &str) -> Result<Option<Vec<u8>>> {
        let (object, name) = (text(object)?, text(name)?);
        let mut value = vec![0u8; 16];
        // SAFETY: as above; the buffer is as long as is said.
        let got = check(unsafe {
            let (object, name) = (object.as_ptr(), name.as_ptr());
            (self.api.rados_getxattr)(self.handle.0, object, name, value.as_mut_ptr().cast(), value.len())
        });
        match got {
            Ok(len) => {
                value.truncate(len);
                Ok(Some(value))
            }
            Err(Errno::ENODATA | Errno::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets an attribute of an object that exists; by itself librados would make one. Where its value is another than the
    /// condition says, that is [`Errno::ECANCELED`].
    pub(crate) fn set_attribute(&self, object: &str, name: &str, value: &[u8], when: When<'_>) -> Result<()> {
        /// `LIBRADOS_CMPXATTR_OP_EQ` and `..._NE`.
        const EQUAL: u8 = 1;
        const OTHER: u8 = 2;
        let name = text(name)?;
        let condition = match when {
            When::Always => None,
            When::Is(value) => Some((EQUAL, value)),
            When::IsNot(value) => Some((OTHER, value)),
        };
        // SAFETY: the operation is open; the text and the values, which are as long as is said, are valid for the call.
        self.operate(object, |operation| unsafe {
            (self.api.rados_write_op_assert_exists)(operation);
            if let Some((how, value)) = condition {
                let (name, bytes) = (name.as_ptr(), value.as_ptr().cast());
                (self.api.rados_write_op_cmpxattr)(operation, name, how, bytes, value.len());
            }
            (self.api.rados_write_op_setxattr)(operation, name.as_ptr(), value.as_ptr().cast(), value.len());
        })
    }

    pub(crate) fn remove_attribute(&self, object: &str, name: &str) -> Result<()> {
        let (object, name) = (text(object)?, text(name)?);
        // SAFETY: as above.
        check(unsafe { (self.api.rados_rmxattr)(self.handle.0, object.as_ptr(), name.as_ptr()) }).map(drop)
    }

    /// Calls a method of the OSDs' class `rbd` on an object, and gives its answer of at most `most` bytes.
    pub(crate) fn call(&self, object: &str, method: &str, input: &[u8], most: usize) -> Result<Vec<u8>> {
        let (object, method) = (text(object)?, text(method)?);
        let mut answer = vec![0u8; most];
        // SAFETY: as above; both buffers are as long as is said.
        let len = check(unsafe {
            (self.api.rados_exec)(
                self.handle.0,
                object.as_ptr(),
                c"rbd".as_ptr(),
                method.as_ptr(),
                input.as_ptr().cast(),
                input.len(),
                answer.as_mut_ptr().cast(),
                most,
            )
        })?;
        answer.truncate(len);
        Ok(answer)
    }

    /// Opens an image, at a snapshot of it or as it is now.
    pub(crate) fn open(
        self: &Arc<Self>,
        which: Which<'_>,
        snapshot: Option<&str>,
        mode: Mode,
    ) -> Result<Image> {
        let api = self.api;
        let (open, name) = match (which, mode) {
            (Which::Name(name), Mode::Read) => (api.rbd_open_read_only, name),
            (Which::Name(name), Mode::Write) => (api.rbd_open, name),
            (Which::Id(id), Mode::Read) => (api.rbd_open_by_id_read_only, id),
            (Which::Id(id), Mode::Write) => (api.rbd_open_by_id, id),
        };
        let (name, snapshot) = (text(name)?, snapshot.map(text).transpose()?);
        let snapshot = snapshot.as_ref().map_or(null(), |snapshot| snapshot.as_ptr());
        let mut handle = null_mut();
        // SAFETY: the pool is open; texts and the place for the new handle are valid for the call; null means no snapshot.
        check(unsafe { open(self.handle.0, name.as_ptr(), &raw mut handle, snapshot) })?;
        let image = ManuallyDrop::new(Image { api, handle: Pointer(handle), pool: Arc::clone(self) });
        // What librbd may still touch is rather left open for ever than closed.
        self.let_callbacks_end()?;
        Ok(ManuallyDrop::into_inner(image))
    }

    /// Waits until all callbacks of librados that have begun are over.
    ///
    /// librbd opens an image in such a callback where it reads an object map or registers a watcher. From there it lets
    /// another thread report that the image is open, and goes on to take the image's lock
    /// (`ImageState::complete_action_unlock`). An image that was closed before was used after it was freed: the process
    /// died, or all its callbacks waited for ever. librados runs the callbacks of a client one after the other, and with
    /// them that of a flush of nothing, which asks no server.
    fn let_callbacks_end(&self) -> Result<()> {
        unsafe extern "C" fn passed(_: Handle, sender: *mut c_void) {
            // SAFETY: the flush below gave this box away to exactly this one call. Nothing in here panics.
            drop(unsafe { Box::from_raw(sender.cast::<mpsc::Sender<()>>()) });
        }
        let (sender, over) = mpsc::channel::<()>();
        let sender = Box::into_raw(Box::new(sender));
        let mut completion = null_mut();
        // SAFETY: the pool is open; the box is given to the callback, which comes exactly once if the flush has begun; only
        // if it has not, it is taken back.
        unsafe {
            let begun =
                match (self.api.rados_aio_create_completion2)(sender.cast(), passed, &raw mut completion) {
                    0.. => (self.api.rados_aio_flush_async)(self.handle.0, completion),
                    failed => failed,
                };
            if begun < 0 {
                drop(Box::from_raw(sender));
            }
            // Disconnected when the callback has been there.
            let _ = over.recv();
            if !completion.is_null() {
                (self.api.rados_aio_release)(completion);
            }
            check(begun).map(drop)
        }
    }
}

fn found_or_none<T>(outcome: Result<T>) -> Result<Option<T>> {
    match outcome {
        Ok(found) => Ok(Some(found)),
        Err(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let (api, handle, cluster) = (self.api, self.handle, Arc::clone(&self._cluster));
        close_later(move || {
            // SAFETY: nobody has the handle any more: images hold their pool.
            unsafe { (api.rados_ioctx_destroy)({ handle }.0) };
            drop(cluster);
        });
    }
}

/// An open image (`rbd_image_t`).
pub(crate) struct Image {
    api: &'static Api,
    handle: Pointer,
    pool: Arc<Pool>,
}

/// What comes of an operation: how many bytes, or an error; and the buffer.
pub(crate) type Outcome<P> = (Result<usize>, P);

/// An operation in flight owns its buffer and its image: it cannot be called off, so that neither may go with a future that
/// is dropped.
struct Operation<P> {
    payload: P,
    image: Arc<Image>,
    done: oneshot::Sender<Outcome<P>>,
}

impl<P> Operation<P> {
    fn end(self, result: Result<usize>) {
        let Self { payload, image, done } = self;
        // First of all: who has got all answers may close the image.
        drop(image);
        // Nobody waits where the future was dropped.
        let _ = done.send((result, payload));
    }
}

/// Runs on a thread of librbd when an operation is over.
unsafe extern "C" fn finished<P>(completion: Handle, operation: *mut c_void) {
    // SAFETY: `submit` gave this box away to exactly this one call, which `completion` belongs to. Nothing in here panics.
    unsafe {
        let operation = Box::from_raw(operation.cast::<Operation<P>>());
        let api = operation.image.api;
        let result = (api.rbd_aio_get_return_value)(completion);
        (api.rbd_aio_release)(completion);
        operation.end(usize::try_from(result).map_err(|_| Errno(i32::try_from(-result).unwrap_or(i32::MAX))));
    }
}

impl Image {
    /// Starts to write `bytes` at `offset`. Past the image's end nothing is written, and for a write that crosses it
    /// that is no error: stay within [`size`](Self::size).
    pub(crate) fn write(self: &Arc<Self>, offset: u64, bytes: Bytes) -> oneshot::Receiver<Outcome<Bytes>> {
        let write = self.api.rbd_aio_write2;
        let (source, len) = (bytes.as_ptr(), bytes.len());
        // SAFETY: image and completion are open; `source` has `len` bytes, which stay where they are while the operation
        // owns them, and it does until it is over.
        self.submit(bytes, |image, completion| unsafe {
            write(image, offset, len, source.cast(), completion, SEQUENTIAL)
        })
    }

    /// Starts to read `len` bytes at `offset` into an empty buffer, which has room for them.
    pub(crate) fn read(
        self: &Arc<Self>,
        offset: u64,
        len: usize,
        mut buffer: Buffer,
    ) -> oneshot::Receiver<Outcome<Buffer>> {
        let read = self.api.rbd_aio_read2;
        let mut target = null_mut::<u8>();
        let room = buffer.read_with(len, |room| {
            target = room.as_mut_ptr();
            Ok(room.len())
        });
        let fits = room.ok() == Some(len);
        self.submit(buffer, |image, completion| {
            if !fits {
                return -Errno::EINVAL.0;
            }
            // SAFETY: image and completion are open; `target` has room for `len` bytes, and stays where it is while the
            // operation owns the buffer, which nobody touches until it is over.
            unsafe { read(image, offset, len, target.cast(), completion, SEQUENTIAL_ONCE) }
        })
    }

    /// Gives `payload` to an operation that `start` begins, with the image and the completion. `start` may have no
    /// reference into the payload: the operation may be over, and the payload gone, before it returns.
    fn submit<P: Send + 'static>(
        self: &Arc<Self>,
        payload: P,
        start: impl FnOnce(Handle, Handle) -> c_int,
    ) -> oneshot::Receiver<Outcome<P>> {
        let (done, outcome) = oneshot::channel();
        let operation = Box::into_raw(Box::new(Operation { payload, image: Arc::clone(self), done }));
        let mut completion = null_mut();
        // SAFETY: the box is given to the callback, which comes exactly once if the operation has begun; only if it has
        // not, it is taken back. Nothing here touches it, or refers to it, from when it may have begun.
        unsafe {
            let made =
                (self.api.rbd_aio_create_completion)(operation.cast(), finished::<P>, &raw mut completion);
            let begun = match made {
                0.. => start(self.handle.0, completion),
                failed => failed,
            };
            if let Err(error) = check(begun) {
                if made >= 0 {
                    (self.api.rbd_aio_release)(completion);
                }
                Box::from_raw(operation).end(Err(error));
            }
        }
        outcome
    }

    pub(crate) fn size(&self) -> Result<u64> {
        self.number(self.api.rbd_get_size)
    }

    /// How many bytes follow each other in one object: its length, unless the image is striped.
    pub(crate) fn stripe(&self) -> Result<u64> {
        self.number(self.api.rbd_get_stripe_unit)
    }

    /// Whether it is a clone that still has parts of its parent.
    pub(crate) fn is_clone(&self) -> Result<bool> {
        self.number(self.api.rbd_get_overlap).map(|overlap| overlap > 0)
    }

    fn number(&self, get: unsafe extern "C" fn(Handle, *mut u64) -> c_int) -> Result<u64> {
        let mut number = 0;
        // SAFETY: the image is open, the place for the answer valid for the call.
        check(unsafe { get(self.handle.0, &raw mut number) })?;
        Ok(number)
    }

    pub(crate) fn id(&self) -> Result<String> {
        // SAFETY: as above; the buffer is as long as is said.
        text_of(256, |buffer, len| unsafe { (self.api.rbd_get_id)(self.handle.0, buffer, len) })
    }

    /// When it was last written to, since 1970; a moment ago where the cluster's `rbd_mtime_update_interval` says so.
    pub(crate) fn touched(&self) -> Result<Duration> {
        let time = |get: unsafe extern "C" fn(Handle, *mut TimeSpec) -> c_int| {
            let mut time = TimeSpec::default();
            // SAFETY: as above.
            check(unsafe { get(self.handle.0, &raw mut time) })?;
            let nanoseconds = u32::try_from(time.nanoseconds).unwrap_or_default();
            Ok(Duration::new(u64::try_from(time.seconds).unwrap_or_default(), nanoseconds))
        };
        Ok(time(self.api.rbd_get_create_timestamp)?.max(time(self.api.rbd_get_modify_timestamp)?))
    }

    pub(crate) fn resize(&self, size: u64) -> Result<()> {
        // SAFETY: the image is open.
        check(unsafe { (self.api.rbd_resize)(self.handle.0, size) }).map(drop)
    }

    pub(crate) fn flush(&self) -> Result<()> {
        // SAFETY: as above.
        check(unsafe { (self.api.rbd_flush)(self.handle.0) }).map(drop)
    }

    pub(crate) fn create_snapshot(&self, name: &str) -> Result<()> {
        self.snapshot(self.api.rbd_snap_create, name)
    }

    pub(crate) fn remove_snapshot(&self, name: &str) -> Result<()> {
        self.snapshot(self.api.rbd_snap_remove, name)
    }

    /// [`Errno::EINVAL`] says that it is not protected.
    pub(crate) fn unprotect(&self, name: &str) -> Result<()> {
        self.snapshot(self.api.rbd_snap_unprotect, name)
    }

    fn snapshot(&self, call: unsafe extern "C" fn(Handle, *const c_char) -> c_int, name: &str) -> Result<()> {
        let name = text(name)?;
        // SAFETY: the image is open, the text is valid for the call.
        check(unsafe { call(self.handle.0, name.as_ptr()) }).map(drop)
    }

    pub(crate) fn has_snapshot(&self, name: &str) -> Result<bool> {
        let name = text(name)?;
        let mut exists = false;
        // SAFETY: as above; the place for the answer is valid for the call.
        check(unsafe { (self.api.rbd_snap_exists)(self.handle.0, name.as_ptr(), &raw mut exists) })?;
        Ok(exists)
    }

    /// How many snapshots it has.
    pub(crate) fn snapshots(&self) -> Result<usize> {
        let mut count: c_int = 0;
        // SAFETY: as above; with room for none, nothing is written but the room that would be needed: one more than
        // there are.
        match check(unsafe { (self.api.rbd_snap_list)(self.handle.0, null_mut(), &raw mut count) }) {
            Err(Errno::ERANGE) => Ok(usize::try_from(count - 1).unwrap_or_default()),
            other => other,
        }
    }

    /// Whether the snapshot that it is opened at, or any where it is opened at none, has clones.
    pub(crate) fn has_clones(&self) -> Result<bool> {
        self.has_any(self.api.rbd_list_children3)
    }

    /// Whether somebody has it open to write, this handle included.
    pub(crate) fn has_watchers(&self) -> Result<bool> {
        self.has_any(self.api.rbd_watchers_list)
    }

    fn has_any(&self, list: unsafe extern "C" fn(Handle, *mut c_void, *mut usize) -> c_int) -> Result<bool> {
        let mut room = 0;
        let mut nowhere = 0u64;
        // SAFETY: the image is open; with room for none, nothing is written but the room that would be needed.
        match check(unsafe { list(self.handle.0, (&raw mut nowhere).cast(), &raw mut room) }) {
            Ok(count) => Ok(count > 0 || room > 0),
            Err(Errno::ERANGE) => Ok(true),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn metadata(&self, key: &str) -> Result<Option<String>> {
        let key = text(key)?;
        let mut room = 8192;
        loop {
            let asked = room;
            // SAFETY: as above; the buffer is as long as is said.
            let value = text_of(asked, |buffer, _| unsafe {
                (self.api.rbd_metadata_get)(self.handle.0, key.as_ptr(), buffer, &raw mut room)
            });
            match value {
                // The room tells how much is needed.
                Err(Errno::ERANGE) if room > asked => {}
                other => return found_or_none(other),
            }
        }
    }

    /// The parts of `range` that hold data, in order, those of a clone's parent included; `whole` objects, which is
    /// quick where the image has an object map, or exactly.
    pub(crate) fn data(&self, range: Range<u64>, whole: bool) -> Result<Vec<Range<u64>>> {
        unsafe extern "C" fn found(offset: u64, len: usize, exists: c_int, all: *mut c_void) -> c_int {
            // SAFETY: it is the vector below, which nobody else uses during the call.
            let all = unsafe { &mut *all.cast::<Vec<Range<u64>>>() };
            let end = offset.saturating_add(len as u64);
            match all.last_mut() {
                _ if exists == 0 => {}
                Some(last) if last.end == offset => last.end = end,
                _ => all.push(offset..end),
            }
            0
        }
        let mut all: Vec<Range<u64>> = Vec::new();
        let len = range.end.min(self.size()?).saturating_sub(range.start);
        // librbd 16 ends the process where it is asked about nothing (an assertion in DiffIterate.cc).
        if len == 0 {
            return Ok(all);
        }
        // SAFETY: the image is open; the callback and its argument are used during the call only; null means that all
        // data count, not those since some snapshot.
        check(unsafe {
            (self.api.rbd_diff_iterate2)(
                self.handle.0,
                null(),
                range.start,
                len,
                1,
                whole.into(),
                found,
                (&raw mut all).cast(),
            )
        })?;
        Ok(all)
    }

    /// Closes it, and with it its watcher: for images that were opened to write. A dropped image is closed some time later.
    pub(crate) fn close(self) -> Result<()> {
        let image = ManuallyDrop::new(self);
        // SAFETY: `image` is not dropped, so that its parts are moved out once; nobody else has the handle, since
        // operations in flight hold the image.
        unsafe {
            let pool = std::ptr::read(&raw const image.pool);
            let closed = check((image.api.rbd_close)(image.handle.0));
            drop(pool);
            closed.map(drop)
        }
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let (api, handle, pool) = (self.api, self.handle, Arc::clone(&self.pool));
        close_later(move || {
            // SAFETY: nobody has the handle any more: operations in flight hold their image.
            unsafe { (api.rbd_close)({ handle }.0) };
            drop(pool);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        thread::sleep,
    };

    use super::*;

    /// A cluster is dropped by the closing of its last pool, and that by the closing of its last image.
    #[test]
    fn the_end_waits_for_what_closing_drops() {
        static LAST: AtomicBool = AtomicBool::new(false);
        let pause = || sleep(Duration::from_millis(100));
        close_later(move || {
            pause();
            close_later(move || {
                pause();
                close_later(move || {
                    pause();
                    LAST.store(true, Ordering::SeqCst);
                });
            });
        });
        assert_eq!(all_closed(Duration::from_secs(60)).left, 0);
        assert!(LAST.load(Ordering::SeqCst));
        close_later(|| sleep(Duration::from_secs(2)));
        assert_eq!(all_closed(Duration::from_millis(10)).left, 1);
    }
}
