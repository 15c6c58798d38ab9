//! VHDX, as in Microsoft's MS-VHDX. Little-endian.
//!
//! Headers, region tables and metadata are found one through the other, each further on in the file than the
//! last; a pointer backwards is taken for an attack.

use super::{
    Format, Rule,
    capture::{Read, View},
    field::{CRC32C, array, crc, le16, le32, le64},
    finding::{Seen, Verdict},
};

const SIGNATURE: &[u8] = b"vhdxfile";
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

const HEADERS: [u64; 2] = [64 * KIB, 128 * KIB];
const HEADER: usize = 4 << 10;
const REGION_TABLES: [u64; 2] = [192 * KIB, 256 * KIB];
const TABLE: usize = 64 << 10;
const ENTRY: usize = 32;
const MAX_ENTRIES: usize = 2047;

/// GUIDs as they are in the file: the first three groups little-endian.
type Guid = [u8; 16];
const REGION_BAT: Guid = guid(0x2dc2_7766, 0xf623, 0x4200, 0x9d64_115e_9bfd_4a08);
const REGION_METADATA: Guid = guid(0x8b7c_a206, 0x4790, 0x4b9a, 0xb8fe_575f_050f_886e);
const ITEM_FILE_PARAMETERS: Guid = guid(0xcaa1_6737, 0xfa36, 0x4d43, 0xb3b6_33f0_aa44_e76b);
const ITEM_VIRTUAL_DISK_SIZE: Guid = guid(0x2fa5_4224, 0xcd1b, 0x4876, 0xb211_5dbe_d83b_f4b8);
const ITEM_VIRTUAL_DISK_ID: Guid = guid(0xbeca_12ab, 0xb2e6, 0x4523, 0x93ef_c309_e000_c746);
const ITEM_LOGICAL_SECTOR_SIZE: Guid = guid(0x8141_bf1d, 0xa96f, 0x4709, 0xba47_f233_a8fa_ab5f);
const ITEM_PHYSICAL_SECTOR_SIZE: Guid = guid(0xcda3_48c7, 0x445d, 0x4471, 0x9cc9_e988_5251_c556);
const ITEM_PARENT_LOCATOR: Guid = guid(0xa8d3_5f2d, 0xb30b, 0x454d, 0xabf7_d3d8_4834_ab0c);
const KNOWN_ITEMS: [Guid; 6] = [
    ITEM_FILE_PARAMETERS,
    ITEM_VIRTUAL_DISK_SIZE,
    ITEM_VIRTUAL_DISK_ID,
    ITEM_LOGICAL_SECTOR_SIZE,
    ITEM_PHYSICAL_SECTOR_SIZE,
    ITEM_PARENT_LOCATOR,
];

const HAS_PARENT: u32 = 1 << 1;
const REGION_REQUIRED: u32 = 1;
const ITEM_REQUIRED: u32 = 1 << 2;
const MAX_SIZE: u64 = 64 << 40;

/// What is read of the block allocation table: all of that of a disk of 1 TiB in Hyper-V's usual blocks.
const MAX_BAT: u32 = 256 << 10;

/// Why an examination stopped: for more bytes, or because there is nothing more to understand.
struct Stop;
type Step<T> = Result<T, Stop>;

pub(super) fn examine(view: &View<'_>) -> Seen {
    let Read::Bytes(head) = view.read(0, SIGNATURE.len()) else { return Seen::NotYet };
    if head != SIGNATURE {
        return Seen::No;
    }
    let mut verdict = Verdict::new(Format::Vhdx);
    // What stops it is in the findings already, or still to come.
    let _ = check(view, &mut verdict);
    Seen::Yes(verdict)
}

fn check(view: &View<'_>, verdict: &mut Verdict) -> Step<()> {
    check_headers(view, verdict)?;
    let regions = read_regions(view, verdict)?;
    let metadata = check_regions(&regions, view.size(), verdict)?;
    check_blocks(&regions, view, verdict);
    let items = read_items(metadata, view, verdict)?;
    check_items(&items, metadata, view, verdict)
}

/// Reads exactly `len` bytes, or stops and says why.
fn read<'a>(view: &View<'a>, what: &str, start: u64, len: usize, verdict: &mut Verdict) -> Step<&'a [u8]> {
    match view.read(start, len) {
        Read::Bytes(bytes) if bytes.len() == len => return Ok(bytes),
        Read::Bytes(_) => verdict.find(Rule::Truncated, format!("the {what} at {start} is beyond the end")),
        Read::Later => {}
        Read::Missed => verdict.find(Rule::Malformed, format!("the {what} is back at {start}")),
    }
    Err(Stop)
}

fn check_headers(view: &View<'_>, verdict: &mut Verdict) -> Step<()> {
    let mut newest: Option<(u64, &[u8])> = None;
    for start in HEADERS {
        let header = read(view, "header", start, HEADER, verdict)?;
        let valid = header.starts_with(b"head") && checksum_fits(header);
        let sequence = le64(header, 8).filter(|_| valid);
        newest = newest.max(sequence.map(|sequence| (sequence, header)));
    }
    let Some((_, header)) = newest else {
        verdict.find(Rule::Malformed, "both headers are invalid");
        return Ok(());
    };
    if le16(header, 66) != Some(1) {
        let version = le16(header, 66).unwrap_or_default();
        verdict.find(Rule::UnsupportedVersion, format!("VHDX version {version}"));
    }
    if array::<16>(header, 48) != Some([0; 16]) {
        verdict.find(Rule::PendingLog, "the header names a log to replay");
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Region {
    guid: Guid,
    offset: u64,
    len: u32,
    required: bool,
}

/// The regions of both tables, which must agree: QEMU reads the first only, Hyper-V any valid one.
fn read_regions(view: &View<'_>, verdict: &mut Verdict) -> Step<Vec<Region>> {
    let [first, second] = REGION_TABLES;
    let tables = [first, second].map(|start| read(view, "region table", start, TABLE, verdict));
    let [Ok(first), Ok(second)] = tables else { return Err(Stop) };
    match (parse_regions(first), parse_regions(second)) {
        (Some(first), Some(second)) if first == second => Ok(first),
        (Some(first), second) => {
            let what = if second.is_some() { "differs from the first" } else { "is invalid" };
            verdict.find(Rule::Malformed, format!("the second region table {what}"));
            Ok(first)
        }
        (None, _) => {
            verdict.find(Rule::Malformed, "the first region table is invalid");
            Err(Stop)
        }
    }
}

fn parse_regions(table: &[u8]) -> Option<Vec<Region>> {
    let count = le32(table, 8)? as usize;
    if !table.starts_with(b"regi") || !checksum_fits(table) || count > MAX_ENTRIES {
        return None;
    }
    let region = |entry: &[u8]| {
        let required = le32(entry, 28)? & REGION_REQUIRED != 0;
        Some(Region { guid: array(entry, 0)?, offset: le64(entry, 16)?, len: le32(entry, 24)?, required })
    };
    table.get(16..)?.chunks_exact(ENTRY).take(count).map(region).collect()
}

/// Returns the metadata region.
fn check_regions(regions: &[Region], file_size: Option<u64>, verdict: &mut Verdict) -> Step<Region> {
    for region in regions {
        let end = region.offset.saturating_add(u64::from(region.len));
        if region.required && ![REGION_BAT, REGION_METADATA].contains(&region.guid) {
            verdict.find(Rule::UnknownFeature, format!("the region {}", hex(&region.guid)));
        }
        if region.offset < MIB
            || !region.offset.is_multiple_of(MIB)
            || !u64::from(region.len).is_multiple_of(MIB)
        {
            verdict.find(Rule::Malformed, format!("a region of {} bytes at {}", region.len, region.offset));
        }
        if file_size.is_some_and(|size| end > size) {
            verdict.find(Rule::Truncated, format!("the region at {} is beyond the end", region.offset));
        }
    }
    for guid in [REGION_BAT, REGION_METADATA] {
        let count = regions.iter().filter(|region| region.guid == guid).count();
        if count != 1 {
            verdict.find(Rule::Malformed, format!("{count} regions {}", hex(&guid)));
        }
    }
    regions.iter().find(|region| region.guid == REGION_METADATA).copied().ok_or(Stop)
}

/// An image that was cut short lacks blocks that its table tells of. What is missing of the last one is not seen.
fn check_blocks(regions: &[Region], view: &View<'_>, verdict: &mut Verdict) {
    let Some(bat) = regions.iter().find(|region| region.guid == REGION_BAT) else { return };
    let Read::Bytes(entries) = view.read(bat.offset, bat.len.min(MAX_BAT) as usize) else { return };
    // The states, of payload and bitmap blocks alike, in which there is one in the file: fully and partially present.
    let present = entries
        .chunks_exact(8)
        .filter_map(|entry| le64(entry, 0))
        .filter(|entry| matches!(entry & 7, 6 | 7))
        .map(|entry| entry >> 20);
    let last = present.max().map(|mib| mib.saturating_mul(MIB));
    if let (Some(at), Some(size)) = (last, view.size())
        && at >= size
    {
        verdict.find(Rule::Truncated, format!("a block at {at} is beyond the end"));
    }
}

#[derive(Clone, Copy)]
struct Item {
    id: Guid,
    offset: u32,
    len: u32,
    required: bool,
}

fn read_items(metadata: Region, view: &View<'_>, verdict: &mut Verdict) -> Step<Vec<Item>> {
    let table = read(view, "metadata table", metadata.offset, TABLE, verdict)?;
    let count = le16(table, 10).map_or(0, usize::from);
    if !table.starts_with(b"metadata") || count > MAX_ENTRIES {
        verdict.find(Rule::Malformed, "the metadata table is invalid");
        return Err(Stop);
    }
    let item = |entry: &[u8]| {
        let required = le32(entry, 24)? & ITEM_REQUIRED != 0;
        Some(Item { id: array(entry, 0)?, offset: le32(entry, 16)?, len: le32(entry, 20)?, required })
    };
    let entries = table.get(ENTRY..).unwrap_or_default().chunks_exact(ENTRY).take(count);
    entries.map(item).collect::<Option<_>>().ok_or(Stop)
}

fn check_items(items: &[Item], metadata: Region, view: &View<'_>, verdict: &mut Verdict) -> Step<()> {
    for item in items {
        if item.required && !KNOWN_ITEMS.contains(&item.id) {
            verdict.find(Rule::UnknownFeature, format!("the metadata item {}", hex(&item.id)));
        }
        if item.id == ITEM_PARENT_LOCATOR {
            verdict.find(Rule::ParentImage, "a parent locator");
        }
        let end = u64::from(item.offset) + u64::from(item.len);
        if item.len > 0 && (item.offset < TABLE as u32 || end > u64::from(metadata.len)) {
            verdict.find(Rule::Malformed, format!("metadata of {} bytes at {}", item.len, item.offset));
        }
    }
    for id in KNOWN_ITEMS {
        if items.iter().filter(|item| item.id == id).count() > 1 {
            verdict.find(Rule::Malformed, format!("the metadata item {} twice", hex(&id)));
        }
    }
    // Both are asked for before either is waited for: the order of their offsets is free.
    let parameters = read_item(items, metadata, ITEM_FILE_PARAMETERS, "file parameters", view, verdict);
    let size = read_item(items, metadata, ITEM_VIRTUAL_DISK_SIZE, "virtual disk size", view, verdict);
    if let Ok(parameters) = parameters {
        check_parameters(parameters, verdict);
    }
    let size = size?;
    let size = u64::from_le_bytes(size);
    verdict.set_virtual_size(Some(size));
    if size > MAX_SIZE {
        verdict.find(Rule::ResourceBomb, format!("a disk of {size} bytes"));
    }
    Ok(())
}

/// The first eight bytes of an item, and all of those that matter.
fn read_item(
    items: &[Item],
    metadata: Region,
    id: Guid,
    what: &str,
    view: &View<'_>,
    verdict: &mut Verdict,
) -> Step<[u8; 8]> {
    let Some(item) = items.iter().find(|item| item.id == id && item.len >= 8) else {
        verdict.find(Rule::Malformed, format!("no {what}"));
        return Err(Stop);
    };
    let start = metadata.offset.saturating_add(u64::from(item.offset));
    array(read(view, what, start, 8, verdict)?, 0).ok_or(Stop)
}

fn check_parameters(parameters: [u8; 8], verdict: &mut Verdict) {
    let (Some(block_size), Some(flags)) = (le32(&parameters, 0), le32(&parameters, 4)) else { return };
    if flags & HAS_PARENT != 0 {
        verdict.find(Rule::ParentImage, "the has-parent flag");
    }
    if !block_size.is_power_of_two() || !(MIB..=256 * MIB).contains(&u64::from(block_size)) {
        verdict.find(Rule::ResourceBomb, format!("blocks of {block_size} bytes"));
    }
}

/// The CRC-32C of a structure, at 4, counts as zeros in itself.
fn checksum_fits(bytes: &[u8]) -> bool {
    let (before, after) = (bytes.get(..4).unwrap_or_default(), bytes.get(8..).unwrap_or_default());
    le32(bytes, 4) == Some(crc(&CRC32C, &[before, &[0; 4], after]))
}

const fn guid(data1: u32, data2: u16, data3: u16, data4: u64) -> Guid {
    let [a, b, c, d] = data1.to_le_bytes();
    let [e, f] = data2.to_le_bytes();
    let [g, h] = data3.to_le_bytes();
    let [i, j, k, l, m, n, o, p] = data4.to_be_bytes();
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

fn hex(guid: &Guid) -> String {
    guid.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::{super::tests::*, *};

    /// What a test image is made of; [`build`] seals it with checksums.
    pub(in super::super) struct Parts {
        pub(in super::super) headers: [Vec<u8>; 2],
        tables: [Vec<u8>; 2],
        metadata: Vec<u8>,
    }

    /// An empty image of 1 GiB: metadata at 2 MiB, blocks' table at 3 MiB.
    pub(in super::super) fn parts() -> Parts {
        let header = |sequence: u8| {
            let mut bytes = vec![0; HEADER];
            put(&mut bytes, &[(0, b"head"), (8, &[sequence]), (66, &[1])]);
            bytes
        };
        let mut table = vec![0; TABLE];
        put(&mut table, &[(0, b"regi"), (8, &[2])]);
        put(
            &mut table,
            &[(16, &REGION_METADATA), (32, &(2 * MIB).to_le_bytes()), (40, &(MIB as u32).to_le_bytes())],
        );
        put(
            &mut table,
            &[(48, &REGION_BAT), (64, &(3 * MIB).to_le_bytes()), (72, &(MIB as u32).to_le_bytes())],
        );
        put(&mut table, &[(44, &[1]), (76, &[1])]);
        let mut metadata = vec![0; MIB as usize];
        put(&mut metadata, &[(0, b"metadata"), (10, &[2])]);
        let at = TABLE as u32;
        put(&mut metadata, &[(32, &ITEM_FILE_PARAMETERS), (48, &at.to_le_bytes()), (52, &[8]), (56, &[4])]);
        put(
            &mut metadata,
            &[(64, &ITEM_VIRTUAL_DISK_SIZE), (80, &(at + 8).to_le_bytes()), (84, &[8]), (88, &[6])],
        );
        put(
            &mut metadata,
            &[(TABLE, &(32u32 << 20).to_le_bytes()), (TABLE + 8, &(1u64 << 30).to_le_bytes())],
        );
        Parts { headers: [header(1), header(2)], tables: [table.clone(), table], metadata }
    }

    pub(in super::super) fn build(mut parts: Parts) -> Vec<u8> {
        let mut bytes = vec![0; 4 << 20];
        put(&mut bytes, &[(0, SIGNATURE)]);
        let sealed = parts.headers.iter_mut().chain(&mut parts.tables);
        for (part, start) in sealed.zip(HEADERS.into_iter().chain(REGION_TABLES)) {
            put(part, &[(4, &[0; 4])]);
            let sum = crc(&CRC32C, &[part]).to_le_bytes();
            put(part, &[(4, &sum)]);
            put(&mut bytes, &[(start as usize, part)]);
        }
        put(&mut bytes, &[(2 << 20, &parts.metadata)]);
        bytes
    }

    fn with_tables(edits: &[(usize, &[u8])]) -> Vec<u8> {
        let mut parts = parts();
        parts.tables.iter_mut().for_each(|table| put(table, edits));
        build(parts)
    }

    fn with_metadata(edits: &[(usize, &[u8])]) -> Vec<u8> {
        let mut parts = parts();
        put(&mut parts.metadata, edits);
        build(parts)
    }

    #[test]
    fn a_plain_image_is_fine() {
        let report = inspect(&build(parts()));
        assert_eq!(
            (report.format, report.virtual_size, report.findings),
            (Format::Vhdx, Some(1 << 30), vec![])
        );
        assert_eq!(inspect(b"vhdxfilf").format, Format::Raw);
        assert_eq!(rules(b"vhdxfile"), [Rule::Truncated]);
    }

    #[test]
    fn a_parent_is_found_by_flag_and_by_locator() {
        assert_eq!(rules(&with_metadata(&[(TABLE + 4, &[2])])), [Rule::ParentImage]);
        assert_eq!(rules(&with_metadata(&[(TABLE + 4, &[1])])), []);
        let locator = [(10, &[3][..]), (96, &ITEM_PARENT_LOCATOR)];
        assert_eq!(rules(&with_metadata(&locator)), [Rule::ParentImage]);
    }

    #[test]
    fn the_newest_valid_header_counts() {
        let mut pending = parts();
        put(&mut pending.headers[1], &[(48, &[1])]);
        assert_eq!(rules(&build(pending)), [Rule::PendingLog]);
        let mut stale = parts();
        put(&mut stale.headers[0], &[(48, &[1]), (66, &[9])]);
        assert_eq!(rules(&build(stale)), []);
        let mut future = parts();
        put(&mut future.headers[1], &[(66, &[2])]);
        assert_eq!(rules(&build(future)), [Rule::UnsupportedVersion]);
        let mut broken = build(parts());
        put(&mut broken, &[((64 << 10) + 100, &[1])]);
        assert_eq!(rules(&broken), []);
        put(&mut broken, &[((128 << 10) + 100, &[1])]);
        assert_eq!(rules(&broken), [Rule::Malformed]);
    }

    #[test]
    fn region_tables_must_agree() {
        let mut differing = parts();
        put(&mut differing.tables[1], &[(32, &(3 * MIB).to_le_bytes())]);
        assert_eq!(rules(&build(differing)), [Rule::Malformed]);
        let mut invalid = parts();
        put(&mut invalid.tables[1], &[(0, b"x")]);
        assert_eq!(rules(&build(invalid)), [Rule::Malformed]);
        let mut invalid = parts();
        put(&mut invalid.tables[0], &[(8, &[0, 8])]);
        assert_eq!(rules(&build(invalid)), [Rule::Malformed]);
    }

    #[test]
    fn regions_have_their_rules() {
        assert_eq!(rules(&with_tables(&[(16, &[0])])), [Rule::UnknownFeature, Rule::Malformed]);
        assert_eq!(rules(&with_tables(&[(48, &REGION_METADATA)])), [Rule::Malformed; 2]);
        assert_eq!(rules(&with_tables(&[(38, &[1])])), [Rule::Truncated; 2]);
        assert_eq!(rules(&with_tables(&[(32, &[1])])), [Rule::Malformed; 2]);
        // Unknown and optional is fine.
        assert_eq!(rules(&with_tables(&[(8, &[3]), (80, &[9; 16]), (98, &[0x10]), (106, &[0x10])])), []);
    }

    #[test]
    fn a_pointer_back_into_what_went_by_is_malformed() {
        let found = rules(&with_tables(&[(32, &(100 * KIB).to_le_bytes())]));
        assert_eq!(found, [Rule::Malformed; 2]);
    }

    #[test]
    fn metadata_has_its_rules() {
        for (edits, expected) in [
            (&[(0, &b"x"[..])][..], &[Rule::Malformed][..]),
            (&[(11, &[8])], &[Rule::Malformed]),
            (&[(32, &[0])], &[Rule::UnknownFeature, Rule::Malformed]),
            (&[(32, &[0]), (56, &[0])], &[Rule::Malformed]),
            (&[(10, &[3]), (96, &ITEM_VIRTUAL_DISK_SIZE)], &[Rule::Malformed]),
            (&[(48, &[0; 4])], &[Rule::Malformed, Rule::ResourceBomb]),
            (&[(51, &[0x7f])], &[Rule::Malformed, Rule::Truncated]),
            (&[(TABLE, &[1])], &[Rule::ResourceBomb]),
            (&[(TABLE + 8, &(MAX_SIZE + 512).to_le_bytes())], &[Rule::ResourceBomb]),
            (&[(TABLE + 8, &MAX_SIZE.to_le_bytes())], &[]),
        ] {
            let found = rules(&with_metadata(edits));
            assert!(
                found.starts_with(expected) && found.is_empty() == expected.is_empty(),
                "{edits:?}: {found:?}"
            );
        }
    }
}
