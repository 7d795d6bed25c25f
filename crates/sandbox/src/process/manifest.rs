//! What a release put into a place: each path with what lay there, so that a later release can tell the session's own changes.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use karta_types::SandboxId;

use crate::paths;

/// What lies under a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    Folder,
    File {
        /// SHA-256 of the content.
        hash: [u8; 32],
        size: u64,
        executable: bool,
    },
    Link {
        target: OsString,
    },
}

/// Each path of a release, relative; a folder comes before what is in it.
pub(super) type Manifest = BTreeMap<PathBuf, Entry>;

/// What a place's own file says. It is written last, so a place without it is not finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) sandbox: SandboxId,
    pub(super) digest: String,
    /// Files the session had changed when the release came.
    pub(super) kept: Vec<String>,
    pub(super) manifest: Manifest,
}

/// The first and the last field: the form, and that nothing is cut off.
const FIRST: &[u8] = b"karta place 1";
const LAST: &[u8] = b"end";

impl Record {
    /// The file's bytes: fields that end with a zero byte, which no path holds.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut field = |parts: &[&[u8]]| {
            out.extend_from_slice(&parts.join(&b' '));
            out.push(0);
        };
        field(&[FIRST]);
        field(&[b"sandbox", self.sandbox.to_string().as_bytes()]);
        field(&[b"digest", self.digest.as_bytes()]);
        for path in &self.kept {
            field(&[b"kept", path.as_bytes()]);
        }
        for (path, entry) in &self.manifest {
            let path = path.as_os_str().as_bytes();
            match entry {
                Entry::Folder => field(&[b"folder", path]),
                Entry::File { hash, size, executable } => {
                    let kind: &[u8] = if *executable { b"program" } else { b"file" };
                    field(&[kind, hex(hash).as_bytes(), size.to_string().as_bytes(), path]);
                }
                Entry::Link { target } => {
                    field(&[b"link", path]);
                    field(&[b"to", target.as_bytes()]);
                }
            }
        }
        field(&[LAST]);
        out
    }

    /// Reads the file; none if it is not whole or not of this form. The session could have written it: nothing is believed.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = bytes.strip_suffix(&[0])?.split(|byte| *byte == 0);
        (fields.next()? == FIRST).then_some(())?;
        let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(str::to_owned);
        let sandbox = text(fields.next()?.strip_prefix(b"sandbox ")?)?.parse().ok()?;
        let digest = text(fields.next()?.strip_prefix(b"digest ")?)?;
        let (mut kept, mut manifest, mut whole) = (Vec::new(), Manifest::new(), false);
        while let Some(field) = fields.next() {
            let (kind, rest) = cut(field);
            match kind {
                b"kept" => kept.push(text(rest)?),
                b"folder" => drop(manifest.insert(path(rest)?, Entry::Folder)),
                b"file" | b"program" => {
                    let (hash, rest) = cut(rest);
                    let (size, rest) = cut(rest);
                    let (hash, size) = (unhex(hash)?, text(size)?.parse().ok()?);
                    manifest.insert(path(rest)?, Entry::File { hash, size, executable: kind == b"program" });
                }
                b"link" => {
                    let target = OsString::from_vec(fields.next()?.strip_prefix(b"to ")?.to_vec());
                    manifest.insert(path(rest)?, Entry::Link { target });
                }
                LAST => whole = true,
                _ => return None,
            }
        }
        whole.then_some(Self { sandbox, digest, kept, manifest })
    }
}

fn cut(field: &[u8]) -> (&[u8], &[u8]) {
    let at = field.iter().position(|byte| *byte == b' ').unwrap_or(field.len());
    (&field[..at], field.get(at + 1..).unwrap_or_default())
}

fn path(bytes: &[u8]) -> Option<PathBuf> {
    paths::plain(Path::new(OsStr::from_bytes(bytes)))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &[u8]) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    (text.len() == 64).then_some(())?;
    for (byte, pair) in bytes.iter_mut().zip(text.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Record {
        let file = Entry::File { hash: [0xab; 32], size: 7, executable: true };
        Record {
            sandbox: SandboxId::from_u128(9),
            digest: "sha256:1".to_owned(),
            kept: vec!["a b\nc".to_owned()],
            manifest: Manifest::from([
                (PathBuf::from("d"), Entry::Folder),
                (PathBuf::from("d/with space\n"), file),
                (PathBuf::from("l"), Entry::Link { target: OsString::from_vec(b"d/\xff".to_vec()) }),
            ]),
        }
    }

    #[test]
    fn a_record_reads_back() {
        assert_eq!(Record::decode(&sample().encode()), Some(sample()));
    }

    #[test]
    fn a_record_that_was_cut_is_none() {
        let bytes = sample().encode();
        for length in 0..bytes.len() {
            assert_eq!(Record::decode(&bytes[..length]), None, "cut at {length}");
        }
    }

    #[test]
    fn a_record_that_climbs_is_none() {
        let mut bytes = sample().encode();
        bytes.truncate(bytes.len() - LAST.len() - 1);
        bytes.extend_from_slice(b"folder ../../etc\0end\0");
        assert_eq!(Record::decode(&bytes), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = Record::decode(&bytes);
        }
    }
}
