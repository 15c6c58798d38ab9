//! The format inspector, on hostile bytes: no panic, the same report in any chunks, and nothing that was
//! certain early is taken back.

#![no_main]

use libfuzzer_sys::fuzz_target;
use store_core::inspect::{Format, Inspector, Report};

// Inputs are a list of (gap, length) and the bytes that go there: headers are far apart, and a fuzzer does
// not come up with a megabyte of zeros by itself.
fuzz_target!(|input: &[u8]| {
    let pieces = pieces(input);
    let whole = whole(&pieces);
    for chunk in [1, 511, 4096, 70_001] {
        assert_eq!(in_chunks(&pieces, chunk), whole, "chunks of {chunk}");
    }
});

fn pieces(mut input: &[u8]) -> Vec<(u64, &[u8])> {
    let mut pieces = Vec::new();
    while let Some((&[unit, units, low, high], rest)) = input.split_first_chunk() {
        let len = usize::from(u16::from_le_bytes([low, high])).min(rest.len());
        let (bytes, rest) = rest.split_at(len);
        // Gaps in bytes, sectors, or blocks of 64 KiB.
        let gap = u64::from(units) << [0, 9, 16][usize::from(unit % 3)];
        pieces.push((gap, bytes));
        input = rest;
    }
    pieces
}

/// Gaps as runs, pieces at once.
fn whole(pieces: &[(u64, &[u8])]) -> Report {
    let mut inspector = Inspector::new();
    for &(gap, bytes) in pieces {
        inspector.push_zeros(gap);
        inspector.push(bytes);
    }
    inspector.finish()
}

/// Gaps and pieces in chunks of `size`.
fn in_chunks(pieces: &[(u64, &[u8])], size: usize) -> Report {
    let mut inspector = Inspector::new();
    let mut refused = Vec::new();
    for &(gap, bytes) in pieces {
        inspector.push_zeros(gap / 2);
        inspector.push_zeros(gap - gap / 2);
        bytes.chunks(size).for_each(|chunk| inspector.push(chunk));
        let peek = inspector.peek();
        let declared = Format::ALL.into_iter().filter(|format| !peek.violations(Some(*format)).is_empty());
        refused.extend(declared);
    }
    let report = inspector.finish();
    for declared in refused {
        assert!(!report.violations(Some(declared)).is_empty(), "{declared} was refused and then was not");
    }
    report
}
