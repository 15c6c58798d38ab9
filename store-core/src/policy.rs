use crate::{
    Chunk, Error, ErrorKind, Inspect, Result,
    inspect::{Finding, Format, Inspector, Report},
};

/// Applies a store's [`Inspect`] policy to one upload, on the stream and before the commit.
#[derive(Debug)]
pub(crate) struct Inspection {
    inspector: Option<Inspector>,
    declared: Option<Format>,
    refuses: bool,
}

impl Inspection {
    pub(crate) fn new(policy: Inspect, declared: Option<Format>) -> Self {
        let inspector = (policy != Inspect::Off).then(Inspector::new);
        let refuses = policy == Inspect::Strict || declared.is_some();
        Self { inspector, declared, refuses }
    }

    /// Looks at the next bytes; a hostile image is refused as soon as it shows.
    pub(crate) fn push(&mut self, chunk: &Chunk) -> Result<()> {
        let Some(inspector) = &mut self.inspector else { return Ok(()) };
        match chunk {
            Chunk::Data(bytes) => inspector.push(bytes),
            Chunk::Zeros(len) => inspector.push_zeros(*len),
        }
        if self.refuses {
            return refuse(&inspector.peek().violations(self.declared));
        }
        Ok(())
    }

    /// The verdict on the whole image.
    pub(crate) fn finish(&mut self) -> Result<Option<Report>> {
        let Some(inspector) = self.inspector.take() else { return Ok(None) };
        let report = inspector.finish();
        if self.refuses {
            refuse(&report.violations(self.declared))?;
        }
        Ok(Some(report))
    }
}

fn refuse(violations: &[Finding]) -> Result<()> {
    if violations.is_empty() {
        return Ok(());
    }
    let reasons: Vec<String> = violations.iter().map(ToString::to_string).collect();
    Err(Error::new(ErrorKind::Rejected, format!("the image is refused: {}", reasons.join("; ")))
        .with_hint("`imagestore inspect FILE` shows what the image holds; `inspect` in the store's configuration sets the policy"))
}
