//! The two doors: a test binary for a backend, and a function for a deployed store.

use std::{
    any::Any,
    env,
    future::Future,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt, future::LocalBoxFuture};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use store_core::{Error, ErrorKind, Store};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::{Abilities, Case, CaseReport, Failure, Fixture, Group, Outcome, Report, cases::all};

/// What a test binary's setup comes back with.
#[derive(Debug)]
#[non_exhaustive]
#[allow(
    clippy::large_enum_variant,
    reason = "there is one at a time, and a box would be for every author to write"
)]
pub enum Setup {
    /// An empty storage.
    Ready(Fixture),
    /// Why there is none, such as a server that is not installed.
    Missing(String),
}

/// Names the backends whose storage must not be missing: `all`, or some of them with commas in between.
pub const REQUIRED: &str = "CONFORMANCE_REQUIRED";

/// Set to `0`, it leaves out the cases that move gigabytes.
pub const SLOW: &str = "CONFORMANCE_SLOW";

/// Runs the suite as a test binary (`harness = false`) and ends the process.
///
/// `setup` is called once for each case, so that each has a storage of its own, and once before them all. The usual
/// arguments of test binaries work: a filter, `--list`, `--test-threads`, `--exact`, `--skip`.
pub fn run<S>(name: &str, setup: S) -> !
where
    S: AsyncFn() -> Setup + Send + Sync + 'static,
{
    Suites::new().with(name, setup).run()
}

/// Several backends, or one in several configurations, in one test binary.
#[derive(Default)]
pub struct Suites {
    suites: Vec<Suite>,
    at_once: Option<usize>,
}

struct Suite {
    name: String,
    setup: SetupFn,
}

type SetupFn = Arc<dyn Fn() -> LocalBoxFuture<'static, Setup> + Send + Sync>;

impl Suites {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one; see [`run`].
    #[must_use]
    pub fn with<S>(mut self, name: &str, setup: S) -> Self
    where
        S: AsyncFn() -> Setup + Send + Sync + 'static,
    {
        let setup = Arc::new(setup);
        let setup: SetupFn = Arc::new(move || {
            let setup = Arc::clone(&setup);
            async move { setup().await }.boxed_local()
        });
        self.suites.push(Suite { name: name.to_owned(), setup });
        self
    }

    /// Runs so many cases at once, unless the command line says otherwise, and not as many as there are cores: where a
    /// server is far, or a fault is one that waits, most of the time is spent on waiting.
    #[must_use]
    pub fn at_once(mut self, cases: usize) -> Self {
        self.at_once = Some(cases);
        self
    }

    /// Runs them all and ends the process.
    pub fn run(self) -> ! {
        let mut arguments = Arguments::from_args();
        arguments.test_threads = arguments.test_threads.or(self.at_once);
        let runtime = match Runtime::new() {
            Ok(runtime) => Arc::new(runtime),
            Err(error) => give_up(&format!("there is no runtime: {error}")),
        };
        let mut trials = Vec::new();
        for suite in &self.suites {
            match runtime.block_on(suite.abilities()) {
                Ok(abilities) => trials.extend(suite.trials(&runtime, &abilities)),
                Err(why) if is_required(&suite.name) && !arguments.list => {
                    give_up(&format!("{} is required by {REQUIRED}, but {why}", suite.name))
                }
                Err(why) => {
                    eprintln!("\nNOT TESTED: {}: {why}\n", suite.name);
                    trials.extend(suite.missing(&why));
                }
            }
        }
        libtest_mimic::run(&arguments, trials).exit()
    }
}

impl std::fmt::Debug for Suites {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.suites.iter().map(|suite| &suite.name)).finish()
    }
}

fn give_up(why: &str) -> ! {
    eprintln!("\nerror: {why}\n");
    std::process::exit(101)
}

/// Whether [`REQUIRED`] names this suite: by its name or as one of `all`, unless it has `-NAME` too.
pub fn is_required(name: &str) -> bool {
    let names = env::var(REQUIRED).unwrap_or_default();
    let mut names = names.split(',').map(str::trim);
    let named = names.clone().any(|n| ["all", name].contains(&n));
    named && !names.any(|n| n.strip_prefix('-') == Some(name))
}

impl Suite {
    async fn abilities(&self) -> Result<Abilities, String> {
        match (self.setup)().await {
            Setup::Ready(fixture) => {
                let patience = env::var(SLOW).map_or(true, |slow| slow != "0");
                let abilities = fixture.abilities(patience).await;
                fixture.finish().await.map_err(|failure| failure.to_string())?;
                abilities.map_err(|error| format!("it cannot be opened: {error}"))
            }
            Setup::Missing(why) => Err(why),
        }
    }

    fn trials(&self, runtime: &Arc<Runtime>, abilities: &Abilities) -> Vec<Trial> {
        let trial = |case: &'static Case| {
            let (runtime, setup) = (Arc::clone(runtime), Arc::clone(&self.setup));
            let unmet = case.unmet(abilities);
            Trial::ignorable_test(self.title(case), move || {
                if let Some(need) = unmet {
                    return Ok(Completion::ignored_with(format!("needs {need}")));
                }
                let outcome = runtime.block_on(async {
                    match setup().await {
                        Setup::Ready(fixture) => execute(case, &fixture).await.0,
                        Setup::Missing(why) => Err(Failure::Broken(format!("the storage went away: {why}"))),
                    }
                });
                match outcome {
                    Ok(()) => Ok(Completion::Completed),
                    Err(Failure::NothingToTry(why)) => Ok(Completion::ignored_with(why)),
                    Err(Failure::Broken(what)) => Err(Failed::from(what)),
                }
            })
        };
        all().map(trial).collect()
    }

    fn missing(&self, why: &str) -> Vec<Trial> {
        let trial = |case: &'static Case| {
            let why = why.to_owned();
            Trial::ignorable_test(self.title(case), move || Ok(Completion::ignored_with(why)))
        };
        all().map(trial).collect()
    }

    fn title(&self, case: &Case) -> String {
        format!("{}::{}", self.name, case.title())
    }
}

/// Tries one case on a storage that is then to be thrown away, and says how long that took.
pub async fn execute(case: &Case, fixture: &Fixture) -> (Outcome, Duration) {
    let started = Instant::now();
    let limit = fixture.time_limit();
    let running = AssertUnwindSafe((case.run)(fixture)).catch_unwind();
    let outcome = match tokio::time::timeout(limit, running).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(panic)) => Err(Failure::Broken(format!("a panic: {}", text_of(panic.as_ref())))),
        Err(_) => Err(Failure::Broken(format!("it hangs: no end after {limit:?}"))),
    };
    let finished = AssertUnwindSafe(fixture.finish()).catch_unwind();
    let finished = match tokio::time::timeout(limit, finished).await {
        Ok(Ok(finished)) => finished.map_err(|failure| failure.at("afterwards")),
        Ok(Err(panic)) => Err(Failure::Broken(format!("a panic afterwards: {}", text_of(panic.as_ref())))),
        Err(_) => Err(Failure::Broken(format!("its clean-up hangs: no end after {limit:?}"))),
    };
    (outcome.and(finished), started.elapsed())
}

fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}

/// How [`check`] goes about a deployed store.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CheckOptions {
    /// Also runs the cases that move gigabytes.
    pub slow: bool,
    /// The store is empty and for this run alone, so that cases may sweep and count. Refused where blobs are listed.
    pub exclusive: bool,
    /// Runs only these groups; all of them where none is named.
    pub groups: Vec<Group>,
    /// Runs only cases with this in their titles, `group::name`.
    pub filter: Option<String>,
    /// Cancelled, it ends the run: the case under way is given up and tidied up after.
    pub stop: CancellationToken,
}

/// Runs the suite on a deployed store, which may hold blobs and serve others meanwhile.
///
/// Blobs of the run have ids that start with `conformance-` or `_Conformance.`, and are removed again, also if the run is stopped through
/// its options; not if the future is dropped. Foreign blobs and uploads are
/// left alone: unless the run is `exclusive`, cases that sweep or count are shown as ignored. `open` connects anew
/// each time, as another process would; `on` is told of each case when it is over.
///
/// ```
/// # use conformance_tests::{CheckOptions, check};
/// # use store_core::{MemoryBackend, Options, Store};
/// # #[tokio::main] async fn main() -> store_core::Result<()> {
/// # let backend = MemoryBackend::shared();
/// let open = move || {
///     let backend = backend.clone();
///     async move { Ok(Store::new("production", backend, Options::default())) }
/// };
/// let mut wanted = CheckOptions::default();
/// wanted.filter = Some("empty_blob".into());
/// let report = check(open, &wanted, |case| println!("{} {:?}", case.name, case.verdict)).await?;
/// assert!(report.is_success());
/// # Ok(()) }
/// ```
pub async fn check<F>(
    open: impl Fn() -> F + Send + Sync + 'static,
    options: &CheckOptions,
    mut on: impl FnMut(&CaseReport),
) -> store_core::Result<Report>
where
    F: Future<Output = store_core::Result<Store>> + Send + 'static,
{
    let open = Arc::new(open);
    let store = open().await?;
    if options.exclusive && store.info().can.list && store.list().next().await.transpose()?.is_some() {
        return Err(Error::new(
            ErrorKind::Invalid,
            "the store is not empty, so it cannot be swept and counted in",
        )
        .with_hint("run the suite without the exclusive mode; it then leaves everything else alone"));
    }
    let fixture = || {
        let open = Arc::clone(&open);
        let fixture = Fixture::deployed(move || open(), store.options().clone());
        if options.exclusive { fixture.claim_all() } else { fixture }
    };
    let abilities = fixture().abilities(options.slow).await?;
    let mut report = Report::default();
    for case in all().filter(|case| options.wants(case)) {
        let (outcome, duration) = match case.unmet(&abilities) {
            Some(need) => (Err(Failure::NothingToTry(format!("needs {need}"))), Duration::ZERO),
            None => {
                let fixture = fixture();
                let ended = options.stop.run_until_cancelled(execute(case, &fixture)).await;
                match ended {
                    Some(ended) => ended,
                    None => {
                        report.stopped = true;
                        fixture.finish().await.map_err(|failure| left_behind(case, &failure))?;
                        break;
                    }
                }
            }
        };
        let case = CaseReport::new(case, outcome, duration);
        on(&case);
        report.push(case);
    }
    Ok(report)
}

fn left_behind(case: &Case, failure: &Failure) -> Error {
    let message = format!("cannot tidy up after {}: {failure}", case.title());
    Error::new(ErrorKind::Unavailable, message)
        .with_hint("blobs whose ids start with `conformance-` or `_Conformance.` may be left")
}

impl CheckOptions {
    fn wants(&self, case: &Case) -> bool {
        (self.groups.is_empty() || self.groups.contains(&case.group))
            && self.filter.as_ref().is_none_or(|part| case.title().contains(part.as_str()))
    }
}
