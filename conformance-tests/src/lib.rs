#![doc = include_str!("../README.md")]

mod case;
mod cases;
mod fixture;
mod flaky;
mod proxy;
mod report;
mod runner;
pub mod source;

pub mod wrong;

pub use case::{Abilities, Case, Failure, Group, Need, Outcome};
pub use cases::all;
pub use fixture::{Damage, Fault, FaultKind, Fixture, HookResult};
pub use flaky::Flaky;
pub use proxy::Proxy;
pub use report::{CaseReport, Report, Verdict};
pub use runner::{CheckOptions, REQUIRED, SLOW, Setup, Suites, check, execute, is_required, run};
