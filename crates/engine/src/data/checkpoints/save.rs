//! A checkpoint being taken: what a sandbox says it has, what of that is new, and that packed.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use karta_sandbox::Sandbox;
use karta_sandbox::state::{Entry, Kind as Given, Record};
use karta_types::{SandboxId, Timestamp};

use super::error::CheckpointError;
use super::fit::{self, unfit};
use super::load::Source;
use super::pack::{Cutter, Known, Packer};
use super::seal::Role;
use super::tree::{Item, Kind, PackId, Piece, Tree};
use super::{Limits, Pace};

/// The most bytes of one record of content.
const RECORD: usize = 64 << 10;
/// Paths asked for at once.
const ASKED: usize = 1000;
/// A file that was changed this short a time ago, or in the future, is read again the next time: clocks tick too coarsely for its stamp
/// to tell whether it was changed once more.
const FRESH: Duration = Duration::from_secs(2);
/// A pack smaller than this is small.
const SMALL: u64 = 1 << 20;
/// Dead bytes in a pack that are worth no work.
const WASTE: u64 = 256 << 10;

/// What was seen of a machine the last time.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) machine: SandboxId,
    /// Files whose stamps tell whether they were changed since.
    pub(super) stamps: HashMap<PathBuf, u64>,
}

impl Seen {
    /// What may be relied on of a survey at this time.
    pub(super) fn new(
        machine: SandboxId,
        survey: &BTreeMap<PathBuf, Entry>,
        tree: &Tree,
        now: Timestamp,
    ) -> Self {
        let old = now.minus(FRESH).as_micros().saturating_mul(1000);
        let same = |path: &Path, size| tree.get(path).is_some_and(|item| item.size() == size);
        let stamps = survey.iter().filter_map(|(path, entry)| match entry.kind {
            Given::File { size } if entry.modified < old && same(path, size) => {
                Some((path.clone(), entry.stamp))
            }
            _ => None,
        });
        Self { machine, stamps: stamps.collect() }
    }
}

/// Takes a survey, and holds it to the limits.
pub(super) async fn survey(
    sandbox: &dyn Sandbox,
    limits: &Limits,
) -> Result<BTreeMap<PathBuf, Entry>, CheckpointError> {
    let entries = sandbox.survey().await?;
    let limits = *limits;
    let fit = tokio::task::spawn_blocking(move || fit::survey(entries, &limits)).await;
    fit.map_err(|_| CheckpointError::Own("looking at a survey broke off"))?
}

/// What a survey and the last checkpoint say of each other.
pub(super) struct Plan {
    /// Files that may have been changed.
    pub(super) changed: Vec<PathBuf>,
    /// All the rest, as it is in the survey.
    pub(super) tree: Tree,
    /// Packs to be given up.
    pub(super) worn: HashSet<PackId>,
    /// Pieces that need not be put again.
    pub(super) known: Arc<Known>,
}

/// Lays out what is to be done. Takes its time when there is much: not for the runtime's threads.
pub(super) fn plan(
    survey: &BTreeMap<PathBuf, Entry>,
    seen: Option<&Seen>,
    before: Option<&Base>,
    pace: Pace,
) -> Plan {
    let empty = Tree::new();
    let (changed, tree) = sort(survey, seen, before.map_or(&empty, |base| &base.tree));
    let Some(Base { tree: old, lists, packs }) = before else {
        return Plan { changed, tree, worn: HashSet::new(), known: Arc::default() };
    };
    let worn = worn(old, lists, packs, pace);
    let pieces = old.values().flat_map(Item::pieces).chain(lists);
    let kept = pieces.filter(|piece| !worn.contains(&piece.pack)).map(|piece| (piece.name, *piece)).collect();
    Plan { changed, tree, worn, known: Arc::new(kept) }
}

/// The checkpoint that a new one builds upon.
pub(super) struct Base {
    pub(super) tree: Tree,
    pub(super) lists: Vec<Piece>,
    pub(super) packs: BTreeMap<PackId, u64>,
}

/// The files that may have been changed, and all the rest as it is in the survey.
fn sort(survey: &BTreeMap<PathBuf, Entry>, seen: Option<&Seen>, before: &Tree) -> (Vec<PathBuf>, Tree) {
    let mut changed = Vec::new();
    let mut tree = Tree::new();
    for (path, entry) in survey {
        let kind = match &entry.kind {
            Given::File { .. } => {
                let same =
                    seen.and_then(|seen| seen.stamps.get(path)).is_some_and(|stamp| *stamp == entry.stamp);
                match before.get(path).map(|item| &item.kind) {
                    Some(kind @ Kind::File(_)) if same => kind.clone(),
                    _ => {
                        changed.push(path.clone());
                        continue;
                    }
                }
            }
            Given::Folder { opaque } => Kind::Folder { opaque: *opaque },
            Given::Link { target } => Kind::Link(target.clone()),
            Given::Removed => Kind::Removed,
        };
        tree.insert(path.clone(), Item { kind, mode: entry.mode, modified: entry.modified });
    }
    (changed, tree)
}

/// Takes these files out of the sandbox and packs them. A file that is gone, or no file any more, is left out: the next survey says so.
pub(super) async fn take(
    sandbox: &dyn Sandbox,
    changed: Vec<PathBuf>,
    tree: &mut Tree,
    limits: &Limits,
    packer: &mut Packer,
) -> Result<u64, CheckpointError> {
    let mut taken = Taken { bytes: 0, most: limits.bytes, open: None, files: Vec::new() };
    for asked in changed.chunks(ASKED) {
        let mut left: HashSet<&Path> = asked.iter().map(PathBuf::as_path).collect();
        let mut records = sandbox.take(asked.to_vec()).await?;
        while let Some(record) = records.next().await {
            match record? {
                Record::Entry(entry) => {
                    fit::check(&entry)?;
                    if !left.remove(entry.path.as_path()) {
                        return Err(unfit(&entry.path, "it was not asked for, or came twice"));
                    }
                    taken.end(packer).await?;
                    taken.begin(entry);
                }
                Record::Data(bytes) => taken.data(bytes, packer).await?,
            }
        }
        taken.end(packer).await?;
    }
    let mut pieces: VecDeque<Piece> = packer.collect().await?.into();
    for (path, item, count) in taken.files {
        let kind = Kind::File(pieces.drain(..count.min(pieces.len())).collect());
        tree.insert(path, Item { kind, ..item });
    }
    Ok(taken.bytes)
}

/// Files as they come.
struct Taken {
    bytes: u64,
    most: u64,
    open: Option<Open>,
    /// With how many pieces each has.
    files: Vec<(PathBuf, Item, usize)>,
}

struct Open {
    entry: Entry,
    /// What it may still have; none if it is no file any more.
    left: Option<u64>,
    cutter: Cutter,
    pieces: usize,
}

impl Taken {
    fn begin(&mut self, entry: Entry) {
        let left = if let Given::File { size } = entry.kind { Some(size) } else { None };
        self.open = Some(Open { entry, left, cutter: Cutter::default(), pieces: 0 });
    }

    async fn data(&mut self, mut bytes: Bytes, packer: &mut Packer) -> Result<(), CheckpointError> {
        let length = bytes.len() as u64;
        let Some(open) = &mut self.open else {
            return Err(CheckpointError::Unfit("content that belongs to no file".to_owned()));
        };
        let wrong = |why| Err(unfit(&open.entry.path, why));
        if bytes.is_empty() || bytes.len() > RECORD {
            return wrong("its content comes in parts of no or too many bytes");
        }
        let Some(left) = open.left.and_then(|left| left.checked_sub(length)) else {
            return wrong("it has more content than it said");
        };
        open.left = Some(left);
        self.bytes += length;
        if self.bytes > self.most {
            return Err(CheckpointError::Refused { what: "bytes", have: self.bytes, most: self.most });
        }
        while !bytes.is_empty() {
            if let Some(piece) = open.cutter.take(&mut bytes) {
                open.pieces += 1;
                packer.add(Role::Content, piece).await?;
            }
        }
        Ok(())
    }

    async fn end(&mut self, packer: &mut Packer) -> Result<(), CheckpointError> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        if let Some(piece) = open.cutter.end() {
            open.pieces += 1;
            packer.add(Role::Content, piece).await?;
        }
        if open.left.is_some() {
            let Entry { path, mode, modified, .. } = open.entry;
            self.files.push((path, Item { kind: Kind::Removed, mode, modified }, open.pieces));
        }
        Ok(())
    }
}

/// Packs that are worth giving up: mostly dead, or small and many. What lives in them moves into a new one.
fn worn(tree: &Tree, lists: &[Piece], packs: &BTreeMap<PackId, u64>, pace: Pace) -> HashSet<PackId> {
    let (many, budget) = match pace {
        Pace::Turn => (64, 8 << 20),
        Pace::Rest => (16, 32 << 20),
    };
    let mut counted = HashSet::new();
    let mut live: BTreeMap<PackId, u64> = packs.keys().map(|pack| (*pack, 0)).collect();
    for piece in tree.values().flat_map(Item::pieces).chain(lists) {
        if let Some(live) = live.get_mut(&piece.pack)
            && counted.insert(piece.name)
        {
            *live += u64::from(piece.sealed);
        }
    }
    let length = |pack: &PackId| packs.get(pack).copied().unwrap_or_default();
    let small: Vec<PackId> = live.keys().filter(|pack| length(pack) < SMALL).copied().collect();
    let mut chosen: Vec<(u64, PackId)> = Vec::new();
    if small.len() >= many {
        chosen.extend(small.iter().map(|pack| (live[pack], *pack)));
    }
    if pace == Pace::Rest {
        let dead = |pack: &PackId, live: u64| {
            let length = length(pack);
            live < length / 2 && length - live > WASTE
        };
        chosen
            .extend(live.iter().filter(|(pack, live)| dead(pack, **live)).map(|(pack, live)| (*live, *pack)));
    }
    chosen.sort_unstable();
    let mut moved = 0;
    chosen
        .into_iter()
        .take_while(|(live, _)| {
            moved += live;
            moved <= budget
        })
        .map(|(_, pack)| pack)
        .collect()
}

/// Moves what the tree has in these packs into the open one.
pub(super) async fn relocate(
    tree: &mut Tree,
    worn: &HashSet<PackId>,
    source: &Source,
    packer: &mut Packer,
) -> Result<(), CheckpointError> {
    let pieces = tree.values().flat_map(Item::pieces);
    let mut old: Vec<Piece> = pieces.filter(|piece| worn.contains(&piece.pack)).copied().collect();
    old.sort_unstable_by_key(|piece| (piece.pack, piece.at));
    old.dedup();
    let mut old: VecDeque<Piece> = old.into();
    let mut moved = Known::new();
    while !old.is_empty() {
        // Opened and sealed anew: what moves is known to be whole.
        let group = source.group(Role::Content, &mut old).await?;
        let names: Vec<_> = group.iter().map(|(piece, _)| piece.name).collect();
        for (_, plain) in group {
            packer.add(Role::Content, plain).await?;
        }
        moved.extend(names.into_iter().zip(packer.collect().await?));
    }
    for item in tree.values_mut() {
        if let Kind::File(pieces) = &mut item.kind {
            for piece in pieces {
                if worn.contains(&piece.pack)
                    && let Some(new) = moved.get(&piece.name)
                {
                    *piece = *new;
                }
            }
        }
    }
    Ok(())
}

/// The number of a pack's first owner that may not be removed by one of this generation.
pub(super) fn mine(generation: u64) -> impl Fn(&PackId) -> bool {
    move |pack| pack.generation <= generation
}
