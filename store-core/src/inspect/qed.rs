//! QED, as in QEMU's docs/interop/qed_spec.rst. Little-endian. Always refused: nobody maintains it, and a
//! header bit makes it read another file.

use super::{
    Format, Rule,
    capture::{Read, View},
    field::{le32, le64},
    finding::{Seen, Verdict},
};

const MAGIC: &[u8] = b"QED\0";
const FEATURE_BACKING_FILE: u64 = 1;

pub(super) fn examine(view: &View<'_>) -> Seen {
    let Read::Bytes(head) = view.read(0, 64) else { return Seen::NotYet };
    if !head.starts_with(MAGIC) {
        return Seen::No;
    }
    let mut verdict = Verdict::new(Format::Qed);
    verdict.find(Rule::BannedFormat, "QED is no longer maintained");
    let features = le64(head, 16);
    if features.is_some_and(|features| features & FEATURE_BACKING_FILE != 0) {
        let len = le32(head, 60).unwrap_or_default();
        verdict.find(Rule::BackingFile, format!("a name of {len} bytes"));
    }
    match le64(head, 48) {
        Some(size) => verdict.set_virtual_size(Some(size)),
        None => verdict.find(Rule::Truncated, "the file ends inside its header"),
    }
    Seen::Yes(verdict)
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};

    #[test]
    fn it_is_always_refused() {
        let mut bytes = vec![0; 4096];
        put(&mut bytes, &[(0, MAGIC), (48, &(1u64 << 20).to_le_bytes())]);
        let report = inspect(&bytes);
        assert_eq!((report.format, report.virtual_size), (Format::Qed, Some(1 << 20)));
        assert_eq!(rules(&bytes), [Rule::BannedFormat]);
        assert_eq!(report.violations(Some(Format::Qed)).len(), 1);
        put(&mut bytes, &[(16, &[1])]);
        assert_eq!(rules(&bytes), [Rule::BannedFormat, Rule::BackingFile]);
        assert_eq!(rules(&bytes[..20]), [Rule::BannedFormat, Rule::Truncated]);
        put(&mut bytes, &[(3, b"x")]);
        assert_eq!(inspect(&bytes).format, Format::Raw);
    }
}
