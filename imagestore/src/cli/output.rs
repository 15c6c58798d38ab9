//! Standard output: lines for people, or JSON for programs.

use std::{fmt::Display, io::Write};

use imagestore::{Digests, Meta, Size};
use serde::Serialize;

use super::{
    exit::{Outcome, Stop},
    progress::above_the_bars,
};

#[derive(Clone, Copy)]
pub(super) struct Output {
    pub(super) json: bool,
    pub(super) quiet: bool,
}

impl Output {
    /// Prints a line for people.
    pub(super) fn line(self, text: impl Display) -> Outcome {
        match self.json {
            true => Ok(()),
            false => write(text),
        }
    }

    /// Prints an object on a line of its own, for programs.
    pub(super) fn object(self, value: &impl Serialize) -> Outcome {
        match self.json {
            true => write(serde_json::to_string(value).unwrap_or_default()),
            false => Ok(()),
        }
    }

    /// Prints names and values, one pair a line.
    pub(super) fn rows(self, rows: &[(&str, String)]) -> Outcome {
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
        rows.iter().try_for_each(|(name, value)| self.line(format_args!("{name:width$}  {value}")))
    }
}

fn write(text: impl Display) -> Outcome {
    above_the_bars(&std::io::stdout(), || writeln!(std::io::stdout().lock(), "{text}")).map_err(Stop::output)
}

/// `1.5 GiB (1610612736 bytes)`.
pub(super) fn size(bytes: u64) -> String {
    match bytes < 1024 {
        true => format!("{bytes} bytes"),
        false => format!("{} ({bytes} bytes)", Size(bytes)),
    }
}

/// What a blob says of itself, without its size.
pub(super) fn meta_rows(meta: &Meta) -> Vec<(&str, String)> {
    let mut rows = Vec::new();
    if let Some(format) = meta.format {
        rows.push(("format", format.to_string()));
    }
    if let Some(disk) = meta.virtual_size.filter(|disk| *disk != meta.size) {
        rows.push(("disk", size(disk)));
    }
    rows.push(("created", format!("{:.0}", meta.created)));
    for (name, value) in &meta.properties {
        rows.push(("property", format!("{}={}", name.escape_debug(), value.escape_debug())));
    }
    rows.extend(digest_rows(&meta.digests));
    rows
}

fn digest_rows(digests: &Digests) -> impl Iterator<Item = (&'static str, String)> {
    digests.iter().map(|(algorithm, _)| (algorithm.as_str(), digests.hex(algorithm).unwrap_or_default()))
}
