//! Partition tables of raw disks: GPT (UEFI Specification, chapter 5) and the PC's MBR. Little-endian.
//!
//! Whatever is wrong with a table is a note only: the disk is raw all the same, and every reader knows that.

use super::{
    Format, Rule,
    capture::{Read, View},
    field::{CRC32, crc, le16, le32, le64},
    finding::{Seen, Verdict},
};

const SIGNATURE_OFFSET: usize = 510;
const SIGNATURE: u16 = 0xaa55;
const ENTRIES_OFFSET: usize = 446;
const ENTRY: usize = 16;
const TYPE_PROTECTIVE: u8 = 0xee;

const GPT_SIGNATURE: &[u8] = b"EFI PART";
const GPT_HEADER: usize = 92;

pub(super) fn examine(view: &View<'_>) -> Seen {
    let Read::Bytes(sector) = view.read(0, 512) else { return Seen::NotYet };
    let mbr = Mbr::parse(sector);
    let gpt =
        [512, 4096].into_iter().try_fold(None, |found, sector_size| match view.read(sector_size, 512) {
            Read::Bytes(header) => Ok(found.or_else(|| Gpt::parse(header, sector_size))),
            Read::Later | Read::Missed => Err(()),
        });
    let Ok(gpt) = gpt else { return Seen::NotYet };
    let mut verdict = match (&gpt, &mbr) {
        (Some(_), _) => Verdict::new(Format::Gpt),
        (None, Some(_)) => Verdict::new(Format::Mbr),
        (None, None) => return Seen::No,
    };
    if let Some(size) = view.size() {
        verdict.set_virtual_size(Some(size));
    }
    match (gpt, mbr) {
        (Some(gpt), mbr) => gpt.check(mbr, view.size(), &mut verdict),
        (None, Some(mbr)) if mbr.protective > 0 => {
            verdict.find(Rule::PartitionTable, "a protective MBR with no GPT to protect");
        }
        (None, _) => {}
    }
    Seen::Yes(verdict)
}

/// A PC partition table, by its count of entries.
struct Mbr {
    used: usize,
    protective: usize,
}

impl Mbr {
    /// The signature ends every boot sector, so the entries have to make sense as well.
    fn parse(sector: &[u8]) -> Option<Self> {
        let entries = sector.get(ENTRIES_OFFSET..SIGNATURE_OFFSET)?;
        if le16(sector, SIGNATURE_OFFSET) != Some(SIGNATURE) || is_fat(sector) {
            return None;
        }
        let plausible = entries.chunks(ENTRY).all(|entry| matches!(entry.first(), Some(0x00 | 0x80)));
        let types = || entries.chunks(ENTRY).filter_map(|entry| entry.get(4)).filter(|kind| **kind != 0);
        let mbr =
            Self { used: types().count(), protective: types().filter(|k| **k == TYPE_PROTECTIVE).count() };
        (plausible && mbr.used > 0).then_some(mbr)
    }
}

/// A FAT boot sector: its count of FATs and its media descriptor, as Glance's inspector tells it.
fn is_fat(sector: &[u8]) -> bool {
    sector.get(0x10) == Some(&2) && sector.get(0x15) == Some(&0xf8)
}

/// A GPT header.
struct Gpt {
    sector_size: u64,
    alternate_lba: u64,
    checksum_fits: bool,
}

impl Gpt {
    fn parse(header: &[u8], sector_size: u64) -> Option<Self> {
        let len = le32(header, 12)? as usize;
        if !header.starts_with(GPT_SIGNATURE) || len < GPT_HEADER || le64(header, 24)? != 1 {
            return None;
        }
        let computed = crc(&CRC32, &[header.get(..16)?, &[0; 4], header.get(20..len)?]);
        let checksum_fits = le32(header, 16)? == computed;
        Some(Self { sector_size, alternate_lba: le64(header, 32)?, checksum_fits })
    }

    fn check(&self, mbr: Option<Mbr>, file_size: Option<u64>, verdict: &mut Verdict) {
        if !self.checksum_fits {
            verdict.find(Rule::PartitionTable, "the GPT header's checksum is wrong");
        }
        match mbr {
            Some(Mbr { used: 1, protective: 1 }) => {}
            Some(Mbr { used, .. }) => {
                verdict.find(Rule::PartitionTable, format!("a GPT with an MBR of {used} partitions"));
            }
            None => verdict.find(Rule::PartitionTable, "a GPT without a protective MBR"),
        }
        let end = self.alternate_lba.saturating_add(1).saturating_mul(self.sector_size);
        if file_size.is_some_and(|size| end > size) {
            verdict.find(Rule::PartitionTable, "the backup GPT is beyond the end");
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::{super::tests::*, *};

    /// A disk of 64 KiB with one Linux partition.
    pub(in super::super) fn mbr(edits: &[(usize, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; 64 << 10];
        put(&mut bytes, &[(446, &[0x80]), (450, &[0x83]), (454, &[1]), (458, &[127]), (510, b"\x55\xaa")]);
        put(&mut bytes, edits);
        bytes
    }

    /// A disk of 64 KiB with an empty GPT.
    pub(in super::super) fn gpt(sector_size: usize, edits: &[(usize, &[u8])]) -> Vec<u8> {
        let mut header = vec![0; GPT_HEADER];
        let last = (64 << 10) / sector_size as u64 - 1;
        let fields: [(usize, &[u8]); 4] =
            [(0, GPT_SIGNATURE), (12, &[GPT_HEADER as u8]), (24, &[1]), (32, &last.to_le_bytes())];
        put(&mut header, &fields);
        let checksum = crc(&CRC32, &[&header]);
        put(&mut header, &[(16, &checksum.to_le_bytes())]);
        let mut bytes = mbr(&[(446, &[0]), (450, &[TYPE_PROTECTIVE])]);
        put(&mut bytes, &[(sector_size, &header)]);
        put(&mut bytes, edits);
        bytes
    }

    #[test]
    fn an_mbr_needs_plausible_partitions() {
        let report = inspect(&mbr(&[]));
        assert_eq!(
            (report.format, report.virtual_size, report.findings),
            (Format::Mbr, Some(64 << 10), vec![])
        );
        for (at, bytes) in [(446, &[0x81][..]), (462, &[0x7f]), (450, &[0]), (511, &[0])] {
            assert_eq!(inspect(&mbr(&[(at, bytes)])).format, Format::Raw, "{bytes:?} at {at}");
        }
        assert_eq!(inspect(&mbr(&[(0x10, &[2]), (0x15, &[0xf8])])).format, Format::Raw);
        assert_eq!(inspect(&mbr(&[(0x10, &[2])])).format, Format::Mbr);
        assert_eq!(inspect(&mbr(&[])[..512]).format, Format::Mbr);
    }

    #[test]
    fn a_gpt_is_verified_in_both_sector_sizes() {
        for sector_size in [512, 4096] {
            let report = inspect(&gpt(sector_size, &[]));
            assert_eq!((report.format, report.findings), (Format::Gpt, vec![]), "{sector_size}");
        }
        let report = inspect(&gpt(512, &[(512, b"e")]));
        assert_eq!((report.format, has(&report, Rule::PartitionTable)), (Format::Mbr, true));
    }

    #[test]
    fn flaws_of_a_table_are_notes() {
        for edit in [(620, &[1][..]), (560, &[1]), (466, &[0x83]), (511, &[0]), (450, &[0x83])] {
            let report = inspect(&gpt(512, &[edit]));
            let is_padding = edit.0 == 620;
            assert_eq!(report.format, Format::Gpt);
            assert_eq!(has(&report, Rule::PartitionTable), !is_padding, "{edit:?}");
            assert_eq!(report.violations(Some(Format::Raw)), []);
        }
        assert!(has(&inspect(&gpt(512, &[])[..32 << 10]), Rule::PartitionTable));
    }
}
