//! VMDK, as in VMware's Virtual Disk Format 5.0 technical note and QEMU's block/vmdk.c. Little-endian.
//!
//! Only `monolithicSparse` and `streamOptimized` are one file; all others, a bare descriptor first of all,
//! make their reader open files of the uploader's choice. Descriptors are checked line by line against what
//! is known to be harmless.

use super::{
    Format, Rule,
    capture::{MAX_REGION, Read, View},
    field::{le16, le32, le64, shown, until_nul},
    finding::{Seen, Verdict},
};

const MAGIC_SPARSE: &[u8] = b"KDMV";
const MAGIC_COWD: &[u8] = b"COWD";
const SECTOR: u64 = 512;
const HEADER: usize = 512;
/// "If the value is this, the grain directory is at the end, told by a footer."
const GD_AT_END: u64 = u64::MAX;
const MARKER_FOOTER: u32 = 3;
/// QEMU looks for the parent in this much from the descriptor's start, whatever the header says.
const PARENT_SEARCH: u64 = 20 * SECTOR;
const MAX_GRAIN: u64 = 1 << 21;
const MAX_GRAIN_DIRECTORY: u64 = 32 << 20;
/// What is read of the grain directory and of the tables, to find the last grain: all of those of a disk of 8 GiB.
const MAX_DIRECTORY: u64 = 64 << 10;
const MAX_TABLES: u64 = 512 << 10;
const NO_PARENT: u64 = 0xffff_ffff;

pub(super) fn examine(view: &View<'_>) -> Seen {
    let Read::Bytes(head) = view.read(0, HEADER) else { return Seen::NotYet };
    if head.starts_with(MAGIC_SPARSE) {
        let mut verdict = Verdict::new(Format::Vmdk);
        match Header::parse(head) {
            Some(header) => header.check(view, &mut verdict),
            None => verdict.find(Rule::Truncated, "the file ends inside its header"),
        }
        return Seen::Yes(verdict);
    }
    if head.starts_with(MAGIC_COWD) {
        return Seen::Yes(cowd(head));
    }
    examine_text(head, view)
}

/// An extent of ESX's copy-on-write disks: never a disk by itself.
fn cowd(head: &[u8]) -> Verdict {
    let mut verdict = Verdict::new(Format::Vmdk);
    verdict.find(Rule::VmdkSubformat, "a COWD extent (vmfsSparse)");
    if let Some(sectors) = le32(head, 12) {
        verdict.set_virtual_size(Some(u64::from(sectors) * SECTOR));
    }
    verdict
}

/// A descriptor without data, if that is what this text is.
fn examine_text(head: &[u8], view: &View<'_>) -> Seen {
    let probed = probe(head);
    if !probed && !until_nul(head).is_ascii() || head.starts_with(&[0]) {
        return Seen::No;
    }
    // Most disks that start with a letter soon have a NUL, and need no megabyte kept.
    let text = until_nul(head);
    let text = match text.len() < head.len() {
        true => Some(text),
        false => match view.read(0, MAX_REGION) {
            Read::Bytes(text) => Some(until_nul(text)),
            Read::Later | Read::Missed => None,
        },
    };
    if !probed {
        match text {
            Some(text) if contains(text, "createtype") => {}
            Some(_) => return Seen::No,
            None => return Seen::NotYet,
        }
    }
    let mut verdict = Verdict::new(Format::Vmdk);
    verdict.find(Rule::VmdkSubformat, "a descriptor alone, whose data is in other files");
    if let Some(text) = text {
        let descriptor = Descriptor::parse(text, &mut verdict);
        descriptor.check_parent(&mut verdict);
        for extent in &descriptor.extents {
            verdict.find(Rule::ExternalExtent, shown(extent.line));
        }
        if let size @ Some(_) = descriptor.size() {
            verdict.set_virtual_size(size);
        }
    }
    Seen::Yes(verdict)
}

/// QEMU's probe: comments and blank lines, then a version.
fn probe(head: &[u8]) -> bool {
    let mut lines = head.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let first = lines.find(|line| !line.starts_with(b"#") && line.iter().any(|&byte| byte != b' '));
    matches!(first, Some(b"version=1" | b"version=2" | b"version=3"))
}

struct Header<'a> {
    version: u32,
    capacity: u64,
    grain_size: u64,
    descriptor_offset: u64,
    descriptor_size: u64,
    entries_per_table: u32,
    gd_offset: u64,
    overhead: u64,
    compressed: bool,
    /// Magic, version, and all that a footer must repeat.
    identity: &'a [u8],
}

impl<'a> Header<'a> {
    fn parse(head: &'a [u8]) -> Option<Self> {
        Some(Self {
            version: le32(head, 4)?,
            capacity: le64(head, 12)?,
            grain_size: le64(head, 20)?,
            descriptor_offset: le64(head, 28)?,
            descriptor_size: le64(head, 36)?,
            entries_per_table: le32(head, 44)?,
            gd_offset: le64(head, 56)?,
            overhead: le64(head, 64)?,
            compressed: le16(head, 77)? != 0,
            identity: head.get(..48)?,
        })
    }

    fn check(&self, view: &View<'_>, verdict: &mut Verdict) {
        if !(1..=3).contains(&self.version) {
            verdict.find(Rule::UnsupportedVersion, format!("VMDK version {}", self.version));
            return;
        }
        verdict.set_virtual_size(self.capacity.checked_mul(SECTOR));
        self.check_tables(view.size(), verdict);
        self.check_descriptor(view, verdict);
        match self.gd_offset {
            GD_AT_END => self.check_footer(view, verdict),
            _ => self.check_last_grain(view, verdict),
        }
    }

    /// An image that was cut short lacks grains that its tables tell of. What is missing of the last one is not seen, nor
    /// what tables tell that do not follow each other behind their directory.
    fn check_last_grain(&self, view: &View<'_>, verdict: &mut Verdict) {
        let span = self.grain_size.saturating_mul(u64::from(self.entries_per_table)).max(1);
        let directory = self.capacity.div_ceil(span).saturating_mul(4).min(MAX_DIRECTORY);
        let read = |start: u64, len: u64| match view.read(start.saturating_mul(SECTOR), len as usize) {
            Read::Bytes(bytes) => Some(bytes.chunks_exact(4).filter_map(|entry| le32(entry, 0))),
            Read::Later | Read::Missed => None,
        };
        let Some(mut tables) = read(self.gd_offset, directory) else { return };
        let Some(first) = tables.next().map(u64::from).filter(|first| *first > self.gd_offset) else {
            return;
        };
        let step = (u64::from(self.entries_per_table) * 4).div_ceil(SECTOR);
        let follow = tables.zip(1..).take_while(|(table, index)| u64::from(*table) == first + index * step);
        let len = (follow.count() as u64 + 1) * step * SECTOR;
        let last = read(first, len.min(MAX_TABLES)).and_then(|grains| grains.max()).map(u64::from);
        // 0 is no grain, 1 a grain of zeros.
        if let (Some(last), Some(size)) = (last.filter(|last| *last > 1), view.size())
            && last * SECTOR >= size
        {
            verdict.find(Rule::Truncated, format!("a grain at {} is beyond the end", last * SECTOR));
        }
    }

    fn check_tables(&self, file_size: Option<u64>, verdict: &mut Verdict) {
        if !self.grain_size.is_power_of_two() || self.grain_size > MAX_GRAIN {
            verdict.find(Rule::ResourceBomb, format!("grains of {} sectors", self.grain_size));
            return;
        }
        if !(1..=512).contains(&self.entries_per_table) {
            verdict.find(Rule::Malformed, format!("{} entries per grain table", self.entries_per_table));
            return;
        }
        let tables = self.capacity.div_ceil(self.grain_size * u64::from(self.entries_per_table));
        if tables > MAX_GRAIN_DIRECTORY {
            verdict.find(Rule::ResourceBomb, format!("{tables} grain tables"));
        }
        let Some(file_size) = file_size else { return };
        let gd_end = self.gd_offset.saturating_mul(SECTOR).saturating_add(tables.saturating_mul(4));
        if self.gd_offset != GD_AT_END && gd_end > file_size {
            verdict.find(Rule::Truncated, "the grain directory is beyond the end");
        }
        if self.overhead.saturating_mul(SECTOR) > file_size {
            verdict.find(Rule::Truncated, format!("{} sectors of metadata", self.overhead));
        }
    }

    fn check_descriptor(&self, view: &View<'_>, verdict: &mut Verdict) {
        if self.descriptor_offset == 0 {
            verdict.find(Rule::VmdkSubformat, "an extent without a descriptor, of a disk in several files");
            return;
        }
        // QEMU and VMware look for it in different places if it is not in the one where all put it.
        if self.descriptor_offset != 1 {
            verdict.find(Rule::Malformed, format!("a descriptor at sector {}", self.descriptor_offset));
            return;
        }
        let size = self.descriptor_size.saturating_mul(SECTOR);
        if size == 0 || size > MAX_REGION as u64 {
            verdict.find(Rule::ResourceBomb, format!("a descriptor of {size} bytes"));
            return;
        }
        let area = match view.read(SECTOR, size.max(PARENT_SEARCH) as usize) {
            Read::Bytes(area) => area,
            Read::Later => return,
            Read::Missed => {
                verdict.find(Rule::Malformed, "the descriptor is inside the header");
                return;
            }
        };
        let Some(text) = area.get(..size as usize) else {
            verdict.find(Rule::Truncated, "the file ends inside its descriptor");
            return;
        };
        let descriptor = Descriptor::parse(until_nul(text), verdict);
        descriptor.check_embedded(verdict);
        descriptor.check_parent(verdict);
        let beyond = until_nul(area);
        if !descriptor.has_parent_hint && contains(beyond, "parentfilenamehint") {
            verdict.find(Rule::ParentImage, "a parentFileNameHint hidden behind the descriptor");
        }
        // A reader that sees no capacity turns to the descriptor's extents.
        if self.capacity == 0 && !descriptor.extents.is_empty() {
            verdict.find(Rule::ExternalExtent, "a header without capacity");
        }
        if descriptor.create_type.eq_ignore_ascii_case(b"streamOptimized") && !self.compressed {
            verdict.find(Rule::Malformed, "a stream-optimised disk that is not compressed");
        }
    }

    /// The footer takes precedence over the header, so it has to say the same.
    fn check_footer(&self, view: &View<'_>, verdict: &mut Verdict) {
        let (Some(tail), Some(size)) = (view.tail(), view.size()) else { return };
        let sectors: Vec<_> = tail.chunks_exact(SECTOR as usize).collect();
        let &[marker, footer, end] = sectors.as_slice() else {
            verdict.find(Rule::Truncated, "the file is too short for its footer");
            return;
        };
        if !size.is_multiple_of(SECTOR)
            || !is_marker(marker, MARKER_FOOTER)
            || !footer.starts_with(MAGIC_SPARSE)
        {
            verdict.find(Rule::Truncated, "no footer at the end");
            return;
        }
        if end.iter().any(|&byte| byte != 0) {
            verdict.find(Rule::Malformed, "no end-of-stream marker behind the footer");
        }
        match Header::parse(footer) {
            Some(footer) if footer.identity == self.identity && footer.gd_offset != GD_AT_END => {
                footer.check_tables(Some(size), verdict);
            }
            _ => verdict.find(Rule::Malformed, "header and footer differ"),
        }
    }
}

/// A marker's sector: a value, a size of 0, a type, and padding.
fn is_marker(sector: &[u8], kind: u32) -> bool {
    let padding = sector.get(16..).unwrap_or_default();
    le32(sector, 8) == Some(0) && le32(sector, 12) == Some(kind) && padding.iter().all(|&byte| byte == 0)
}

/// The text that describes a disk.
#[derive(Default)]
struct Descriptor<'a> {
    create_type: &'a [u8],
    has_parent_hint: bool,
    parent_cid: Option<&'a [u8]>,
    extents: Vec<Extent<'a>>,
}

struct Extent<'a> {
    line: &'a [u8],
    sectors: Option<u64>,
    kind: &'a [u8],
    /// What follows the kind: a quoted file name, and perhaps an offset.
    name: &'a [u8],
}

impl<'a> Descriptor<'a> {
    /// No real disk has more; QEMU takes any number.
    const MAX_EXTENTS: usize = 4096;

    fn parse(text: &'a [u8], verdict: &mut Verdict) -> Self {
        let mut descriptor = Self::default();
        let mut create_types = 0;
        if !text.is_ascii() {
            verdict.find(Rule::Malformed, "a descriptor that is not ASCII");
        }
        // QEMU looks for these words anywhere, comments included.
        descriptor.has_parent_hint = contains(text, "parentfilenamehint");
        for line in text.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii) {
            if let Some(extent) = Extent::parse(line) {
                if descriptor.extents.len() < Self::MAX_EXTENTS {
                    descriptor.extents.push(extent);
                } else {
                    verdict.find(Rule::ResourceBomb, format!("over {} extents", Self::MAX_EXTENTS));
                }
                continue;
            }
            if line.is_empty() || line.starts_with(b"#") || starts_with(line, "ddb") {
                continue;
            }
            match key_and_value(line) {
                Some((key, value)) if key.eq_ignore_ascii_case(b"createType") => {
                    create_types += 1;
                    descriptor.create_type = value;
                }
                Some((key, value)) if key.eq_ignore_ascii_case(b"parentCID") => {
                    descriptor.parent_cid = Some(value)
                }
                Some((key, value)) if key.eq_ignore_ascii_case(b"changeTrackPath") => {
                    verdict.find(Rule::ExternalExtent, format!("a change tracking file, {}", shown(value)));
                }
                Some(_) => {}
                None => verdict.find(Rule::Malformed, format!("the descriptor line {}", shown(line))),
            }
        }
        if create_types != 1 {
            verdict.find(Rule::Malformed, format!("{create_types} createType lines"));
        }
        descriptor
    }

    fn check_parent(&self, verdict: &mut Verdict) {
        if self.has_parent_hint {
            verdict.find(Rule::ParentImage, "a parentFileNameHint");
        }
        let parent = self.parent_cid.filter(|cid| number(cid, 16) != Some(NO_PARENT));
        if let Some(cid) = parent {
            verdict.find(Rule::ParentImage, format!("the parentCID {}", shown(cid)));
        }
    }

    /// What is inside a sparse file describes that file alone.
    fn check_embedded(&self, verdict: &mut Verdict) {
        let one_file: [&[u8]; 2] = [b"monolithicSparse", b"streamOptimized"];
        if !one_file.iter().any(|kind| kind.eq_ignore_ascii_case(self.create_type)) {
            verdict.find(Rule::VmdkSubformat, shown(self.create_type));
        }
        if self.extents.is_empty() {
            verdict.find(Rule::Malformed, "no extent");
        }
        for extent in self.extents.iter().skip(1) {
            verdict.find(Rule::ExternalExtent, format!("a further extent, {}", shown(extent.line)));
        }
        for extent in &self.extents {
            let elsewhere = extent.name.contains(&b'/') || extent.name.contains(&b'\\');
            if !extent.kind.eq_ignore_ascii_case(b"SPARSE") || elsewhere {
                verdict.find(Rule::ExternalExtent, shown(extent.line));
            }
        }
    }

    /// The sum of all extents.
    fn size(&self) -> Option<u64> {
        let mut sectors = self.extents.iter().map(|extent| extent.sectors);
        sectors.try_fold(0u64, |sum, sectors| sum.checked_add(sectors?))?.checked_mul(SECTOR)
    }
}

impl<'a> Extent<'a> {
    /// `RW 2048 SPARSE "disk.vmdk"`, with whatever white space.
    fn parse(line: &'a [u8]) -> Option<Self> {
        let (access, rest) = word(line);
        let known: [&[u8]; 3] = [b"RW", b"RDONLY", b"NOACCESS"];
        if !known.iter().any(|word| word.eq_ignore_ascii_case(access)) {
            return None;
        }
        let (sectors, rest) = word(rest);
        let (kind, name) = word(rest);
        Some(Self { line, sectors: number(sectors, 10), kind, name })
    }
}

fn word(text: &[u8]) -> (&[u8], &[u8]) {
    let text = text.trim_ascii_start();
    let end = text.iter().position(u8::is_ascii_whitespace).unwrap_or(text.len());
    text.split_at_checked(end).unwrap_or((text, &[]))
}

/// `key=value`, the value without its quotes.
fn key_and_value(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = line.iter().position(|&byte| byte == b'=')?;
    let key = line.get(..at)?.trim_ascii();
    let value = line.get(at + 1..)?.trim_ascii();
    let is_word = !key.is_empty() && key.iter().all(|b| b.is_ascii_alphanumeric() || b"_.".contains(b));
    let unquoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
    is_word.then_some((key, unquoted.unwrap_or(value)))
}

fn number(text: &[u8], radix: u32) -> Option<u64> {
    u64::from_str_radix(str::from_utf8(text).ok()?, radix).ok()
}

fn starts_with(text: &[u8], lower_case: &str) -> bool {
    text.get(..lower_case.len()).is_some_and(|start| start.eq_ignore_ascii_case(lower_case.as_bytes()))
}

fn contains(text: &[u8], lower_case: &str) -> bool {
    text.windows(lower_case.len()).any(|window| window.eq_ignore_ascii_case(lower_case.as_bytes()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::{super::tests::*, *};

    pub(in super::super) const DESCRIPTOR: &str = "# Disk DescriptorFile\nversion=1\nCID=fffffffe\n\
        parentCID=ffffffff\ncreateType=\"monolithicSparse\"\n\n# Extent description\n\
        RW 2048 SPARSE \"disk.vmdk\"\n\n# The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"4\"\n";

    /// A sparse disk of 1 MiB with this descriptor, with its `edits` made.
    pub(in super::super) fn sparse(descriptor: &str, edits: &[(usize, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; 64 << 10];
        let fields: [(usize, &[u8]); 9] = [
            (0, b"KDMV\x01\0\0\0\x03\0\0\0"),
            (12, &2048u64.to_le_bytes()),
            (20, &128u64.to_le_bytes()),
            (28, &1u64.to_le_bytes()),
            (36, &20u64.to_le_bytes()),
            (44, &512u32.to_le_bytes()),
            (56, &26u64.to_le_bytes()),
            (64, &128u64.to_le_bytes()),
            (512, descriptor.as_bytes()),
        ];
        put(&mut bytes, &fields);
        put(&mut bytes, edits);
        bytes
    }

    /// A stream-optimised disk of 1 MiB, with edits made to the last three sectors.
    pub(in super::super) fn stream_optimised(edits: &[(usize, &[u8])]) -> Vec<u8> {
        let descriptor = DESCRIPTOR.replace("monolithicSparse", "streamOptimized");
        let at_end = [(56, &GD_AT_END.to_le_bytes()[..]), (4, &[3]), (77, &[1])];
        let mut bytes = sparse(&descriptor, &at_end);
        let mut footer = [&[0; 512], &bytes[..512], &[0; 512]].concat();
        put(&mut footer, &[(12, &[3]), (512 + 56, &26u64.to_le_bytes())]);
        put(&mut footer, edits);
        bytes.extend(footer);
        bytes
    }

    fn edited(from: &str, to: &str) -> Vec<Rule> {
        assert!(DESCRIPTOR.contains(from));
        rules(&sparse(&DESCRIPTOR.replace(from, to), &[]))
    }

    #[test]
    fn a_monolithic_sparse_disk_is_fine() {
        let report = inspect(&sparse(DESCRIPTOR, &[]));
        assert_eq!(
            (report.format, report.virtual_size, report.findings),
            (Format::Vmdk, Some(1 << 20), vec![])
        );
        assert_eq!(rules(&sparse(&DESCRIPTOR.replace('\n', "\r\n"), &[])), []);
        assert_eq!(rules(&sparse(&DESCRIPTOR.to_lowercase(), &[])), []);
    }

    #[test]
    fn header_fields_have_their_rules() {
        for (at, bytes, expected) in [
            (4, &[0][..], Rule::UnsupportedVersion),
            (4, &[4], Rule::UnsupportedVersion),
            (19, &[1], Rule::ResourceBomb),
            (18, &[0x40], Rule::ResourceBomb),
            (12, &[0; 8], Rule::ExternalExtent),
            (20, &[3], Rule::ResourceBomb),
            (23, &[1], Rule::ResourceBomb),
            (28, &[0], Rule::VmdkSubformat),
            (28, &[2], Rule::Malformed),
            (36, &[0], Rule::ResourceBomb),
            (38, &[1], Rule::ResourceBomb),
            (37, &[1], Rule::Truncated),
            (45, &[3], Rule::Malformed),
            (59, &[1], Rule::Truncated),
            (66, &[1], Rule::Truncated),
        ] {
            let found = rules(&sparse(DESCRIPTOR, &[(at, bytes)]));
            assert!(found.contains(&expected), "{bytes:?} at {at}: {found:?}");
        }
        assert!(rules(&sparse(DESCRIPTOR, &[])[..40]).contains(&Rule::Truncated));
    }

    #[test]
    fn descriptor_lines_have_their_rules() {
        let sparse_type = "monolithicSparse";
        assert_eq!(edited(sparse_type, "streamOptimized"), [Rule::Malformed]);
        assert_eq!(edited(sparse_type, "monolithicFlat"), [Rule::VmdkSubformat]);
        assert_eq!(edited(sparse_type, "twoGbMaxExtentSparse"), [Rule::VmdkSubformat]);
        assert_eq!(edited("createType", "creatype"), [Rule::Malformed, Rule::VmdkSubformat]);
        assert_eq!(edited("CID=fff", "createType=\"x\"\nCID=fff"), [Rule::Malformed]);
        assert_eq!(edited("SPARSE", "FLAT"), [Rule::ExternalExtent]);
        assert_eq!(edited("disk.vmdk", "/etc/passwd"), [Rule::ExternalExtent]);
        assert_eq!(edited("disk.vmdk", "..\\\\x"), [Rule::ExternalExtent]);
        assert_eq!(edited("RW 2048", "  rw\t1 FLAT \"b\" 0\nRW 2048"), [Rule::ExternalExtent; 2]);
        assert_eq!(edited("RW 2048", "# RW 2048"), [Rule::Malformed]);
        assert_eq!(edited("RW 2048", "nonsense\nRW 2048"), [Rule::Malformed]);
        assert_eq!(edited("RW 2048", "isNativeSnapshot=\"no\"\nRW 2048"), []);
        assert_eq!(edited("RW 2048", "changeTrackPath=\"/x\"\nRW 2048"), [Rule::ExternalExtent]);
        assert_eq!(edited("parentCID=f", "parentCID=0"), [Rule::ParentImage]);
        assert_eq!(edited("#DDB", "parentFileNameHint=\"/etc/passwd\""), [Rule::ParentImage]);
        assert_eq!(edited("#DDB", "# parentFileNameHint=\"/etc/passwd\""), [Rule::ParentImage]);
        assert_eq!(edited("#DDB", "\u{e9}=1"), [Rule::Malformed; 2]);
    }

    #[test]
    fn a_parent_behind_a_short_descriptor_is_found() {
        let long = format!("{DESCRIPTOR}{}\nparentFileNameHint=\"x\"\n", "#".repeat(512));
        assert_eq!(rules(&sparse(&long, &[(36, &[1])])), [Rule::ParentImage]);
        // Behind a NUL, nobody looks.
        assert_eq!(rules(&sparse(&long.replace("##\n", "#\0\n"), &[(36, &[1])])), []);
    }

    #[test]
    fn a_stream_optimised_disk_needs_its_footer() {
        let report = inspect(&stream_optimised(&[]));
        assert_eq!((report.virtual_size, report.findings), (Some(1 << 20), vec![]));
        for (at, bytes, expected) in [
            (12, &[2][..], Rule::Truncated),
            (8, &[1], Rule::Truncated),
            (511, &[1], Rule::Truncated),
            (512, b"X", Rule::Truncated),
            (512 + 12, &[9], Rule::Malformed),
            (512 + 28, &[9], Rule::Malformed),
            (512 + 56, &[0xff; 8], Rule::Malformed),
            (512 + 59, &[1], Rule::Truncated),
            (1024, &[1], Rule::Malformed),
        ] {
            assert_eq!(rules(&stream_optimised(&[(at, bytes)])), [expected], "{bytes:?} at {at}");
        }
        let whole = stream_optimised(&[]);
        assert_eq!(rules(&whole[..whole.len() - 512]), [Rule::Truncated]);
        assert_eq!(rules(&whole[..whole.len() - 1]), [Rule::Truncated]);
    }

    #[test]
    fn a_descriptor_alone_is_a_vmdk_that_is_refused() {
        let text = DESCRIPTOR.replace("SPARSE \"disk.vmdk\"", "FLAT \"/etc/passwd\" 0");
        let report = inspect(text.as_bytes());
        assert_eq!((report.format, report.virtual_size), (Format::Vmdk, Some(1 << 20)));
        assert_eq!(rules(text.as_bytes()), [Rule::VmdkSubformat, Rule::ExternalExtent]);
        // QEMU needs a version in the first sector to guess it, but would open either when told to.
        let late = format!("{}\n{text}", "#".repeat(5000));
        assert_eq!(inspect(late.as_bytes()).format, Format::Vmdk);
        assert_eq!(inspect(b"#\xff\xff\n\r\nversion=2\r\n\0binary").format, Format::Vmdk);
        assert_eq!(inspect(b"version=4\n").format, Format::Raw);
        assert_eq!(inspect(b"hello\n").format, Format::Raw);
    }

    #[test]
    fn a_cowd_extent_is_refused() {
        let mut bytes = vec![0; 2048];
        put(&mut bytes, &[(0, MAGIC_COWD), (4, &[1]), (12, &2048u32.to_le_bytes())]);
        let report = inspect(&bytes);
        assert_eq!((report.format, report.virtual_size), (Format::Vmdk, Some(1 << 20)));
        assert_eq!(rules(&bytes), [Rule::VmdkSubformat]);
    }
}
