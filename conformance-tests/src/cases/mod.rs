//! The cases, by group.

mod commit;
mod concurrency;
mod copy;
mod errors;
mod faults;
mod honesty;
mod leftovers;
mod listing;
mod metadata;
mod range;
mod roundtrip;

use crate::Case;

/// Every case there is, in the order in which they are run.
pub fn all() -> impl Iterator<Item = &'static Case> {
    let groups = [
        roundtrip::CASES,
        range::CASES,
        commit::CASES,
        leftovers::CASES,
        listing::CASES,
        errors::CASES,
        concurrency::CASES,
        copy::CASES,
        metadata::CASES,
        honesty::CASES,
        faults::CASES,
    ];
    groups.into_iter().flatten()
}
