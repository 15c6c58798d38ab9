//! VHD, as in Microsoft's Virtual Hard Disk Image Format Specification 1.0. Big-endian.
//!
//! A dynamic disk has its footer at the end and a copy of it at the start; a fixed one, at the end only.

use super::{
    Format, Rule,
    capture::{Read, View},
    field::{array, be16, be32, be64, shown},
    finding::{Seen, Verdict},
};

const COOKIE: &[u8] = b"conectix";
const FOOTER: usize = 512;
const CHECKSUM_OFFSET: usize = 64;
const VERSION_MAJOR: u32 = 1;

const TYPE_FIXED: u32 = 2;
const TYPE_DYNAMIC: u32 = 3;
const TYPE_DIFFERENCING: u32 = 4;

const DYNAMIC_COOKIE: &[u8] = b"cxsparse";
const DYNAMIC_HEADER: usize = 1024;
const DYNAMIC_CHECKSUM_OFFSET: usize = 36;
const MAX_BLOCK_SIZE: u32 = 256 << 20;
/// 2040 GiB, the format's limit: 65535 cylinders of 255 heads of 255 sectors.
const MAX_SIZE: u64 = 65535 * 255 * 255 * 512;
/// The geometry of disks that are too large for one.
const MAX_GEOMETRY: u64 = 65535 * 16 * 255;

pub(super) fn examine(view: &View<'_>) -> Seen {
    let Read::Bytes(head) = view.read(0, FOOTER) else { return Seen::NotYet };
    if head.starts_with(COOKIE) {
        let mut verdict = Verdict::new(Format::Vhd);
        match Footer::parse(head) {
            Some(footer) => check_copy(&footer, view, &mut verdict),
            None => verdict.find(Rule::Truncated, "the file ends inside its header"),
        }
        return Seen::Yes(verdict);
    }
    let Some(tail) = view.tail() else { return Seen::NotYet };
    // A raw disk may happen to end in the cookie, but hardly with the right checksum.
    match tail.last_chunk::<FOOTER>().and_then(|sector| Footer::parse(sector)).filter(|f| f.checksum_fits) {
        Some(footer) => Seen::Yes(check_trailer(&footer, view.size().unwrap_or_default())),
        None => Seen::No,
    }
}

/// A disk with a footer's copy at its start: dynamic or differencing.
fn check_copy(footer: &Footer, view: &View<'_>, verdict: &mut Verdict) {
    footer.check(verdict);
    if !footer.checksum_fits {
        verdict.find(Rule::Malformed, "the header's checksum is wrong");
    }
    if footer.disk_type == TYPE_FIXED {
        verdict.find(Rule::Malformed, "a fixed disk with a header");
    }
    match view.read(footer.data_offset, DYNAMIC_HEADER) {
        Read::Bytes(header) => check_dynamic(header, footer, view.size(), verdict),
        Read::Later => {}
        Read::Missed => verdict.find(Rule::Malformed, "the dynamic header is inside the header"),
    }
    let Some(tail) = view.tail() else { return };
    match tail.last_chunk::<FOOTER>().and_then(|sector| Footer::parse(sector)) {
        None => verdict.find(Rule::Truncated, "no footer at the end"),
        Some(end) if end != *footer => verdict.find(Rule::Malformed, "header and footer differ"),
        Some(_) => {}
    }
}

/// A disk with nothing but a footer: fixed.
fn check_trailer(footer: &Footer, file_size: u64) -> Verdict {
    let mut verdict = Verdict::new(Format::Vhd);
    verdict.trailer_only = true;
    footer.check(&mut verdict);
    if footer.disk_type != TYPE_FIXED {
        verdict.find(Rule::Malformed, "a disk that is not fixed, without a header");
    }
    if footer.current_size > file_size.saturating_sub(FOOTER as u64) {
        verdict.find(Rule::Truncated, format!("a disk of {} bytes", footer.current_size));
    }
    verdict
}

#[derive(PartialEq, Eq)]
struct Footer {
    version: u32,
    data_offset: u64,
    creator: [u8; 4],
    current_size: u64,
    geometry: u64,
    disk_type: u32,
    checksum_fits: bool,
}

impl Footer {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let cylinders = u64::from(be16(bytes, 56)?);
        let [heads, sectors] = array(bytes, 58)?;
        bytes.starts_with(COOKIE).then_some(Self {
            version: be32(bytes, 12)?,
            data_offset: be64(bytes, 16)?,
            creator: array(bytes, 28)?,
            current_size: be64(bytes, 48)?,
            geometry: cylinders * u64::from(heads) * u64::from(sectors),
            disk_type: be32(bytes, 60)?,
            checksum_fits: be32(bytes, CHECKSUM_OFFSET)? == checksum(bytes.get(..FOOTER)?, CHECKSUM_OFFSET),
        })
    }

    fn check(&self, verdict: &mut Verdict) {
        if self.version >> 16 != VERSION_MAJOR {
            verdict.find(Rule::UnsupportedVersion, format!("VHD version {}", self.version >> 16));
        }
        let size = self.virtual_size();
        verdict.set_virtual_size(Some(size));
        if size > MAX_SIZE {
            verdict.find(Rule::ResourceBomb, format!("a disk of {size} bytes"));
        }
        match self.disk_type {
            TYPE_FIXED | TYPE_DYNAMIC => {}
            TYPE_DIFFERENCING => verdict.find(Rule::ParentImage, "a differencing disk"),
            other => verdict.find(Rule::UnknownFeature, format!("disk type {other}")),
        }
    }

    /// Virtual PC goes by the geometry, which rounds the size; Hyper-V and all later programs do not. QEMU
    /// tells them apart by the creator.
    fn virtual_size(&self) -> u64 {
        let by_geometry =
            matches!(&self.creator, b"vpc " | b"vs  " | b"qemu") && self.geometry < MAX_GEOMETRY;
        if by_geometry { self.geometry * 512 } else { self.current_size }
    }
}

fn check_dynamic(header: &[u8], footer: &Footer, file_size: Option<u64>, verdict: &mut Verdict) {
    if file_size.is_some() && header.len() < DYNAMIC_HEADER {
        verdict.find(Rule::Truncated, "the file ends inside its dynamic header");
        return;
    }
    let (Some(table_offset), Some(entries), Some(block_size), Some(sum), Some(parent)) = (
        be64(header, 16),
        be32(header, 28),
        be32(header, 32),
        be32(header, DYNAMIC_CHECKSUM_OFFSET),
        array::<16>(header, 40),
    ) else {
        return;
    };
    if !header.starts_with(DYNAMIC_COOKIE) || sum != checksum(header, DYNAMIC_CHECKSUM_OFFSET) {
        verdict.find(Rule::Malformed, "the dynamic header's cookie or checksum is wrong");
    }
    if parent != [0; 16] {
        verdict.find(Rule::ParentImage, "the UUID of a parent");
    }
    if let Some(name) = header.get(64..576).filter(|name| name.iter().any(|&b| b != 0)) {
        verdict.find(Rule::ParentImage, format!("a parent named {}", shown(&utf16_be(name))));
    }
    let locators = header.get(576..768).unwrap_or_default().chunks(24);
    let used = locators.filter(|locator| be32(locator, 0) != Some(0)).count();
    if used > 0 {
        verdict.find(Rule::ParentImage, format!("{used} parent locators"));
    }
    if !block_size.is_power_of_two() || !(512..=MAX_BLOCK_SIZE).contains(&block_size) {
        verdict.find(Rule::ResourceBomb, format!("blocks of {block_size} bytes"));
        return;
    }
    let reach = u64::from(entries) * u64::from(block_size);
    if u64::from(entries) > MAX_SIZE / u64::from(block_size) {
        verdict.find(Rule::ResourceBomb, format!("{entries} blocks of {block_size} bytes"));
    } else if reach < footer.virtual_size() {
        verdict.find(Rule::Malformed, format!("{entries} blocks of {block_size} bytes hold too little"));
    }
    let table_end = table_offset.saturating_add(u64::from(entries) * 4);
    if file_size.is_some_and(|size| table_end > size) {
        verdict.find(Rule::Truncated, "the block allocation table is beyond the end");
    }
}

/// The one's complement of the sum of all bytes but the checksum's own.
fn checksum(bytes: &[u8], at: usize) -> u32 {
    let others = bytes.iter().enumerate().filter(|(i, _)| !(at..at + 4).contains(i));
    !others.fold(0u32, |sum, (_, &byte)| sum.wrapping_add(u32::from(byte)))
}

fn utf16_be(bytes: &[u8]) -> Vec<u8> {
    let units = bytes.chunks_exact(2).filter_map(|pair| be16(pair, 0)).take_while(|&unit| unit != 0);
    char::decode_utf16(units)
        .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect::<String>()
        .into_bytes()
}

#[cfg(test)]
pub(super) mod tests {
    use super::{super::tests::*, *};

    fn seal(bytes: &mut [u8], at: usize) {
        let sum = checksum(bytes, at).to_be_bytes();
        put(bytes, &[(at, &sum)]);
    }

    fn footer(disk_type: u32, size: u64, edits: &[(usize, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; FOOTER];
        let fields: [(usize, &[u8]); 6] = [
            (0, COOKIE),
            (12, &0x0001_0000u32.to_be_bytes()),
            (16, &512u64.to_be_bytes()),
            (28, b"win "),
            (48, &size.to_be_bytes()),
            (60, &disk_type.to_be_bytes()),
        ];
        put(&mut bytes, &fields);
        put(&mut bytes, edits);
        seal(&mut bytes, CHECKSUM_OFFSET);
        bytes
    }

    /// An empty dynamic disk of 8 MiB, with edits made to its footer and to its dynamic header.
    pub(in super::super) fn dynamic(edits: &[(usize, &[u8])], dynamic_edits: &[(usize, &[u8])]) -> Vec<u8> {
        let mut header = vec![0; DYNAMIC_HEADER];
        let fields: [(usize, &[u8]); 5] = [
            (0, DYNAMIC_COOKIE),
            (8, &[0xff; 8]),
            (16, &1536u64.to_be_bytes()),
            (28, &4u32.to_be_bytes()),
            (32, &(2u32 << 20).to_be_bytes()),
        ];
        put(&mut header, &fields);
        put(&mut header, dynamic_edits);
        seal(&mut header, DYNAMIC_CHECKSUM_OFFSET);
        let footer = footer(TYPE_DYNAMIC, 8 << 20, edits);
        [&footer[..], &header, &[0xff; 512], &footer].concat()
    }

    /// A fixed disk: `disk` and its footer.
    pub(in super::super) fn fixed(disk: &[u8], edits: &[(usize, &[u8])]) -> Vec<u8> {
        [disk, &footer(TYPE_FIXED, disk.len() as u64, edits)].concat()
    }

    #[test]
    fn a_dynamic_disk_is_fine() {
        let report = inspect(&dynamic(&[], &[]));
        assert_eq!(
            (report.format, report.virtual_size, report.findings),
            (Format::Vhd, Some(8 << 20), vec![])
        );
    }

    #[test]
    fn a_fixed_disk_is_known_by_its_end_and_may_be_partitioned() {
        let disk = super::super::partition::tests::mbr(&[]);
        let report = inspect(&fixed(&disk, &[]));
        assert_eq!((report.format, &report.also[..]), (Format::Vhd, &[Format::Mbr][..]));
        assert_eq!((report.virtual_size, &report.findings[..]), (Some(64 << 10), &[][..]));
        assert_eq!(report.violations(Some(Format::Vhd)), []);
        assert_eq!(report.violations(Some(Format::Raw)).len(), 1);
    }

    #[test]
    fn a_raw_disk_may_end_in_the_cookie() {
        let mut bytes = fixed(&[7; 4096], &[]);
        let checksum = 4096 + CHECKSUM_OFFSET;
        bytes[checksum] ^= 1;
        let report = inspect(&bytes);
        assert_eq!((report.format, report.findings), (Format::Raw, vec![]));
    }

    #[test]
    fn footer_fields_have_their_rules() {
        for (at, bytes, expected) in [
            (63, &[4][..], Rule::ParentImage),
            (63, &[6], Rule::UnknownFeature),
            (63, &[2], Rule::Malformed),
            (13, &[2], Rule::UnsupportedVersion),
            (48, &[0x7f], Rule::ResourceBomb),
            (51, &[1], Rule::Malformed),
            (16, &[1], Rule::Truncated),
            (22, &[0, 8], Rule::Malformed),
        ] {
            let found = rules(&dynamic(&[(at, bytes)], &[]));
            assert!(found.contains(&expected), "{bytes:?} at {at}: {found:?}");
        }
        let whole = dynamic(&[], &[]);
        assert_eq!(rules(&whole[..2048]), [Rule::Truncated]);
        assert_eq!(rules(&whole[..600]), [Rule::Truncated; 2]);
        assert_eq!(rules(&whole[..100]), [Rule::Truncated]);
        let mut unsealed = whole;
        unsealed[200] = 1;
        assert_eq!(rules(&unsealed), [Rule::Malformed; 2]);
    }

    #[test]
    fn dynamic_header_fields_have_their_rules() {
        for (at, bytes, expected) in [
            (0, &b"x"[..], Some(Rule::Malformed)),
            (40, &[1], Some(Rule::ParentImage)),
            (64, b"\0/\0e\0t\0c", Some(Rule::ParentImage)),
            (576, b"W2ru", Some(Rule::ParentImage)),
            (720, b"W2ku", Some(Rule::ParentImage)),
            (768, &[1; 256], None),
            (16, &[1], Some(Rule::Truncated)),
            (31, &[3], Some(Rule::Malformed)),
            (28, &[1], Some(Rule::ResourceBomb)),
            (33, &[0x30], Some(Rule::ResourceBomb)),
        ] {
            let found = rules(&dynamic(&[], &[(at, bytes)]));
            assert_eq!(expected.is_none(), found.is_empty(), "{bytes:?} at {at}: {found:?}");
            assert!(expected.is_none_or(|rule| found.contains(&rule)), "{bytes:?} at {at}: {found:?}");
        }
        let named = inspect(&dynamic(&[], &[(64, b"\0p\0.\0v\0h\0d")]));
        assert_eq!(named.findings[0].to_string(), "parent-image: a parent named \"p.vhd\"");
    }

    #[test]
    fn a_trailer_alone_has_rules_too() {
        assert_eq!(rules(&footer(TYPE_FIXED, 1, &[])), [Rule::Malformed, Rule::Truncated]);
        assert_eq!(rules(&[&[1; 512][..], &footer(TYPE_FIXED, 513, &[])].concat()), [Rule::Truncated]);
        let differencing = [&[1; 512][..], &footer(TYPE_DIFFERENCING, 512, &[])].concat();
        assert_eq!(rules(&differencing), [Rule::ParentImage, Rule::Malformed]);
    }

    #[test]
    fn the_creator_tells_geometry_from_size() {
        let geometry = [(28, &b"vpc "[..]), (56, &[0, 10, 16, 63])];
        assert_eq!(inspect(&dynamic(&geometry, &[])).virtual_size, Some(10 * 16 * 63 * 512));
        assert_eq!(inspect(&dynamic(&geometry[1..], &[])).virtual_size, Some(8 << 20));
    }
}
