//! Writing an archive: the same files become the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _, Write};
use std::path::Path;

use super::header::{self, BLOCK, BLOCK_LENGTH};
use super::press::Press;
use super::{CONTENT, LISTING};
use crate::beneath::Beneath;
use crate::files::{Entry, Files};
use crate::hash::{self, Hash};

/// Packs files that lie in `root` as tar with zstd. With `only` it is a partial archive: the whole listing, and these contents.
///
/// # Errors
/// Writing failed, or a file can't be read, or is not any more what it was when it was listed; the text names it.
pub fn pack(root: &Path, files: &Files, only: Option<&BTreeSet<Hash>>, to: impl Write) -> io::Result<()> {
    let mut packed = Press::new(to)?;
    match only {
        None => whole(root, files, &mut packed)?,
        Some(only) => partial(root, files, only, &mut packed)?,
    }
    packed.finish()
}

/// Packs files that lie in `root` as tar with gzip, which every machine can unpack.
///
/// # Errors
/// As [`pack`].
pub fn pack_gzip(root: &Path, files: &Files, to: impl Write) -> io::Result<()> {
    // Its header says no name and no time, so it is the same every time too.
    let mut packed = flate2::write::GzEncoder::new(to, flate2::Compression::default());
    whole(root, files, &mut packed)?;
    packed.finish()?.flush()
}

fn whole(root: &Path, files: &Files, to: &mut dyn Write) -> io::Result<()> {
    let mut folder = Beneath::open(root)?;
    for (path, entry) in files.iter() {
        match entry {
            Entry::Link { target } => head(to, path, b'2', 0o777, 0, target)?,
            Entry::File { hash, size, executable } => {
                let mode = if *executable { 0o755 } else { 0o644 };
                head(to, path, b'0', mode, *size, "")?;
                content(&mut folder, path, hash, *size, to)?;
            }
        }
    }
    end(to)
}

fn partial(root: &Path, files: &Files, only: &BTreeSet<Hash>, to: &mut dyn Write) -> io::Result<()> {
    let mut folder = Beneath::open(root)?;
    let listing = serde_json::to_vec(files)?;
    head(to, LISTING, b'0', 0o644, listing.len() as u64, "")?;
    to.write_all(&listing)?;
    pad(to, listing.len() as u64)?;
    let mut wanted = BTreeMap::new();
    for (path, entry) in files.iter() {
        if let Entry::File { hash, size, .. } = entry
            && only.contains(hash)
        {
            wanted.entry(hash).or_insert((path, *size));
        }
    }
    for (hash, (path, size)) in wanted {
        head(to, &format!("{CONTENT}{hash}"), b'0', 0o644, size, "")?;
        content(&mut folder, path, hash, size, to)?;
    }
    end(to)
}

/// Writes a member's header; before it, one of pax where name or link are too long for it.
fn head(to: &mut dyn Write, path: &str, kind: u8, mode: u32, size: u64, link: &str) -> io::Result<()> {
    const FITS: usize = 100;
    let mut records = String::new();
    if path.len() > FITS {
        records.push_str(&record("path", path));
    }
    if link.len() > FITS {
        records.push_str(&record("linkpath", link));
    }
    if !records.is_empty() {
        to.write_all(&header::write(b"PaxHeaders", b'x', 0o644, records.len() as u64, b""))?;
        to.write_all(records.as_bytes())?;
        pad(to, records.len() as u64)?;
    }
    to.write_all(&header::write(path.as_bytes(), kind, mode, size, link.as_bytes()))
}

/// A record of pax, which begins with its own length.
fn record(key: &str, value: &str) -> String {
    let rest = format!(" {key}={value}\n");
    let mut length = rest.len() + 1;
    while length != rest.len() + length.to_string().len() {
        length += 1;
    }
    format!("{length}{rest}")
}

fn content(folder: &mut Beneath, path: &str, hash: &Hash, size: u64, to: &mut dyn Write) -> io::Result<()> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("reading `{path}`: {error}"));
    let (file, _) = folder.read(path).map_err(named)?;
    let (packed, length) = hash::copy(&mut file.take(size), to).map_err(|side| match side {
        hash::Copying::Reading(error) => named(error),
        hash::Copying::Writing(error) => error,
    })?;
    if packed != *hash || length != size {
        return Err(io::Error::other(format!("`{path}` was changed while it was being packed; try again")));
    }
    pad(to, size)
}

fn pad(to: &mut dyn Write, size: u64) -> io::Result<()> {
    let padding = (BLOCK_LENGTH - size % BLOCK_LENGTH) % BLOCK_LENGTH;
    to.write_all(&[0; BLOCK][..usize::try_from(padding).unwrap_or_default()])
}

fn end(to: &mut dyn Write) -> io::Result<()> {
    to.write_all(&[0; 2 * BLOCK])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_digits() {
        assert_eq!(record("path", "ab"), "11 path=ab\n");
        for length in 80..120 {
            let record = record("path", &"x".repeat(length));
            let stated: usize = record.split(' ').next().unwrap().parse().unwrap();
            assert_eq!(stated, record.len());
        }
    }
}
