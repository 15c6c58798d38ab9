//! One connection to a cluster, and what is done to images in several calls. Everything here blocks.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread::sleep,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::Deserialize;
use store_core::{BlobId, Capacity, Error, ErrorKind, Location, Result, Swept, driver::Cutoff};

use crate::{
    CephConfig,
    config::InUse,
    error::from_errno,
    ffi::{Cluster, Errno, Image, Layout, Mode, NoCluster, Pool, Trashed, When, Which},
    location::{Place, STAGED, Target, staged_id},
};

/// What librbd keeps names and ids of images in, and what it moves images to.
const DIRECTORY: &str = "rbd_directory";
const TRASH: &str = "rbd_trash";

/// Attributes of an image's header object: it was swept while somebody had it open; it was deleted.
const SWEPT: &str = "imagestore.swept";
const DELETED: &str = "imagestore.deleted";

/// How far the deletion of an image is. Whoever finds it unused may destroy it, and who has moved it to the trash may give
/// it its name back: which of them comes first is one step. librbd's own state of the image does not do for that: it is
/// as before where one of two destructions has failed.
const MARKED: &[u8] = b"1";
const DOOMED: &[u8] = b"2";
const RETURNED: &[u8] = b"3";

/// The key of a blob's metadata in its image's.
pub(crate) const META: &str = "imagestore";

/// Names that are listed at once.
const PAGE: u64 = 256;

/// The state of an image in the trash, `TRASH_IMAGE_STATE_*`. Only a normal one can be destroyed or restored, and what has
/// been begun only be gone on with.
#[derive(Clone, Copy)]
enum TrashState {
    Normal = 0,
    Moving = 1,
    Removing = 2,
    Restoring = 3,
}

/// Seconds after which who was at an image in the trash, and does not watch it, was killed.
const SETTLED_WITHIN: i64 = 30;

/// How long an image that is being made may be without the object of its name.
const MADE_WITHIN: Duration = Duration::from_secs(5);

/// How often, and with which pause, something is removed from a full pool: the flag lasts for seconds after there is room.
const REMOVALS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(500);

/// The images of a store.
pub(crate) struct Images {
    pub(crate) place: Place,
    pub(crate) pool: Arc<Pool>,
    pub(crate) layout: Layout,
    pub(crate) in_use: InUse,
    cluster: Arc<Cluster>,
}

impl fmt::Debug for Images {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.place.fmt(f)
    }
}

impl Images {
    pub(crate) fn connect(config: &CephConfig) -> Result<Self> {
        let cluster = shared(config)?;
        match Self::open_on(&cluster, config) {
            // The cluster has blocked its address for good, and would let in a new one.
            Err(error) if is_blocked(&error) => {
                forget(config, &cluster);
                Self::open_on(&shared(config)?, config)
            }
            opened => opened,
        }
    }

    fn open_on(cluster: &Arc<Cluster>, config: &CephConfig) -> Result<Self> {
        let namespace = config.namespace.clone().unwrap_or_default();
        let pool = open_pool(cluster, config, &namespace)?;
        let fsid = cluster.fsid().map_err(|e| from_errno("ask the cluster for its id", e))?;
        let place = Place { fsid, pool: config.pool.clone(), namespace, snapshot: config.snapshot.clone() };
        let layout = Layout {
            order: u8::try_from(config.object_size.0.trailing_zeros()).ok(),
            features: config.features.as_ref().map(|all| all.iter().map(|feature| feature.bit()).sum()),
            data_pool: config.data_pool.clone(),
        };
        let cluster = Arc::clone(cluster);
        let images = Self { place, pool: Arc::new(pool), layout, in_use: config.delete_in_use, cluster };
        images.prepare()?;
        Ok(images)
    }

    /// Finds out early whether the pool can be used. On a full one librbd cannot make its trash, and then removes nothing
    /// (it says that there is no such image): see to it that there is one.
    fn prepare(&self) -> Result<()> {
        let wrong = |e| from_errno(format!("use the pool `{}`", self.place.pool), e);
        let (directory, trash) = both(|| self.pool.stat_object(DIRECTORY), || self.pool.stat_object(TRASH));
        directory.map_err(wrong)?;
        if trash.map_err(wrong)?.is_none()
            && let Err(errno) = self.make_trash()
        {
            tracing::debug!(%errno, "the pool's trash could not be made beforehand");
        }
        Ok(())
    }

    fn make_trash(&self) -> Result<(), Errno> {
        match self.pool.stat_object(TRASH)? {
            Some(_) => Ok(()),
            None => self.pool.empty_object(TRASH),
        }
    }

    /// The internal id of the image of a name, if there is one: what librbd itself looks up first.
    pub(crate) fn id_of(&self, name: &str) -> Result<Option<String>> {
        self.look_up(name).map_err(|e| from_errno("look for the image", e))
    }

    fn look_up(&self, name: &str) -> Result<Option<String>, Errno> {
        let object = self.pool.read_object(&id_object(name), 4096)?;
        Ok(object.and_then(|bytes| Fields(&bytes).text()).filter(|id| !id.is_empty()))
    }

    /// The id of the image that the directory lists under a name.
    fn listed_id(&self, name: &str) -> Result<Option<String>, Errno> {
        self.ask_directory("dir_get_id", name)
    }

    /// The name that the directory lists an image under.
    fn listed_name(&self, id: &str) -> Result<Option<String>, Errno> {
        self.ask_directory("dir_get_name", id)
    }

    fn ask_directory(&self, method: &str, of: &str) -> Result<Option<String>, Errno> {
        let mut input = Vec::new();
        push_text(&mut input, of);
        match self.pool.call(DIRECTORY, method, &input, 4096) {
            Ok(answer) => Ok(Fields(&answer).text()),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens exactly this to read it; `None` if it is not there.
    pub(crate) fn open(&self, name: &str, snapshot: Option<&str>) -> Result<Option<Image>> {
        match self.pool.open(Which::Name(name), snapshot, Mode::Read) {
            Ok(image) => Ok(Some(image)),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(from_errno("open the image", error)),
        }
    }

    /// Opens what a location names to read it, and says at which snapshot; `None` if it is not there.
    pub(crate) fn find(&self, target: &Target) -> Result<Option<(Image, Option<String>)>> {
        let snapshot = target.snapshot.as_ref().unwrap_or(&self.place.snapshot);
        if let Some(image) = self.open(&target.image, Some(snapshot))? {
            return Ok(Some((image, Some(snapshot.clone()))));
        }
        match target.snapshot {
            Some(_) => Ok(None),
            // As `rbd import` leaves it.
            None => Ok(self.open(&target.image, None)?.map(|image| (image, None))),
        }
    }

    /// A page of the pool's images, names and ids, in the order of their names, from the one after `after` on.
    pub(crate) fn page(&self, after: &str) -> Result<Vec<(String, String)>> {
        let mut input = Vec::new();
        push_text(&mut input, after);
        input.extend(PAGE.to_le_bytes());
        // Names are shorter than the 2 KiB that an object's may have.
        match self.pool.call(DIRECTORY, "dir_list", &input, 1 << 20) {
            Ok(answer) => pairs(&answer).ok_or_else(|| {
                Error::new(ErrorKind::Internal, "the pool's directory of images cannot be understood")
            }),
            Err(Errno::ENOENT) => Ok(Vec::new()),
            Err(error) => Err(from_errno("list the images", error)),
        }
    }

    /// Removes an image that is under way, with its snapshot; it is no error if it is not there.
    ///
    /// By way of the trash, where a sweep finds by its name what a removal that was cut short has left. `rbd_remove` hides
    /// it there from every list, and with `rbd_move_to_trash_on_remove` keeps it.
    pub(crate) fn discard(&self, name: &str) -> Result<()> {
        let wrong = |e| from_errno("remove the upload", e);
        let Some(id) = self.staged(name).map_err(wrong)? else { return Ok(()) };
        let mut tried = 0;
        loop {
            tried += 1;
            if tried > 1 {
                // What is left of it takes no space, and there is room for the bookkeeping of its removal.
                self.empty(&id);
                sleep(PAUSE);
                let _ = self.make_trash();
            }
            match self.move_listed(name) {
                Ok(()) => break,
                // Published, or moved by somebody else, who goes on with it. librbd makes new objects for an image that is
                // destroyed twice at the same time.
                Err(Errno::ENOENT | Errno::ESTALE) => return Ok(()),
                Err(error) if passes(error) && tried < REMOVALS => {}
                Err(error) => return Err(wrong(error)),
            }
        }
        match self.destroy(&id)? {
            None => Ok(()),
            Some(why) => Err(why.into_error()),
        }
    }

    /// The image that is under way under this name; what has no image loses the name.
    fn staged(&self, name: &str) -> Result<Option<String>, Errno> {
        if let Some(id) = self.listed_id(name)? {
            return Ok(Some(id));
        }
        let Some(id) = self.look_up(name)? else { return Ok(None) };
        if self.pool.stat_object(&header(&id))?.is_none() {
            return self.pool.remove_object(&id_object(name)).map(|()| None);
        }
        // A sweep has taken its making for cut short. librbd moves only what the directory lists.
        let mut input = Vec::new();
        [name, &id].into_iter().for_each(|text| push_text(&mut input, text));
        match self.pool.call(DIRECTORY, "dir_add_image", &input, 64) {
            Ok(_) | Err(Errno::EEXIST) => Ok(Some(id)),
            Err(error) => Err(error),
        }
    }

    /// Frees the space of an image that is to be removed.
    fn empty(&self, id: &str) {
        if let Ok(image) = self.pool.open(Which::Id(id), None, Mode::Write) {
            if let Err(errno) = self.remove_snapshot(&image).and_then(|()| image.resize(0)) {
                tracing::debug!(%errno, "an image that is to be removed could not be emptied first");
            }
            let _ = image.close();
        }
    }

    fn remove_snapshot(&self, image: &Image) -> Result<(), Errno> {
        let snapshot = &self.place.snapshot;
        if !image.has_snapshot(snapshot)? {
            return Ok(());
        }
        let removed = match image.unprotect(snapshot) {
            // It was not protected.
            Ok(()) | Err(Errno::EINVAL) => image.remove_snapshot(snapshot),
            Err(error) => Err(error),
        };
        match removed {
            // Somebody else was faster.
            Err(Errno::ENOENT) => Ok(()),
            removed => removed,
        }
    }

    /// Takes an image away by way of the trash: its name goes in one step, and only what nobody uses is destroyed.
    ///
    /// What is judged here is an image, but what librbd moves is a name, which may be another image's by then: where the
    /// cluster was slow, the caller has given this call up, made it again, and put the blob anew.
    pub(crate) fn delete(&self, target: &Target, at: &Location) -> Result<()> {
        let name = &target.image;
        let Some(id) = self.id_of(name)? else { return Err(Error::not_found(at)) };
        let (image, _) = self.find(target)?.ok_or_else(|| Error::not_found(at))?;
        let used = self.used(&image);
        drop(image);
        let used = match used {
            Err(Errno::ENOENT) => return Err(Error::not_found(at)),
            used => used.map_err(|e| from_errno("find out who uses the image", e))?,
        };
        if let Some(why) = used.filter(|why| !self.may_trash(*why)) {
            return Err(why.into_error());
        }
        let mut moved = self.trash(name, &id);
        if moved == Err(Errno::ENOENT) && self.finish_commit_of(name, &id)? {
            moved = self.trash(name, &id);
        }
        match moved {
            Ok(()) => {}
            Err(Errno::ENOENT | Errno::ESTALE) => return Err(Error::not_found(at)),
            Err(Errno::EBUSY) => return Err(Used::Open.into_error()),
            // No room for the entry.
            Err(Errno::EDQUOT | Errno::ENOSPC) => {
                if self.id_of(name)?.as_ref() != Some(&id) {
                    return Err(Error::not_found(at));
                }
                let _ = self.pool.set_attribute(&header(&id), DELETED, MARKED, When::Always);
                return self.discard(name);
            }
            Err(error) => return Err(from_errno("move the image to the trash", error)),
        }
        match self.purge(&id, When::Is(MARKED)) {
            Ok(None) => {}
            Ok(Some(why)) if self.may_trash(why) => {}
            Ok(Some(why)) => {
                if self.restore(&id, name)? {
                    return Err(why.into_error());
                }
            }
            // Its name is gone, and so is the blob.
            Err(error) => {
                tracing::warn!(%error, "a deleted blob is still in the trash; sweep will remove it")
            }
        }
        Ok(())
    }

    fn may_trash(&self, why: Used) -> bool {
        self.in_use == InUse::Trash && why == Used::Cloned
    }

    /// Moves an image to the trash, marked as this store's to be removed. [`Errno::ENOENT`] says that it does not have
    /// the name any more.
    fn trash(&self, name: &str, id: &str) -> Result<(), Errno> {
        match self.pool.set_attribute(&header(id), DELETED, MARKED, When::IsNot(DOOMED)) {
            Err(Errno::ECANCELED) => return Err(Errno::ENOENT),
            marked => marked?,
        }
        let moved = self.move_if(name, id);
        if moved.is_err() {
            let trashed = self.pool.trash().is_ok_and(|all| all.iter().any(|entry| entry.id == id));
            if !trashed {
                let _ = self.pool.remove_attribute(&header(id), DELETED);
            } else if self.pool.stat_object(&header(id)) == Ok(None) {
                // An entry that librbd made of an image that was gone. Else it is somebody's who came first, and so is the mark.
                let _ = self.pool.trash_remove(id);
            }
        }
        moved
    }

    /// Moves what has the name to the trash if it is this image.
    fn move_if(&self, name: &str, id: &str) -> Result<(), Errno> {
        if self.look_up(name)?.as_deref() != Some(id) {
            return Err(Errno::ENOENT);
        }
        // By the clock that librbd takes for its entries, this machine's.
        let begun = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let moved = self.move_listed(name);
        match self.give_back(name, id, begun) {
            Ok(false) => moved,
            Ok(true) => Err(Errno::ENOENT),
            Err(errno) => {
                tracing::warn!(%errno, name, "it could not be seen whether another blob has got this name meanwhile");
                moved
            }
        }
    }

    /// Moves to the trash what the directory lists under a name.
    fn move_listed(&self, name: &str) -> Result<(), Errno> {
        match self.pool.trash_move(name) {
            // What it cannot make on a full pool librbd then misses.
            Err(Errno::ENOENT) if self.pool.stat_object(TRASH)?.is_none() => Err(Errno::EDQUOT),
            moved => moved,
        }
    }

    /// Gives an image its name back that got the name on the way of a move of `id`, and says whether there was one.
    ///
    /// librbd asks the directory for the id of a name, opens that image, closes it, and last removes the object of the name,
    /// whosever it is by then.
    fn give_back(&self, name: &str, id: &str, begun: u64) -> Result<bool, Errno> {
        let trash = self.pool.trash()?;
        for other in trash.iter().filter(|entry| entry.name == name && entry.id != id) {
            // Nobody has marked it, and it was moved just now.
            if u64::try_from(other.at).is_ok_and(|at| at >= begun)
                && self.pool.attribute(&header(&other.id), DELETED)?.is_none()
            {
                return self.pool.trash_restore(&other.id, name).map(|()| true);
            }
        }
        if self.look_up(name)?.is_some() {
            return Ok(false);
        }
        // What is in the trash as well is on its way there.
        let Some(other) =
            self.listed_id(name)?.filter(|other| other != id && trash.iter().all(|entry| entry.id != *other))
        else {
            return Ok(false);
        };
        let mut content = Vec::new();
        push_text(&mut content, &other);
        match self.pool.create_object(&id_object(name), &content) {
            Ok(()) | Err(Errno::EEXIST) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Gives an image in the trash its name back, unless somebody has begun to destroy it: then it says `false`.
    fn restore(&self, id: &str, name: &str) -> Result<bool> {
        let wrong = |e| from_errno("take the image back from the trash", e);
        match self.pool.set_attribute(&header(id), DELETED, RETURNED, When::IsNot(DOOMED)) {
            Ok(()) => {}
            Err(Errno::ECANCELED | Errno::ENOENT) => return Ok(false),
            Err(error) => return Err(wrong(error)),
        }
        match self.pool.trash_restore(id, name) {
            Ok(()) => {}
            Err(Errno::EBUSY | Errno::ENOENT | Errno::ESTALE) => return Ok(false),
            Err(error) => return Err(wrong(error)),
        }
        let _ = self.pool.remove_attribute(&header(id), DELETED);
        Ok(true)
    }

    /// Destroys an image in the trash, whose mark is as `when` says, unless something uses it; then it says what.
    fn purge(&self, id: &str, when: When<'_>) -> Result<Option<Used>> {
        let wrong = |e| from_errno("mark the image in the trash", e);
        match self.pool.open(Which::Id(id), None, Mode::Read).and_then(|image| self.used(&image)) {
            Ok(None) => {}
            Ok(used) => return Ok(used),
            // Somebody else has got that far.
            Err(Errno::ENOENT) => {}
            Err(error) => return Err(from_errno("find out who uses the image in the trash", error)),
        }
        let mark = |mark, when| self.pool.set_attribute(&header(id), DELETED, mark, when);
        match mark(DOOMED, when) {
            Ok(()) | Err(Errno::ENOENT) => {}
            // It has its name back. Or somebody else is about to destroy it, or was.
            Err(Errno::ECANCELED) => {
                let doomed =
                    self.pool.attribute(&header(id), DELETED).map_err(wrong)?.as_deref() == Some(DOOMED);
                let touched = self.pool.stat_object(&header(id)).map_err(wrong)?;
                if !doomed || !touched.is_some_and(settled) {
                    return Ok(None);
                }
                mark(DOOMED, When::Is(DOOMED)).map_err(wrong)?;
            }
            Err(error) => return Err(wrong(error)),
        }
        let used = self.destroy(id)?;
        if used.is_some() {
            mark(MARKED, When::Is(DOOMED)).map_err(wrong)?;
        }
        Ok(used)
    }

    /// Destroys an image in the trash. If it got a clone just now it stays whole.
    fn destroy(&self, id: &str) -> Result<Option<Used>> {
        let wrong = |e| from_errno("remove the image from the trash", e);
        // Its owner cannot take it back from now on, with Ceph's own tools either.
        match self.set_trash_state(id, TrashState::Removing, TrashState::Normal) {
            Ok(()) => {}
            Err(Errno::ENOENT | Errno::ESTALE) => return Ok(None),
            Err(error) => return Err(wrong(error)),
        }
        // Its commit was faster than who took it for abandoned: it is a blob, and only its entry goes.
        if self.listed_name(id).map_err(wrong)?.is_some() {
            let _ = self.pool.remove_attribute(&header(id), DELETED);
            let mut input = Vec::new();
            push_text(&mut input, id);
            return self.pool.call(TRASH, "trash_remove", &input, 64).map(|_| None).map_err(wrong);
        }
        match self.pool.open(Which::Id(id), None, Mode::Write) {
            Ok(image) => {
                let removed = self.remove_snapshot(&image);
                let _ = image.close();
                match removed {
                    Ok(()) => {}
                    Err(Errno::EBUSY) => {
                        let _ = self.set_trash_state(id, TrashState::Normal, TrashState::Removing);
                        return Ok(Some(Used::Cloned));
                    }
                    Err(error) => return Err(from_errno("remove the image's snapshot", error)),
                }
            }
            // Somebody else has got that far.
            Err(Errno::ENOENT) => {}
            Err(error) => return Err(from_errno("open the image in the trash", error)),
        }
        let mut tried = 0;
        loop {
            tried += 1;
            if tried > 1 {
                self.empty(id);
                sleep(PAUSE);
            }
            let error = match self.pool.trash_remove(id) {
                Ok(()) => return Ok(None),
                // What Ceph says about a full pool is not believed but looked into.
                Err(Errno::ENOENT) if self.pool.stat_object(&header(id)).map_err(wrong)?.is_none() => {
                    return Ok(None);
                }
                Err(error) => error,
            };
            if !passes(error) || tried == REMOVALS {
                return Err(wrong(error));
            }
        }
    }

    /// Changes what librbd is doing with an image in the trash; [`Errno::ESTALE`] says that it is something else.
    fn set_trash_state(&self, id: &str, to: TrashState, from: TrashState) -> Result<(), Errno> {
        let mut input = Vec::new();
        push_text(&mut input, id);
        input.extend([to as u8, from as u8]);
        self.pool.call(TRASH, "trash_state_set", &input, 64).map(drop)
    }

    /// What keeps an image from being destroyed.
    fn used(&self, image: &Image) -> Result<Option<Used>, Errno> {
        let own = usize::from(image.has_snapshot(&self.place.snapshot)?);
        if image.has_clones()? {
            return Ok(Some(Used::Cloned));
        }
        if image.snapshots()? > own {
            return Ok(Some(Used::Snapshots));
        }
        Ok(image.has_watchers()?.then_some(Used::Open))
    }

    /// The store's blobs in the trash.
    pub(crate) fn trashed(&self) -> Result<Vec<Trashed>> {
        let mut all = self.pool.trash().map_err(|e| from_errno("list the trash", e))?;
        let mut outcome = Ok(());
        all.retain(|entry| match self.pool.attribute(&header(&entry.id), DELETED) {
            Ok(mark) => mark.is_some(),
            Err(error) => {
                outcome = Err(from_errno("look at an image in the trash", error));
                false
            }
        });
        outcome.map(|()| all)
    }

    /// Removes what uploads left that nobody has written to for `age`, and from the trash what nobody uses any more.
    ///
    /// What cannot be removed is not in the way of the rest. The first of the errors is told at the end.
    pub(crate) fn sweep(&self, age: Duration) -> Result<Swept> {
        let old = Cutoff::new(age);
        let mut swept = Swept::default();
        let mut failed = None;
        // Names are in order: those of uploads are neighbours.
        let mut after = STAGED.to_owned();
        'pages: loop {
            let page = self.page(&after)?;
            let Some((last, _)) = page.last() else { break };
            after.clone_from(last);
            for (name, id) in page {
                if !name.starts_with(STAGED) {
                    break 'pages;
                }
                match self.sweep_upload(&name, &id, old) {
                    Ok(Some(bytes)) => {
                        swept.uploads += 1;
                        swept.bytes += bytes;
                    }
                    Ok(None) => {}
                    Err(error) => go_on(error, &name, &mut failed)?,
                }
            }
        }
        for entry in self.pool.trash().map_err(|e| from_errno("list the trash", e))? {
            if old.takes(entry.at)
                && let Err(error) = self.sweep_trashed(&entry)
            {
                go_on(error, &entry.name, &mut failed)?;
            }
        }
        match failed {
            None => Ok(swept),
            Some(error) => Err(error),
        }
    }

    /// Removes from the trash what is the store's and what nobody uses; and whatever has no image any more.
    fn sweep_trashed(&self, entry: &Trashed) -> Result<()> {
        let Trashed { id, name, at } = entry;
        let wrong = |e| from_errno("look at an image in the trash", e);
        let deleted = self.pool.attribute(&header(id), DELETED).map_err(wrong)?.is_some();
        let wanted = || self.pool.stat_object(&header(id)).map(|header| header.is_some());
        if !deleted && !name.starts_with(STAGED) && wanted().map_err(wrong)? {
            return Ok(());
        }
        // Who is moving it there, or gives it its name back, does not want help; who was killed does.
        let is = |state| self.set_trash_state(id, state, state).is_ok();
        let late = settled(*at);
        if is(TrashState::Moving) {
            if !late {
                return Ok(());
            }
            self.finish_move(id, name).map_err(wrong)?;
        } else if late && is(TrashState::Restoring) {
            return self.restore(id, name).map(drop);
        }
        let used = match deleted {
            true => self.purge(id, When::Is(MARKED))?,
            false if late => self.purge(id, When::IsNot(DOOMED))?,
            false => None,
        };
        if let Some(why) = used {
            tracing::debug!(image = name, ?why, "an image in the trash is still in use");
        }
        Ok(())
    }

    /// Takes the other steps of a move to the trash. By the image's id: the name may be another's now.
    fn finish_move(&self, id: &str, name: &str) -> Result<(), Errno> {
        if self.look_up(name)?.as_deref() == Some(id) {
            self.pool.remove_object(&id_object(name))?;
        }
        let mut input = Vec::new();
        [name, id].into_iter().for_each(|text| push_text(&mut input, text));
        match self.pool.call(DIRECTORY, "dir_remove_image", &input, 64) {
            Ok(_) | Err(Errno::ENOENT | Errno::ESTALE) => {}
            Err(error) => return Err(error),
        }
        self.set_trash_state(id, TrashState::Normal, TrashState::Moving)
    }

    /// Removes an upload if it is old, and says how many bytes it held.
    fn sweep_upload(&self, name: &str, id: &str, old: Cutoff) -> Result<Option<u64>> {
        let wrong = |e| from_errno("look at an upload", e);
        let image = match self.pool.open(Which::Name(name), None, Mode::Read) {
            Ok(image) => image,
            Err(Errno::ENOENT) => return self.sweep_remains(name, id, old),
            Err(error) => return Err(wrong(error)),
        };
        if !old.takes(i64::try_from(image.touched().map_err(wrong)?.as_secs()).unwrap_or(i64::MAX)) {
            return Ok(None);
        }
        let snapped = image.has_snapshot(&self.place.snapshot).map_err(wrong)?;
        if snapped && self.finish_commit(name, id)? {
            return Ok(None);
        }
        let bytes = held(&image).map_err(wrong)?;
        let watched = image.has_watchers().map_err(wrong)?;
        drop(image);
        if !watched {
            // Its process is gone, or was faster: it closes the image after it has published it.
            return match self.finish_commit(name, id)? {
                true => Ok(None),
                false => self.discard(name).map(|()| Some(bytes)),
            };
        }
        // Its process lives, or died less than half a minute ago. It cannot be removed yet, but not be finished either.
        let known = self.pool.attribute(&header(id), SWEPT).map_err(wrong)?.is_some();
        if !known {
            match self.pool.set_attribute(&header(id), SWEPT, b"1", When::Always) {
                Ok(()) => {}
                // It was given up meanwhile.
                Err(Errno::ENOENT) => return Ok(None),
                Err(error) => return Err(from_errno("mark an upload", error)),
            }
        }
        Ok((!known).then_some(bytes))
    }

    /// Removes a name that no whole image belongs to: its process was killed while it made or removed the image.
    fn sweep_remains(&self, name: &str, id: &str, old: Cutoff) -> Result<Option<u64>> {
        let look = || self.pool.stat_object(&id_object(name)).map_err(|e| from_errno("look at an upload", e));
        let mut time = look()?;
        // Renamed meanwhile, or half way of it, or half way of its removal; or its process is just making it. Nothing
        // has its time then.
        if time.is_none() && !old.takes(i64::MAX) {
            sleep(MADE_WITHIN);
            time = look()?;
        }
        if time.is_some_and(|time| !old.takes(time)) || self.finish_commit(name, id)? {
            return Ok(None);
        }
        self.discard(name).map(|()| Some(0))
    }

    /// Whether an image under way is a blob already: the first step of its rename is done.
    pub(crate) fn is_published(&self, blob: &BlobId, id: &str) -> Result<bool> {
        Ok(self.id_of(blob.as_str())?.as_deref() == Some(id))
    }

    /// The same as [`finish_commit`](Self::finish_commit) by what the blob is called.
    fn finish_commit_of(&self, blob: &str, id: &str) -> Result<bool> {
        let name = self.listed_name(id).map_err(|e| from_errno("look for the image's name", e))?;
        match name.filter(|name| staged_id(name).is_some_and(|staged| staged.as_str() == blob)) {
            Some(name) => self.finish_commit(&name, id),
            None => Ok(false),
        }
    }

    /// A rename is three steps: the new name is taken, the directory is changed, the old name is given up. After the first
    /// the blob is there. If its process was killed then, this takes the other steps, and says so.
    fn finish_commit(&self, name: &str, id: &str) -> Result<bool> {
        let Some(blob) = staged_id(name) else { return Ok(false) };
        if !self.is_published(&blob, id)? {
            return Ok(false);
        }
        match self.change_name(name, blob.as_str(), id) {
            // Somebody else has taken them.
            Ok(()) | Err(Errno::ENOENT | Errno::EEXIST) => {}
            Err(error) => return Err(from_errno("finish a commit that was cut short", error)),
        }
        match self.pool.remove_object(&id_object(name)) {
            Ok(()) | Err(Errno::ENOENT) => Ok(true),
            Err(error) => Err(from_errno("finish a commit that was cut short", error)),
        }
    }

    /// Changes an image's name in the pool's directory.
    fn change_name(&self, from: &str, to: &str, image: &str) -> Result<(), Errno> {
        let mut input = Vec::new();
        [from, to, image].into_iter().for_each(|text| push_text(&mut input, text));
        self.pool.call(DIRECTORY, "dir_rename_image", &input, 64).map(drop)
    }

    /// Whether a sweep has marked this image.
    pub(crate) fn is_swept(&self, id: &str) -> Result<bool> {
        let mark = self.pool.attribute(&header(id), SWEPT);
        mark.map(|mark| mark.is_some()).map_err(|e| from_errno("see whether the upload was swept", e))
    }

    /// Renames an image under way to its id: the commit. `Ok(false)` says that the id is taken.
    ///
    /// In the three steps that librbd takes. Its own rename opens the image once more for them and tells others, with
    /// thirty messages; and of rivals that come at the same time it tells each that it has won, because it takes the
    /// rival's image for the result of its own first attempt.
    ///
    /// The old name is left to [`give_up`](Self::give_up).
    pub(crate) fn publish(&self, name: &str, image: &str, id: &BlobId) -> Result<bool> {
        let wrong = |e| from_errno("give the image its name", e);
        let mut content = Vec::new();
        push_text(&mut content, image);
        match self.pool.create_object(&id_object(id.as_str()), &content) {
            Ok(()) => {}
            // Its own, where an answer was lost on the way and librados asked again.
            Err(Errno::EEXIST) if self.id_of(id.as_str())?.as_deref() == Some(image) => {}
            Err(Errno::EEXIST) => return Ok(false),
            Err(error) => return Err(wrong(error)),
        }
        let renamed = self.change_name(name, id.as_str(), image);
        // Its watcher was lost, and a sweep has taken it away. Or a sweep has finished this for it.
        if renamed == Err(Errno::ENOENT)
            && self.listed_name(image).map_err(wrong)?.as_deref() != Some(id.as_str())
        {
            self.pool.remove_object(&id_object(id.as_str())).map_err(wrong)?;
            return Err(Error::swept());
        }
        // The blob is there; what is left to do, a sweep does as well.
        if let Err(errno) = renamed {
            tracing::debug!(%errno, "a blob has its old name, too, until the next sweep");
        }
        Ok(true)
    }

    /// The last step of a rename: after it nothing has the old name.
    pub(crate) fn give_up(&self, name: &str) {
        if let Err(errno) = self.pool.remove_object(&id_object(name)) {
            tracing::debug!(%errno, "a blob's old name was not given up");
        }
    }

    /// Whether an image of the format before this one has the name.
    pub(crate) fn is_of_old_format(&self, name: &str) -> Result<bool, Errno> {
        self.pool.stat_object(&format!("{name}.rbd")).map(|found| found.is_some())
    }

    /// Protects the store's snapshot of an image that nobody else has open. librbd would read the image's header again
    /// first, with six messages, and tell others.
    pub(crate) fn protect(&self, image: &str) -> Result<()> {
        /// `RBD_PROTECTION_STATUS_PROTECTED`.
        const PROTECTED: u8 = 2;
        let Some(snapshot) = self.snapshot(image, &self.place.snapshot)? else { return Err(Error::swept()) };
        let mut input = snapshot.to_le_bytes().to_vec();
        input.push(PROTECTED);
        let outcome = self.pool.call(&header(image), "set_protection_status", &input, 64);
        outcome.map(drop).map_err(finish_error)
    }

    /// Keeps a text with an image. As librbd does it, without messages to others: nobody else has the image open.
    pub(crate) fn set_metadata(&self, image: &str, key: &str, value: &str) -> Result<(), Errno> {
        let mut input = 1u32.to_le_bytes().to_vec();
        push_text(&mut input, key);
        push_text(&mut input, value);
        self.pool.call(&header(image), "metadata_set", &input, 64).map(drop)
    }

    /// The id of the image that has this name now, and the text that is kept with it.
    pub(crate) fn metadata(&self, name: &str, key: &str) -> Result<Option<(String, Option<String>)>> {
        let Some(id) = self.id_of(name)? else { return Ok(None) };
        let mut input = Vec::new();
        push_text(&mut input, key);
        match self.pool.call(&header(&id), "metadata_get", &input, 1 << 20) {
            Ok(answer) => Ok(Some((id, Fields(&answer).text()))),
            Err(Errno::ENOENT) => Ok(Some((id, None))),
            Err(error) => Err(from_errno("read the image's metadata", error)),
        }
    }

    /// The number of an image's snapshot, if it has one of this name. Asks for nothing else, as opening it there does.
    pub(crate) fn snapshot(&self, image: &str, name: &str) -> Result<Option<u64>> {
        let wrong = |e| from_errno("look at the image's snapshots", e);
        let strange = || Error::new(ErrorKind::Internal, "the image's snapshots cannot be understood");
        let header = header(image);
        let all = match self.pool.call(&header, "get_snapcontext", &[], 1 << 20) {
            Ok(answer) => snapshots(&answer).ok_or_else(strange)?,
            Err(Errno::ENOENT) => return Ok(None),
            Err(error) => return Err(wrong(error)),
        };
        for number in all {
            match self.pool.call(&header, "get_snapshot_name", &number.to_le_bytes(), 8192) {
                Ok(answer) if Fields(&answer).text().ok_or_else(strange)? == name => return Ok(Some(number)),
                // Or it is just gone.
                Ok(_) | Err(Errno::ENOENT) => {}
                Err(error) => return Err(wrong(error)),
            }
        }
        Ok(None)
    }

    /// The length that an image has at a snapshot, if it is there.
    pub(crate) fn size_at(&self, image: &str, snapshot: u64) -> Result<Option<u64>> {
        let answer = match self.pool.call(&header(image), "get_size", &snapshot.to_le_bytes(), 64) {
            Ok(answer) => answer,
            Err(Errno::ENOENT) => return Ok(None),
            Err(error) => return Err(from_errno("ask for the image's length", error)),
        };
        // After the order of its objects, a byte.
        let size = answer.get(1..).and_then(|rest| Fields(rest).long());
        size.map(Some)
            .ok_or_else(|| Error::new(ErrorKind::Internal, "the image's length cannot be understood"))
    }

    pub(crate) fn capacity(&self) -> Result<Capacity> {
        self.space()?.ok_or_else(|| {
            Error::new(ErrorKind::Unavailable, "the cluster does not say how much space is left")
                .with_hint("its manager counts that: see `ceph mgr stat`")
        })
    }

    /// The same, if the cluster has counted it.
    pub(crate) fn space(&self) -> Result<Option<Capacity>> {
        let answer = self.cluster.mon_command(r#"{"prefix":"df","detail":"detail","format":"json"}"#);
        let answer = answer.map_err(|e| from_errno("ask for the space left", e))?;
        let data_pool = self.layout.data_pool.as_ref().unwrap_or(&self.place.pool);
        Ok(capacity(&answer, &self.place.pool, data_pool))
    }
}

/// Makes two calls at the same time, which wait for the cluster: one after the other where no thread is to be had.
pub(crate) fn both<A, B: Send>(here: impl FnOnce() -> A, there: impl FnOnce() -> B + Send) -> (A, B) {
    let there = Mutex::new(Some(there));
    let run = || {
        let call = there.lock().unwrap_or_else(PoisonError::into_inner).take();
        call.map(|call| call())
    };
    let (a, b) = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("rbd-both".to_owned()).spawn_scoped(scope, run);
        let a = here();
        let b = match thread.map(|thread| thread.join()) {
            Ok(Ok(b)) => b,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(_) => run(),
        };
        (a, b)
    });
    (a, b.expect("it is taken once: by the thread, or where there is none"))
}

/// The error of an upload's last steps: without its image, it was swept.
pub(crate) fn finish_error(errno: Errno) -> Error {
    match errno {
        Errno::ENOENT => Error::swept(),
        other => from_errno("finish the image", other),
    }
}

/// What keeps an image from being destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Used {
    Cloned,
    Snapshots,
    Open,
}

impl Used {
    fn into_error(self) -> Error {
        let (message, hint) = match self {
            Self::Cloned => (
                "the image has clones",
                "delete or flatten them (`rbd children` lists them), or set `delete_in_use` = \"trash\"",
            ),
            Self::Snapshots => {
                ("the image has snapshots of others", "remove them (`rbd snap ls` lists them)")
            }
            Self::Open => (
                "another client has the image open",
                "end it (`rbd status` shows it); half a minute after a client died it is forgotten",
            ),
        };
        Error::new(ErrorKind::InUse, message).with_hint(hint)
    }
}

/// Whether what was done at this time, in seconds since 1970, is over or was cut short.
fn settled(time: i64) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(now).is_ok_and(|now| now.saturating_sub(time) > SETTLED_WITHIN)
}

/// After a sweep's error about one image: keeps the first of them for later. A cluster that does not answer ends the sweep.
fn go_on(error: Error, name: &str, failed: &mut Option<Error>) -> Result<()> {
    if error.is_retryable() {
        return Err(error);
    }
    tracing::debug!(image = name, %error, "an image could not be swept");
    // Else another sweep is at it or was faster, or its process has come back.
    if ![ErrorKind::InUse, ErrorKind::NotFound].contains(&error.kind()) {
        failed.get_or_insert(error);
    }
    Ok(())
}

/// Whether a removal that failed so may work when the pool is not full any more.
fn passes(error: Errno) -> bool {
    [Errno::ENOENT, Errno::ENOSPC, Errno::EDQUOT].contains(&error)
}

/// The object that says which image has a name.
fn id_object(name: &str) -> String {
    format!("rbd_id.{name}")
}

fn header(id: &str) -> String {
    format!("rbd_header.{id}")
}

/// How many bytes are in an image's objects.
fn held(image: &Image) -> Result<u64, Errno> {
    let data = image.data(0..image.size()?, true)?;
    Ok(data.into_iter().map(|range| range.end - range.start).sum())
}

/// A text as Ceph encodes it: its length in 32 bits, little-endian, and its bytes.
fn push_text(output: &mut Vec<u8>, text: &str) {
    output.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
    output.extend(text.as_bytes());
}

/// What is left to decode.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn number(&mut self) -> Option<u32> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*number))
    }

    fn long(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*number))
    }

    fn text(&mut self) -> Option<String> {
        let len = usize::try_from(self.number()?).ok()?;
        let (text, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        // Names that are no UTF-8 are none of ours; they keep their place.
        Some(String::from_utf8_lossy(text).into_owned())
    }
}

/// A map of texts.
fn pairs(bytes: &[u8]) -> Option<Vec<(String, String)>> {
    let mut fields = Fields(bytes);
    let count = fields.number()?;
    (0..count).map(|_| Some((fields.text()?, fields.text()?))).collect()
}

/// The snapshots of a snapshot context, which are behind a sequence number.
fn snapshots(bytes: &[u8]) -> Option<Vec<u64>> {
    let mut fields = Fields(bytes);
    fields.long()?;
    let count = fields.number()?;
    (0..count).map(|_| fields.long()).collect()
}

/// The space for data in one pool of images that another lists, from what `ceph df detail` says.
fn capacity(json: &[u8], pool: &str, data_pool: &str) -> Option<Capacity> {
    #[derive(Deserialize)]
    struct Df {
        pools: Vec<PoolDf>,
    }
    #[derive(Deserialize)]
    struct PoolDf {
        name: String,
        stats: Stats,
    }
    #[derive(Deserialize)]
    struct Stats {
        #[serde(default)]
        stored: u64,
        #[serde(default)]
        max_avail: u64,
        /// 0 says that there is none.
        #[serde(default)]
        quota_bytes: u64,
    }
    impl Stats {
        fn free(&self) -> u64 {
            match self.quota_bytes {
                0 => self.max_avail,
                quota => self.max_avail.min(quota.saturating_sub(self.stored)),
            }
        }
    }
    let df: Df = serde_json::from_slice(json).ok()?;
    // As it is until the manager has reported for the first time.
    if df.pools.iter().all(|pool| pool.stats.max_avail == 0 && pool.stats.stored == 0) {
        return None;
    }
    let stats = |name| df.pools.iter().find(|pool| pool.name == name).map(|pool| &pool.stats);
    let (listing, data) = (stats(pool)?, stats(data_pool)?);
    // What lists them takes next to nothing, but must not be full.
    let free = if listing.free() == 0 { 0 } else { data.free() };
    Some(Capacity { total: data.stored.saturating_add(free), free })
}

fn open_pool(cluster: &Arc<Cluster>, config: &CephConfig, namespace: &str) -> Result<Pool> {
    let open = |namespace: &str| match cluster.pool(&config.pool, namespace) {
        Err(Errno::ENOENT) => Err(Error::new(
            ErrorKind::Invalid,
            format!("there is no pool `{}`", config.pool),
        )
        .with_hint(
            "check `pool`; `ceph osd pool create` and `rbd pool init` make one, with an administrator's key",
        )),
        opened => opened.map_err(|e| from_errno(format!("open the pool `{}`", config.pool), e)),
    };
    if namespace.is_empty() {
        return open("");
    }
    let pool = open("")?;
    let wrong = |e| from_errno(format!("look for the namespace `{namespace}`"), e);
    if !pool.has_namespace(namespace).map_err(wrong)? {
        if !config.create_namespace {
            let message = format!("the pool `{}` has no namespace `{namespace}`", config.pool);
            return Err(Error::new(ErrorKind::Invalid, message)
                .with_hint("check `namespace`, or set `create_namespace = true` to have it made"));
        }
        match pool.create_namespace(namespace) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(from_errno(format!("create the namespace `{namespace}`"), error)),
        }
    }
    open(namespace)
}

/// What connections are told apart by.
#[derive(Clone, PartialEq, Eq)]
struct Account {
    user: String,
    conf: Option<PathBuf>,
    settings: Vec<(&'static str, String)>,
}

type Slot = Arc<Mutex<Option<Arc<Cluster>>>>;

/// The connections of this process.
static SLOTS: Mutex<Vec<(Account, Slot)>> = Mutex::new(Vec::new());

/// Ends the connections that nobody uses any more, when the process ends: what their threads use is about to be destroyed.
pub(crate) fn shut_down() {
    let slots = std::mem::take(&mut *SLOTS.lock().unwrap_or_else(PoisonError::into_inner));
    for (_, slot) in slots {
        // One that is just being made is left alone.
        let Ok(cluster) = slot.try_lock().map(|mut slot| slot.take()) else { continue };
        if let Some(cluster) = cluster.and_then(Arc::into_inner) {
            cluster.shut_down();
        }
    }
}

/// The connection for a configuration, since each costs a dozen threads and a handshake. It is kept for as long as the
/// process lives, or until the cluster blocks it.
fn shared(config: &CephConfig) -> Result<Arc<Cluster>> {
    let account = Account::of(config);
    let slot = slot(&account);
    // One that takes its time holds up only those who want the same.
    let mut cluster = slot.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(living) = &*cluster {
        return Ok(Arc::clone(living));
    }
    let new = Arc::new(account.connect()?);
    *cluster = Some(Arc::clone(&new));
    Ok(new)
}

fn slot(account: &Account) -> Slot {
    let mut slots = SLOTS.lock().unwrap_or_else(PoisonError::into_inner);
    match slots.iter().find(|(known, _)| known == account) {
        Some((_, slot)) => Arc::clone(slot),
        None => {
            let slot = Slot::default();
            slots.push((account.clone(), Arc::clone(&slot)));
            slot
        }
    }
}

/// Has the next one who wants this connection make a new one.
fn forget(config: &CephConfig, blocked: &Arc<Cluster>) {
    let slot = slot(&Account::of(config));
    let mut cluster = slot.lock().unwrap_or_else(PoisonError::into_inner);
    cluster.take_if(|known| Arc::ptr_eq(known, blocked));
}

fn is_blocked(error: &Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref());
    cause == Some(&Errno::ESHUTDOWN)
}

impl Account {
    fn of(config: &CephConfig) -> Self {
        let conf = config.conf.clone();
        let conf =
            conf.or_else(|| config.mon_host.is_none().then(|| Path::new("/etc/ceph/ceph.conf").into()));
        let operation = config.operation_timeout.0.as_secs().to_string();
        let mut settings = vec![
            ("client_mount_timeout", config.connect_timeout.0.as_secs().to_string()),
            ("rados_mon_op_timeout", operation.clone()),
            ("rados_osd_op_timeout", operation),
            // Whole requests are written once: a cache would only copy them.
            ("rbd_cache", "false".to_owned()),
            // Who takes the snapshot is the only one to have the image open: there is nobody to ask for a pause.
            ("rbd_default_snapshot_quiesce_mode", "skip".to_owned()),
            // A sweep knows a live upload by when it was written to. The default, a minute, is too coarse.
            ("rbd_mtime_update_interval", "5".to_owned()),
            // Whose process this is decides what it says.
            ("log_to_stderr", "false".to_owned()),
            ("err_to_stderr", "false".to_owned()),
            // Transfers bound their memory themselves. At these limits a call would block an async thread.
            ("objecter_inflight_op_bytes", (1u64 << 40).to_string()),
            ("objecter_inflight_ops", (1 << 20).to_string()),
        ];
        let optional = [
            ("mon_host", config.mon_host.clone()),
            ("keyring", config.keyring.as_ref().map(|path| path.to_string_lossy().into_owned())),
            ("key", config.key.as_ref().map(|key| key.expose().to_owned())),
        ];
        settings.extend(optional.into_iter().filter_map(|(key, value)| Some((key, value?))));
        Self { user: config.user.clone(), conf, settings }
    }

    fn connect(&self) -> Result<Cluster> {
        let cluster = Cluster::new(&self.user).map_err(|why| match why {
            NoCluster::Library(error) => {
                Error::new(ErrorKind::Unsupported, "librbd, Ceph's library, cannot be loaded")
                    .with_hint("install the package librbd1 (librbd.so.1 and librados.so.2)")
                    .with_source(error)
            }
            NoCluster::Errno(error) => from_errno("make a client of Ceph", error),
        })?;
        if let Some(conf) = &self.conf {
            cluster.read_conf(conf).map_err(|errno| {
                let message = format!("cannot read the cluster's configuration {}: {errno}", conf.display());
                Error::new(ErrorKind::Invalid, message)
                    .with_hint("set `conf`, or `mon_host`")
                    .with_source(errno)
            })?;
        }
        for (key, value) in &self.settings {
            // The value may be a secret.
            cluster.set(key, value).map_err(|e| from_errno(format!("set Ceph's option {key}"), e))?;
        }
        cluster.connect().map_err(|errno| self.refused(&cluster, errno))?;
        Ok(cluster)
    }

    fn refused(&self, cluster: &Cluster, errno: Errno) -> Error {
        let user = &self.user;
        let monitors = cluster.setting("mon_host").unwrap_or_default();
        let (kind, message, hint) = match errno {
            Errno::ENOENT | Errno::EDOM if monitors.is_empty() => (
                ErrorKind::Invalid,
                "no monitor of the cluster is known".to_owned(),
                "set `mon_host`, or name a configuration file with it in `conf`",
            ),
            Errno::ENOENT | Errno::EDOM => (
                ErrorKind::Denied,
                format!("there is no key for the user `{user}`"),
                "set `keyring` or `key`, and check that this process may read the file",
            ),
            Errno::EINVAL if !is_key(&cluster.setting("key").unwrap_or_default()) => (
                ErrorKind::Invalid,
                "the key is none of Ceph's".to_owned(),
                "set `key` to what `ceph auth get-key` prints",
            ),
            Errno::EINVAL => (
                ErrorKind::Invalid,
                format!("`mon_host` {monitors:?} is no list of addresses, or of names that can be resolved"),
                "write it as 10.0.0.1,10.0.0.2, or name a configuration file with it in `conf`",
            ),
            Errno::EIO => (
                ErrorKind::Invalid,
                format!("the keyring of the user `{user}` cannot be understood"),
                "compare it with what `ceph auth get` prints",
            ),
            Errno::EACCES | Errno::EPERM => (
                ErrorKind::Denied,
                format!("the cluster refuses the user `{user}` or its key"),
                "compare the key with `ceph auth get`",
            ),
            Errno::ETIMEDOUT => (
                ErrorKind::Unavailable,
                format!("no monitor at {monitors} answers within `connect_timeout`"),
                "check `mon_host`, the network, and `ceph -s` on a node of the cluster",
            ),
            other => return from_errno("connect to the cluster", other),
        };
        Error::new(kind, message).with_hint(hint).with_source(errno)
    }
}

/// Whether a setting is no key, or a whole one: 28 bytes, as base64.
fn is_key(text: &str) -> bool {
    let part = |c: char| c.is_ascii_alphanumeric() || ['+', '/', '='].contains(&c);
    text.is_empty() || (text.len() == 40 && text.chars().all(part))
}

/// For fuzzing: whatever arrives, no parser panics.
#[cfg(fuzzing)]
pub(crate) fn parse_any(input: &[u8]) {
    let _ = (pairs(input), Fields(input).text(), snapshots(input), capacity(input, "a", "b"));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn space_is_what_the_quota_and_the_cluster_leave() {
        let pool = |name: &str, stored: u64, free: u64, quota: u64| {
            format!(
                r#"{{"name":"{name}","id":1,"stats":{{"stored":{stored},"max_avail":{free},"quota_bytes":{quota},"objects":3}}}}"#
            )
        };
        let space = |pools: &[String], data_pool: &str| {
            let json = format!(r#"{{"stats":{{}},"pools":[{}]}}"#, pools.join(","));
            capacity(json.as_bytes(), "a", data_pool).map(|space| (space.total, space.free))
        };
        let alone = |stored, quota| space(&[pool("a", stored, 1000, quota)], "a");
        assert_eq!(alone(50, 0), Some((1050, 1000)));
        assert_eq!(alone(50, 500), Some((500, 450)));
        assert_eq!(alone(600, 500), Some((600, 0)));
        // The pool of the data counts, and that of the names only where it is full.
        let both =
            |quota, data_quota| space(&[pool("a", 9, 1000, quota), pool("b", 50, 700, data_quota)], "b");
        assert_eq!(both(0, 0), Some((750, 700)));
        assert_eq!(both(10, 0), Some((750, 700)));
        assert_eq!(both(9, 0), Some((50, 0)));
        assert_eq!(both(0, 60), Some((60, 10)));
        assert_eq!(alone(0, 0), Some((1000, 1000)));
        // Nobody has counted yet; or all is full.
        assert_eq!(space(&[pool("a", 0, 0, 0), pool("b", 0, 0, 0)], "b"), None);
        assert_eq!(space(&[pool("a", 1, 0, 0), pool("b", 0, 0, 0)], "b"), Some((0, 0)));
        assert_eq!(space(&[pool("a", 0, 1000, 0)], "b"), None);
        assert_eq!(capacity(b"{", "a", "a"), None);
    }

    #[test]
    fn a_key_is_told_from_what_is_none() {
        assert!(is_key("") && is_key("AQDJ1eZiAAAAABAAdTIzBDSZvGhBTXB5C9uI5g=="));
        assert!(!is_key("aGVsbG8=") && !is_key("not base64!"));
    }

    proptest! {
        #[test]
        fn a_page_of_the_directory_survives_its_encoding(map in proptest::collection::vec(("\\PC{0,20}", "\\PC{0,20}"), 0..10)) {
            let mut bytes = u32::try_from(map.len()).unwrap().to_le_bytes().to_vec();
            for (name, id) in &map {
                push_text(&mut bytes, name);
                push_text(&mut bytes, id);
            }
            prop_assert_eq!(pairs(&bytes), Some(map.clone()));
            // Cut anywhere, it is no page.
            if !map.is_empty() {
                prop_assert_eq!(pairs(&bytes[..bytes.len() - 1]), None);
            }
        }

        #[test]
        fn no_answer_makes_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = (pairs(&bytes), Fields(&bytes).text(), snapshots(&bytes), capacity(&bytes, "a", "b"));
        }
    }
}
