//! A folder of the platform's own, read as it is.

use std::path::Path;
use std::rc::Rc;

use karta_harness::Tree;
use karta_harness::tree::MAX_LOADED;

use super::walk::{Kind, Visit, walk};
use super::{Error, at, links};
use crate::archive::Limits;
use crate::beneath::Beneath;
use crate::files::{Collected, Entry, Files};
use crate::hash;
use crate::names::Rule;

/// The right of a file's owner to run it: the one that git keeps.
pub(crate) const EXECUTE: u32 = 0o100;

impl Files {
    /// Reads every file of a folder: no ignore file is asked. For folders that the platform made.
    ///
    /// # Errors
    /// It can't be read, is too large, or holds what no release can carry.
    pub fn read(root: &Path) -> Result<Self, Error> {
        let mut all = Everything { gather: Gather::new(root)? };
        walk(root, &mut all)?;
        Ok(all.gather.finish())
    }

    /// What adapters read of these files, which lie in `root`. Harnesses follow links, so what a link of theirs leads to is there
    /// under its name too.
    ///
    /// # Errors
    /// A file can't be read.
    pub fn tree(&self, root: &Path) -> Result<Tree, Error> {
        let mut folder = Beneath::open(root).map_err(at("opening the folder", root))?;
        let mut tree = Tree::new();
        for (path, real) in links::followed(self) {
            let size = match self.get(real) {
                Some(Entry::File { size, .. }) => *size,
                _ => u64::MAX,
            };
            let wanted = size <= MAX_LOADED && Tree::wanted(&path);
            let content = wanted.then(|| load(&mut folder, real)).transpose();
            tree.insert(path, content.map_err(at("reading", &root.join(real)))?);
        }
        Ok(tree)
    }
}

fn load(folder: &mut Beneath, path: &str) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;

    let mut content = Vec::new();
    // It may have grown since it was listed.
    folder.read(path)?.0.take(MAX_LOADED).read_to_end(&mut content)?;
    Ok(content)
}

/// Takes entries of a folder, within the limits of a release.
pub(super) struct Gather<'a> {
    root: &'a Path,
    folder: Beneath,
    collected: Collected,
    limits: Limits,
    members: u64,
    bytes: u64,
}

impl<'a> Gather<'a> {
    pub(super) fn new(root: &'a Path) -> Result<Self, Error> {
        let folder = Beneath::open(root).map_err(at("opening the folder", root))?;
        let limits = Limits::default();
        Ok(Self { root, folder, collected: Collected::default(), limits, members: 0, bytes: 0 })
    }

    /// Takes a file; `see` may look at its content, if it is not longer than `seen`.
    pub(super) fn file(&mut self, path: &str, seen: u64, see: &mut dyn FnMut(&[u8])) -> Result<(), Error> {
        let full = self.root.join(path);
        let (mut file, stat) = self.folder.read(path).map_err(at("opening", &full))?;
        let length = u64::try_from(stat.st_size).unwrap_or_default();
        self.count(length)?;
        if length > self.limits.file {
            return Err(Error::Refused { path: path.to_owned(), rule: Rule::LargeFile(self.limits.file) });
        }
        let (hash, size) = if length <= seen {
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut std::io::Read::take(&mut file, seen + 1), &mut content)
                .map_err(at("reading", &full))?;
            see(&content);
            (hash::Hash::of(&content), content.len() as u64)
        } else {
            hash::content(&mut file).map_err(at("reading", &full))?
        };
        let executable = stat.st_mode & EXECUTE != 0;
        self.take(path, Entry::File { hash, size, executable })
    }

    /// Takes a link.
    pub(super) fn link(&mut self, path: &str) -> Result<(), Error> {
        self.count(0)?;
        let target = self.folder.target(path).map_err(at("reading the link", &self.root.join(path)))?;
        let target = String::from_utf8(target)
            .map_err(|_| Error::Refused { path: path.to_owned(), rule: Rule::BadTarget })?;
        self.take(path, Entry::Link { target })
    }

    fn count(&mut self, length: u64) -> Result<(), Error> {
        self.members += 1;
        self.bytes = self.bytes.saturating_add(length);
        if self.members > self.limits.members {
            return Err(Error::TooLarge(Rule::TooMany(self.limits.members)));
        }
        if self.bytes > self.limits.bytes {
            return Err(Error::TooLarge(Rule::TooLarge(self.limits.bytes)));
        }
        Ok(())
    }

    fn take(&mut self, path: &str, entry: Entry) -> Result<(), Error> {
        self.collected.take(path, entry).map_err(|rule| Error::Refused { path: path.to_owned(), rule })
    }

    pub(super) fn finish(self) -> Files {
        self.collected.into_files()
    }
}

struct Everything<'a> {
    gather: Gather<'a>,
}

impl Visit for Everything<'_> {
    type Level = ();

    fn enter(&mut self, _folder: &str, _above: Option<Rc<()>>) -> Result<(), Error> {
        Ok(())
    }

    fn meet(&mut self, _level: &(), path: &str, kind: &Kind) -> Result<bool, Error> {
        match kind {
            Kind::Folder => return Ok(true),
            Kind::File => self.gather.file(path, 0, &mut |_| {})?,
            Kind::Link => self.gather.link(path)?,
            Kind::Other => return Err(Error::Refused { path: path.to_owned(), rule: Rule::Special }),
        }
        Ok(false)
    }
}
