//! The files of a place, in memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::StreamExt as _;
use karta_types::Clock;

use super::lock;
use crate::Error;
use crate::paths::{self, plain};
use crate::state::{Entry, HOME, Kind, Record, Records, WORK};

/// The most bytes of one [`Record::Data`].
const PART: usize = 64 << 10;

/// The files of one session's place. Clones are the same files.
#[derive(Clone)]
pub struct Files {
    /// Home, temporary folder, workspace.
    bases: Arc<[PathBuf; 3]>,
    table: Arc<Mutex<Table>>,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Files").field("bases", &self.bases).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Table {
    /// By absolute path.
    nodes: BTreeMap<PathBuf, Node>,
    writes: u64,
    closed: bool,
}

/// One thing of a place. Folders that only hold something need no node of their own.
struct Node {
    kind: Kind,
    content: Vec<u8>,
    mode: u32,
    modified: i64,
    /// The number of its last write.
    written: u64,
}

impl Node {
    fn is_file(&self) -> bool {
        matches!(self.kind, Kind::File { .. })
    }
}

impl Table {
    fn set(&mut self, path: PathBuf, node: Node) -> Result<(), Error> {
        if self.closed {
            return Err(Error::Unavailable("the session was erased, or its sandbox closed".to_owned()));
        }
        self.writes += 1;
        let written = self.writes;
        self.nodes.insert(path, Node { written, ..node });
        Ok(())
    }
}

impl Files {
    pub(super) fn new(bases: [PathBuf; 3], clock: Arc<dyn Clock>) -> Self {
        Self { bases: Arc::new(bases), table: Arc::default(), clock }
    }

    /// Writes a file. A relative path is under the home; one that leads out of the place is [`Error::Escape`].
    pub fn put(&self, path: &Path, content: &[u8]) -> Result<(), Error> {
        let path = self.resolve(path).ok_or_else(|| Error::Escape(path.display().to_string()))?;
        let node = Node {
            kind: Kind::File { size: content.len() as u64 },
            content: content.to_vec(),
            mode: 0o644,
            modified: self.clock.now().as_micros().saturating_mul(1000),
            written: 0,
        };
        lock(&self.table).set(path, node)
    }

    /// Reads a file that was written here; none if there is none.
    pub fn get(&self, path: &Path) -> Option<Vec<u8>> {
        let path = self.resolve(path)?;
        lock(&self.table).nodes.get(&path).filter(|node| node.is_file()).map(|node| node.content.clone())
    }

    /// The files of the home that match, newest first.
    pub(super) fn find(&self, pattern: &str, limit: u64) -> Result<Vec<(PathBuf, Vec<u8>)>, Error> {
        let pattern = paths::pattern(pattern)?;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let table = lock(&self.table);
        let mut found: Vec<_> = table
            .nodes
            .iter()
            .filter(|(_, node)| node.is_file())
            .filter(|(path, _)| path.strip_prefix(&self.bases[0]).is_ok_and(|path| pattern.matches(path)))
            .collect();
        found.sort_unstable_by_key(|(_, node)| std::cmp::Reverse(node.written));
        let cut = |content: &Vec<u8>| content[..content.len().min(limit)].to_vec();
        Ok(found.into_iter().map(|(path, node)| (path.clone(), cut(&node.content))).collect())
    }

    /// Everything in home and workspace, with the folders that hold it.
    pub(super) fn survey(&self) -> Result<Vec<Entry>, Error> {
        let table = lock(&self.table);
        if table.closed {
            return Err(Error::Unavailable("the sandbox was closed".to_owned()));
        }
        let mut found = BTreeMap::new();
        for (path, node) in &table.nodes {
            let Some(named) = self.named(path) else { continue };
            for above in named.ancestors().skip(1) {
                if above.components().count() < 2 {
                    break;
                }
                found.entry(above.to_owned()).or_insert_with(|| Entry {
                    path: above.to_owned(),
                    kind: Kind::Folder { opaque: false },
                    mode: 0o755,
                    stamp: 0,
                    modified: 0,
                });
            }
            found.insert(named.clone(), entry(named, node));
        }
        Ok(found.into_values().collect())
    }

    /// These of a survey, with their content.
    pub(super) fn take(&self, paths: &[PathBuf]) -> Result<Vec<Record>, Error> {
        let table = lock(&self.table);
        let mut records = Vec::new();
        for path in paths {
            let here = self.placed(path).ok_or_else(|| Error::Escape(path.display().to_string()))?;
            let Some(node) = table.nodes.get(&here) else { continue };
            records.push(Record::Entry(entry(path.clone(), node)));
            let parts = node.content.chunks(PART).map(|part| Record::Data(Bytes::copy_from_slice(part)));
            records.extend(parts);
        }
        Ok(records)
    }

    /// Puts things where they were.
    pub(super) async fn restore(&self, mut records: Records) -> Result<(), Error> {
        let mut open: Option<(PathBuf, Node)> = None;
        while let Some(record) = records.next().await {
            match record? {
                Record::Data(bytes) => match &mut open {
                    Some((_, node)) if node.is_file() => node.content.extend_from_slice(&bytes),
                    _ => return Err(Error::Unavailable("content that belongs to no file".to_owned())),
                },
                Record::Entry(next) => {
                    self.settle(open.take())?;
                    let path = self
                        .placed(&next.path)
                        .ok_or_else(|| Error::Escape(next.path.display().to_string()))?;
                    let Entry { kind, mode, modified, .. } = next;
                    open = Some((path, Node { kind, content: Vec::new(), mode, modified, written: 0 }));
                }
            }
        }
        self.settle(open)
    }

    fn settle(&self, node: Option<(PathBuf, Node)>) -> Result<(), Error> {
        let Some((path, node)) = node else { return Ok(()) };
        if matches!(node.kind, Kind::File { size } if size != node.content.len() as u64) {
            return Err(Error::Unavailable(format!("`{}` has not the bytes it was told", path.display())));
        }
        lock(&self.table).set(path, node)
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

    /// The path of a survey for an absolute one.
    fn named(&self, path: &Path) -> Option<PathBuf> {
        let [home, _, work] = &*self.bases;
        let under = |base: &Path, top: &str| Some(Path::new(top).join(path.strip_prefix(base).ok()?));
        under(home, HOME).or_else(|| under(work, WORK))
    }

    /// The absolute path for one of a survey.
    fn placed(&self, path: &Path) -> Option<PathBuf> {
        let [home, _, work] = &*self.bases;
        let under = |top: &str, base: &Path| Some(base.join(plain(path.strip_prefix(top).ok()?)?));
        under(HOME, home).or_else(|| under(WORK, work))
    }
}

fn entry(path: PathBuf, node: &Node) -> Entry {
    let Node { kind, mode, modified, written, .. } = node;
    Entry { path, kind: kind.clone(), mode: *mode, stamp: *written, modified: *modified }
}
