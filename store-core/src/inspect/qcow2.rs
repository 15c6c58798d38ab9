//! qcow2, as in QEMU's docs/interop/qcow2.rst; limits as in its block/qcow2.h. Big-endian.

use super::{
    Format, Rule,
    capture::{Read, View},
    field::{be32, be64, shown, until_nul},
    finding::{Seen, Verdict},
};

const MAGIC: &[u8] = b"QFI\xfb";
const HEADER_V2: usize = 72;
const HEADER_V3: u32 = 104;

const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
const KNOWN: u64 = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION | EXTENDED_L2;
const AUTOCLEAR_RAW_EXTERNAL: u64 = 1 << 1;
const CRYPT_LUKS: u32 = 2;

const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_FEATURE_NAMES: u32 = 0x6803_f857;
const EXTENSION_BITMAPS: u32 = 0x2385_2875;
const EXTENSION_CRYPTO: u32 = 0x0537_be77;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;

/// QEMU reads the extensions of the whole first cluster, 2 MiB of them; real ones take a few hundred bytes.
const MAX_EXTENSIONS: u64 = 64 << 10;
const MAX_CLUSTER: u64 = 2 << 20;
const MAX_L1_BYTES: u64 = 32 << 20;
const MAX_REFCOUNT_TABLE: u64 = 8 << 20;
const MAX_SNAPSHOTS: u32 = 65536;
const MAX_BITMAPS: u32 = 65535;
const MAX_BITMAP_DIRECTORY: u64 = 64 << 20;
const MAX_BACKING_NAME: u32 = 1023;

/// What is read of each table to find the last cluster: all of the L1 table of a disk of 8 TiB with usual clusters.
const MAX_TABLE: u64 = 128 << 10;
/// The part of a table's entry that is an offset in the file.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

pub(super) fn examine(view: &View<'_>) -> Seen {
    // A file may end right after its header; QEMU still takes it for qcow2.
    let Read::Bytes(head) = view.read(0, 512) else { return Seen::NotYet };
    if !head.starts_with(MAGIC) {
        return Seen::No;
    }
    let mut verdict = Verdict::new(Format::Qcow2);
    match Header::parse(head) {
        Some(header) => header.check(view, &mut verdict),
        None => verdict.find(Rule::Truncated, "the file ends inside its header"),
    }
    Seen::Yes(verdict)
}

struct Header {
    version: u32,
    backing_file_offset: u64,
    backing_file_size: u32,
    cluster_bits: u32,
    size: u64,
    crypt_method: u32,
    l1_size: u32,
    l1_table_offset: u64,
    refcount_table_offset: u64,
    refcount_table_clusters: u32,
    nb_snapshots: u32,
    snapshots_offset: u64,
    incompatible_features: u64,
    autoclear_features: u64,
    refcount_order: u32,
    header_length: u32,
    compression_type: Option<u8>,
}

impl Header {
    fn parse(head: &[u8]) -> Option<Self> {
        let version = be32(head, 4)?;
        let is_v2 = version < 3;
        let header_length = if is_v2 { HEADER_V2 as u32 } else { be32(head, 100)? };
        Some(Self {
            version,
            backing_file_offset: be64(head, 8)?,
            backing_file_size: be32(head, 16)?,
            cluster_bits: be32(head, 20)?,
            size: be64(head, 24)?,
            crypt_method: be32(head, 32)?,
            l1_size: be32(head, 36)?,
            l1_table_offset: be64(head, 40)?,
            refcount_table_offset: be64(head, 48)?,
            refcount_table_clusters: be32(head, 56)?,
            nb_snapshots: be32(head, 60)?,
            snapshots_offset: be64(head, 64)?,
            incompatible_features: if is_v2 { 0 } else { be64(head, 72)? },
            autoclear_features: if is_v2 { 0 } else { be64(head, 88)? },
            refcount_order: if is_v2 { 4 } else { be32(head, 96)? },
            header_length,
            compression_type: if header_length > 104 { head.get(104).copied() } else { None },
        })
    }

    fn check(&self, view: &View<'_>, verdict: &mut Verdict) {
        // Version 1 is another format, qcow, but has its backing file in the same place.
        self.check_backing_file(view, verdict);
        if !(2..=3).contains(&self.version) {
            verdict.find(Rule::UnsupportedVersion, format!("qcow2 version {}", self.version));
            return;
        }
        verdict.set_virtual_size(Some(self.size));
        if !(9..=21).contains(&self.cluster_bits) {
            verdict.find(Rule::ResourceBomb, format!("clusters of 2^{} bytes", self.cluster_bits));
            return;
        }
        match self.crypt_method {
            0 => {}
            1 => verdict.find(Rule::Encrypted, "AES-CBC, which QEMU no longer runs"),
            CRYPT_LUKS => verdict.find(Rule::Encrypted, "LUKS"),
            other => verdict.find(Rule::UnknownFeature, format!("encryption method {other}")),
        }
        self.check_header_length(verdict);
        let extensions = Extensions::read(self, view, verdict);
        self.check_features(&extensions, verdict);
        extensions.check(self, verdict);
        self.check_tables(view.size(), verdict);
        self.check_last_cluster(view, verdict);
    }

    fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits.min(63)
    }

    fn check_backing_file(&self, view: &View<'_>, verdict: &mut Verdict) {
        if self.backing_file_offset == 0 {
            return;
        }
        let len = self.backing_file_size.min(MAX_BACKING_NAME) as usize;
        let in_first_cluster = self.backing_file_offset < MAX_CLUSTER;
        let name = in_first_cluster.then(|| view.read(self.backing_file_offset, len));
        let detail = match name {
            Some(Read::Bytes(name)) => shown(name),
            _ => format!("a name at {}", self.backing_file_offset),
        };
        verdict.find(Rule::BackingFile, detail);
    }

    fn check_header_length(&self, verdict: &mut Verdict) {
        if self.version < 3 {
            return;
        }
        let length = self.header_length;
        if length < HEADER_V3 || !length.is_multiple_of(8) || u64::from(length) > self.cluster_size() {
            verdict.find(Rule::Malformed, format!("a header of {length} bytes"));
        }
        if self.refcount_order > 6 {
            verdict.find(Rule::Malformed, format!("reference counts of 2^{} bits", self.refcount_order));
        }
    }

    fn check_features(&self, extensions: &Extensions<'_>, verdict: &mut Verdict) {
        let has = |bit| self.incompatible_features & bit != 0;
        if has(EXTERNAL_DATA) {
            let name = extensions.data_file.map_or_else(|| "incompatible feature bit 2".to_owned(), shown);
            verdict.find(Rule::ExternalDataFile, name);
        } else if let Some(name) = extensions.data_file {
            verdict.find(Rule::ExternalDataFile, format!("{}, without its feature bit", shown(name)));
        }
        if !has(EXTERNAL_DATA) && self.autoclear_features & AUTOCLEAR_RAW_EXTERNAL != 0 {
            verdict.find(Rule::Malformed, "raw external data without an external data file");
        }
        if has(CORRUPT) {
            verdict.find(Rule::CorruptBit, "incompatible feature bit 1");
        }
        if has(DIRTY) {
            verdict.find(Rule::DirtyBit, "incompatible feature bit 0");
        }
        if has(EXTENDED_L2) && self.cluster_bits < 14 {
            verdict.find(Rule::Malformed, "extended L2 entries in clusters below 16 KiB");
        }
        match (has(COMPRESSION), self.compression_type.unwrap_or(0)) {
            (false, 0) | (true, 1) => {}
            (_, kind @ 0..=1) => {
                verdict.find(Rule::Malformed, format!("compression type {kind} against its bit"))
            }
            (_, kind) => verdict.find(Rule::UnknownFeature, format!("compression type {kind}")),
        }
        for bit in (0..64).filter(|bit| self.incompatible_features & !KNOWN & 1 << bit != 0) {
            let name =
                extensions.feature_name(bit).map_or(String::new(), |name| format!(", {}", shown(name)));
            verdict.find(Rule::UnknownFeature, format!("incompatible feature bit {bit}{name}"));
        }
    }

    fn check_tables(&self, file_size: Option<u64>, verdict: &mut Verdict) {
        let cluster_size = self.cluster_size();
        let l1_bytes = u64::from(self.l1_size) * 8;
        let refcount_bytes = u64::from(self.refcount_table_clusters).saturating_mul(cluster_size);
        if l1_bytes > MAX_L1_BYTES {
            verdict.find(Rule::ResourceBomb, format!("an L1 table of {l1_bytes} bytes"));
        }
        if refcount_bytes == 0 {
            verdict.find(Rule::Malformed, "no refcount table");
        }
        if refcount_bytes > MAX_REFCOUNT_TABLE {
            verdict.find(Rule::ResourceBomb, format!("a refcount table of {refcount_bytes} bytes"));
        }
        if self.nb_snapshots > MAX_SNAPSHOTS {
            verdict.find(Rule::ResourceBomb, format!("{} snapshots", self.nb_snapshots));
        } else if self.nb_snapshots > 0 {
            verdict.find(Rule::Snapshots, self.nb_snapshots.to_string());
        }
        let l2_entry_bits = if self.incompatible_features & EXTENDED_L2 == 0 { 3 } else { 4 };
        let l1_needed = self.size.div_ceil(1 << (2 * self.cluster_bits - l2_entry_bits));
        if u64::from(self.l1_size) < l1_needed {
            verdict
                .find(Rule::Malformed, format!("{} L1 entries where {l1_needed} are needed", self.l1_size));
        }
        for (name, offset, len) in [
            ("L1 table", self.l1_table_offset, l1_bytes),
            ("refcount table", self.refcount_table_offset, refcount_bytes.min(1)),
            ("snapshot table", self.snapshots_offset, u64::from(self.nb_snapshots > 0)),
        ] {
            if len == 0 {
                continue;
            }
            if !offset.is_multiple_of(cluster_size) || offset == 0 {
                verdict
                    .find(Rule::Malformed, format!("the {name} at {offset} is not on a cluster of its own"));
            }
            if file_size.is_some_and(|size| offset.saturating_add(len) > size) {
                verdict.find(Rule::Truncated, format!("the {name} at {offset} is beyond the end"));
            }
        }
    }
}

impl Header {
    /// An image that was cut short lacks clusters that its tables tell of. QEMU lets an image end inside its last cluster,
    /// so a cut inside of that one is not seen; nor is one where the tables are further on than a stream can follow.
    fn check_last_cluster(&self, view: &View<'_>, verdict: &mut Verdict) {
        let tables = self.last_l2_table(view).map(|at| ("an L2 table", at));
        let counted = self.last_counted_cluster(view).map(|at| ("a cluster in use", at));
        let Some(size) = view.size() else { return };
        for (what, at) in tables.into_iter().chain(counted) {
            if at >= size {
                verdict.find(Rule::Truncated, format!("{what} at {at} is beyond the end"));
                return;
            }
        }
    }

    fn last_l2_table(&self, view: &View<'_>) -> Option<u64> {
        let len = (u64::from(self.l1_size) * 8).min(MAX_TABLE);
        let l1 = table(view, self.l1_table_offset, len)?;
        entries(l1).map(|entry| entry & OFFSET).max().filter(|at| *at > 0)
    }

    /// Where the last cluster starts that has a reference count, by the last block of counts.
    fn last_counted_cluster(&self, view: &View<'_>) -> Option<u64> {
        let len = u64::from(self.refcount_table_clusters).saturating_mul(self.cluster_size());
        let blocks = table(view, self.refcount_table_offset, len.min(MAX_TABLE))?;
        let (index, block) = entries(blocks).enumerate().filter(|(_, entry)| entry & OFFSET != 0).last()?;
        let counts = table(view, block & OFFSET, self.cluster_size().min(MAX_TABLE))?;
        let last = counts.iter().rposition(|byte| *byte != 0)?;
        // Counts of less than a byte start at its lowest bit.
        let bits = 1u64 << self.refcount_order.min(6);
        let top = counts.get(last)?.checked_ilog2()?;
        let cluster = (last as u64 * 8 + u64::from(top)) / bits;
        let before = (index as u64).checked_mul(self.cluster_size() * 8 / bits)?;
        before.checked_add(cluster)?.checked_mul(self.cluster_size())
    }
}

/// What there is of a table, if it has not gone by before it was asked for.
fn table<'a>(view: &View<'a>, start: u64, len: u64) -> Option<&'a [u8]> {
    match view.read(start, usize::try_from(len).ok()?) {
        Read::Bytes(bytes) => Some(bytes),
        Read::Later | Read::Missed => None,
    }
}

fn entries(table: &[u8]) -> impl Iterator<Item = u64> {
    table.chunks_exact(8).filter_map(|entry| be64(entry, 0))
}

/// The header extensions that matter.
#[derive(Default)]
struct Extensions<'a> {
    backing_format: Option<&'a [u8]>,
    data_file: Option<&'a [u8]>,
    feature_names: Option<&'a [u8]>,
    bitmaps: Option<&'a [u8]>,
    crypto: Option<&'a [u8]>,
    /// The whole list was there to be read.
    complete: bool,
}

impl<'a> Extensions<'a> {
    fn read(header: &Header, view: &View<'a>, verdict: &mut Verdict) -> Self {
        let mut extensions = Self::default();
        let start = u64::from(header.header_length);
        // The backing file's name follows the extensions.
        let limit = match header.backing_file_offset {
            0 => header.cluster_size(),
            name => name.min(header.cluster_size()),
        };
        let end = limit.min(start.saturating_add(MAX_EXTENSIONS));
        let area = match view.read(start, end.saturating_sub(start) as usize) {
            Read::Bytes(area) => area,
            Read::Later => return extensions,
            Read::Missed => {
                verdict.find(Rule::Malformed, "the header extensions are not after the header");
                return extensions;
            }
        };
        let mut at = 0;
        while let (Some(kind), Some(len)) = (be32(area, at), be32(area, at + 4)) {
            if kind == EXTENSION_END {
                extensions.complete = true;
                return extensions;
            }
            let len = len as usize;
            let Some(data) = area.get(at + 8..).and_then(|rest| rest.get(..len)) else {
                verdict.find(Rule::Malformed, format!("header extension {kind:#x} of {len} bytes"));
                return extensions;
            };
            match kind {
                EXTENSION_BACKING_FORMAT => extensions.backing_format = Some(data),
                EXTENSION_DATA_FILE => extensions.data_file = Some(data),
                EXTENSION_FEATURE_NAMES => extensions.feature_names = Some(data),
                EXTENSION_BITMAPS => extensions.bitmaps = Some(data),
                EXTENSION_CRYPTO => extensions.crypto = Some(data),
                // "Unknown header extension, can be safely ignored."
                _ => {}
            }
            at += 8 + len.next_multiple_of(8);
        }
        if end < limit && area.len() as u64 == end - start {
            verdict.find(Rule::ResourceBomb, format!("header extensions beyond {MAX_EXTENSIONS} bytes"));
        }
        extensions.complete = true;
        extensions
    }

    /// The name of an incompatible feature: entries of 48 bytes, kind 0.
    fn feature_name(&self, bit: u8) -> Option<&'a [u8]> {
        let mut entries = self.feature_names?.chunks_exact(48);
        let entry = entries.find(|entry| entry.starts_with(&[0, bit]))?;
        entry.get(2..).map(until_nul)
    }

    fn check(&self, header: &Header, verdict: &mut Verdict) {
        if let Some(format) = self.backing_format.filter(|_| header.backing_file_offset == 0) {
            let detail = format!("a backing format, {}, without a backing file", shown(format));
            verdict.find(Rule::StrayExtension, detail);
        }
        if let Some(bitmaps) = self.bitmaps {
            match (be32(bitmaps, 0), be64(bitmaps, 8)) {
                (Some(count), Some(directory)) if bitmaps.len() == 24 => {
                    if count > MAX_BITMAPS || directory > MAX_BITMAP_DIRECTORY {
                        let detail = format!("{count} bitmaps in a directory of {directory} bytes");
                        verdict.find(Rule::ResourceBomb, detail);
                    }
                }
                _ => verdict.find(Rule::Malformed, "a bitmaps extension of the wrong length"),
            }
        }
        match (self.crypto, header.crypt_method == CRYPT_LUKS) {
            (Some(_), false) => verdict.find(Rule::Malformed, "an encryption header without LUKS encryption"),
            (None, true) if self.complete => {
                verdict.find(Rule::Malformed, "LUKS without its header extension")
            }
            _ => {}
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::{super::tests::*, *};

    /// A version 3 image of 1 GiB as qemu-img makes it, with its `edits` made and `extensions` put in.
    pub(in super::super) fn image(edits: &[(usize, &[u8])], extensions: &[(u32, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; 0x40000];
        let fields: [(usize, &[u8]); 9] = [
            (0, b"QFI\xfb\0\0\0\x03"),
            (20, &16u32.to_be_bytes()),
            (24, &(1u64 << 30).to_be_bytes()),
            (36, &4u32.to_be_bytes()),
            (40, &0x30000u64.to_be_bytes()),
            (48, &0x10000u64.to_be_bytes()),
            (56, &1u32.to_be_bytes()),
            (96, &4u32.to_be_bytes()),
            (100, &112u32.to_be_bytes()),
        ];
        put(&mut bytes, &fields);
        let mut at = 112;
        for (kind, data) in extensions {
            let len = data.len() as u32;
            put(&mut bytes, &[(at, &kind.to_be_bytes()), (at + 4, &len.to_be_bytes()), (at + 8, data)]);
            at += 8 + data.len().next_multiple_of(8);
        }
        put(&mut bytes, edits);
        bytes
    }

    #[test]
    fn a_plain_image_is_fine() {
        let report = inspect(&image(&[], &[(EXTENSION_FEATURE_NAMES, &[0; 96]), (0x1234, b"unknown")]));
        assert_eq!((report.format, report.virtual_size), (Format::Qcow2, Some(1 << 30)));
        assert_eq!(report.findings, []);
    }

    #[test]
    fn clusters_beyond_the_end_are_missed() {
        let cluster = 64 << 10;
        let entry = |cluster: u64| (cluster << 16 | 1 << 63).to_be_bytes();
        // The image has four clusters: header, table of counts, counts, L1 table.
        for (last, truncated) in [(3u64, false), (4, true), (1 << 39, true)] {
            let l1 = image(&[(0x30000 + 8, &entry(last))], &[]);
            assert_eq!(has(&inspect(&l1), Rule::Truncated), truncated, "an L2 table at {last}");
        }
        for (order, at, truncated) in [
            (4, 3 * 2, false),
            (4, 4 * 2 + 1, true),
            (6, 3 * 8 + 7, false),
            (6, 4 * 8, true),
            (0, 0, false),
            (0, 1, true),
        ] {
            let edits: [(usize, &[u8]); 3] =
                [(99, &[order]), (0x10000, &entry(2)), (0x20000 + at, &[if order == 0 { 8 } else { 1 }])];
            let bytes = image(&edits, &[]);
            assert_eq!(has(&inspect(&bytes), Rule::Truncated), truncated, "order {order}, byte {at}");
            assert_eq!(bytes.len(), 4 * cluster);
        }
        // Of the second block of counts: those of 2 GiB and more.
        let edits: [(usize, &[u8]); 2] = [(0x10000 + 8, &entry(2)), (0x20000, &[1])];
        assert!(has(&inspect(&image(&edits, &[])), Rule::Truncated));
        // Behind its counts, the table of counts is not asked for in time.
        let edits: [(usize, &[u8]); 3] =
            [(48, &0x20000u64.to_be_bytes()), (0x20000, &entry(1)), (0x10000 + 9, &[1])];
        assert!(!has(&inspect(&image(&edits, &[])), Rule::Truncated));
    }

    #[test]
    fn a_file_shorter_than_a_sector_is_qcow2_still() {
        for len in [4, 72, 200, 511] {
            let report = inspect(&image(&[], &[])[..len]);
            assert_eq!(report.format, Format::Qcow2, "{len} bytes");
            assert!(has(&report, Rule::Truncated), "{len} bytes: {:?}", report.findings);
        }
        assert_eq!(inspect(b"QFI").format, Format::Raw);
    }

    #[test]
    fn each_header_field_has_its_rule() {
        let with = |at: usize, bytes: &[u8]| rules(&image(&[(at, bytes)], &[]));
        for (at, bytes, expected) in [
            (4, &[0, 0, 0, 1][..], Some(Rule::UnsupportedVersion)),
            (4, &[0, 0, 0, 4], Some(Rule::UnsupportedVersion)),
            (20, &[0, 0, 0, 22], Some(Rule::ResourceBomb)),
            (20, &[0, 0, 0, 8], Some(Rule::ResourceBomb)),
            (24, &[0x7f], Some(Rule::ResourceBomb)),
            (32, &[0, 0, 0, 1], Some(Rule::Encrypted)),
            (32, &[0, 0, 0, 3], Some(Rule::UnknownFeature)),
            (36, &[0, 0, 0, 1], Some(Rule::Malformed)),
            (36, &[1], Some(Rule::ResourceBomb)),
            (40, &[1], Some(Rule::Truncated)),
            (46, &[2], Some(Rule::Malformed)),
            (48, &[1], Some(Rule::Truncated)),
            (56, &[0, 0, 0, 128], None),
            (56, &[0, 0, 0, 129], Some(Rule::ResourceBomb)),
            (56, &[0, 0, 0, 0], Some(Rule::Malformed)),
            (60, &[0, 2], Some(Rule::ResourceBomb)),
            (79, &[DIRTY as u8], Some(Rule::DirtyBit)),
            (79, &[CORRUPT as u8], Some(Rule::CorruptBit)),
            (79, &[EXTERNAL_DATA as u8], Some(Rule::ExternalDataFile)),
            (79, &[COMPRESSION as u8], Some(Rule::Malformed)),
            (79, &[EXTENDED_L2 as u8], None),
            (79, &[0x20], Some(Rule::UnknownFeature)),
            (72, &[0x80], Some(Rule::UnknownFeature)),
            (80, &[0xff], None),
            (95, &[AUTOCLEAR_RAW_EXTERNAL as u8], Some(Rule::Malformed)),
            (99, &[7], Some(Rule::Malformed)),
            (99, &[6], None),
            (103, &[96], Some(Rule::Malformed)),
            (103, &[116], Some(Rule::Malformed)),
            (104, &[1], Some(Rule::Malformed)),
        ] {
            let found = with(at, bytes);
            assert_eq!(expected.is_none(), found.is_empty(), "{bytes:?} at {at}: {found:?}");
            assert!(expected.is_none_or(|rule| found.contains(&rule)), "{bytes:?} at {at}: {found:?}");
        }
        assert!(rules(&image(&[(79, &[COMPRESSION as u8]), (104, &[1])], &[])).is_empty());
        assert!(
            rules(&image(&[(79, &[COMPRESSION as u8]), (104, &[2])], &[])).contains(&Rule::UnknownFeature)
        );
        let small = [(79, &[EXTENDED_L2 as u8][..]), (20, &13u32.to_be_bytes())];
        assert!(rules(&image(&small, &[])).contains(&Rule::Malformed));
    }

    #[test]
    fn a_backing_file_is_named() {
        let edits = [(14, &[2, 0][..]), (16, &11u32.to_be_bytes()), (512, b"/etc/passwd")];
        let report = inspect(&image(&edits, &[(EXTENSION_BACKING_FORMAT, b"raw")]));
        assert_eq!(report.findings.len(), 1);
        assert_eq!(report.findings[0].to_string(), "backing-file: \"/etc/passwd\"");
        // A name elsewhere is as bad, and must not make us wait for the end of the world.
        let report = inspect(&image(&[(8, &[0xff; 8])], &[]));
        assert!(has(&report, Rule::BackingFile));
    }

    #[test]
    fn version_1_may_have_a_backing_file_too() {
        let found = rules(&image(&[(7, &[1]), (14, &[2])], &[]));
        assert_eq!(found, [Rule::BackingFile, Rule::UnsupportedVersion]);
    }

    #[test]
    fn extensions_have_their_rules() {
        let with = |edits: &[(usize, &[u8])], kind, data: &[u8]| rules(&image(edits, &[(kind, data)]));
        assert_eq!(with(&[], EXTENSION_DATA_FILE, b"/etc/shadow"), [Rule::ExternalDataFile]);
        assert_eq!(with(&[], EXTENSION_BACKING_FORMAT, b"raw"), [Rule::StrayExtension]);
        assert_eq!(with(&[], EXTENSION_CRYPTO, &[0; 16]), [Rule::Malformed]);
        let luks = [(35, &[2][..])];
        assert_eq!(with(&luks, EXTENSION_CRYPTO, &[0; 16]), [Rule::Encrypted]);
        assert_eq!(rules(&image(&luks, &[])), [Rule::Encrypted, Rule::Malformed]);
        let mut bitmaps = [0; 24];
        assert_eq!(with(&[], EXTENSION_BITMAPS, &bitmaps), []);
        assert_eq!(with(&[], EXTENSION_BITMAPS, &bitmaps[..16]), [Rule::Malformed]);
        bitmaps[0] = 1;
        assert_eq!(with(&[], EXTENSION_BITMAPS, &bitmaps), [Rule::ResourceBomb]);
        assert_eq!(rules(&image(&[(112, &[0xff; 8])], &[])), [Rule::Malformed]);
    }

    #[test]
    fn an_unknown_feature_is_named_by_the_table() {
        let mut names = [0; 96];
        put(&mut names, &[(0, &[0, 4]), (2, b"extended L2"), (48, &[0, 9]), (50, b"warp drive")]);
        let report = inspect(&image(&[(78, &[2])], &[(EXTENSION_FEATURE_NAMES, &names)]));
        assert_eq!(
            report.findings[0].to_string(),
            "unknown-feature: incompatible feature bit 9, \"warp drive\""
        );
    }

    #[test]
    fn endless_extensions_are_cut_off() {
        let flood = vec![(0x1234, &[0xaa; 1016][..]); 70];
        let found = rules(&image(&[(23, &[17]), (36, &[0, 0, 0, 1]), (45, &[2]), (53, &[2])], &flood));
        assert!(found.contains(&Rule::ResourceBomb), "{found:?}");
    }

    #[test]
    fn snapshots_are_a_note() {
        let found = rules(&image(&[(63, &[1]), (69, &[2])], &[]));
        assert_eq!(found, [Rule::Snapshots]);
        assert!(!Rule::Snapshots.blocks());
    }
}
