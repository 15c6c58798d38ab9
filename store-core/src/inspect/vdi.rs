//! VDI, as VirtualBox's VDICore.h and QEMU's block/vdi.c have it. Little-endian.

use super::{
    Format, Rule,
    capture::{Read, View},
    field::{array, le32, le64},
    finding::{Seen, Verdict},
};

const SIGNATURE: u32 = 0xbeda_107f;
const SIGNATURE_OFFSET: usize = 0x40;
const VERSION_1_1: u32 = 0x0001_0001;
/// One 32-bit map entry per block, and QEMU's limit on them.
const MAX_BLOCKS: u32 = 0x3fff_ffff;
const MAX_BLOCK_SIZE: u32 = 256 << 20;

pub(super) fn examine(view: &View<'_>) -> Seen {
    let Read::Bytes(head) = view.read(0, 512) else { return Seen::NotYet };
    if le32(head, SIGNATURE_OFFSET) != Some(SIGNATURE) {
        return Seen::No;
    }
    let mut verdict = Verdict::new(Format::Vdi);
    match Header::parse(head) {
        Some(header) => header.check(view.size(), &mut verdict),
        None => verdict.find(Rule::Truncated, "the file ends inside its header"),
    }
    Seen::Yes(verdict)
}

struct Header {
    version: u32,
    image_type: u32,
    offset_bmap: u32,
    offset_data: u32,
    sector_size: u32,
    disk_size: u64,
    block_size: u32,
    blocks_in_image: u32,
    blocks_allocated: u32,
    uuid_link: [u8; 16],
    uuid_parent: [u8; 16],
}

impl Header {
    fn parse(head: &[u8]) -> Option<Self> {
        Some(Self {
            version: le32(head, 0x44)?,
            image_type: le32(head, 0x4c)?,
            offset_bmap: le32(head, 0x154)?,
            offset_data: le32(head, 0x158)?,
            sector_size: le32(head, 0x168)?,
            disk_size: le64(head, 0x170)?,
            block_size: le32(head, 0x178)?,
            blocks_in_image: le32(head, 0x180)?,
            blocks_allocated: le32(head, 0x184)?,
            uuid_link: array(head, 0x1a8)?,
            uuid_parent: array(head, 0x1b8)?,
        })
    }

    fn check(&self, file_size: Option<u64>, verdict: &mut Verdict) {
        if self.version != VERSION_1_1 {
            let (major, minor) = (self.version >> 16, self.version & 0xffff);
            verdict.find(Rule::UnsupportedVersion, format!("VDI version {major}.{minor}"));
            return;
        }
        // "VBoxManage convertfromraw" writes odd sizes; QEMU rounds them up, too.
        verdict.set_virtual_size(self.disk_size.checked_next_multiple_of(512));
        match self.image_type {
            1 | 2 => {}
            3 => verdict.find(Rule::ParentImage, "an undo image"),
            4 => verdict.find(Rule::ParentImage, "a differencing image"),
            other => verdict.find(Rule::UnknownFeature, format!("image type {other}")),
        }
        if self.uuid_parent != [0; 16] {
            verdict.find(Rule::ParentImage, "the UUID of a parent");
        }
        if self.uuid_link != [0; 16] {
            verdict.find(Rule::ParentImage, "the UUID of a linked image");
        }
        self.check_blocks(file_size, verdict);
    }

    fn check_blocks(&self, file_size: Option<u64>, verdict: &mut Verdict) {
        if !self.block_size.is_power_of_two() || !(512..=MAX_BLOCK_SIZE).contains(&self.block_size) {
            verdict.find(Rule::ResourceBomb, format!("blocks of {} bytes", self.block_size));
            return;
        }
        if self.blocks_in_image > MAX_BLOCKS {
            verdict.find(Rule::ResourceBomb, format!("{} blocks", self.blocks_in_image));
        }
        let block_size = u64::from(self.block_size);
        if u64::from(self.blocks_in_image) * block_size < self.disk_size {
            let detail = format!("{} blocks for a disk of {} bytes", self.blocks_in_image, self.disk_size);
            verdict.find(Rule::Malformed, detail);
        }
        if self.sector_size != 512
            || [self.offset_bmap, self.offset_data].iter().any(|at| !at.is_multiple_of(512))
        {
            verdict.find(Rule::Malformed, "blocks or their map are not on sectors");
        }
        let map_end = u64::from(self.offset_bmap) + u64::from(self.blocks_in_image) * 4;
        // The last block may be cut where the disk ends.
        let blocks = u64::from(self.blocks_allocated).saturating_sub(1) * block_size;
        let data_end = u64::from(self.offset_data) + blocks;
        if file_size.is_some_and(|size| map_end.max(data_end) > size) {
            verdict.find(Rule::Truncated, "the blocks are beyond the end");
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::{super::tests::*, *};

    /// An empty dynamic image of 8 MiB, with its `edits` made.
    pub(in super::super) fn image(edits: &[(usize, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; 1024];
        let fields: [(usize, &[u8]); 10] = [
            (0, b"<<< Oracle VM VirtualBox Disk Image >>>\n"),
            (0x40, &SIGNATURE.to_le_bytes()),
            (0x44, &VERSION_1_1.to_le_bytes()),
            (0x4c, &[1]),
            (0x154, &512u32.to_le_bytes()),
            (0x158, &1024u32.to_le_bytes()),
            (0x168, &512u32.to_le_bytes()),
            (0x170, &(8u64 << 20).to_le_bytes()),
            (0x178, &(1u32 << 20).to_le_bytes()),
            (0x180, &8u32.to_le_bytes()),
        ];
        put(&mut bytes, &fields);
        put(&mut bytes, edits);
        bytes
    }

    #[test]
    fn each_field_has_its_rule() {
        let report = inspect(&image(&[]));
        assert_eq!((report.format, report.virtual_size), (Format::Vdi, Some(8 << 20)));
        for (at, bytes, expected) in [
            (0x4c, &[2][..], None),
            (0x4c, &[3], Some(Rule::ParentImage)),
            (0x4c, &[4], Some(Rule::ParentImage)),
            (0x4c, &[9], Some(Rule::UnknownFeature)),
            (0x44, &[0], Some(Rule::UnsupportedVersion)),
            (0x188, &[1; 32], None),
            (0x1a8, &[1], Some(Rule::ParentImage)),
            (0x1b8, &[1], Some(Rule::ParentImage)),
            (0x154, &[1], Some(Rule::Malformed)),
            (0x180, &[7], Some(Rule::Malformed)),
            (0x183, &[0x40], Some(Rule::ResourceBomb)),
            (0x17b, &[0x20], Some(Rule::ResourceBomb)),
            (0x177, &[0x50], Some(Rule::ResourceBomb)),
            (0x184, &[5], Some(Rule::Truncated)),
            (0x40, &[0], None),
        ] {
            let found = rules(&image(&[(at, bytes)]));
            assert_eq!(expected.is_none(), found.is_empty(), "{bytes:?} at {at:#x}: {found:?}");
            assert!(expected.is_none_or(|rule| found.contains(&rule)), "{bytes:?} at {at:#x}: {found:?}");
        }
        assert_eq!(inspect(&image(&[(0x40, &[0])])).format, Format::Raw);
        assert_eq!(rules(&image(&[])[..100]), [Rule::Truncated]);
    }
}
