//! Packing with zstd in a way that every archive made here can be unpacked.
//!
//! What unpacks to many times its size is refused, as nobody can tell it from an attack. A folder may hold such a file all the same: an
//! empty database is mostly zeros. So it is packed piece by piece, and a piece that became too small is preceded by a frame of zstd
//! that every reader skips, which makes up for it: such a file is sent a hundred times smaller, not ten thousand times.

use std::io::{self, Write};

/// How hard zstd tries: at this level it is still as fast as most disks.
const LEVEL: i32 = 3;
/// How much is packed at once.
const PIECE: usize = 1 << 20;
/// At the most so many bytes are told by one: half of what is allowed.
const FAIR: usize = 100;
/// How a frame begins that is skipped; its length follows (RFC 8878, 3.1.2).
const SKIPPED: [u8; 4] = [0x50, 0x2a, 0x4d, 0x18];

/// Packs what is written to it.
pub(super) struct Press<W: Write> {
    to: W,
    zstd: zstd::bulk::Compressor<'static>,
    piece: Vec<u8>,
}

impl<W: Write> Press<W> {
    pub(super) fn new(to: W) -> io::Result<Self> {
        let mut zstd = zstd::bulk::Compressor::new(LEVEL)?;
        zstd.include_checksum(true)?;
        Ok(Self { to, zstd, piece: Vec::with_capacity(PIECE) })
    }

    fn press(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let frame = self.zstd.compress(&self.piece)?;
        let lacking = (self.piece.len() / FAIR).saturating_sub(frame.len());
        if let Ok(length @ 1..) = u32::try_from(lacking) {
            self.to.write_all(&SKIPPED)?;
            self.to.write_all(&length.to_le_bytes())?;
            self.to.write_all(&vec![0; lacking])?;
        }
        self.piece.clear();
        self.to.write_all(&frame)
    }

    /// Packs what is left.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.press()?;
        self.to.flush()
    }
}

impl<W: Write> Write for Press<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..taken]);
        if self.piece.len() == PIECE {
            self.press()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
