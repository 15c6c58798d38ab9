//! How far a transfer has come: a bar on a terminal, a few lines elsewhere.

use std::{
    io::{IsTerminal, Write as _},
    sync::{
        LazyLock, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use imagestore::Size;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// A transfer's progress. Dropped without [`finish`](Self::finish), it leaves nothing on the terminal.
pub(super) struct Progress {
    done: AtomicU64,
    total: Option<u64>,
    started: Instant,
    look: Look,
}

enum Look {
    Silent,
    Bar(ProgressBar),
    Lines { action: &'static str, what: String, next: Mutex<Instant> },
}

/// How often a line tells that the transfer is alive.
const EVERY: Duration = Duration::from_secs(10);

impl Progress {
    pub(super) fn start(
        silent: bool,
        plain: bool,
        action: &'static str,
        what: &str,
        total: Option<u64>,
    ) -> Self {
        let started = Instant::now();
        let look = if silent {
            Look::Silent
        } else if std::io::stderr().is_terminal() && !plain {
            Look::Bar(bar(action, what, total))
        } else {
            let size = total.map(|total| format!(" ({})", Size(total))).unwrap_or_default();
            say(&format!("{action} {what}{size}"));
            Look::Lines { action, what: what.to_owned(), next: Mutex::new(started + EVERY) }
        };
        Self { done: AtomicU64::new(0), total, started, look }
    }

    /// Another so many bytes have been moved.
    pub(super) fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        match &self.look {
            Look::Silent => {}
            Look::Bar(bar) => {
                bar.inc(bytes);
                if self.total == Some(done) {
                    bar.set_message(", finishing");
                }
            }
            Look::Lines { action, what, next } => {
                let now = Instant::now();
                // Whoever finds it locked would have said the same.
                let Ok(mut next) = next.try_lock() else { return };
                if now < *next {
                    return;
                }
                *next = now + EVERY;
                let part = match self.total.filter(|total| *total > 0) {
                    Some(total) => format!("{} of {}, {}%", Size(done), Size(total), done * 100 / total),
                    None => Size(done).to_string(),
                };
                say(&format!("{action} {what}: {part}, {}", self.speed(done)));
            }
        }
    }

    /// The transfer is complete.
    pub(super) fn finish(&self) {
        match &self.look {
            Look::Silent => {}
            // Now, since what is printed next must not start behind it.
            Look::Bar(bar) => bar.finish_and_clear(),
            Look::Lines { what, .. } => {
                let done = self.done.load(Ordering::Relaxed);
                let seconds = self.started.elapsed().as_secs_f64();
                match seconds < 0.1 {
                    // No speed to speak of.
                    true => say(&format!("done: {what}, {}", Size(done))),
                    false => {
                        say(&format!("done: {what}, {} in {seconds:.1} s, {}", Size(done), self.speed(done)))
                    }
                }
            }
        }
    }

    fn speed(&self, done: u64) -> String {
        let seconds = self.started.elapsed().as_secs_f64().max(0.001);
        format!("{}/s", Size((done as f64 / seconds) as u64))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Look::Bar(bar) = &self.look {
            bar.finish_and_clear();
        }
    }
}

/// All bars of the terminal, one below the other.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Writes something that stays, above the bars. What goes elsewhere is not in their way: a pipe may be full for ever, and
/// what is said of a signal must not wait for it.
pub(super) fn above_the_bars<T>(out: &impl IsTerminal, write: impl FnOnce() -> T) -> T {
    match out.is_terminal() {
        true => BARS.suspend(write),
        false => write(),
    }
}

fn bar(action: &'static str, what: &str, total: Option<u64>) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (
            ProgressBar::new(total),
            "{prefix} {wide_bar:.cyan/blue} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left{msg}",
        ),
        None => (
            ProgressBar::new_spinner(),
            "{prefix} {spinner:.cyan} {binary_bytes}, {binary_bytes_per_sec}, {elapsed}{msg}",
        ),
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = BARS.add(bar.with_style(style).with_prefix(format!("{action} {what}")));
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
