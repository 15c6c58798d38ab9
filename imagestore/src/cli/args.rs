//! What may stand on the command line.

use std::{path::PathBuf, str::FromStr};

use clap::{ArgAction, Args, Parser, Subcommand, ValueHint};
use imagestore::{Algorithm, BlobId, ByteRange, Digests, Error, Location, Size, Span, inspect::Format};

use super::exit;

/// Keeps virtual-machine images in whichever storage there is.
///
/// Images go in under an id and come out whole: a put is visible only when it is complete and durable, and what
/// fails or is interrupted leaves nothing behind. Holes of sparse images stay holes. Stores are configured in a
/// file; without one there is a store named `local` in your data directory.
#[derive(Debug, Parser)]
#[command(name = "imagestore", version, max_term_width = 100)]
#[command(after_help = "`imagestore VERB --help` has examples, `imagestore --help` exit codes and files.")]
#[command(after_long_help = exit::manual(), disable_help_subcommand = true)]
#[command(subcommand_value_name = "VERB", subcommand_help_heading = "Verbs")]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Globals {
    /// Use this configuration, not one of those that are looked for
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,
    /// Print JSON and nothing else; errors are JSON on standard error
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print no progress and no notices; of a put, only the id
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Tell what is going on, on standard error; -vv tells more
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Put(Put),
    Get(Get),
    Stat(Stat),
    Ls(Ls),
    Rm(Rm),
    Cp(Cp),
    Verify(Verify),
    Url(Url),
    Inspect(Inspect),
    Sweep(Sweep),
    Capacity(Capacity),
    Stores(Stores),
    Conformance(Conformance),
    Config(Config),
    Completions(Completions),
    Man(Man),
}

#[derive(Debug, Args)]
pub(crate) struct OneStore {
    /// The store; else the default one
    #[arg(short, long, value_name = "STORE")]
    pub(crate) store: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct AnyStore {
    /// The store; else the default one, or for a location the one that it belongs to
    #[arg(short, long, value_name = "STORE")]
    pub(crate) store: Option<String>,
}

/// Store an image
///
/// The image is visible only once it is complete and durable; an error or Ctrl-C leaves nothing of it. Of a sparse
/// file only the data is read. The format is recognised from the content; with --format, any other and anything
/// hostile is refused.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  imagestore put cirros.qcow2
  imagestore put cirros.qcow2 --id cirros-0.6 --format qcow2 --property os=linux
  curl -fsSL https://example.org/disk.img | imagestore put - --digest sha256:9f86d081...
  id=$(imagestore put --quiet disk.raw)")]
pub(crate) struct Put {
    /// The image; `-` is standard input
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) source: PathBuf,
    /// Its id; else a random UUID
    #[arg(long, value_parser = parse::<BlobId>)]
    pub(crate) id: Option<BlobId>,
    #[command(flatten)]
    pub(crate) store: OneStore,
    /// The format that it must have, such as qcow2 or raw
    #[arg(short, long)]
    pub(crate) format: Option<Format>,
    /// The length in bytes that it must have, such as 1048576 or 1MiB
    #[arg(long, value_name = "SIZE", value_parser = parse::<Size>)]
    pub(crate) size: Option<Size>,
    /// Refuse it if it is larger than this
    #[arg(long, value_name = "SIZE", value_parser = parse::<Size>)]
    pub(crate) max_size: Option<Size>,
    /// A digest that it must have, such as sha256:9f86...; without the value, one to compute and keep
    #[arg(short, long = "digest", value_name = "ALGORITHM[:HEX]")]
    pub(crate) digests: Vec<Digest>,
    /// A note to keep with it; may be repeated
    #[arg(short, long = "property", value_name = "NAME=VALUE")]
    pub(crate) properties: Vec<Property>,
}

/// Fetch an image
///
/// A file is written beside its final place and put there when it is complete and checked, with holes where the
/// image has zeros. A whole image is compared with the cheapest digest kept with it, --verify compares all of them.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  imagestore get cirros-0.6 cirros.qcow2
  imagestore get cirros-0.6 --verify /var/lib/images/
  imagestore get cirros-0.6 | qemu-img dd -O raw of=disk.raw
  imagestore get file:///srv/images/cirros-0.6 --range 0-511 | xxd")]
pub(crate) struct Get {
    /// Its id, or a location (anything with a colon)
    #[arg(value_name = "ID|LOCATION")]
    pub(crate) target: Target,
    /// Where to; a directory gets a file named like the image, `-` is standard output [default: - in a pipe]
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) store: AnyStore,
    /// Only these bytes, counted from 0, both ends included: 0-511, 512- or -512 (the last 512)
    #[arg(short, long, value_name = "A-B", allow_hyphen_values = true)]
    pub(crate) range: Option<Range>,
    /// Compare with every digest kept with the image
    #[arg(long, conflicts_with = "range")]
    pub(crate) verify: bool,
    /// Replace FILE if it exists; write to it if it is a disk
    #[arg(long)]
    pub(crate) force: bool,
    /// Make FILE durable before it appears, so that it survives a loss of power
    #[arg(long)]
    pub(crate) sync: bool,
}

/// Describe images
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  imagestore stat cirros-0.6
  imagestore stat --json cirros-0.6 | jq -r .meta.digests.sha512")]
pub(crate) struct Stat {
    /// Ids or locations
    #[arg(value_name = "ID|LOCATION", required = true)]
    pub(crate) targets: Vec<Target>,
    #[command(flatten)]
    pub(crate) store: AnyStore,
}

/// List the images of a store, in no order
#[derive(Debug, Args)]
#[command(
    visible_alias = "list",
    after_long_help = "\
Examples:
  imagestore ls --long | sort -k3
  imagestore ls --json | jq -r 'select(.size > 1e9) | .id'"
)]
pub(crate) struct Ls {
    #[command(flatten)]
    pub(crate) store: OneStore,
    /// Print size and location too
    #[arg(short, long)]
    pub(crate) long: bool,
}

/// Delete images
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  imagestore rm cirros-0.5 cirros-0.6
  imagestore rm --store archive file:///srv/archive/cirros-0.5")]
pub(crate) struct Rm {
    /// Ids or locations
    #[arg(value_name = "ID|LOCATION", required = true)]
    pub(crate) targets: Vec<Target>,
    #[command(flatten)]
    pub(crate) store: AnyStore,
    /// Take an image that is not there for deleted
    #[arg(short, long)]
    pub(crate) force: bool,
}

/// Copy images, to another store or within one
///
/// The bytes are compared with the digests kept with the image on their way. An image that the other store has
/// already is passed over if size and digests agree, so an interrupted copy is taken up by the same command. Of an
/// image that another program wrote no digests are kept: it is read to be compared.
///
/// Within a store that can copy by itself no byte is read: `verify` tells whether the copy is sound.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  imagestore cp cirros-0.6 --to archive
  imagestore cp --all --from fast --to archive --jobs 4
  imagestore cp cirros-0.6 --to archive --id cirros-latest")]
pub(crate) struct Cp {
    /// Ids, or locations together with --id
    #[arg(value_name = "ID|LOCATION", required_unless_present = "all")]
    pub(crate) targets: Vec<Target>,
    /// The store to copy from; else the default one
    #[arg(long, value_name = "STORE")]
    pub(crate) from: Option<String>,
    /// The store to copy to
    #[arg(long, value_name = "STORE")]
    pub(crate) to: String,
    /// Every image of the store
    #[arg(short, long, conflicts_with = "targets")]
    pub(crate) all: bool,
    /// The copy's id, where it is one image and its id shall be another
    #[arg(long, conflicts_with = "all", value_parser = parse::<BlobId>)]
    pub(crate) id: Option<BlobId>,
    /// Images at once; each takes its own memory
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) jobs: u8,
}

/// Print a URL under which anybody can get an image for a while
///
/// For handing an image out without its bytes passing through here. Stores that have no such thing refuse.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  curl -fO \"$(imagestore url cirros-0.6 --store s3 --for 15m)\"

Notes:
  Whoever has the URL can read the image until its time is over; nothing takes it back.")]
pub(crate) struct Url {
    /// Id or location
    #[arg(value_name = "ID|LOCATION")]
    pub(crate) target: Target,
    #[command(flatten)]
    pub(crate) store: AnyStore,
    /// How long it is good for
    #[arg(long = "for", value_name = "TIME", default_value = "1h", value_parser = parse::<Span>)]
    pub(crate) lifetime: Span,
}

/// Read images again and compare them with the digests kept with them
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  imagestore verify cirros-0.6
  imagestore verify --all --json | jq -r 'select(.compared | not) | .target'")]
pub(crate) struct Verify {
    /// Ids or locations
    #[arg(value_name = "ID|LOCATION", required_unless_present = "all")]
    pub(crate) targets: Vec<Target>,
    #[command(flatten)]
    pub(crate) store: AnyStore,
    /// Every image of the store
    #[arg(short, long, conflicts_with = "targets")]
    pub(crate) all: bool,
    /// Images at once; each takes its own memory
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) jobs: u8,
}

/// Tell an image's format, and whether it is safe to keep
///
/// Backing files, external data and other ways in which an image could read its host's files are looked for, and
/// contents that two programs could take for two formats. The exit code is 7 if a store with `inspect = "strict"`
/// would refuse the image.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  imagestore inspect download.img
  imagestore inspect download.img --format raw
  imagestore inspect cirros-0.6 --store local")]
pub(crate) struct Inspect {
    /// A file, `-` for standard input, an id or a location; what exists as a file is one, unless --store is given
    #[arg(value_name = "FILE|ID|LOCATION", value_hint = ValueHint::FilePath)]
    pub(crate) target: PathBuf,
    /// The format that it is said to have
    #[arg(short, long)]
    pub(crate) format: Option<Format>,
    #[command(flatten)]
    pub(crate) store: AnyStore,
}

/// Remove what killed uploads left behind
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  imagestore sweep
  imagestore sweep --store archive --older-than 7days

Notes:
  Complete images are never touched. An age shorter than the longest pause of
  an upload that still runs takes that one too: 0s is for a store that nobody
  is writing to.")]
pub(crate) struct Sweep {
    #[command(flatten)]
    pub(crate) store: OneStore,
    /// Only what was last written to longer ago than this
    #[arg(long, value_name = "AGE", default_value = "24h", value_parser = parse::<Span>)]
    pub(crate) older_than: Span,
}

/// Tell how much space a store has left
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  imagestore capacity
  imagestore capacity --store archive --json | jq .free")]
pub(crate) struct Capacity {
    #[command(flatten)]
    pub(crate) store: OneStore,
}

/// List the configured stores, and whether each can be reached
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  imagestore stores
  imagestore stores --json | jq -r 'select(.reachable | not) | .store + \": \" + .error.message'")]
pub(crate) struct Stores {}

/// Prove that a store keeps its promises
///
/// Runs the conformance suite that every backend of this project has to pass, against your real storage: write once,
/// nothing visible before its commit, nothing left behind, exact ranges, and more. It writes and deletes images of
/// its own, with ids that start with `conformance-` or `_Conformance.`, and touches no others. The exit code is 1 if a promise
/// is broken.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  imagestore conformance archive
  imagestore conformance archive --only range::
  imagestore conformance new-store --exclusive --slow
  imagestore conformance archive --json | jq -r 'select(.verdict == \"failed\") | .name'
  imagestore conformance archive --json | jq 'select(.summary)'")]
pub(crate) struct Conformance {
    /// The store to prove
    #[arg(value_name = "STORE")]
    pub(crate) store: String,
    /// Only the cases whose titles, `group::name`, contain this
    #[arg(long, value_name = "TEXT")]
    pub(crate) only: Option<String>,
    /// Run the cases that move gigabytes, too
    #[arg(long)]
    pub(crate) slow: bool,
    /// The store is empty, and nobody else uses it: run the cases that sweep and count, too
    #[arg(long)]
    pub(crate) exclusive: bool,
}

/// Check or show the configuration
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  imagestore config check --config new.toml
  imagestore config show
  imagestore config path")]
pub(crate) struct Config {
    #[command(subcommand)]
    pub(crate) verb: ConfigVerb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigVerb {
    /// Look for mistakes, without connecting to any store
    Check,
    /// Print what is in effect: defaults filled in, secrets masked
    Show,
    /// Print which file is used
    Path,
}

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  imagestore completions bash > ~/.local/share/bash-completion/completions/imagestore
  imagestore completions zsh > ~/.zfunc/_imagestore
  imagestore completions fish > ~/.config/fish/completions/imagestore.fish")]
pub(crate) struct Completions {
    /// The shell
    pub(crate) shell: clap_complete::Shell,
}

/// Print the manual page
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  imagestore man | man -l -
  imagestore man --dir /usr/local/share/man/man1")]
pub(crate) struct Man {
    /// Write a page for the command and one for each verb into this directory
    #[arg(long, value_hint = ValueHint::DirPath)]
    pub(crate) dir: Option<PathBuf>,
}

/// A blob, by its id or by its location.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    Id(BlobId),
    Location(Location),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.contains(':') {
            true => text.parse().map(Self::Location),
            false => text.parse().map(Self::Id),
        }
        .map_err(with_hint)
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Location(at) => at.fmt(f),
        }
    }
}

/// A digest that is expected, or only wanted.
#[derive(Clone, Debug)]
pub(crate) struct Digest {
    pub(crate) algorithm: Algorithm,
    pub(crate) hex: Option<String>,
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, hex) = text.split_once([':', '=']).map_or((text, None), |(name, hex)| (name, Some(hex)));
        let algorithm = name.to_ascii_lowercase().parse().map_err(with_hint)?;
        if let Some(hex) = hex {
            Digests::default().insert_hex(algorithm, hex).map_err(with_hint)?;
        }
        Ok(Self { algorithm, hex: hex.map(str::to_owned) })
    }
}

/// A note on a blob.
#[derive(Clone, Debug)]
pub(crate) struct Property {
    pub(crate) name: String,
    pub(crate) value: String,
}

impl FromStr for Property {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => {
                Ok(Self { name: name.to_owned(), value: value.to_owned() })
            }
            _ => Err("a property looks like name=value".to_owned()),
        }
    }
}

/// A range of bytes as curl and HTTP write it, both ends included.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range(pub(crate) ByteRange);

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "a range looks like 0-511, 512- or -512".to_owned();
        let number = |text: &str| match text.bytes().all(|b| b.is_ascii_digit()) {
            true => text.parse::<u64>().map_err(|_| wrong()),
            false => Err(wrong()),
        };
        match text.split_once('-').ok_or_else(wrong)? {
            ("", len) => number(len).map(ByteRange::Last),
            (first, "") => number(first).map(ByteRange::From),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                let end = last.checked_add(1).ok_or_else(wrong)?;
                match first <= last {
                    true => Ok(ByteRange::Span(first, end)),
                    false => Err("the range ends before it starts".to_owned()),
                }
            }
        }
        .map(Self)
    }
}

/// Parses an argument, and does not lose the hint of its error.
fn parse<T: FromStr<Err = Error>>(text: &str) -> Result<T, String> {
    text.parse().map_err(with_hint)
}

/// What clap shows of an error; it has no place for a hint.
fn with_hint(error: Error) -> String {
    match error.hint() {
        Some(hint) => format!("{} ({hint})", error.message()),
        None => error.message().to_owned(),
    }
}
