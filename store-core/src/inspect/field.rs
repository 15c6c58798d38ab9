//! Numbers and text out of untrusted bytes.

/// A fixed-size field at `at`, or nothing where the bytes end before it does.
pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

macro_rules! numbers {
    ($($name:ident $number:ty, $from:ident, $doc:literal;)*) => {$(
        #[doc = $doc]
        pub(super) fn $name(bytes: &[u8], at: usize) -> Option<$number> {
            array(bytes, at).map(<$number>::$from)
        }
    )*};
}

numbers! {
    be16 u16, from_be_bytes, "A big-endian 16-bit number.";
    be32 u32, from_be_bytes, "A big-endian 32-bit number.";
    be64 u64, from_be_bytes, "A big-endian 64-bit number.";
    le16 u16, from_le_bytes, "A little-endian 16-bit number.";
    le32 u32, from_le_bytes, "A little-endian 32-bit number.";
    le64 u64, from_le_bytes, "A little-endian 64-bit number.";
}

/// The bytes up to the first NUL, as C would see them.
pub(super) fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// Hostile text made fit for a log line: quoted, escaped and short.
pub(super) fn shown(bytes: &[u8]) -> String {
    const MAX: usize = 120;
    let text = String::from_utf8_lossy(bytes.get(..bytes.len().min(MAX)).unwrap_or_default());
    format!("{text:?}{}", if bytes.len() > MAX { "..." } else { "" })
}

/// CRC-32 by `table`, of `parts` one after the other.
///
/// GPT uses [`CRC32`], VHDX [`CRC32C`]; both over headers whose own checksum field counts as zeros.
pub(super) fn crc(table: &[u32; 256], parts: &[&[u8]]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        let at = usize::from(crc as u8 ^ byte);
        table.get(at).copied().unwrap_or_default() ^ crc >> 8
    };
    !parts.iter().copied().flatten().fold(u32::MAX, step)
}

/// CRC-32 of ISO-HDLC and zlib.
pub(super) static CRC32: [u32; 256] = crc_table(0xedb8_8320);
/// CRC-32C, Castagnoli's.
pub(super) static CRC32C: [u32; 256] = crc_table(0x82f6_3b78);

const fn crc_table(polynomial: u32) -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < table.len() {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ polynomial } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_past_the_end_is_none() {
        assert_eq!(be32(b"\0\0\x01\x02", 0), Some(258));
        assert_eq!(le32(b"\x01\x02\0\0", 0), Some(513));
        assert_eq!(be32(b"\0\0\x01\x02", 1), None);
        assert_eq!(be32(b"", usize::MAX), None);
    }

    #[test]
    fn crcs_have_their_published_check_values() {
        assert_eq!(crc(&CRC32, &[b"1234", b"56789"]), 0xcbf4_3926);
        assert_eq!(crc(&CRC32C, &[b"123456789"]), 0xe306_9283);
    }

    #[test]
    fn hostile_text_stays_on_one_short_line() {
        assert_eq!(shown(b"a\n\x1b\xff"), "\"a\\n\\u{1b}\u{fffd}\"");
        assert!(shown(&[b'x'; 5000]).len() < 200);
    }
}
