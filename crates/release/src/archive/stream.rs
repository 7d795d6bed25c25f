//! The archive's bytes, whatever they are packed with, counted on both sides.

use std::cell::Cell;
use std::io::{self, BufReader, Read};
use std::rc::Rc;

use super::{Error, Limits};
use crate::names::Rule;

/// The largest window of zstd that is unpacked, as a power of two: eight mebibytes, which is what every level that is commonly used
/// stays within. A larger one would be memory that the sender chooses.
const WINDOW: u32 = 23;
/// How much may be unpacked before the ratio is judged.
const GRACE: u64 = 1 << 20;

/// What was seen of the packed side.
#[derive(Default)]
struct Packed {
    bytes: Cell<u64>,
    failed: Cell<bool>,
}

/// The packed side.
struct Source<R> {
    from: R,
    packed: Rc<Packed>,
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.from.read(buffer) {
            Ok(length) => {
                self.packed.bytes.set(self.packed.bytes.get() + length as u64);
                Ok(length)
            }
            Err(error) => {
                if error.kind() != io::ErrorKind::Interrupted {
                    self.packed.failed.set(true);
                }
                Err(error)
            }
        }
    }
}

/// The unpacked side.
pub(super) struct Stream<'a> {
    from: Box<dyn Read + 'a>,
    packed: Rc<Packed>,
    unpacked: u64,
    ratio: u64,
}

impl<'a> Stream<'a> {
    /// Looks at the first bytes and reads on as they say.
    pub(super) fn open(from: impl Read + 'a, limits: &Limits) -> Result<Self, Error> {
        let packed = Rc::new(Packed::default());
        let mut source = Source { from, packed: packed.clone() };
        let mut first = [0; 6];
        let mut length = 0;
        while length < first.len() {
            match source.read(&mut first[length..]) {
                Ok(0) => break,
                Ok(more) => length += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Reading(error)),
            }
        }
        let start = first;
        let whole =
            BufReader::with_capacity(64 << 10, io::Cursor::new(first).take(length as u64).chain(source));
        let from: Box<dyn Read + 'a> = match &start[..length] {
            [] => return Err(Error::Empty),
            [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(whole)),
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50, 0x2a, 0x4d, 0x18, ..] => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(whole)
                    .map_err(|error| Error::Broken(error.to_string()))?;
                decoder.window_log_max(WINDOW).map_err(|error| Error::Broken(error.to_string()))?;
                Box::new(decoder)
            }
            [b'P', b'K', 3, 4, ..] => return Err(foreign("zip")),
            [0xfd, b'7', b'z', b'X', b'Z', 0] => return Err(foreign("xz")),
            [b'B', b'Z', b'h', ..] => return Err(foreign("bzip2")),
            _ => Box::new(whole),
        };
        Ok(Self { from, packed, unpacked: 0, ratio: limits.ratio })
    }

    /// Reads as much as there is, up to the buffer's length. `member` is what is being read, for the fault.
    pub(super) fn read(&mut self, buffer: &mut [u8], member: &[u8]) -> Result<usize, Error> {
        loop {
            match self.from.read(buffer) {
                Ok(length) => {
                    self.unpacked += length as u64;
                    let most = self.packed.bytes.get().saturating_mul(self.ratio);
                    if self.unpacked > GRACE && self.unpacked > most {
                        return Err(Error::refused(member, Rule::Ratio(self.ratio)));
                    }
                    return Ok(length);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if self.packed.failed.get() => return Err(Error::Reading(error)),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(Error::Truncated),
                Err(error) => return Err(Error::Broken(error.to_string())),
            }
        }
    }

    /// Fills the buffer as far as the stream goes.
    pub(super) fn fill(&mut self, buffer: &mut [u8], member: &[u8]) -> Result<usize, Error> {
        let mut length = 0;
        while length < buffer.len() {
            match self.read(&mut buffer[length..], member)? {
                0 => break,
                more => length += more,
            }
        }
        Ok(length)
    }
}

fn foreign(what: &str) -> Error {
    Error::Broken(format!("it is packed with {what}; send tar, plain or packed with gzip or zstd"))
}
