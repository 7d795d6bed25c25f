//! Picking the files of a person's folder: what git would pack, and what the person says.

use std::fs;
use std::hash::{DefaultHasher, Hasher as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use ignore::gitignore::Gitignore;

use super::Error;
use super::ignored::{self, Level, Outer};
use super::read::Gather;
use super::suspects::{self, Suspect};
use super::walk::{Kind, Visit, walk};
use crate::files::Files;
use crate::names::{self, Rule};

/// Folders that are never part of a release, wherever they lie.
const NEVER: [&str; 4] = [".git", ".hg", ".svn", ".karta"];

/// What the person says about the picking.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// Files that may look like secrets, as patterns of `.gitignore`; `*` is every file.
    pub allow_secrets: Vec<String>,
}

/// What was picked of a folder.
#[derive(Debug)]
pub struct Picked {
    /// The folder.
    pub root: PathBuf,
    /// Its files, as they were when they were read.
    pub files: Files,
    /// What was left out; a folder is named once.
    pub left_out: Vec<LeftOut>,
    /// What looks like a secret and was not allowed.
    pub secrets: Vec<Suspect>,
}

/// Something that was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Its path; a folder's ends with a slash.
    pub path: String,
    /// Why.
    pub why: String,
}

/// Picks the files of a folder: what git would pack of it. Ignore files are heeded in it and above it, up to the root of the
/// working copy it lies in, and `.kartaignore` wins; what is configured for git on this machine is not asked.
///
/// # Errors
/// It can't be read, is too large, or holds what no release can carry.
pub fn pick(root: &Path, choice: &Choice) -> Result<Picked, Error> {
    let allowed = ignored::matcher("the allowed secrets", choice.allow_secrets.iter().map(String::as_str))?;
    let mut picking = Picking {
        root,
        outer: Outer::find(root)?,
        gather: Gather::new(root)?,
        allowed,
        left_out: Vec::new(),
        secrets: Vec::new(),
    };
    walk(root, &mut picking)?;
    Ok(Picked {
        root: root.to_owned(),
        files: picking.gather.finish(),
        left_out: picking.left_out,
        secrets: picking.secrets,
    })
}

struct Picking<'a> {
    root: &'a Path,
    outer: Outer,
    gather: Gather<'a>,
    allowed: Gitignore,
    left_out: Vec<LeftOut>,
    secrets: Vec<Suspect>,
}

/// Whether something is never part of a release.
fn never(path: &str) -> bool {
    path.rsplit('/').next().is_some_and(|name| NEVER.contains(&name))
}

impl Visit for Picking<'_> {
    type Level = Level;

    fn enter(&mut self, folder: &str, above: Option<Rc<Level>>) -> Result<Level, Error> {
        Level::read(self.root, folder, above)
    }

    fn meet(&mut self, level: &Level, path: &str, kind: &Kind) -> Result<bool, Error> {
        if never(path) {
            return Ok(false);
        }
        let is_folder = matches!(kind, Kind::Folder);
        let why = level.leaves_out(&self.outer, path, is_folder);
        let why = why.or_else(|| matches!(kind, Kind::Other).then(|| Rule::Special.to_string()));
        if let Some(why) = why {
            let path = if is_folder { format!("{path}/") } else { path.to_owned() };
            self.left_out.push(LeftOut { path, why });
            return Ok(false);
        }
        match kind {
            Kind::Folder => return Ok(true),
            Kind::Link => self.gather.link(path)?,
            Kind::Other => {}
            Kind::File => {
                let mut found = Vec::new();
                let mut seen = false;
                self.gather.file(path, suspects::LOOKED_INTO, &mut |content| {
                    seen = true;
                    suspects::look(path, Some(content), &mut found);
                })?;
                if !seen {
                    suspects::look(path, None, &mut found);
                }
                if !self.allowed.matched_path_or_any_parents(path, false).is_ignore() {
                    self.secrets.append(&mut found);
                }
            }
        }
        Ok(false)
    }
}

/// A cheap number that changes when what would be picked of the folder does: names, sizes, times of change. No content is read.
/// `None` if the folder can't be gone through.
pub fn fingerprint(root: &Path) -> Option<u64> {
    let mut glance = Glance { root, outer: Outer::find(root).ok()?, sum: DefaultHasher::new() };
    walk(root, &mut glance).ok()?;
    Some(glance.sum.finish())
}

struct Glance<'a> {
    root: &'a Path,
    outer: Outer,
    sum: DefaultHasher,
}

impl Visit for Glance<'_> {
    type Level = Level;

    fn enter(&mut self, folder: &str, above: Option<Rc<Level>>) -> Result<Level, Error> {
        Level::read(self.root, folder, above)
    }

    fn meet(&mut self, level: &Level, path: &str, kind: &Kind) -> Result<bool, Error> {
        let is_folder = matches!(kind, Kind::Folder);
        if never(path)
            || level.leaves_out(&self.outer, path, is_folder).is_some()
            || names::path(path).is_err()
        {
            return Ok(false);
        }
        if is_folder {
            return Ok(true);
        }
        self.sum.write(path.as_bytes());
        self.sum.write_u8(0xff);
        if let Ok(meta) = fs::symlink_metadata(self.root.join(path)) {
            for number in [meta.mtime(), meta.mtime_nsec(), i64::from(meta.mode())] {
                self.sum.write_i64(number);
            }
            self.sum.write_u64(meta.size());
        }
        Ok(false)
    }
}
