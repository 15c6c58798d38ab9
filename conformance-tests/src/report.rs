//! What came of a run, for people and for programs.

use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::{Case, Failure, Group, Outcome};

/// What came of all cases.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// How many hold.
    pub passed: usize,
    /// How many do not.
    pub failed: usize,
    /// How many could not be tried.
    pub ignored: usize,
    /// Whether the run was stopped before its end, by `CheckOptions::stop`.
    pub stopped: bool,
    /// Each of them, in the order of the run.
    pub cases: Vec<CaseReport>,
}

impl Report {
    /// Whether no case failed.
    pub fn is_success(&self) -> bool {
        self.failed == 0
    }

    pub(crate) fn push(&mut self, case: CaseReport) {
        match case.verdict {
            Verdict::Passed => self.passed += 1,
            Verdict::Failed { .. } => self.failed += 1,
            Verdict::Ignored { .. } => self.ignored += 1,
        }
        self.cases.push(case);
    }
}

/// What came of one case.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct CaseReport {
    /// The property.
    pub name: &'static str,
    /// What it is about.
    pub group: Group,
    /// The numbers of the guarantees that it proves.
    pub proves: &'static [u8],
    /// Whether it holds.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// How long that took to find out; in seconds where serialised.
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub duration: Duration,
}

/// Whether a property holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Verdict {
    /// It does.
    Passed,
    /// It does not.
    Failed {
        /// What happened instead.
        reason: String,
    },
    /// It could not be tried.
    Ignored {
        /// What is missing.
        reason: String,
    },
}

impl CaseReport {
    pub(crate) fn new(case: &Case, outcome: Outcome, duration: Duration) -> Self {
        let verdict = match outcome {
            Ok(()) => Verdict::Passed,
            Err(Failure::Broken(reason)) => Verdict::Failed { reason },
            Err(Failure::NothingToTry(reason)) => Verdict::Ignored { reason },
        };
        Self { name: case.name, group: case.group, proves: case.proves, verdict, duration }
    }
}

fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((duration.as_secs_f64() * 1000.0).round() / 1000.0)
}
