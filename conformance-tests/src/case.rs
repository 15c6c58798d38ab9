//! What a case is, and what it may ask of the storage.

use std::fmt;

use futures::future::BoxFuture;
use serde::Serialize;
use store_core::{Capabilities, ErrorKind};

use crate::{FaultKind, Fixture};

/// One property that every storage has to have, and the code that finds out whether it does.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Case {
    /// The property, as a sentence in snake case. No two cases share one.
    pub name: &'static str,
    /// What it is about.
    pub group: Group,
    /// The guarantees that it proves, by their numbers in the README.
    pub proves: &'static [u8],
    /// What it cannot do without; where one of them is missing, the case is shown as ignored.
    pub needs: &'static [Need],
    pub(crate) run: for<'a> fn(&'a Fixture) -> BoxFuture<'a, Outcome>,
}

impl Case {
    /// Group and name, as in a report: `range::every_form_of_range_yields_its_bytes`.
    pub fn title(&self) -> String {
        format!("{}::{}", self.group, self.name)
    }

    /// The first need that is not met by `abilities`.
    pub fn unmet(&self, abilities: &Abilities) -> Option<Need> {
        self.needs.iter().copied().find(|need| !need.is_met(abilities))
    }

    /// Whether it moves gigabytes.
    pub fn is_slow(&self) -> bool {
        self.needs.contains(&Need::Patience)
    }

    /// Whether it needs the whole storage for itself: it sweeps, or counts what is there.
    pub fn needs_empty(&self) -> bool {
        self.needs.contains(&Need::Empty)
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Case({})", self.title())
    }
}

/// What a case is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Group {
    /// What goes in comes out.
    Roundtrip,
    /// Parts of a blob.
    Range,
    /// All or nothing, once.
    Commit,
    /// Nothing stays behind.
    Leftovers,
    /// What `list` shows.
    Listing,
    /// Errors that a program can act on.
    Errors,
    /// Many at once.
    Concurrency,
    /// A storage that goes away.
    Faults,
    /// Copies within a store.
    Copy,
    /// What a blob says of itself.
    Metadata,
    /// Abilities are as declared, damage is noticed.
    Honesty,
}

impl Group {
    /// Its name in snake case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Roundtrip => "roundtrip",
            Self::Range => "range",
            Self::Commit => "commit",
            Self::Leftovers => "leftovers",
            Self::Listing => "listing",
            Self::Errors => "errors",
            Self::Concurrency => "concurrency",
            Self::Faults => "faults",
            Self::Copy => "copy",
            Self::Metadata => "metadata",
            Self::Honesty => "honesty",
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something that a case cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Need {
    /// Uploads.
    Write,
    /// That uploads are not declared.
    NoWrite,
    /// Blobs to read: uploads, or the fixture's `seed` hook.
    Blobs,
    /// `delete`.
    Delete,
    /// That `delete` is not declared.
    NoDelete,
    /// `list`.
    List,
    /// That `list` is not declared.
    NoList,
    /// `capacity`.
    Capacity,
    /// That `capacity` is not declared.
    NoCapacity,
    /// Metadata kept with the bytes.
    Metadata,
    /// That metadata is not declared.
    NoMetadata,
    /// That rivals are told apart by the storage itself.
    AtomicCreate,
    /// URLs for those who have no access.
    Presign,
    /// That such URLs are not declared.
    NoPresign,
    /// Staged uploads that outlive their process.
    Staging,
    /// That staged uploads do not outlive their process.
    NoStaging,
    /// Holes.
    Holes,
    /// A storage that holds nothing else.
    Empty,
    /// A store whose options the case may choose.
    Options,
    /// Digests compared on every full read.
    VerifiedReads,
    /// An inspector that looks at declared formats.
    Inspection,
    /// A capacity that changes only by what the case does.
    ExactCapacity,
    /// So many transfers at once.
    Transfers(u32),
    /// Room for a blob of so many bytes.
    Size(u64),
    /// Time: gigabytes are moved.
    Patience,
    /// The fixture's `fault` hook, with this fault.
    Fault(FaultKind),
    /// The fixture's `damage` hook.
    Damage,
    /// The fixture's `crash` hook.
    Crash,
}

impl Need {
    /// Whether `abilities` have it.
    pub fn is_met(self, abilities: &Abilities) -> bool {
        let can = &abilities.can;
        match self {
            Self::Write => can.write,
            Self::NoWrite => !can.write,
            Self::Blobs => can.write || abilities.seed,
            Self::Delete => can.delete,
            Self::NoDelete => !can.delete,
            Self::List => can.list,
            Self::NoList => !can.list,
            Self::Capacity => can.capacity,
            Self::NoCapacity => !can.capacity,
            Self::Metadata => can.metadata,
            Self::NoMetadata => !can.metadata,
            Self::AtomicCreate => can.atomic_create,
            Self::Presign => can.presign,
            Self::NoPresign => !can.presign,
            Self::Staging => can.staging,
            Self::NoStaging => !can.staging,
            Self::Holes => abilities.hole.is_some(),
            Self::Empty => abilities.empty,
            Self::Options => abilities.options,
            Self::VerifiedReads => abilities.verified_reads,
            Self::Inspection => abilities.inspection,
            Self::ExactCapacity => can.capacity && abilities.exact_capacity,
            Self::Transfers(wanted) => abilities.transfers.is_none_or(|most| most >= wanted),
            Self::Size(wanted) => abilities.max_size.is_none_or(|most| most >= wanted),
            Self::Patience => abilities.patience,
            Self::Fault(kind) => abilities.faults.contains(&kind),
            Self::Damage => abilities.damage,
            Self::Crash => abilities.crash,
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Write => "uploads",
            Self::NoWrite => "a store without uploads",
            Self::Blobs => "uploads or a seed hook",
            Self::Delete => "deletion",
            Self::NoDelete => "a store without deletion",
            Self::List => "a list",
            Self::NoList => "a store without a list",
            Self::Capacity => "a known capacity",
            Self::NoCapacity => "a store of unknown capacity",
            Self::Metadata => "metadata",
            Self::NoMetadata => "a store without metadata",
            Self::AtomicCreate => "atomic creation",
            Self::Presign => "presigned URLs",
            Self::NoPresign => "a store without presigned URLs",
            Self::Staging => "staged uploads",
            Self::NoStaging => "a store without staged uploads",
            Self::Holes => "holes",
            Self::Empty => "an empty storage",
            Self::Options => "options of its own",
            Self::VerifiedReads => "verified reads",
            Self::Inspection => "format inspection",
            Self::ExactCapacity => "an exact capacity",
            Self::Transfers(wanted) => return write!(f, "{wanted} transfers at once"),
            Self::Size(bytes) => return write!(f, "blobs of {}", store_core::Size(*bytes)),
            Self::Patience => "time",
            Self::Fault(kind) => return write!(f, "a fault hook that can {kind}"),
            Self::Damage => "a damage hook",
            Self::Crash => "a crash hook",
        };
        f.write_str(text)
    }
}

/// What a storage and the fixture around it can do: what the needs of a case are held against.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Abilities {
    /// What the backend declares.
    pub can: Capabilities,
    /// The granularity of holes, where it has them.
    pub hole: Option<u64>,
    /// Nothing else is, or comes, into the storage.
    pub empty: bool,
    /// Cases may open stores with options of their own.
    pub options: bool,
    /// Full reads are compared with a digest.
    pub verified_reads: bool,
    /// Declared formats are inspected.
    pub inspection: bool,
    /// Nobody else uses the space that `capacity` measures.
    pub exact_capacity: bool,
    /// The most transfers at once, where limited.
    pub transfers: Option<u32>,
    /// The largest blob, where limited.
    pub max_size: Option<u64>,
    /// Slow cases are wanted.
    pub patience: bool,
    /// Blobs can be put there without an upload.
    pub seed: bool,
    /// What the fault hook can do.
    pub faults: Vec<FaultKind>,
    /// There is a damage hook.
    pub damage: bool,
    /// There is a crash hook.
    pub crash: bool,
}

/// What came of one case.
pub type Outcome = Result<(), Failure>;

/// Why a case did not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failure {
    /// The storage breaks a promise.
    Broken(String),
    /// Only the run itself could tell that there is nothing to try here.
    NothingToTry(String),
}

impl Failure {
    /// A broken promise.
    pub fn broken(what: impl Into<String>) -> Self {
        Self::Broken(what.into())
    }

    /// The same, with the place where it happened in front.
    #[must_use]
    pub fn at(self, place: impl fmt::Display) -> Self {
        match self {
            Self::Broken(what) => Self::Broken(format!("{place}: {what}")),
            nothing => nothing,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(what) => f.write_str(what),
            Self::NothingToTry(why) => write!(f, "nothing to try: {why}"),
        }
    }
}

impl std::error::Error for Failure {}

impl From<store_core::Error> for Failure {
    /// For `?` on calls that must work.
    fn from(error: store_core::Error) -> Self {
        Self::Broken(format!("this must work, but: {error} ({})", error.kind()))
    }
}

/// Fails unless a condition holds.
macro_rules! ensure {
    ($holds:expr, $($message:tt)+) => {
        if !$holds {
            return Err($crate::Failure::Broken(format!($($message)+)));
        }
    };
}
pub(crate) use ensure;

/// Fails unless `outcome` is an error of `kind`; `call` says what was tried.
pub(crate) fn refused<T>(
    call: &str,
    outcome: store_core::Result<T>,
    kind: ErrorKind,
) -> Result<store_core::Error, Failure> {
    refused_as(call, outcome, &[kind])
}

/// Fails unless `outcome` is an error of one of `kinds`.
pub(crate) fn refused_as<T>(
    call: &str,
    outcome: store_core::Result<T>,
    kinds: &[ErrorKind],
) -> Result<store_core::Error, Failure> {
    let wanted = kinds.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
    match outcome {
        Ok(_) => Err(Failure::Broken(format!("{call} must fail with {wanted}, but works"))),
        Err(error) if kinds.contains(&error.kind()) => Ok(error),
        Err(error) => Err(Failure::Broken(format!(
            "{call} must fail with {wanted}, but fails with {}: {error}",
            error.kind()
        ))),
    }
}

/// The table of a group's cases: name, numbers of the guarantees that it proves, needs.
macro_rules! cases {
    ($group:ident: $($name:ident proves [$($proves:literal),*] needs [$($need:expr),* $(,)?];)*) => {
        pub(super) const CASES: &[$crate::Case] = &[$($crate::Case {
            name: stringify!($name),
            group: $crate::Group::$group,
            proves: &[$($proves),*],
            needs: {
                #[allow(unused_imports)]
                use $crate::{FaultKind::*, Need::*};
                &[$($need),*]
            },
            run: |fixture| Box::pin($name(fixture)),
        }),*];
    };
}
pub(crate) use cases;
