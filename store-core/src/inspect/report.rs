use serde::Serialize;

use super::{
    Finding, Format, Rule,
    finding::{Seen, Verdict},
};

/// What a whole stream turned out to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The format, decided by content alone.
    pub format: Format,
    /// Other formats whose signature is there too.
    pub also: Vec<Format>,
    /// The size of the disk inside, where the header tells.
    pub virtual_size: Option<u64>,
    /// The size of the stream.
    pub size: u64,
    /// What was found, blocking or not, of all formats that matched.
    pub findings: Vec<Finding>,
}

impl Report {
    pub(super) fn new(seen: &[Seen], size: u64) -> Self {
        let known = Known::new(seen);
        let format = known.formats.first().copied().unwrap_or(Format::Raw);
        let also = known.formats.get(1..).unwrap_or_default().to_vec();
        let virtual_size = if format == Format::Raw { Some(size) } else { known.virtual_size };
        Self { format, also, virtual_size, size, findings: known.findings }
    }

    /// What a strict policy refuses this image for; nothing if it is fine.
    ///
    /// That is every finding whose rule [blocks](Rule::blocks), and content other than `declared`:
    ///
    /// - `raw` takes any plain content: no signature, GPT, MBR and, as in Glance, ISO. Programs that guess
    ///   formats read all of these as raw too, so nobody sees another disk than was declared. LUKS is refused:
    ///   QEMU guesses it, and the disk inside is not the bytes declared.
    /// - `gpt` and `mbr` take each other: every GPT has a protective MBR, and Glance's `gpt` means both.
    /// - `iso` takes a hybrid, a disc that is a partitioned disk as well.
    /// - Any other format takes itself.
    /// - Nothing declared takes any content.
    pub fn violations(&self, declared: Option<Format>) -> Vec<Finding> {
        let found = |format| format == self.format || self.also.contains(&format);
        let mut violations = blocking(&self.findings);
        violations.extend(declared.and_then(|declared| mismatch(declared, found, |format| !found(format))));
        violations
    }
}

/// What is certain halfway through a stream. More bytes add to it and take nothing back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Peek {
    /// Formats whose signature was seen.
    pub formats: Vec<Format>,
    /// Formats whose signature can no longer come.
    pub ruled_out: Vec<Format>,
    /// What was found so far.
    pub findings: Vec<Finding>,
}

impl Peek {
    pub(super) fn new(seen: &[Seen], examined: impl IntoIterator<Item = &'static [Format]>) -> Self {
        let known = Known::new(seen);
        let settled = examined.into_iter().zip(seen).filter(|(_, seen)| !matches!(seen, Seen::NotYet));
        let settled = settled.flat_map(|(formats, _)| formats.iter().copied());
        let ruled_out = settled.filter(|format| !known.formats.contains(format)).collect();
        Self { formats: known.formats, ruled_out, findings: known.findings }
    }

    /// What [`Report::violations`] will refuse this image for whatever else comes.
    pub fn violations(&self, declared: Option<Format>) -> Vec<Finding> {
        let found = |format| self.formats.contains(&format);
        let ruled_out = |format| self.ruled_out.contains(&format);
        let mut violations = blocking(&self.findings);
        violations.extend(declared.and_then(|declared| mismatch(declared, found, ruled_out)));
        violations
    }
}

/// The sum of what the examiners saw.
struct Known {
    formats: Vec<Format>,
    virtual_size: Option<u64>,
    findings: Vec<Finding>,
}

impl Known {
    fn new(seen: &[Seen]) -> Self {
        let mut verdicts: Vec<&Verdict> = seen.iter().filter_map(Seen::verdict).collect();
        verdicts.sort_by_key(|verdict| verdict.format);
        let formats: Vec<_> = verdicts.iter().map(|verdict| verdict.format).collect();
        let mut findings: Vec<_> = verdicts.iter().flat_map(|verdict| verdict.findings.clone()).collect();
        if is_ambiguous(&verdicts) {
            let names: Vec<_> = formats.iter().map(|format| format.as_str()).collect();
            let detail = format!("the signatures of {}", names.join(" and "));
            findings.push(Finding { rule: Rule::Ambiguous, detail });
        }
        Self { formats, virtual_size: verdicts.first().and_then(|verdict| verdict.virtual_size), findings }
    }
}

/// Whether programs could disagree about which format this is.
///
/// Partition tables and discs go together (a hybrid ISO), and in the disk of a fixed VHD both are at home.
fn is_ambiguous(verdicts: &[&Verdict]) -> bool {
    let containers = verdicts.iter().filter(|verdict| !verdict.format.is_plain()).count();
    let plain = verdicts.len() - containers;
    let wrapped_disk = verdicts.iter().any(|verdict| verdict.trailer_only);
    containers > 1 || containers == 1 && plain > 0 && !wrapped_disk
}

fn blocking(findings: &[Finding]) -> Vec<Finding> {
    findings.iter().filter(|finding| finding.rule.blocks()).cloned().collect()
}

fn mismatch(
    declared: Format,
    found: impl Fn(Format) -> bool,
    ruled_out: impl Fn(Format) -> bool,
) -> Option<Finding> {
    let refused = match declared {
        Format::Raw => Format::ALL.into_iter().any(|format| !format.is_plain() && found(format)),
        Format::Gpt | Format::Mbr => ruled_out(Format::Gpt) && ruled_out(Format::Mbr),
        other => ruled_out(other),
    };
    let content: Vec<_> = Format::ALL.into_iter().filter(|&f| found(f)).map(Format::as_str).collect();
    let content = if content.is_empty() { "not that format".to_owned() } else { content.join(" and ") };
    let detail = format!("declared {declared}, but the content is {content}");
    refused.then_some(Finding { rule: Rule::FormatMismatch, detail })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(formats: &[(Format, bool)]) -> Report {
        let seen = formats.iter().map(|&(format, trailer_only)| {
            let mut verdict = Verdict::new(format);
            verdict.trailer_only = trailer_only;
            Seen::Yes(verdict)
        });
        Report::new(&seen.collect::<Vec<_>>(), 4096)
    }

    fn refused(formats: &[Format], declared: Format) -> bool {
        let formats: Vec<_> = formats.iter().map(|&format| (format, false)).collect();
        !report(&formats).violations(Some(declared)).is_empty()
    }

    #[test]
    fn content_decides_what_may_be_declared() {
        use Format::*;
        for container in [Qcow2, Qed, Vmdk, Vhdx, Vhd, Vdi, Luks] {
            assert!(refused(&[container], Raw), "{container} as raw");
            assert!(refused(&[container], Gpt), "{container} as gpt");
            assert!(refused(&[], container), "nothing as {container}");
            assert!(!refused(&[container], container), "{container} as itself");
        }
        for plain in [Iso, Gpt, Mbr] {
            assert!(!refused(&[plain], Raw), "{plain} as raw");
            assert!(refused(&[plain], Qcow2), "{plain} as qcow2");
            assert!(refused(&[], plain), "nothing as {plain}");
        }
        assert!(!refused(&[], Raw));
        assert!(!refused(&[Gpt], Mbr) && !refused(&[Mbr], Gpt));
        assert!(refused(&[Mbr], Iso) && refused(&[Iso], Gpt));
    }

    #[test]
    fn hybrids_are_fine_and_other_pairs_are_ambiguous() {
        use Format::*;
        for (formats, fine) in [
            (&[(Iso, false), (Mbr, false)][..], true),
            (&[(Iso, false), (Gpt, false)], true),
            (&[(Vhd, true), (Gpt, false)], true),
            (&[(Vhd, false), (Gpt, false)], false),
            (&[(Vhd, true), (Qcow2, false)], false),
            (&[(Qcow2, false), (Iso, false)], false),
            (&[(Qcow2, false), (Vdi, false)], false),
        ] {
            assert_eq!(report(formats).violations(None).is_empty(), fine, "{formats:?}");
        }
        let hybrid = report(&[(Gpt, false), (Iso, false)]);
        assert_eq!((hybrid.format, &hybrid.also[..]), (Iso, &[Gpt][..]));
        assert!(hybrid.violations(Some(Iso)).is_empty());
    }

    #[test]
    fn a_report_serialises_with_names() {
        let json = serde_json::to_value(report(&[(Format::Iso, false), (Format::Mbr, false)])).unwrap();
        assert_eq!((&json["format"], &json["also"][0]), (&"iso".into(), &"mbr".into()));
    }
}
