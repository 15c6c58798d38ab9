//! Optical discs: ISO 9660 (ECMA-119) and UDF (ECMA-167 part 2, OSTA UDF). The volume recognition sequence
//! starts at 32 KiB, one descriptor per sector of 2 KiB: a kind, an identifier of five letters, a version.

use super::{
    Format, Rule,
    capture::{Read, View},
    field::{le16, le32},
    finding::{Seen, Verdict},
};

const START: u64 = 32 << 10;
const SECTOR: usize = 2048;
/// A disc has a handful of descriptors, boot record and terminator included.
const MAX_SECTORS: usize = 16;
const KIND_PRIMARY: u8 = 1;

pub(super) fn examine(view: &View<'_>) -> Seen {
    let Read::Bytes(area) = view.read(START, SECTOR * MAX_SECTORS) else { return Seen::NotYet };
    let descriptors = || area.chunks(SECTOR).filter_map(|sector| Some((sector, sector.get(1..6)?)));
    let is_iso9660 = descriptors().next().is_some_and(|(_, id)| id == b"CD001");
    let is_udf = descriptors().any(|(_, id)| id == b"NSR02" || id == b"NSR03");
    if !is_iso9660 && !is_udf {
        return Seen::No;
    }
    let mut verdict = Verdict::new(Format::Iso);
    let primary = descriptors().find(|(sector, id)| *id == b"CD001" && sector.first() == Some(&KIND_PRIMARY));
    match primary {
        Some((sector, _)) => check_volume(sector, view.size(), &mut verdict),
        // A disc of UDF alone has its size in structures found by way of the end.
        None if is_udf => {}
        None => verdict.find(Rule::Malformed, "no primary volume descriptor"),
    }
    Seen::Yes(verdict)
}

fn check_volume(sector: &[u8], file_size: Option<u64>, verdict: &mut Verdict) {
    let (Some(blocks), Some(block_size)) = (le32(sector, 80), le16(sector, 128)) else {
        verdict.find(Rule::Truncated, "the file ends inside its volume descriptor");
        return;
    };
    let size = u64::from(blocks) * u64::from(block_size);
    verdict.set_virtual_size(Some(size));
    if file_size.is_some_and(|file_size| size > file_size) {
        verdict.find(Rule::Truncated, format!("a volume of {size} bytes"));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::{super::tests::*, *};

    /// A disc of 128 KiB with a primary volume descriptor, with its `edits` made.
    pub(in super::super) fn image(edits: &[(usize, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; 128 << 10];
        let primary = 16 * SECTOR;
        let fields: [(usize, &[u8]); 4] = [
            (primary, b"\x01CD001\x01"),
            (primary + 80, &64u32.to_le_bytes()),
            (primary + 128, &2048u16.to_le_bytes()),
            (primary + SECTOR, b"\xffCD001\x01"),
        ];
        put(&mut bytes, &fields);
        put(&mut bytes, edits);
        bytes
    }

    #[test]
    fn iso_9660_tells_its_size() {
        let report = inspect(&image(&[]));
        assert_eq!(
            (report.format, report.virtual_size, report.findings),
            (Format::Iso, Some(128 << 10), vec![])
        );
        assert_eq!(inspect(&image(&[(32769, b"CD002")])).format, Format::Raw);
        assert_eq!(rules(&image(&[])[..100 << 10]), [Rule::Truncated]);
        assert_eq!(rules(&image(&[])[..32780]), [Rule::Truncated]);
        assert_eq!(rules(&image(&[(32768, &[0])])), [Rule::Malformed]);
    }

    #[test]
    fn udf_is_a_disc_with_and_without_iso_9660() {
        let mut bytes = vec![0; 128 << 10];
        put(&mut bytes, &[(32768, b"\0BEA01\x01"), (32768 + SECTOR, b"\0NSR02\x01")]);
        let report = inspect(&bytes);
        assert_eq!((report.format, report.virtual_size, report.findings), (Format::Iso, None, vec![]));
        put(&mut bytes, &[(32768 + SECTOR, b"\0NSR04\x01")]);
        assert_eq!(inspect(&bytes).format, Format::Raw);
        let bridge = [(18 * SECTOR, &b"\0BEA01\x01"[..]), (19 * SECTOR, b"\0NSR03\x01")];
        assert_eq!(inspect(&image(&bridge)).virtual_size, Some(128 << 10));
    }
}
