//! How the command ends: exit codes, and errors as people and programs read them.

use std::{
    error::Error as _,
    io::{IsTerminal, Write as _},
};

use clap::builder::styling::AnsiColor;
use imagestore::{Error, ErrorKind};
use serde_json::{Map, Value};

use super::progress::above_the_bars;

/// Prints a line on standard error; if that is closed, nobody wants to know.
macro_rules! say {
    ($($arg:tt)*) => {
        let _ = above_the_bars(&std::io::stderr(), || writeln!(std::io::stderr(), $($arg)*));
    };
}

/// Why a verb did not succeed.
#[derive(Debug)]
pub(crate) enum Stop {
    /// For this reason, which is yet to be reported.
    Error(Error),
    /// The arguments make no sense together.
    Usage { message: String, hint: String },
    /// With this code; all has been said.
    Code(i32),
    /// Nobody reads the output any more.
    ClosedPipe,
}

pub(crate) type Outcome<T = ()> = Result<T, Stop>;

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl Stop {
    pub(crate) fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), hint: hint.into() }
    }

    /// What the output ended in.
    pub(crate) fn output(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::ClosedPipe,
            _ => Error::from_io("cannot write the output", error).into(),
        }
    }

    /// Says what there is to say, and gives the exit code.
    pub(crate) fn report(&self, json: bool) -> i32 {
        match self {
            Self::Error(error) => {
                report(error, json);
                code(error.kind())
            }
            Self::Usage { message, hint } => {
                let hint = Some(hint.as_str());
                match json {
                    true => print_json("usage", message, [("hint", hint)]),
                    false => print_text(message, &[], hint),
                }
                USAGE
            }
            Self::Code(code) => *code,
            Self::ClosedPipe => CLOSED_PIPE,
        }
    }
}

pub(crate) const OTHER: i32 = 1;
pub(crate) const USAGE: i32 = 2;
/// 128 + SIGPIPE, what a shell reports of a `cat` whose reader has gone.
const CLOSED_PIPE: i32 = 141;

/// The exit code of an error.
pub(crate) fn code(kind: ErrorKind) -> i32 {
    match kind {
        ErrorKind::NotFound => 3,
        ErrorKind::AlreadyExists => 4,
        ErrorKind::InUse => 5,
        ErrorKind::Invalid => 6,
        ErrorKind::Rejected => 7,
        ErrorKind::Corrupt => 8,
        ErrorKind::Denied => 9,
        ErrorKind::Unsupported => 10,
        ErrorKind::NoSpace => 11,
        ErrorKind::Unavailable => 12,
        _ => OTHER,
    }
}

/// What the long help and the manual page say beyond the options; a line that ends in a colon is a heading.
pub(crate) fn manual() -> String {
    let rows = |codes: &[(i32, &str, &str)]| -> String {
        codes.iter().map(|(code, word, meaning)| format!("{code:5}  {word:14}  {meaning}\n")).collect()
    };
    let kinds: Vec<(i32, &str, &str)> = ErrorKind::ALL
        .into_iter()
        .filter(|kind| code(*kind) != OTHER)
        .map(|kind| (code(kind), kind.as_str(), meaning(kind)))
        .collect();
    let first = [
        (0, "", "done"),
        (OTHER, "internal", "a bug, or errors of several kinds"),
        (USAGE, "usage", "wrong usage of the command line"),
    ];
    let last = [
        (129, "", "SIGHUP; nothing is left behind"),
        (130, "", "Ctrl-C; nothing is left behind"),
        (CLOSED_PIPE, "", "the reader of the output has gone away"),
        (143, "", "SIGTERM; nothing is left behind"),
    ];
    format!(
        "\
Exit codes:
{}{}{}
Environment:
  IMAGESTORE_CONFIG          the configuration file
  IMAGESTORE_DEFAULT         the default store's name
  IMAGESTORE_STORES__X__KEY  sets KEY of store X, over the file
  IMAGESTORE_LOG             what to log, such as store_core=trace; other programmers'
                             crates no further than debug: they trace secrets
  NO_COLOR                   no colours

Files:
  $XDG_CONFIG_HOME/imagestore/imagestore.toml, ~/.config where that is not set
  /etc/imagestore/imagestore.toml
  The first that exists is the configuration. Without one, images are kept in
  $XDG_DATA_HOME/imagestore, ~/.local/share where that is not set.

Examples:
  imagestore put cirros.qcow2 --id cirros
  imagestore ls --long
  imagestore get cirros copy.qcow2
  imagestore cp cirros --to archive
  imagestore verify --all",
        rows(&first),
        rows(&kinds),
        rows(&last)
    )
}

fn meaning(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotFound => "no such image, or file",
        ErrorKind::AlreadyExists => "the id or file is taken; what has it is untouched",
        ErrorKind::InUse => "something, such as a clone, still uses the image",
        ErrorKind::Invalid => "a malformed id, location, range or setting",
        ErrorKind::Rejected => "hostile, too large, or not of the declared format",
        ErrorKind::Corrupt => "damaged, incomplete, or not of the expected digest",
        ErrorKind::Denied => "credentials or permissions do not allow it",
        ErrorKind::Unsupported => "the store cannot do that",
        ErrorKind::NoSpace => "full, or over quota",
        ErrorKind::Unavailable => "cannot be reached now; try again later",
        _ => "a bug, here or in the storage",
    }
}

/// Prints an error on standard error.
pub(crate) fn report(error: &Error, json: bool) {
    if json {
        let kind = error.kind().as_str();
        let fields = [
            ("store", error.store()),
            ("operation", error.operation()),
            ("target", error.target()),
            ("hint", error.hint()),
        ];
        return print_json(kind, error.message(), fields);
    }
    let mut said = error.to_string();
    let message = said.clone();
    let mut causes = Vec::new();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        // Messages often end in what their cause says.
        if !said.contains(&text) {
            said.push_str(&text);
            causes.push(text);
        }
        source = cause.source();
    }
    print_text(&message, &causes, error.hint());
}

/// Prints something worth knowing that is no error.
pub(crate) fn notice(message: &str) {
    say!("{} {message}", label("note:", AnsiColor::Yellow));
}

fn print_text(message: &str, causes: &[String], hint: Option<&str>) {
    say!("{} {message}", label("error:", AnsiColor::Red));
    for cause in causes {
        say!("  because: {cause}");
    }
    if let Some(hint) = hint {
        say!("{} {hint}", label("hint:", AnsiColor::Cyan));
    }
}

/// Every field is always there; what is not known is null.
fn print_json<const N: usize>(kind: &str, message: &str, fields: [(&str, Option<&str>); N]) {
    let mut error = Map::new();
    for name in ["store", "operation", "target", "hint"] {
        error.insert(name.to_owned(), Value::Null);
    }
    error.extend(fields.map(|(name, value)| (name.to_owned(), value.into())));
    error.insert("kind".to_owned(), kind.into());
    error.insert("message".to_owned(), message.into());
    say!("{}", serde_json::json!({ "error": error }));
}

/// A usage error as clap found it.
pub(crate) fn report_usage(error: &clap::Error) {
    let text = error.render().to_string();
    let text = text.trim_start_matches("error: ");
    let (message, rest) = text.split_once("\n\n").unwrap_or((text, ""));
    print_json("usage", message.trim(), [("hint", Some(rest.trim()))]);
}

fn label(word: &str, color: AnsiColor) -> String {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    match std::io::stderr().is_terminal() && !plain {
        true => {
            let style = color.on_default().bold();
            format!("{style}{word}{style:#}")
        }
        false => word.to_owned(),
    }
}
