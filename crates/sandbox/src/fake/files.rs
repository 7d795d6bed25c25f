//! The files of a place, in memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::lock;
use crate::Error;
use crate::paths::{self, plain};

/// The files of one session's place. Clones are the same files.
#[derive(Debug, Clone)]
pub struct Files {
    /// Home, temporary folder, workspace.
    bases: Arc<[PathBuf; 3]>,
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    /// By absolute path: when it was written, and what.
    files: BTreeMap<PathBuf, (u64, Vec<u8>)>,
    writes: u64,
    closed: bool,
}

impl Files {
    pub(super) fn new(bases: [PathBuf; 3]) -> Self {
        Self { bases: Arc::new(bases), table: Arc::default() }
    }

    /// Writes a file. A relative path is under the home; one that leads out of the place is [`Error::Escape`].
    pub fn put(&self, path: &Path, content: &[u8]) -> Result<(), Error> {
        let path = self.resolve(path).ok_or_else(|| Error::Escape(path.display().to_string()))?;
        let mut table = lock(&self.table);
        if table.closed {
            return Err(Error::Unavailable("the session was erased".to_owned()));
        }
        table.writes += 1;
        let written = table.writes;
        table.files.insert(path, (written, content.to_vec()));
        Ok(())
    }

    /// Reads a file that was written here; none if there is none.
    pub fn get(&self, path: &Path) -> Option<Vec<u8>> {
        let path = self.resolve(path)?;
        lock(&self.table).files.get(&path).map(|(_, content)| content.clone())
    }

    /// The files of the home that match, newest first.
    pub(super) fn find(&self, pattern: &str, limit: u64) -> Result<Vec<(PathBuf, Vec<u8>)>, Error> {
        let pattern = paths::pattern(pattern)?;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let table = lock(&self.table);
        let mut found: Vec<_> = table
            .files
            .iter()
            .filter(|(path, _)| path.strip_prefix(&self.bases[0]).is_ok_and(|path| pattern.matches(path)))
            .collect();
        found.sort_unstable_by_key(|(_, (written, _))| std::cmp::Reverse(*written));
        let cut = |content: &Vec<u8>| content[..content.len().min(limit)].to_vec();
        Ok(found.into_iter().map(|(path, (_, content))| (path.clone(), cut(content))).collect())
    }

    /// Forgets everything, for good.
    pub(super) fn close(&self) {
        *lock(&self.table) = Table { closed: true, ..Table::default() };
    }

    pub(super) fn closed(&self) -> bool {
        lock(&self.table).closed
    }

    fn resolve(&self, path: &Path) -> Option<PathBuf> {
        if path.is_relative() {
            return Some(self.bases[0].join(plain(path)?));
        }
        let (base, rest) = self.bases.iter().find_map(|base| Some((base, path.strip_prefix(base).ok()?)))?;
        Some(base.join(plain(rest)?))
    }
}
