//! LUKS, as in the LUKS1 On-Disk Format Specification 1.2.3 and the LUKS2 one. Big-endian.
//!
//! An image of this format is encrypted by intent, so that alone is no finding.

use super::{
    Format, Rule,
    capture::{Read, View},
    field::{be16, be32, be64},
    finding::{Seen, Verdict},
};

const MAGIC: &[u8] = b"LUKS\xba\xbe";
const SECTOR: u64 = 512;
const HEADER_V1: usize = 592;
const KEY_SLOTS_V1: usize = 8;
const KEY_SLOT_ACTIVE: u32 = 0x00ac_71f3;

pub(super) fn examine(view: &View<'_>) -> Seen {
    let Read::Bytes(head) = view.read(0, HEADER_V1) else { return Seen::NotYet };
    if !head.starts_with(MAGIC) {
        return Seen::No;
    }
    let mut verdict = Verdict::new(Format::Luks);
    let checked = match be16(head, 6) {
        Some(1) => check_v1(head, view.size(), &mut verdict),
        Some(2) => check_v2(head, view.size(), &mut verdict),
        Some(other) => {
            verdict.find(Rule::UnsupportedVersion, format!("LUKS version {other}"));
            Some(())
        }
        None => None,
    };
    if checked.is_none() {
        verdict.find(Rule::Truncated, "the file ends inside its header");
    }
    Seen::Yes(verdict)
}

fn check_v1(head: &[u8], file_size: Option<u64>, verdict: &mut Verdict) -> Option<()> {
    let payload = u64::from(be32(head, 104)?) * SECTOR;
    for slot in 0..KEY_SLOTS_V1 {
        let at = 208 + 48 * slot;
        let key_material = u64::from(be32(head, at + 40)?) * SECTOR;
        let overlaps = key_material < HEADER_V1 as u64 || payload != 0 && key_material >= payload;
        if be32(head, at)? == KEY_SLOT_ACTIVE && overlaps {
            verdict.find(Rule::Malformed, format!("the key of slot {slot} is not before the payload"));
        }
    }
    // A payload at 0 is on another device: the header is detached.
    match file_size.map(|size| size.checked_sub(payload)) {
        _ if payload == 0 => verdict.find(Rule::Truncated, "a detached header, without its payload"),
        Some(None) => verdict.find(Rule::Truncated, format!("the payload at {payload} is beyond the end")),
        Some(size) => verdict.set_virtual_size(size),
        None => {}
    }
    Some(())
}

/// The payload's offset is in a JSON text, and its size may be; neither is told here.
fn check_v2(head: &[u8], file_size: Option<u64>, verdict: &mut Verdict) -> Option<()> {
    let header_size = be64(head, 8)?;
    let header_offset = be64(head, 256)?;
    if !header_size.is_power_of_two() || !(16 << 10..=4 << 20).contains(&header_size) || header_offset != 0 {
        verdict.find(Rule::Malformed, format!("a header of {header_size} bytes at {header_offset}"));
    }
    // Each header is there twice.
    if file_size.is_some_and(|size| header_size.saturating_mul(2) > size) {
        verdict.find(Rule::Truncated, "the file ends inside its headers");
    }
    Some(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::{super::tests::*, *};

    /// A version 1 container of 4 MiB whose payload is at 2 MiB, with its `edits` made.
    pub(in super::super) fn image(edits: &[(usize, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; 4 << 20];
        let fields: [(usize, &[u8]); 5] = [
            (0, MAGIC),
            (7, &[1]),
            (104, &4096u32.to_be_bytes()),
            (208, &KEY_SLOT_ACTIVE.to_be_bytes()),
            (248, &8u32.to_be_bytes()),
        ];
        put(&mut bytes, &fields);
        put(&mut bytes, edits);
        bytes
    }

    #[test]
    fn version_1_knows_its_size_at_the_end_only() {
        let report = inspect(&image(&[]));
        assert_eq!(
            (report.format, report.virtual_size, report.findings),
            (Format::Luks, Some(2 << 20), vec![])
        );
        let report = inspect(&image(&[])[..1 << 20]);
        assert_eq!((report.virtual_size, has(&report, Rule::Truncated)), (None, true));
        let report = inspect(&image(&[])[..2 << 20]);
        assert_eq!((report.virtual_size, report.findings), (Some(0), vec![]));
    }

    #[test]
    fn hostile_fields_have_their_rules() {
        assert_eq!(rules(&image(&[(7, &[3])])), [Rule::UnsupportedVersion]);
        assert_eq!(rules(&image(&[(104, &[0; 4])])), [Rule::Truncated]);
        assert_eq!(rules(&image(&[(248, &4096u32.to_be_bytes())])), [Rule::Malformed]);
        assert_eq!(rules(&image(&[(248, &[0; 4])])), [Rule::Malformed]);
        assert_eq!(rules(&image(&[])[..300]), [Rule::Truncated]);
    }

    #[test]
    fn version_2_is_recognised_without_a_size() {
        let v2 = [(7, &[2][..]), (8, &(16u64 << 10).to_be_bytes()), (104, &[0; 4]), (208, &[0; 4])];
        let report = inspect(&image(&v2));
        assert_eq!((report.format, report.virtual_size, report.findings), (Format::Luks, None, vec![]));
        assert_eq!(rules(&image(&v2)[..20 << 10]), [Rule::Truncated]);
        assert_eq!(rules(&image(&[(7, &[2]), (8, &[1])])), [Rule::Malformed, Rule::Truncated]);
    }
}
