//! One storage under test, and the hooks that reach behind its back.

use std::{
    collections::BTreeSet,
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, TryStreamExt, future::BoxFuture};
use serde::Serialize;
use store_core::{
    Backend, Blob, BlobId, ErrorKind, Expect, Inspect, Location, Options, Retry, Span, Store, Swept, Timeout,
};

use crate::{
    case::{Abilities, Failure, Outcome, ensure},
    source::Content,
};

/// What a hook reports: why it could not do its work.
pub type HookResult<T = ()> = Result<T, String>;

type Hook<A, R> = Arc<dyn Fn(A) -> BoxFuture<'static, R> + Send + Sync>;

fn hook<A, R, F>(call: impl Fn(A) -> F + Send + Sync + 'static) -> Hook<A, R>
where
    F: Future<Output = R> + Send + 'static,
{
    Arc::new(move |argument| call(argument).boxed())
}

/// One storage that can be opened any number of times.
///
/// A case writes through one handle and reads again through another, so that what only lives in a handle does not
/// count. Hooks are optional; cases that need one that is not there are shown as ignored.
pub struct Fixture {
    open: Opener,
    options: Options,
    own_options: bool,
    empty: bool,
    exact_capacity: bool,
    max_size: Option<u64>,
    grace: Duration,
    limit: Duration,
    secrets: Vec<String>,
    faults: Option<(Vec<FaultKind>, Hook<Fault, HookResult>)>,
    seed: Option<Hook<(BlobId, Bytes), HookResult<Location>>>,
    damage: Option<Hook<(Location, Damage), HookResult>>,
    crash: Option<Hook<(), HookResult>>,
    teardown: Option<Hook<(), HookResult>>,
    issued: Mutex<BTreeSet<BlobId>>,
    /// Deployed stores that the case has opened: what it left unfinished there, they undo.
    opened: Mutex<Vec<Store>>,
}

enum Opener {
    Backend(Hook<(), store_core::Result<Arc<dyn Backend>>>),
    Store(Hook<(), store_core::Result<Store>>),
}

/// How a storage is made to fail, through the fixture's `fault` hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Everything works again, and nothing is about to fail.
    Heal,
    /// Connections break now, and no new one comes about until `Heal`.
    Cut,
    /// Nothing moves and nothing breaks until `Heal`.
    Stall,
    /// So many bytes pass each second.
    Slow(u64),
    /// When so many more bytes have passed, in either direction, connections break once; new ones work at once.
    CutAfter(u64),
    /// After so many more answered requests, the next one is carried out, but its connection breaks before the reply
    /// passes; new ones work at once.
    CutReply(u32),
}

/// A kind of [`Fault`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FaultKind {
    /// [`Fault::Cut`].
    Cut,
    /// [`Fault::Stall`].
    Stall,
    /// [`Fault::Slow`].
    Slow,
    /// [`Fault::CutAfter`].
    CutAfter,
    /// [`Fault::CutReply`].
    CutReply,
}

impl FaultKind {
    /// All that a network can do: what [`Proxy`](crate::Proxy) offers.
    pub const ALL: [Self; 5] = [Self::Cut, Self::Stall, Self::Slow, Self::CutAfter, Self::CutReply];
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cut => "cut",
            Self::Stall => "stall",
            Self::Slow => "slow down",
            Self::CutAfter => "cut after some bytes",
            Self::CutReply => "cut before a reply",
        })
    }
}

/// What the fixture's `damage` hook does to a stored blob, behind the back of its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Damage {
    /// Flips at least one bit of the byte at this offset.
    Flip(u64),
    /// Cuts the blob off after so many bytes, its metadata unchanged.
    Truncate(u64),
}

impl Fixture {
    /// A storage that nothing is in yet and nobody else uses; `open` gives a new handle on it each time.
    pub fn new(open: impl Fn() -> Arc<dyn Backend> + Send + Sync + 'static) -> Self {
        Self::connecting(move || std::future::ready(Ok(open())))
    }

    /// The same, where opening a handle takes time and may fail.
    pub fn connecting<F>(open: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = store_core::Result<Arc<dyn Backend>>> + Send + 'static,
    {
        let open = Opener::Backend(hook(move |()| open()));
        Self::over(open, Self::quick_options(), true)
    }

    /// A deployed store, which other blobs may be in: what [`check`](crate::check) uses.
    pub(crate) fn deployed<F>(open: impl Fn() -> F + Send + Sync + 'static, options: Options) -> Self
    where
        F: Future<Output = store_core::Result<Store>> + Send + 'static,
    {
        Self::over(Opener::Store(hook(move |()| open())), options, false)
    }

    fn over(open: Opener, options: Options, own: bool) -> Self {
        Self {
            open,
            options,
            own_options: own,
            empty: own,
            exact_capacity: false,
            max_size: None,
            grace: Duration::from_millis(20),
            limit: Duration::from_secs(600),
            secrets: Vec::new(),
            faults: None,
            seed: None,
            damage: None,
            crash: None,
            teardown: None,
            issued: Mutex::default(),
            opened: Mutex::default(),
        }
    }

    /// The defaults of a store, with short pauses between retries and deadlines that a test run can wait for.
    pub fn quick_options() -> Options {
        let mut options = Options::default();
        let millis = |millis| Span(Duration::from_millis(millis));
        options.retry = Retry { attempts: 4, delay: millis(20), max_delay: millis(200) };
        options.timeout = Timeout { call: millis(30_000), chunk: millis(30_000), commit: millis(120_000) };
        options
    }

    /// Opens stores with `options` instead of [`quick_options`](Self::quick_options).
    #[must_use]
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// Nobody else uses the space that `capacity` measures, so that it tells what is left behind.
    #[must_use]
    pub fn exact_capacity(mut self) -> Self {
        self.exact_capacity = true;
        self
    }

    /// Skips cases with blobs beyond so many bytes.
    #[must_use]
    pub fn max_size(mut self, bytes: u64) -> Self {
        self.max_size = Some(bytes);
        self
    }

    /// How long the driver may take to undo a call that was cancelled; 20 ms where nothing is said.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// After which time a case counts as hanging; ten minutes where nothing is said.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// A password or key that the storage was opened with: it must show nowhere.
    #[must_use]
    pub fn secret(mut self, secret: impl Into<String>) -> Self {
        self.secrets.push(secret.into());
        self
    }

    /// Makes the storage fail in the ways that `kinds` lists, and work again at [`Fault::Heal`].
    /// [`Proxy::hook`](crate::Proxy::hook) is one for every storage that is reached over TCP.
    #[must_use]
    pub fn fault<F>(mut self, kinds: &[FaultKind], call: impl Fn(Fault) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = HookResult> + Send + 'static,
    {
        self.faults = Some((kinds.to_vec(), hook(call)));
        self
    }

    /// Puts a blob there without an upload: with it, the read cases run for a read-only backend. The location has the
    /// id in it.
    #[must_use]
    pub fn seed<F>(mut self, call: impl Fn(BlobId, Bytes) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = HookResult<Location>> + Send + 'static,
    {
        self.seed = Some(hook(move |(id, bytes)| call(id, bytes)));
        self
    }

    /// Damages a stored blob behind the back of its store.
    #[must_use]
    pub fn damage<F>(mut self, call: impl Fn(Location, Damage) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = HookResult> + Send + 'static,
    {
        self.damage = Some(hook(move |(at, damage)| call(at, damage)));
        self
    }

    /// Stops the storage as a power cut would, and starts it again.
    #[must_use]
    pub fn crash<F>(mut self, call: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = HookResult> + Send + 'static,
    {
        self.crash = Some(hook(move |()| call()));
        self
    }

    /// Takes the storage away after its case.
    #[must_use]
    pub fn teardown<F>(mut self, call: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = HookResult> + Send + 'static,
    {
        self.teardown = Some(hook(move |()| call()));
        self
    }

    /// What it can do.
    pub async fn abilities(&self, patience: bool) -> store_core::Result<Abilities> {
        let store = self.open(self.options.clone()).await?;
        // What a driver has to try out on its server it may know only after a first upload.
        if store.info().can.write
            && let Ok(upload) = store.upload(&BlobId::random(), Expect::new()).await
        {
            let _ = upload.abort().await; // Cases of their own tell what is wrong with it.
        }
        let info = store.info();
        let options = store.options();
        let room = match info.can.capacity {
            true => Some(store.capacity().await?.free / 2),
            false => None,
        };
        let max_size = [room, self.max_size, options.max_size.map(|size| size.0)].into_iter().flatten().min();
        Ok(Abilities {
            can: info.can,
            hole: info.hole,
            empty: self.empty,
            options: self.own_options,
            verified_reads: options.verify_reads && info.can.metadata,
            inspection: options.inspect != Inspect::Off,
            exact_capacity: self.exact_capacity,
            transfers: options.max_transfers,
            max_size,
            patience,
            seed: self.seed.is_some(),
            faults: self.faults.iter().flat_map(|(kinds, _)| kinds).copied().collect(),
            damage: self.damage.is_some(),
            crash: self.crash.is_some(),
        })
    }

    /// A new store over a new handle.
    pub async fn store(&self) -> Result<Store, Failure> {
        Ok(self.open(self.options.clone()).await?)
    }

    /// A new store with other options than usual; only cases with [`Need::Options`](crate::Need::Options) may ask.
    pub(crate) async fn store_with(&self, change: impl FnOnce(&mut Options)) -> Result<Store, Failure> {
        let mut options = self.options.clone();
        change(&mut options);
        Ok(self.open(options).await?)
    }

    async fn open(&self, options: Options) -> store_core::Result<Store> {
        match &self.open {
            Opener::Backend(open) => Ok(Store::new("conformance", open(()).await?, options)),
            Opener::Store(open) => {
                let store = open(()).await?;
                self.opened().push(store.clone());
                Ok(store)
            }
        }
    }

    /// An id that is nobody else's.
    pub fn id(&self, name: &str) -> BlobId {
        self.id_of(format!("conformance-{name}-{}", random_text()))
    }

    /// An id of the greatest length, with every kind of character in it.
    pub(crate) fn longest_id(&self) -> BlobId {
        let mut text = format!("_Conformance.Long-{}.", random_text());
        while text.len() < BlobId::MAX_LEN {
            text.push(['x', 'Y', '9', '.', '-', '_'][text.len() % 6]);
        }
        self.id_of(text)
    }

    /// An id of the case's own making, to be taken away with the others.
    pub(crate) fn id_of(&self, text: String) -> BlobId {
        // The fallback is never needed: all callers keep to the rules of ids.
        let id = text.parse().unwrap_or_else(|_| BlobId::random());
        self.issued().insert(BlobId::clone(&id));
        id
    }

    fn issued(&self) -> MutexGuard<'_, BTreeSet<BlobId>> {
        self.issued.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn opened(&self) -> MutexGuard<'_, Vec<Store>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Secrets that must show nowhere.
    pub(crate) fn secrets(&self) -> &[String] {
        &self.secrets
    }

    pub(crate) fn time_limit(&self) -> Duration {
        self.limit
    }

    /// Declares that the store is empty and for the run alone, to sweep and to count in.
    pub(crate) fn claim_all(mut self) -> Self {
        self.empty = true;
        self
    }

    /// Uploads `content` as a new blob, or has the seed hook do so.
    pub(crate) async fn blob(
        &self,
        store: &Store,
        name: &str,
        content: &Content,
    ) -> Result<Location, Failure> {
        let id = self.id(name);
        if store.info().can.write {
            return Ok(self.put(store, &id, content).await?.location);
        }
        let seed = self.seed.as_ref().ok_or_else(|| Failure::broken("there is no seed hook"))?;
        let bytes = content.bytes(0..content.len());
        seed((id, bytes)).await.map_err(|why| Failure::broken(format!("the seed hook failed: {why}")))
    }

    /// Uploads `content` as `id`, in pieces of a megabyte.
    pub(crate) async fn put(&self, store: &Store, id: &BlobId, content: &Content) -> Result<Blob, Failure> {
        let blob = store.put(id, content.source().stream(), Expect::new().size(content.len())).await?;
        ensure!(
            blob.meta.size == content.len(),
            "put returned a size of {}, not {}",
            blob.meta.size,
            content.len()
        );
        Ok(blob)
    }

    /// The same for an upload that may fail.
    pub(crate) async fn put_quietly(
        &self,
        store: &Store,
        id: &BlobId,
        content: &Content,
    ) -> store_core::Result<Blob> {
        store.put(id, content.source().stream(), Expect::new().size(content.len())).await
    }

    /// Makes the storage fail.
    pub(crate) async fn inject(&self, fault: Fault) -> Outcome {
        let Some((_, hook)) = &self.faults else { return Err(Failure::broken("there is no fault hook")) };
        hook(fault).await.map_err(|why| Failure::broken(format!("the fault hook cannot do {fault:?}: {why}")))
    }

    /// Damages a blob.
    pub(crate) async fn spoil(&self, at: &Location, damage: Damage) -> Outcome {
        let Some(hook) = &self.damage else { return Err(Failure::broken("there is no damage hook")) };
        let outcome = hook((at.clone(), damage)).await;
        outcome.map_err(|why| Failure::broken(format!("the damage hook cannot do {damage:?}: {why}")))
    }

    /// Has the storage crash.
    pub(crate) async fn crash_now(&self) -> Outcome {
        let Some(hook) = &self.crash else { return Err(Failure::broken("there is no crash hook")) };
        hook(()).await.map_err(|why| Failure::broken(format!("the crash hook failed: {why}")))
    }

    /// Waits until `store` and its driver have undone what was cancelled.
    pub(crate) async fn quiesce(&self, store: &Store) {
        store.settle().await;
        tokio::time::sleep(self.grace).await;
    }

    /// Fails unless, of all ids of this case, exactly those in `keep` have a blob, and nothing is staged.
    pub(crate) async fn holds_only(&self, store: &Store, keep: &[&BlobId]) -> Outcome {
        store.settle().await;
        // A handle of its own: what the other one remembers is not what is there.
        let witness = self.store().await?;
        if self.empty {
            let swept = witness.sweep(Duration::ZERO).await?;
            ensure!(swept == Swept::default(), "sweep found {} upload(s) left behind", swept.uploads);
        }
        let issued: Vec<BlobId> = self.issued().iter().cloned().collect();
        for id in &issued {
            match (witness.locate(id).await, keep.contains(&id)) {
                (Ok(_), true) => {}
                (Ok(at), false) => return Err(Failure::broken(format!("{at} is there, and must not be"))),
                (Err(error), false) if error.kind() == ErrorKind::NotFound => {}
                (Err(error), _) => return Err(Failure::from(error)),
            }
        }
        if self.empty && witness.info().can.list {
            let listed: BTreeSet<BlobId> = witness.list().map_ok(|entry| entry.id).try_collect().await?;
            let wanted: BTreeSet<BlobId> = keep.iter().copied().cloned().collect();
            ensure!(listed == wanted, "the list shows {listed:?}, not {wanted:?}");
        }
        Ok(())
    }

    /// Ends every fault and removes what the case made, as far as the store lets it.
    pub(crate) async fn finish(&self) -> Outcome {
        if self.faults.is_some() {
            self.inject(Fault::Heal).await?;
        }
        if let Opener::Store(_) = self.open {
            let store = self.store().await?;
            let opened = self.opened().clone();
            for store in opened {
                store.settle().await;
            }
            // An id is forgotten once it is gone, so that who is cancelled here can begin again.
            let issued = self.issued().clone();
            for id in issued.into_iter().filter(|_| store.info().can.delete && store.info().can.write) {
                match store.locate(&id).await {
                    Ok(at) => store.delete(&at).await?,
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(error.into()),
                }
                self.issued().remove(&id);
            }
            if self.empty && store.info().can.write {
                store.sweep(Duration::ZERO).await?;
            }
        }
        match &self.teardown {
            Some(teardown) => {
                teardown(()).await.map_err(|why| Failure::broken(format!("the teardown hook failed: {why}")))
            }
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Fixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the secrets.
        f.debug_struct("Fixture").field("options", &self.options).finish_non_exhaustive()
    }
}

fn random_text() -> String {
    let mut bytes = [0; 6];
    // Without randomness, ids are told apart by their names only.
    let _ = getrandom::fill(&mut bytes);
    hex::encode(bytes)
}
