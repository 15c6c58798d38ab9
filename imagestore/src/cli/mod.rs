//! The command: one file a verb, and what they share.

mod args;
mod capacity;
mod config;
mod conformance;
mod cp;
mod exit;
mod get;
mod inspect;
mod ls;
mod manual;
mod new_file;
mod output;
mod progress;
mod put;
mod rm;
mod signals;
mod source;
mod stat;
mod stores;
mod sweep;
mod target;
mod url;
mod verify;

use std::{
    io::IsTerminal,
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use clap::Parser;
use imagestore::{Error, ErrorKind, Origin, Result, Store, Stores};
use tokio_util::sync::CancellationToken;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::{
    EnvFilter,
    filter::{FilterExt, filter_fn},
    fmt::{self, MakeWriter},
    layer::{Layer, SubscriberExt},
    util::SubscriberInitExt,
};

use self::{
    args::{Cli, Globals, Verb},
    exit::{Outcome, Stop},
    output::Output,
    progress::Progress,
    signals::Signals,
};

/// How long a verb may take to notice that it has been stopped; it may hang in a write that nobody reads.
const GRACE: Duration = Duration::from_secs(5);

/// Runs the command, and gives its exit code.
pub(crate) fn main() -> i32 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && std::env::args_os().any(|arg| arg == "--json") => {
            exit::report_usage(&error);
            return exit::USAGE;
        }
        Err(error) => {
            // Help that nobody reads is no failure.
            let _ = error.print();
            return error.exit_code();
        }
    };
    let json = cli.globals.json;
    if let Err(error) = start_log(&cli.globals) {
        return Stop::from(error).report(json);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Stop::from(Error::from_io("cannot start", error)).report(json),
    };
    let code = runtime.block_on(run(cli));
    runtime.shutdown_background();
    code
}

async fn run(cli: Cli) -> i32 {
    let json = cli.globals.json;
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => return Stop::from(Error::from_io("cannot watch for signals", error)).report(json),
    };
    let left = match &cli.verb {
        Verb::Put(_) | Verb::Get(_) | Verb::Cp(_) => "; nothing unfinished was kept",
        Verb::Conformance(_) => "; the images of the run were removed",
        _ => "",
    };
    // It removes what it put there before it ends; all else undoes its work when it is dropped.
    let in_good_order = matches!(cli.verb, Verb::Conformance(_));
    let app =
        Arc::new(App { globals: cli.globals, stores: OnceLock::new(), stopping: CancellationToken::new() });
    // A task of its own, so that a verb stuck in a write to a full pipe does not keep a signal from being seen.
    let mut task = tokio::spawn(dispatch(Arc::clone(&app), cli.verb));
    let mut code = None;
    let signal = tokio::select! {
        ended = &mut task => {
            code = Some(match ended {
                Ok(Ok(())) => 0,
                Ok(Err(stop)) => stop.report(json),
                Err(panic) => {
                    let error = Error::new(ErrorKind::Internal, "the command broke").with_source(panic);
                    Stop::from(error.with_hint("this is a bug; please report it")).report(json)
                }
            });
            None
        }
        signal = signals.next() => Some(signal),
    };
    app.stopping.cancel();
    if !in_good_order {
        task.abort();
    }
    let mut failed = None;
    let clean_up = async {
        if code.is_none() && in_good_order {
            failed = task.await.ok().and_then(Result::err);
        } else if code.is_none() {
            // Dropped with the task: transfers, and files that were to be written.
            let _ = tokio::time::timeout(GRACE, task).await;
        }
        if let Some(stores) = app.stores.get() {
            stores.settle().await;
        }
    };
    tokio::select! {
        () = clean_up => {
            if let Some(stop) = failed {
                stop.report(json);
            } else if let Some(signal) = signal {
                app.notice(&format!("{signal}{left}"));
            }
        }
        second = signals.next() => {
            exit::notice("stopped at once; what is unfinished is left to `imagestore sweep`");
            return second.code();
        }
    }
    code.or(signal.map(|signal| signal.code())).unwrap_or(exit::OTHER)
}

async fn dispatch(app: Arc<App>, verb: Verb) -> Outcome {
    match verb {
        Verb::Put(args) => put::run(&app, args).await,
        Verb::Get(args) => get::run(&app, args).await,
        Verb::Stat(args) => stat::run(&app, args).await,
        Verb::Ls(args) => ls::run(&app, args).await,
        Verb::Rm(args) => rm::run(&app, args).await,
        Verb::Cp(args) => cp::run(&app, args).await,
        Verb::Url(args) => url::run(&app, args).await,
        Verb::Verify(args) => verify::run(&app, args).await,
        Verb::Inspect(args) => inspect::run(&app, args).await,
        Verb::Sweep(args) => sweep::run(&app, args).await,
        Verb::Capacity(args) => capacity::run(&app, args).await,
        Verb::Stores(_) => stores::run(&app).await,
        Verb::Conformance(args) => conformance::run(&app, args).await,
        Verb::Config(args) => config::run(&app, args.verb),
        Verb::Completions(args) => manual::completions(&args),
        Verb::Man(args) => manual::man(&args),
    }
}

fn start_log(globals: &Globals) -> Result<()> {
    let level = match globals.verbose {
        // Nothing but JSON may be there then.
        0 if globals.json => "off",
        0 if globals.quiet => "error",
        // The error says what came of looking for credentials; the SDK tells of each place.
        0 => "warn,aws_config=error",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = match std::env::var_os("IMAGESTORE_LOG").filter(|wanted| !wanted.is_empty()) {
        None => EnvFilter::new(level),
        Some(wanted) => EnvFilter::try_new(wanted.to_string_lossy()).map_err(|error| {
            Error::new(ErrorKind::Invalid, format!("IMAGESTORE_LOG {wanted:?} cannot be read: {error}"))
                .with_hint("it is a level, or levels of crates, such as info,store_core=trace")
        })?,
    };
    let terminal = std::io::stderr().is_terminal();
    log(filter, std::io::stderr, terminal).init();
    Ok(())
}

fn log(
    filter: EnvFilter,
    to: impl for<'a> MakeWriter<'a> + Send + Sync + 'static,
    ansi: bool,
) -> impl Subscriber + Send + Sync {
    let lines = fmt::layer().with_writer(to).with_ansi(ansi);
    tracing_subscriber::registry().with(lines.with_filter(filter.and(filter_fn(is_fit_to_show))))
}

/// What the crates of others trace has whole requests in it, with all that keeps them secret: the SDK of S3 shows the key
/// of SSE-C so.
fn is_fit_to_show(metadata: &Metadata<'_>) -> bool {
    let ours = ["imagestore", "store_", "conformance_tests"];
    *metadata.level() < Level::TRACE || ours.iter().any(|name| metadata.target().starts_with(name))
}

/// What every verb has at hand.
struct App {
    globals: Globals,
    stores: OnceLock<Stores>,
    /// A signal has come.
    stopping: CancellationToken,
}

impl App {
    /// The configured stores. Verbs that need none run in spite of a broken configuration.
    fn stores(&self) -> Result<&Stores> {
        if let Some(stores) = self.stores.get() {
            return Ok(stores);
        }
        let origin = self.origin();
        tracing::info!(configuration = %origin);
        let stores = Stores::new(imagestore::registry(), origin.load()?);
        Ok(self.stores.get_or_init(|| stores))
    }

    fn origin(&self) -> Origin {
        Origin::find(self.globals.config.as_deref())
    }

    /// The store of this name, or the default one.
    async fn store(&self, name: Option<&str>) -> Result<Store> {
        let store = self.stores()?.get(name).await?;
        tracing::info!(store = store.name(), info = ?store.info(), "open");
        Ok(store)
    }

    fn output(&self) -> Output {
        Output { json: self.globals.json, quiet: self.globals.quiet }
    }

    /// Shows how `action` on `total` bytes of `what` goes on.
    fn progress(&self, action: &'static str, what: &str, total: Option<u64>) -> Arc<Progress> {
        let silent = self.globals.quiet || self.globals.json;
        // A bar and a log would draw over each other.
        Arc::new(Progress::start(silent, self.globals.verbose > 0, action, what, total))
    }

    /// Tells something that is no error, to people only.
    fn notice(&self, message: &str) {
        if !self.globals.quiet && !self.globals.json {
            exit::notice(message);
        }
    }

    /// Reports an error after which the verb goes on, and remembers it.
    fn report(&self, error: &Error, tally: &mut Tally) {
        exit::report(error, self.globals.json);
        let code = exit::code(error.kind());
        tally.failed += 1;
        tally.code = Some(tally.code.map_or(code, |first| if first == code { code } else { exit::OTHER }));
    }
}

/// The failures of a verb that goes on after one.
#[derive(Debug, Default)]
struct Tally {
    failed: u64,
    code: Option<i32>,
}

impl Tally {
    /// The failures' common code, or 1 where they differ.
    fn outcome(&self) -> Outcome {
        self.code.map_or(Ok(()), |code| Err(Stop::Code(code)))
    }
}

/// How a path shows in messages.
fn shown(path: &Path) -> String {
    match path == Path::new("-") {
        true => "standard input".to_owned(),
        false => path.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    /// What a log has after `events`.
    fn logged(filter: &str, events: impl FnOnce()) -> String {
        let to = Arc::new(tempfile::tempfile().unwrap());
        tracing::subscriber::with_default(log(EnvFilter::new(filter), Arc::clone(&to), false), events);
        let (mut to, mut said) = (&*to, String::new());
        to.rewind().unwrap();
        to.read_to_string(&mut said).unwrap();
        said
    }

    #[test]
    fn requests_with_their_secrets_are_never_logged() {
        for filter in ["trace", "aws_sigv4=trace,aws_smithy_runtime=trace,store_s3=trace"] {
            let said = logged(filter, || {
                tracing::trace!(target: "aws_sigv4::http_request::sign", request = "key: hunter2");
                tracing::trace!(target: "aws_smithy_runtime::client::orchestrator", request = "key: hunter2");
                tracing::debug!(target: "aws_smithy_runtime::client::orchestrator", "an attempt begins");
                tracing::trace!(target: "store_s3::client", "a part");
            });
            assert!(!said.contains("hunter2"), "{said}");
            assert!(said.contains("an attempt begins") && said.contains("a part"), "{said}");
        }
    }
}
