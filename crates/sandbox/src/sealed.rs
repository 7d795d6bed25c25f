//! Files that hold what is parked, sealed as streams: never in plain on a disk, and as they were written or not at all.
//!
//! A file begins with a head (a mark of the format and 32 random bytes) and goes on with chunks of 1 MiB, each sealed with AES-256-GCM under
//! a key that is derived from the [`ParkKey`], the file's purpose and its random bytes, so no two files share a key. A chunk's nonce is its
//! number and whether it is the last. What is cut short, changed, doubled, put in another order, appended, or brought from another file
//! does not open.

use std::io::{self, Read, Write};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hmac;
use karta_types::{Rng, Secret};

/// The format, as files begin with it.
const MARK: [u8; 16] = *b"karta parked 1\r\n";
const KEY: usize = 32;
const SALT: usize = 32;
const TAG: usize = 16;
const HEAD: usize = MARK.len() + SALT;
/// Open bytes of a chunk; the last one may have fewer.
const CHUNK: usize = 1 << 20;

/// What seals one parked sandbox: 32 bytes that nothing else is sealed with. Whoever has them can read it, so they are to be kept where
/// nobody else reads.
#[derive(Debug, Clone)]
pub struct ParkKey(Secret<[u8; KEY]>);

impl ParkKey {
    /// A new one, by chance.
    pub fn random(rng: &dyn Rng) -> Self {
        let mut bytes = [0; KEY];
        rng.fill(&mut bytes);
        Self::new(bytes)
    }

    /// One that was kept.
    pub const fn new(bytes: [u8; KEY]) -> Self {
        Self(Secret::new(bytes))
    }

    /// Its bytes, to be kept.
    pub const fn expose(&self) -> &[u8; KEY] {
        self.0.expose()
    }

    /// The key of one file.
    fn of_file(&self, purpose: &str, salt: &[u8]) -> io::Result<LessSafeKey> {
        let root = hmac::Key::new(hmac::HMAC_SHA256, self.expose());
        let derived = hmac::sign(&root, &[&MARK, purpose.as_bytes(), b"\0", salt].concat());
        let key = UnboundKey::new(&AES_256_GCM, derived.as_ref());
        key.map(LessSafeKey::new).map_err(|_| io::Error::other("the cipher takes no key"))
    }
}

/// The nonce of a chunk: used once, because a file has a key of its own and its chunks are counted.
fn nonce(number: u64, last: bool) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    bytes[8] = u8::from(last);
    Nonce::assume_unique_for_key(bytes)
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it is not as it was written")
}

/// Whether an error says that a file is not as it was written.
pub(crate) fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

/// Seals what is written. Without [`Sealing::finish`] the file opens nowhere.
pub(crate) struct Sealing<W> {
    to: W,
    key: LessSafeKey,
    number: u64,
    /// Not sealed yet: whether it is the last is known when more comes.
    chunk: Vec<u8>,
}

impl<W> std::fmt::Debug for Sealing<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealing").field("number", &self.number).finish_non_exhaustive()
    }
}

impl<W: Write> Sealing<W> {
    /// Begins a file that has this purpose.
    pub(crate) fn begin(mut to: W, key: &ParkKey, purpose: &str) -> io::Result<Self> {
        let mut salt = [0; SALT];
        aws_lc_rs::rand::fill(&mut salt).map_err(|_| io::Error::other("the host gives no randomness"))?;
        to.write_all(&MARK)?;
        to.write_all(&salt)?;
        let key = key.of_file(purpose, &salt)?;
        Ok(Self { to, key, number: 0, chunk: Vec::with_capacity(CHUNK + TAG) })
    }

    fn seal(&mut self, last: bool) -> io::Result<()> {
        let nonce = nonce(self.number, last);
        let sealed = self.key.seal_in_place_append_tag(nonce, Aad::empty(), &mut self.chunk);
        sealed.map_err(|_| io::Error::other("sealing failed"))?;
        self.number += 1;
        let written = self.to.write_all(&self.chunk);
        self.chunk.clear();
        written
    }

    /// Writes the last chunk. What was sealed to is answered.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.seal(true)?;
        Ok(self.to)
    }
}

impl<W: Write> Write for Sealing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.chunk.len() == CHUNK && !bytes.is_empty() {
            self.seal(false)?;
        }
        let some = bytes.len().min(CHUNK - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..some]);
        Ok(some)
    }

    /// What is not a whole chunk waits for more, or for the end.
    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Reads what was sealed. Nothing is given that was not found to be as it was written; the end is given only if it is the end.
pub(crate) struct Opening<R> {
    from: R,
    key: LessSafeKey,
    number: u64,
    /// Sealed bytes that are still to be read.
    left: u64,
    /// Something of it did not open.
    broken: bool,
    chunk: Vec<u8>,
    at: usize,
}

impl<R> std::fmt::Debug for Opening<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opening").field("left", &self.left).finish_non_exhaustive()
    }
}

impl<R: Read> Opening<R> {
    /// Begins with a file of this length and purpose.
    pub(crate) fn begin(mut from: R, length: u64, key: &ParkKey, purpose: &str) -> io::Result<Self> {
        let mut head = [0; HEAD];
        from.read_exact(&mut head)?;
        let (mark, salt) = head.split_at(MARK.len());
        let left = length.checked_sub(HEAD as u64).filter(|left| *left > 0 && mark == MARK);
        let left = left.ok_or_else(damaged)?;
        let key = key.of_file(purpose, salt)?;
        Ok(Self { from, key, number: 0, left, broken: false, chunk: Vec::new(), at: 0 })
    }

    /// What of the open chunk was not taken yet; empty at the end.
    pub(crate) fn fill(&mut self) -> io::Result<&[u8]> {
        if self.broken {
            return Err(damaged());
        }
        if self.at == self.chunk.len() && self.left > 0 {
            self.open()?;
        }
        Ok(&self.chunk[self.at..])
    }

    /// Takes so many bytes of what [`Opening::fill`] gave.
    pub(crate) fn consume(&mut self, bytes: usize) {
        self.at = self.at.saturating_add(bytes).min(self.chunk.len());
    }

    fn open(&mut self) -> io::Result<()> {
        let size = self.left.min((CHUNK + TAG) as u64);
        self.left -= size;
        self.at = 0;
        self.chunk.clear();
        // At most a chunk, by the line above.
        self.chunk.resize(usize::try_from(size).unwrap_or(CHUNK + TAG), 0);
        let read = self.from.read_exact(&mut self.chunk);
        let nonce = nonce(self.number, self.left == 0);
        self.number += 1;
        let opened = read.and_then(|()| {
            let opened = self.key.open_in_place(nonce, Aad::empty(), &mut self.chunk);
            opened.map(|plain| plain.len()).map_err(|_| damaged())
        });
        // What does not open is nobody's to see, and nothing after it is.
        self.chunk.truncate(*opened.as_ref().unwrap_or(&0));
        self.broken = opened.is_err();
        opened.map(drop)
    }
}

impl<R: Read> Read for Opening<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let some = self.fill()?;
        let length = some.len().min(into.len());
        into[..length].copy_from_slice(&some[..length]);
        self.consume(length);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use karta_types::rng::System;

    use super::*;

    fn sealed(key: &ParkKey, purpose: &str, plain: &[u8]) -> Vec<u8> {
        let mut sealing = Sealing::begin(Vec::new(), key, purpose).unwrap();
        // In odd pieces.
        for piece in plain.chunks(300_007) {
            sealing.write_all(piece).unwrap();
        }
        sealing.finish().unwrap()
    }

    fn opened(key: &ParkKey, purpose: &str, sealed: &[u8]) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        let mut opening = Opening::begin(sealed, sealed.len() as u64, key, purpose)?;
        opening.read_to_end(&mut plain)?;
        Ok(plain)
    }

    fn text(length: usize) -> Vec<u8> {
        (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect()
    }

    #[test]
    fn every_length_comes_back() {
        let key = ParkKey::random(&System);
        for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 70_000] {
            let plain = text(length);
            let sealed = sealed(&key, "a", &plain);
            assert!(opened(&key, "a", &sealed).unwrap() == plain, "{length}");
            let some = &plain[..length.min(64)];
            assert!(length < 64 || !sealed.windows(64).any(|window| window == some), "{length} is in plain");
        }
    }

    #[test]
    fn what_is_not_as_it_was_written_does_not_open() {
        let key = ParkKey::random(&System);
        let whole = sealed(&key, "a", &text(3 * CHUNK));
        let fails = |bytes: &[u8], what: &str| {
            let error = opened(&key, "a", bytes).expect_err(what);
            assert!(is_damage(&error), "{what}: {error}");
        };
        let piece = CHUNK + TAG;
        for at in
            [0, 1, HEAD - 1, HEAD, HEAD + 1, HEAD + TAG, HEAD + piece, HEAD + 2 * piece, whole.len() - 1]
        {
            fails(&whole[..at], "cut short");
        }
        for at in [0, MARK.len(), HEAD, HEAD + CHUNK, HEAD + piece + 9, whole.len() - 1] {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            fails(&changed, "a bit turned");
        }
        let (head, body) = whole.split_at(HEAD);
        let chunks: Vec<_> = body.chunks(piece).collect();
        let with = |order: &[usize]| {
            let mut bytes = head.to_vec();
            for number in order {
                bytes.extend_from_slice(chunks[*number]);
            }
            bytes
        };
        assert!(opened(&key, "a", &with(&[0, 1, 2])).is_ok());
        for order in
            [&[1, 0, 2][..], &[0, 0, 1, 2], &[0, 1, 1, 2], &[0, 1, 2, 2], &[0, 2], &[1, 2], &[2], &[0, 1]]
        {
            fails(&with(order), &format!("{order:?}"));
        }
        for more in [&b"x"[..], &[0; TAG], &[0; TAG + 1], body] {
            fails(&[&whole, more].concat(), "appended");
        }
        // A chunk of another file of the same key and purpose, in its very place.
        let other = sealed(&key, "a", &text(3 * CHUNK));
        let mut swapped = whole.clone();
        swapped[HEAD + piece..HEAD + 2 * piece].copy_from_slice(&other[HEAD + piece..HEAD + 2 * piece]);
        fails(&swapped, "a chunk of another file");
        assert!(opened(&key, "b", &whole).is_err(), "another purpose");
        assert!(opened(&ParkKey::random(&System), "a", &whole).is_err(), "another key");
    }

    #[test]
    fn a_file_that_was_not_finished_does_not_open() {
        let key = ParkKey::random(&System);
        for length in [0, 1, CHUNK, CHUNK + 1, 2 * CHUNK + 1] {
            let mut sealing = Sealing::begin(Vec::new(), &key, "a").unwrap();
            sealing.write_all(&text(length)).unwrap();
            assert!(opened(&key, "a", &sealing.to).is_err(), "{length}");
        }
    }

    #[test]
    fn after_damage_nothing_more_is_given() {
        let key = ParkKey::random(&System);
        let mut whole = sealed(&key, "a", &text(3 * CHUNK));
        whole[HEAD + CHUNK + TAG] ^= 1;
        let mut opening = Opening::begin(&whole[..], whole.len() as u64, &key, "a").unwrap();
        let mut first = vec![0; CHUNK];
        opening.read_exact(&mut first).unwrap();
        assert!(first == text(CHUNK));
        for _ in 0..2 {
            assert!(opening.read(&mut first).is_err());
        }
    }
}
