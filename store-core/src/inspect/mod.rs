//! What kind of image a stream of bytes is, and whether it is safe to keep.
//!
//! An [`Inspector`] watches an upload go by. It never seeks, and comes to the same [`Report`] however the
//! stream is cut into chunks. It keeps tens of kilobytes, a few hundred of a qcow2 or VHDX, and up to two megabytes of a VMDK's
//! descriptor and tables, or of what starts like a text file; nothing in a header makes it keep more.
//! Content alone decides the format; [`Report::violations`] compares it with what the uploader declared.
//!
//! The threat is an image that makes its reader open other files: backing files, extents, parents, external
//! data. Programs that guess formats (QEMU does) fall for an image declared raw whose content is qcow2; so a
//! header is refused wherever two readers could come to two conclusions. All of it is parsed here, without
//! help from the programs under threat.
//!
//! ```
//! use store_core::inspect::{Format, Inspector, Rule};
//!
//! let mut header = [0; 512];
//! header[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
//! header[15] = 0xff; // the offset of a backing file's name
//! let mut inspector = Inspector::new();
//! inspector.push(&header);
//! let refused = inspector.peek().violations(Some(Format::Raw));
//! assert!(refused.iter().any(|finding| finding.rule == Rule::BackingFile));
//! assert!(refused.iter().any(|finding| finding.rule == Rule::FormatMismatch));
//! ```

mod capture;
mod field;
mod finding;
mod format;
mod iso;
mod luks;
mod partition;
mod qcow2;
mod qed;
mod report;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;

#[cfg(test)]
mod tests;

/// A plain image of 1 GiB, for tests of what is done with reports.
#[cfg(test)]
pub(crate) fn sample_qcow2() -> Vec<u8> {
    qcow2::tests::image(&[], &[])
}

pub use finding::{Finding, Rule};
pub use format::{Format, UnknownFormat};
pub use report::{Peek, Report};

use capture::{Tape, View};
use finding::Seen;

/// An examiner looks at what has been captured so far, and starts anew each time more is known.
type Examine = fn(&View<'_>) -> Seen;

/// The examiners, and the formats each of them can tell.
const EXAMINERS: [(&[Format], Examine); 9] = [
    (&[Format::Qcow2], qcow2::examine),
    (&[Format::Qed], qed::examine),
    (&[Format::Vmdk], vmdk::examine),
    (&[Format::Vhdx], vhdx::examine),
    (&[Format::Vhd], vhd::examine),
    (&[Format::Vdi], vdi::examine),
    (&[Format::Luks], luks::examine),
    (&[Format::Iso], iso::examine),
    (&[Format::Gpt, Format::Mbr], partition::examine),
];

/// Watches one image go by.
#[derive(Debug)]
pub struct Inspector {
    tape: Tape,
    seen: [Seen; EXAMINERS.len()],
}

impl Inspector {
    /// At the start of a stream.
    pub fn new() -> Self {
        let mut inspector = Self { tape: Tape::default(), seen: EXAMINERS.map(|_| Seen::NotYet) };
        inspector.examine();
        inspector
    }

    /// Takes the stream's next bytes, any number of them.
    pub fn push(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let step = self.step(rest.len() as u64);
            let (now, later) = rest.split_at_checked(step as usize).unwrap_or((rest, &[]));
            self.tape.push(now);
            self.examine_if_reached();
            rest = later;
        }
    }

    /// Takes `len` zero bytes, as [`push`](Self::push) would, at no cost that grows with `len`.
    pub fn push_zeros(&mut self, len: u64) {
        let mut rest = len;
        while rest > 0 {
            let step = self.step(rest);
            self.tape.push_zeros(step);
            self.examine_if_reached();
            rest -= step;
        }
    }

    /// What is certain already, so that a hostile upload can be refused before all of it was sent. Cheap.
    pub fn peek(&self) -> Peek {
        Peek::new(&self.seen, EXAMINERS.iter().map(|(formats, _)| *formats))
    }

    /// What the stream was.
    pub fn finish(mut self) -> Report {
        self.tape.end();
        self.examine();
        Report::new(&self.seen, self.tape.position())
    }

    /// What is captured right now, in bytes.
    #[cfg(test)]
    fn memory(&self) -> usize {
        self.tape.memory()
    }

    /// How far to go, of `len` bytes at most, before examining again.
    fn step(&self, len: u64) -> u64 {
        self.tape.until_next().map_or(len, |next| next.min(len))
    }

    /// Examines again where a region has just become complete.
    fn examine_if_reached(&mut self) {
        if self.tape.reached() {
            self.examine();
        }
    }

    fn examine(&mut self) {
        loop {
            let view = View::new(&self.tape);
            self.seen = EXAMINERS.map(|(_, examine)| examine(&view));
            let wants = view.into_wants();
            if !self.tape.capture(wants) {
                return;
            }
        }
    }
}

impl Default for Inspector {
    fn default() -> Self {
        Self::new()
    }
}
