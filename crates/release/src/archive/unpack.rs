//! Unpacking an archive that somebody sent.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Seek as _};
use std::path::Path;

use super::members::{Kind, Member, Members};
use super::stream::Stream;
use super::{CONTENT, Error, Known, LISTING, Limits, kept, sync};
use crate::beneath::Beneath;
use crate::files::{Collected, Entry, Files};
use crate::hash::{self, Hash};
use crate::names::Rule;

/// Unpacks an archive into an empty folder of the caller's and says what is in it. When this returns, all of it is on the disk. What
/// failed leaves what it wrote in the folder and nothing outside of it.
///
/// # Errors
/// The archive is refused, damaged or cut off; contents are lacking; reading it or writing the files failed.
pub fn unpack(from: impl Read, into: &Path, limits: &Limits, known: &dyn Known) -> Result<Files, Error> {
    let mut unpacking = Unpacking {
        members: Members::new(Stream::open(from, limits)?, limits),
        root: into,
        folder: Beneath::open(into).map_err(at("opening", into, ""))?,
        limits,
    };
    if !unpacking.folder.is_empty().map_err(at("listing", into, ""))? {
        let source = io::Error::from(io::ErrorKind::DirectoryNotEmpty);
        return Err(at("unpacking into", into, "")(source));
    }
    let files = match unpacking.members.next()? {
        None => return Err(Error::Empty),
        Some(Member { path, kind: Kind::File { .. } }) if path == LISTING => unpacking.partial(known)?,
        first => unpacking.whole(first)?,
    };
    if files.is_empty() {
        return Err(Error::Empty);
    }
    sync::all(into, &files)?;
    Ok(files)
}

fn at<'a>(doing: &'static str, root: &'a Path, path: &'a str) -> impl Fn(io::Error) -> Error + 'a {
    move |source| Error::File { doing, path: root.join(path), source }
}

struct Unpacking<'a> {
    members: Members<'a>,
    root: &'a Path,
    folder: Beneath,
    limits: &'a Limits,
}

/// The first file of a content, and the length that the listing says it has.
struct Wanted<'a> {
    path: &'a str,
    executable: bool,
    size: u64,
}

impl Unpacking<'_> {
    fn whole(mut self, first: Option<Member>) -> Result<Files, Error> {
        let mut collected = Collected::default();
        let mut member = first;
        while let Some(Member { path, kind }) = member {
            let refused = |rule| self.members.refused(rule);
            match kind {
                // The archive's own root.
                Kind::Folder if path.is_empty() => {}
                Kind::Folder => collected.name_folder(&path).map_err(refused)?,
                Kind::Link { target } => {
                    collected.take(&path, Entry::Link { target: target.clone() }).map_err(refused)?;
                    self.folder.link(&path, &target).map_err(at("linking", self.root, &path))?;
                }
                Kind::File { executable, .. } => {
                    collected.name_file(&path).map_err(refused)?;
                    let (hash, size) = self.file(&path, executable)?;
                    collected.named(path, Entry::File { hash, size, executable });
                }
            }
            member = self.members.next()?;
        }
        Ok(collected.into_files())
    }

    /// Writes the current member's content to a new file.
    fn file(&mut self, path: &str, executable: bool) -> Result<(Hash, u64), Error> {
        let mut file = self.folder.create(path, executable).map_err(at("making", self.root, path))?;
        self.members.copy(&mut file, at("writing", self.root, path))
    }

    fn partial(mut self, known: &dyn Known) -> Result<Files, Error> {
        let files = self.listing()?;
        let mut wanted: BTreeMap<Hash, Wanted<'_>> = BTreeMap::new();
        for (path, entry) in files.iter() {
            let Entry::File { hash, size, executable } = entry else { continue };
            let first = wanted.entry(*hash).or_insert(Wanted { path, executable: *executable, size: *size });
            if first.size != *size {
                return Err(Error::refused(path.as_bytes(), Rule::OtherSize));
            }
        }
        let mut there = BTreeSet::new();
        while let Some(Member { path, kind }) = self.members.next()? {
            let refused = |rule| Err(self.members.refused(rule));
            let Kind::File { size, .. } = kind else { return refused(Rule::Unlisted) };
            let hash = path.strip_prefix(CONTENT).and_then(|hash| hash.parse::<Hash>().ok());
            let Some((hash, first)) = hash.and_then(|hash| Some((hash, wanted.get(&hash)?))) else {
                return refused(Rule::Unlisted);
            };
            if there.contains(&hash) {
                return refused(Rule::Twice);
            }
            if first.size != size {
                return refused(Rule::OtherSize);
            }
            if self.file(first.path, first.executable)?.0 != hash {
                return Err(self.members.refused(Rule::OtherContent));
            }
            there.insert(hash);
        }
        let mut lacking = Vec::new();
        for (hash, first) in wanted.iter().filter(|(hash, _)| !there.contains(hash)) {
            if !self.fetch(hash, first, known)? {
                lacking.push(*hash);
            }
        }
        if !lacking.is_empty() {
            return Err(Error::Lacking(lacking));
        }
        for (path, entry) in files.iter() {
            match entry {
                Entry::Link { target } => {
                    self.folder.link(path, target).map_err(at("linking", self.root, path))?;
                }
                Entry::File { hash, executable, .. } => match wanted.get(hash) {
                    Some(first) if first.path != path => self.repeat(first.path, path, *executable)?,
                    _ => {}
                },
            }
        }
        Ok(files)
    }

    /// Reads the listing, which is the current member, within the limits of an archive.
    fn listing(&mut self) -> Result<Files, Error> {
        let files = kept::read(&mut self.members)?;
        let refused = |rule| Error::refused(LISTING.as_bytes(), rule);
        if files.len() as u64 > self.limits.members {
            return Err(refused(Rule::TooMany(self.limits.members)));
        }
        if files.bytes() > self.limits.bytes {
            return Err(refused(Rule::TooLarge(self.limits.bytes)));
        }
        for (path, entry) in files.iter() {
            if matches!(entry, Entry::File { size, .. } if *size > self.limits.file) {
                return Err(Error::refused(path.as_bytes(), Rule::LargeFile(self.limits.file)));
            }
        }
        Ok(files)
    }

    /// Takes a content from where it is already. Nobody's word is taken for what it is.
    fn fetch(&mut self, hash: &Hash, first: &Wanted<'_>, known: &dyn Known) -> Result<bool, Error> {
        let path = first.path;
        let mut file = self.folder.create(path, first.executable).map_err(at("making", self.root, path))?;
        if !known.fetch(hash, &mut file).map_err(at("fetching the content of", self.root, path))? {
            return Ok(false);
        }
        let (is, size) = file.rewind().and_then(|()| hash::content(&mut file)).map_err(at(
            "reading again",
            self.root,
            path,
        ))?;
        match (is == *hash, size == first.size) {
            (true, true) => Ok(true),
            // The sender got the length wrong.
            (true, false) => Err(Error::refused(path.as_bytes(), Rule::OtherSize)),
            (false, _) => {
                let source =
                    io::Error::new(io::ErrorKind::InvalidData, "the content that is kept here is damaged");
                Err(at("fetching the content of", self.root, path)(source))
            }
        }
    }

    /// Makes another file of a content that is there: with the same blocks where the file system can.
    fn repeat(&mut self, from: &str, path: &str, executable: bool) -> Result<(), Error> {
        let (mut source, _) = self.folder.read(from).map_err(at("reading again", self.root, from))?;
        let mut file = self.folder.create(path, executable).map_err(at("making", self.root, path))?;
        share(&mut source, &mut file).map_err(at("copying to", self.root, path))
    }
}

#[cfg(target_os = "linux")]
fn share(source: &mut File, to: &mut File) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(&*to, &*source).is_ok() {
        return Ok(());
    }
    io::copy(source, to).map(drop)
}

#[cfg(not(target_os = "linux"))]
fn share(source: &mut File, to: &mut File) -> io::Result<()> {
    io::copy(source, to).map(drop)
}
