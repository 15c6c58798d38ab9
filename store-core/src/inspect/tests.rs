//! What holds for every format, and the helpers of the formats' own tests.

use std::sync::LazyLock;

use proptest::{prelude::*, sample::Index};

use super::*;

/// Overwrites spans of `bytes`.
pub(super) fn put(bytes: &mut [u8], edits: &[(usize, &[u8])]) {
    for (at, with) in edits {
        bytes[*at..at + with.len()].copy_from_slice(with);
    }
}

pub(super) fn inspect(bytes: &[u8]) -> Report {
    let mut inspector = Inspector::new();
    inspector.push(bytes);
    inspector.finish()
}

pub(super) fn rules(bytes: &[u8]) -> Vec<Rule> {
    inspect(bytes).findings.iter().map(|finding| finding.rule).collect()
}

pub(super) fn has(report: &Report, rule: Rule) -> bool {
    report.findings.iter().any(|finding| finding.rule == rule)
}

/// A valid image of each kind.
static SAMPLES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let mut padded_text = vmdk::tests::DESCRIPTOR.as_bytes().to_vec();
    padded_text.resize(2 << 20, b'\n');
    vec![
        vec![],
        vec![7; 4096],
        qcow2::tests::image(&[], &[(0x6803_f857, &[0; 96]), (0x1234, b"x")]),
        vmdk::tests::sparse(vmdk::tests::DESCRIPTOR, &[]),
        vmdk::tests::stream_optimised(&[]),
        vmdk::tests::DESCRIPTOR.into(),
        padded_text,
        vhdx::tests::build(vhdx::tests::parts()),
        vhd::tests::dynamic(&[], &[]),
        vhd::tests::fixed(&partition::tests::mbr(&[]), &[]),
        vdi::tests::image(&[]),
        luks::tests::image(&[]),
        iso::tests::image(&[]),
        partition::tests::mbr(&[]),
        partition::tests::gpt(512, &[]),
        partition::tests::gpt(4096, &[]),
    ]
});

/// A valid image with some bytes changed, mostly where headers are, and perhaps cut short.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let place = prop_oneof![0..600usize, 0..70_000usize, Just(192 << 10), (2usize << 20)..(2 << 20) + 70_000];
    let edits = prop::collection::vec((place, any::<u8>()), 0..12);
    let cut = prop::option::weighted(0.3, any::<Index>());
    (prop::sample::select(SAMPLES.as_slice()), edits, cut).prop_map(|(mut bytes, edits, cut)| {
        for (at, byte) in edits {
            if let Some(target) = bytes.get_mut(at) {
                *target = byte;
            }
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len() + 1));
        }
        bytes
    })
}

fn in_chunks(bytes: &[u8], sizes: &[usize]) -> Report {
    let mut inspector = Inspector::new();
    let mut rest = bytes;
    for &size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (now, later) = rest.split_at(size.min(rest.len()));
        let before = inspector.peek();
        inspector.push(now);
        assert!(before.formats.iter().all(|format| inspector.peek().formats.contains(format)));
        rest = later;
    }
    inspector.finish()
}

/// Feeds runs of zeros as runs.
fn sparsely(bytes: &[u8]) -> Report {
    let mut inspector = Inspector::new();
    for run in bytes.chunk_by(|a, b| (*a == 0) == (*b == 0)) {
        match run.first() {
            Some(0) => inspector.push_zeros(run.len() as u64),
            _ => inspector.push(run),
        }
    }
    inspector.finish()
}

/// What is refused early is refused in the end, for the same rules.
fn check_peeks(bytes: &[u8], step: usize) {
    let report = inspect(bytes);
    let mut inspector = Inspector::new();
    for chunk in bytes.chunks(step) {
        inspector.push(chunk);
        assert!(inspector.memory() <= 5 << 18, "{} bytes captured", inspector.memory());
        let peek = inspector.peek();
        for declared in Format::ALL.map(Some).into_iter().chain([None]) {
            let last: Vec<_> = report.violations(declared).into_iter().map(|finding| finding.rule).collect();
            for early in peek.violations(declared) {
                assert!(last.contains(&early.rule), "{early} as {declared:?} was taken back: {last:?}");
            }
        }
    }
}

#[test]
fn every_sample_is_the_same_in_any_chunks_and_as_zeros() {
    for bytes in SAMPLES.iter() {
        let whole = inspect(bytes);
        for sizes in [&[1usize][..], &[511, 3], &[512], &[4096, 1, 70_001], &[1 << 20]] {
            if sizes != [1] || bytes.len() < 1 << 18 {
                assert_eq!(in_chunks(bytes, sizes), whole, "chunks of {sizes:?}");
            }
        }
        assert_eq!(sparsely(bytes), whole);
        check_peeks(bytes, 9973);
    }
}

#[test]
fn a_hostile_upload_is_known_by_its_first_sector() {
    let image = qcow2::tests::image(&[(79, &[4])], &[]);
    let mut inspector = Inspector::new();
    inspector.push(&image[..511]);
    assert_eq!(inspector.peek().violations(Some(Format::Raw)), []);
    inspector.push(&image[511..512]);
    let found: Vec<_> = inspector.peek().violations(Some(Format::Raw)).iter().map(|f| f.rule).collect();
    assert_eq!(found, [Rule::ExternalDataFile, Rule::FormatMismatch]);
}

#[test]
fn what_cannot_come_any_more_is_refused_early() {
    let mut inspector = Inspector::new();
    inspector.push(&[7; 600]);
    assert!(!inspector.peek().violations(Some(Format::Qcow2)).is_empty());
    assert!(inspector.peek().violations(Some(Format::Iso)).is_empty());
    assert!(inspector.peek().violations(Some(Format::Raw)).is_empty());
    inspector.push_zeros(1 << 40);
    assert!(!inspector.peek().violations(Some(Format::Iso)).is_empty());
    assert!(inspector.peek().violations(Some(Format::Vhd)).is_empty());
    assert_eq!(inspector.finish().size, (1 << 40) + 600);
}

#[test]
fn two_signatures_are_ambiguous() {
    let mut bytes = qcow2::tests::image(&[], &[]);
    put(&mut bytes, &[(32769, b"CD001"), (32768, &[1])]);
    let report = inspect(&bytes);
    assert_eq!((report.format, &report.also[..]), (Format::Qcow2, &[Format::Iso][..]));
    assert!(has(&report, Rule::Ambiguous));
    for declared in Format::ALL {
        assert!(!report.violations(Some(declared)).is_empty(), "{declared}");
    }
}

#[test]
fn an_endless_hole_costs_nothing() {
    let mut inspector = Inspector::new();
    inspector.push(&qcow2::tests::image(&[], &[]));
    inspector.push_zeros(u64::MAX);
    inspector.push_zeros(u64::MAX);
    assert!(inspector.memory() < 1 << 20);
    assert_eq!(inspector.finish().size, u64::MAX);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_chunks_give_the_same_report(bytes in mutated(), sizes in prop::collection::vec(1..100_000usize, 1..8)) {
        let whole = inspect(&bytes);
        prop_assert_eq!(in_chunks(&bytes, &sizes), whole.clone());
        prop_assert_eq!(sparsely(&bytes), whole);
    }

    #[test]
    fn what_was_certain_stays_and_memory_is_bounded(bytes in mutated(), step in 20_000..300_000usize) {
        check_peeks(&bytes, step);
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000), sample in any::<Index>()) {
        inspect(&bytes);
        // Random headers behind each real signature.
        let mut image = SAMPLES[sample.index(SAMPLES.len())].clone();
        let at = 8.min(image.len());
        let end = (at + bytes.len()).min(image.len());
        image[at..end].copy_from_slice(&bytes[..end - at]);
        let whole = inspect(&image);
        prop_assert_eq!(in_chunks(&image, &[777]), whole);
    }
}
