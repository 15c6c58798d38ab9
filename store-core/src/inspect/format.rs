use std::{error::Error, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A format of disk images.
///
/// The order is that of precedence: where several signatures match, the first of them names the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Format {
    /// QEMU's own format, versions 2 and 3.
    Qcow2,
    /// QEMU's abandoned enhanced disk format.
    Qed,
    /// VMware's: sparse, stream-optimised, COWD, or a bare text descriptor.
    Vmdk,
    /// Hyper-V's second format.
    Vhdx,
    /// Virtual PC's and Hyper-V's first format; QEMU calls it `vpc`.
    Vhd,
    /// VirtualBox's.
    Vdi,
    /// An encrypted disk, LUKS version 1 or 2.
    Luks,
    /// An optical disc: ISO 9660 or UDF.
    Iso,
    /// A raw disk with a GUID partition table.
    Gpt,
    /// A raw disk with a PC partition table.
    Mbr,
    /// Anything else: the bytes are the disk.
    Raw,
}

impl Format {
    /// Every format, in order of precedence.
    pub const ALL: [Self; 11] = [
        Self::Qcow2,
        Self::Qed,
        Self::Vmdk,
        Self::Vhdx,
        Self::Vhd,
        Self::Vdi,
        Self::Luks,
        Self::Iso,
        Self::Gpt,
        Self::Mbr,
        Self::Raw,
    ];

    /// The name in lower case, as Glance's `disk_format` spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Qed => "qed",
            Self::Vmdk => "vmdk",
            Self::Vhdx => "vhdx",
            Self::Vhd => "vhd",
            Self::Vdi => "vdi",
            Self::Luks => "luks",
            Self::Iso => "iso",
            Self::Gpt => "gpt",
            Self::Mbr => "mbr",
            Self::Raw => "raw",
        }
    }

    /// Whether the bytes are the disk itself, with or without a partition table, or a disc's: nothing in such an image can
    /// name another file. What only few programs know by its content (QEMU: parallels, bochs, cloop) counts as raw.
    pub(super) fn is_plain(self) -> bool {
        matches!(self, Self::Raw | Self::Iso | Self::Gpt | Self::Mbr)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Format {
    type Err = UnknownFormat;

    /// Takes the names of [`Format::as_str`] and QEMU's `vpc`, in any case.
    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        if name.eq_ignore_ascii_case("vpc") {
            return Ok(Self::Vhd);
        }
        let known = Self::ALL.into_iter().find(|format| name.eq_ignore_ascii_case(format.as_str()));
        known.ok_or_else(|| UnknownFormat(name.chars().take(40).collect()))
    }
}

impl Serialize for Format {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Format {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        name.parse().map_err(de::Error::custom)
    }
}

/// A name that is no [`Format`]'s.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownFormat(String);

impl fmt::Display for UnknownFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = Format::ALL.map(Format::as_str).join(", ");
        write!(f, "{:?} is not an image format; known are {known}", self.0)
    }
}

impl Error for UnknownFormat {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_through_text_and_json() {
        for format in Format::ALL {
            assert_eq!(format.to_string().parse(), Ok(format));
            let json = serde_json::to_string(&format).unwrap();
            assert_eq!(json, format!("\"{format}\""));
            assert_eq!(serde_json::from_str::<Format>(&json).unwrap(), format);
        }
        assert_eq!("VPC".parse(), Ok(Format::Vhd));
        assert!(Format::ALL.is_sorted());
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = "qcow3".parse::<Format>().unwrap_err().to_string();
        assert!(error.starts_with("\"qcow3\" is not") && error.contains("vhdx, vhd"), "{error}");
    }
}
