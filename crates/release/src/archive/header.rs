//! One header of tar: 512 bytes.
//!
//! Facts of the format: POSIX.1-2017, `pax`, "ustar Interchange Format"; GNU tar's manual, "Basic Tar Format", for its long names and
//! its numbers of more than eight octal digits.

/// The size of a header, and what contents are padded to.
pub(super) const BLOCK: usize = 512;
/// The same, for lengths.
pub(super) const BLOCK_LENGTH: u64 = 512;

/// Where the parts of a header lie.
const NAME: std::ops::Range<usize> = 0..100;
const MODE: std::ops::Range<usize> = 100..108;
const OWNER: std::ops::Range<usize> = 108..116;
const GROUP: std::ops::Range<usize> = 116..124;
const SIZE: std::ops::Range<usize> = 124..136;
const TIME: std::ops::Range<usize> = 136..148;
const CHECKSUM: std::ops::Range<usize> = 148..156;
const TYPE: usize = 156;
const LINK: std::ops::Range<usize> = 157..257;
const MAGIC: std::ops::Range<usize> = 257..265;
const PREFIX: std::ops::Range<usize> = 345..500;

const USTAR: &[u8; 8] = b"ustar\x0000";

/// A header, whose checksum was right.
pub(super) struct Header<'a>(&'a [u8; BLOCK]);

impl<'a> Header<'a> {
    /// Reads a header; `None` if its checksum is wrong.
    pub(super) fn read(block: &'a [u8; BLOCK]) -> Option<Self> {
        let stated = number(&block[CHECKSUM])?;
        let with_blanks = |at: usize| if CHECKSUM.contains(&at) { b' ' } else { block[at] };
        let plain: u64 = (0..BLOCK).map(|at| u64::from(with_blanks(at))).sum();
        // Some old programs add the bytes as signed ones.
        let signed: i64 = (0..BLOCK).map(|at| i64::from(with_blanks(at).cast_signed())).sum();
        (stated == plain || i64::try_from(stated) == Ok(signed)).then_some(Self(block))
    }

    /// The member's name.
    pub(super) fn name(&self) -> Vec<u8> {
        let name = text(&self.0[NAME]);
        let prefix = if self.0[MAGIC] == *USTAR { text(&self.0[PREFIX]) } else { &[] };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    /// Where it leads, if it is a link.
    pub(super) fn link(&self) -> &'a [u8] {
        text(&self.0[LINK])
    }

    /// Its content's length; `None` if that is no number.
    pub(super) fn size(&self) -> Option<u64> {
        number(&self.0[SIZE])
    }

    /// Its mode; `None` if that is no number.
    pub(super) fn mode(&self) -> Option<u64> {
        number(&self.0[MODE])
    }

    /// What it is.
    pub(super) const fn kind(&self) -> u8 {
        self.0[TYPE]
    }
}

/// A text up to its NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// A number: octal digits between blanks, or, where the first bit is set, the bytes themselves. An empty field is zero.
fn number(field: &[u8]) -> Option<u64> {
    let (first, rest) = field.split_first()?;
    if *first == 0x80 {
        return rest.iter().try_fold(0u64, |sum, &byte| {
            sum.checked_mul(256)?.checked_add(u64::from(byte)).filter(|sum| i64::try_from(*sum).is_ok())
        });
    }
    let field = text(field).trim_ascii();
    field.iter().try_fold(0u64, |sum, &byte| {
        let digit = char::from(byte).to_digit(8)?;
        sum.checked_mul(8)?.checked_add(u64::from(digit))
    })
}

/// Writes a header. The name must be at most 100 bytes, as must the link; no owner and no time are in it.
pub(super) fn write(name: &[u8], kind: u8, mode: u32, size: u64, link: &[u8]) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |place: std::ops::Range<usize>, bytes: &[u8]| {
        let length = bytes.len().min(place.len());
        block[place.start..place.start + length].copy_from_slice(&bytes[..length]);
    };
    put(NAME, name);
    put(MODE, format!("{mode:07o}").as_bytes());
    put(OWNER, b"0000000");
    put(GROUP, b"0000000");
    put(SIZE, format!("{size:011o}").as_bytes());
    put(TIME, b"00000000000");
    put(CHECKSUM, b"        ");
    put(TYPE..TYPE + 1, &[kind]);
    put(LINK, link);
    put(MAGIC, USTAR);
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[CHECKSUM.start..CHECKSUM.start + 8].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_it_is_written() {
        let block = write(b"a/b", b'2', 0o777, 12_345, b"c");
        let header = Header::read(&block).unwrap();
        assert_eq!((header.name(), header.link(), header.kind()), (b"a/b".to_vec(), &b"c"[..], b'2'));
        assert_eq!((header.size(), header.mode()), (Some(12_345), Some(0o777)));
        let mut wrong = block;
        wrong[0] = b'x';
        assert!(Header::read(&wrong).is_none());
    }

    #[test]
    fn numbers_come_in_several_spellings() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"\x80\0\0\0\0\0\0\0\0\0\x01\0"), Some(256));
        assert_eq!(number(b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), None);
        assert_eq!(number(b"\xff\xff\xff\xff"), None);
        assert_eq!(number(b"-1"), None);
        assert_eq!(number(b"8"), None);
        assert_eq!(number(b"7777777777777777777777777777"), None);
    }
}
