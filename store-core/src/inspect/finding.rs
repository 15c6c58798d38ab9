use std::fmt;

use serde::{Serialize, Serializer};

use super::Format;

/// Something about an image that its keeper should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which rule it falls under.
    pub rule: Rule,
    /// What exactly was found, for people; escaped and short.
    pub detail: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.detail)
    }
}

/// What images are checked for. [`Rule::blocks`] tells refusals from notes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Rule {
    /// A qcow2 or QED image that reads another file for what it lacks (CVE-2015-5163).
    BackingFile,
    /// A qcow2 image whose data is in another file (CVE-2024-32498).
    ExternalDataFile,
    /// A VMDK whose data is in other files (CVE-2022-47951).
    ExternalExtent,
    /// A differencing VMDK, VHD, VHDX or VDI.
    ParentImage,
    /// A VMDK other than `monolithicSparse` and `streamOptimized`.
    VmdkSubformat,
    /// A required feature that nobody here knows, which could mean anything of the above.
    UnknownFeature,
    /// A version of the format that nobody here knows.
    UnsupportedVersion,
    /// An encrypted qcow2: neither checkable nor bootable without its key. An image of the LUKS format is
    /// encrypted by its very name, and is not found fault with.
    Encrypted,
    /// A format that no cloud should run.
    BannedFormat,
    /// A header that makes its reader allocate or loop beyond reason (CVE-2015-5162).
    ResourceBomb,
    /// A header that contradicts its specification, so that two readers could see two images.
    Malformed,
    /// The stream ended before what its header promises, or before data that its tables tell of.
    Truncated,
    /// An image marked corrupt by its last writer.
    CorruptBit,
    /// A VHDX journal that still has to be replayed, and could then replace everything checked here.
    PendingLog,
    /// The signatures of several formats, for several readers to see several images.
    Ambiguous,
    /// Not the declared format (CVE-2024-40767).
    FormatMismatch,
    /// A note: the image was not closed cleanly; its reference counts need a repair.
    DirtyBit,
    /// A note: internal snapshots, which keep what the current disk may have deleted.
    Snapshots,
    /// A note: a header extension without effect.
    StrayExtension,
    /// A note: a partition table that firmware may complain about.
    PartitionTable,
}

impl Rule {
    /// Every rule.
    pub const ALL: [Self; 20] = [
        Self::BackingFile,
        Self::ExternalDataFile,
        Self::ExternalExtent,
        Self::ParentImage,
        Self::VmdkSubformat,
        Self::UnknownFeature,
        Self::UnsupportedVersion,
        Self::Encrypted,
        Self::BannedFormat,
        Self::ResourceBomb,
        Self::Malformed,
        Self::Truncated,
        Self::CorruptBit,
        Self::PendingLog,
        Self::Ambiguous,
        Self::FormatMismatch,
        Self::DirtyBit,
        Self::Snapshots,
        Self::StrayExtension,
        Self::PartitionTable,
    ];

    /// The rule as a stable kebab-case word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BackingFile => "backing-file",
            Self::ExternalDataFile => "external-data-file",
            Self::ExternalExtent => "external-extent",
            Self::ParentImage => "parent-image",
            Self::VmdkSubformat => "vmdk-subformat",
            Self::UnknownFeature => "unknown-feature",
            Self::UnsupportedVersion => "unsupported-version",
            Self::Encrypted => "encrypted",
            Self::BannedFormat => "banned-format",
            Self::ResourceBomb => "resource-bomb",
            Self::Malformed => "malformed",
            Self::Truncated => "truncated",
            Self::CorruptBit => "corrupt-bit",
            Self::PendingLog => "pending-log",
            Self::Ambiguous => "ambiguous",
            Self::FormatMismatch => "format-mismatch",
            Self::DirtyBit => "dirty-bit",
            Self::Snapshots => "snapshots",
            Self::StrayExtension => "stray-extension",
            Self::PartitionTable => "partition-table",
        }
    }

    /// Whether a strict policy refuses the image for it; the rest are notes.
    pub fn blocks(self) -> bool {
        !matches!(self, Self::DirtyBit | Self::Snapshots | Self::StrayExtension | Self::PartitionTable)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// What one format's examiner knows so far.
#[derive(Clone, Debug)]
pub(super) enum Seen {
    /// Not this format, for certain.
    No,
    /// Too early to tell.
    NotYet,
    /// This format, for certain; findings may still be added.
    Yes(Verdict),
}

impl Seen {
    pub(super) fn verdict(&self) -> Option<&Verdict> {
        match self {
            Self::Yes(verdict) => Some(verdict),
            Self::No | Self::NotYet => None,
        }
    }
}

/// What an examiner tells of an image that has its format's signature.
#[derive(Clone, Debug)]
pub(super) struct Verdict {
    pub(super) format: Format,
    pub(super) virtual_size: Option<u64>,
    pub(super) findings: Vec<Finding>,
    /// Recognised by its end alone, so that its start is the disk's own and may be whatever a disk starts with.
    pub(super) trailer_only: bool,
}

impl Verdict {
    /// Findings of one rule beyond these say nothing new, and a descriptor could hold a hundred thousand.
    const MAX_PER_RULE: usize = 4;

    pub(super) fn new(format: Format) -> Self {
        Self { format, virtual_size: None, findings: Vec::new(), trailer_only: false }
    }

    pub(super) fn find(&mut self, rule: Rule, detail: impl Into<String>) {
        if self.findings.iter().filter(|finding| finding.rule == rule).count() < Self::MAX_PER_RULE {
            self.findings.push(Finding { rule, detail: detail.into() });
        }
    }

    /// Records the disk's size, or the finding that none such can exist.
    pub(super) fn set_virtual_size(&mut self, size: Option<u64>) {
        match size {
            Some(size) if size <= 1 << 62 => self.virtual_size = Some(size),
            _ => self.find(Rule::ResourceBomb, "a virtual size beyond 4 EiB"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_have_distinct_kebab_names() {
        let mut names = Rule::ALL.map(Rule::as_str).to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Rule::ALL.len());
        assert!(names.iter().all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')));
        assert!(Rule::BackingFile.blocks() && !Rule::DirtyBit.blocks());
    }

    #[test]
    fn a_size_beyond_reason_is_a_finding() {
        let mut verdict = Verdict::new(Format::Qcow2);
        verdict.set_virtual_size(Some(1 << 62));
        assert!(verdict.findings.is_empty());
        verdict.set_virtual_size(Some((1 << 62) + 1));
        assert_eq!(verdict.findings.len(), 1);
    }

    #[test]
    fn repeated_findings_are_capped() {
        let mut verdict = Verdict::new(Format::Vmdk);
        (0..1000).for_each(|i| verdict.find(Rule::Malformed, format!("line {i}")));
        verdict.find(Rule::Truncated, "no footer");
        assert_eq!(verdict.findings.len(), Verdict::MAX_PER_RULE + 1);
    }
}
