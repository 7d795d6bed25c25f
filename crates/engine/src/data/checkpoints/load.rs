//! Checkpoints read: the list of what is in one, and the content in the order of the list.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::stream;
use karta_sandbox::state::{Entry, Kind as Given, Record, Records};
use karta_store::CheckpointRow;
use karta_types::{OrgId, SessionId};
use tokio::sync::Semaphore;

use super::blobs::Blobs;
use super::error::CheckpointError;
use super::pack::off_runtime;
use super::seal::{Role, SessionKey};
use super::tree::{Item, Kind, PIECE, Piece, Root, Tree, read_part};

/// The most bytes of one record of content.
const RECORD: usize = 64 << 10;
/// Sealed bytes read at once.
const READ: u64 = 4 << 20;
/// What may lie between two pieces that are read at once.
const GAP: u64 = 64 << 10;
/// The most bytes of a root, and of a part of the list, open.
const LISTED: usize = 256 << 20;

/// Where a checkpoint is read from.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) blobs: Blobs,
    pub(super) key: Arc<SessionKey>,
    pub(super) cpu: Arc<Semaphore>,
    pub(super) org: OrgId,
    pub(super) session: SessionId,
    /// The checkpoint's number.
    pub(super) seq: u64,
}

/// A checkpoint's list.
pub(super) struct Listed {
    pub(super) tree: Tree,
    pub(super) root: Root,
}

impl Source {
    pub(super) fn damaged(&self, why: impl Into<String>) -> CheckpointError {
        CheckpointError::Damaged { seq: self.seq, why: why.into() }
    }

    /// Reads the list.
    pub(super) async fn listed(&self, row: &CheckpointRow) -> Result<Listed, CheckpointError> {
        if row.key != self.key.id {
            return Err(CheckpointError::Shredded);
        }
        let pack = row.pack.parse().map_err(|()| self.damaged("its pack has no name"))?;
        let end = row.place.checked_add(row.length).filter(|_| row.length <= LISTED as u64);
        let end = end.ok_or_else(|| self.damaged("its root is nowhere"))?;
        let sealed = self.blobs.get(self.org, self.session, pack, row.place..end).await?;
        let sealed = sealed.ok_or_else(|| self.damaged(format!("its pack `{pack}` is gone or cut short")))?;
        let (key, seq) = (self.key.clone(), self.seq);
        let root = off_runtime(&self.cpu, move || {
            Root::read(&key.open(Role::Root, &seq.to_be_bytes(), &sealed, LISTED)?)
        })
        .await?
        .ok_or_else(|| self.damaged("its root is not what was written"))?;
        let mut tree = Tree::new();
        let mut lists: VecDeque<Piece> = root.lists.iter().copied().collect();
        while !lists.is_empty() {
            let opened = self.group(Role::List, &mut lists).await?;
            let read = off_runtime(&self.cpu, move || {
                let whole = opened.iter().all(|(_, part)| read_part(part, &mut tree));
                whole.then_some(tree)
            });
            tree = read.await?.ok_or_else(|| self.damaged("its list is not what was written"))?;
        }
        Ok(Listed { tree, root })
    }

    /// Reads the first of these pieces, and those after it that lie close behind it, all with one request.
    pub(super) async fn group(
        &self,
        role: Role,
        pieces: &mut VecDeque<Piece>,
    ) -> Result<Vec<(Piece, Bytes)>, CheckpointError> {
        let Some(first) = pieces.pop_front() else { return Ok(Vec::new()) };
        let most = if role == Role::Content { PIECE } else { LISTED };
        let mut group = vec![first];
        let ends = |piece: &Piece| piece.at.saturating_add(u64::from(piece.sealed));
        let mut end = ends(&first);
        while let Some(next) = pieces.front() {
            let follows = next.pack == first.pack && (end..=end.saturating_add(GAP)).contains(&next.at);
            if !follows || ends(next) - first.at > READ {
                break;
            }
            end = ends(next);
            group.extend(pieces.pop_front());
        }
        let bytes = self.blobs.get(self.org, self.session, first.pack, first.at..end).await?;
        let bytes =
            bytes.ok_or_else(|| self.damaged(format!("its pack `{}` is gone or cut short", first.pack)))?;
        let key = self.key.clone();
        let opened = off_runtime(&self.cpu, move || {
            let open = |piece: Piece| {
                let from = usize::try_from(piece.at - first.at).ok()?;
                let sealed = bytes.get(from..from.checked_add(usize::try_from(piece.sealed).ok()?)?)?;
                let length = usize::try_from(piece.plain).ok().filter(|length| *length <= most)?;
                let plain = key.open(role, &piece.name.0, sealed, length)?;
                (plain.len() == length).then(|| (piece, Bytes::from(plain)))
            };
            group.into_iter().map(open).collect::<Option<Vec<_>>>()
        });
        opened.await?.ok_or_else(|| self.damaged("a piece of it is not what was written"))
    }

    /// The start of a file, at most so many bytes.
    pub(super) async fn read(&self, item: &Item, limit: u64) -> Result<Vec<u8>, CheckpointError> {
        let mut wanted = VecDeque::new();
        let mut bytes = 0;
        for piece in item.pieces() {
            if bytes >= limit {
                break;
            }
            bytes += u64::from(piece.plain);
            wanted.push_back(*piece);
        }
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let mut content = Vec::new();
        while !wanted.is_empty() {
            for (_, plain) in self.group(Role::Content, &mut wanted).await? {
                content.extend_from_slice(&plain);
            }
        }
        content.truncate(limit);
        Ok(content)
    }

    /// Everything, as a sandbox takes it. Why it broke off, if it did, is left in `failed`.
    pub(super) fn records(self, tree: &Tree, failed: Arc<Mutex<Option<CheckpointError>>>) -> Records {
        let items: VecDeque<_> = tree.iter().map(|(path, item)| (path.clone(), item.clone())).collect();
        let pieces = items.iter().flat_map(|(_, item)| item.pieces()).copied().collect();
        let reading =
            Reading { source: self, items, pieces, read: VecDeque::new(), left: 0, part: Bytes::new() };
        Box::pin(stream::try_unfold(reading, move |mut reading| {
            let failed = failed.clone();
            async move {
                match reading.next().await {
                    Ok(record) => Ok(record.map(|record| (record, reading))),
                    Err(error) => {
                        *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                        Err(karta_sandbox::Error::Unavailable("the checkpoint can't be read".to_owned()))
                    }
                }
            }
        }))
    }
}

/// A stream of records being read.
struct Reading {
    source: Source,
    items: VecDeque<(PathBuf, Item)>,
    /// All pieces of all files not yet read, in order.
    pieces: VecDeque<Piece>,
    read: VecDeque<Bytes>,
    /// Bytes of the open file that are still to be told.
    left: u64,
    part: Bytes,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Record>, CheckpointError> {
        if self.left > 0 {
            while self.part.is_empty() {
                match self.read.pop_front() {
                    Some(part) => self.part = part,
                    None if self.pieces.is_empty() => {
                        return Err(self.source.damaged("a file has too few pieces"));
                    }
                    None => {
                        let read = self.source.group(Role::Content, &mut self.pieces).await?;
                        self.read.extend(read.into_iter().map(|(_, plain)| plain));
                    }
                }
            }
            let data = self.part.split_to(self.part.len().min(RECORD));
            self.left = self.left.saturating_sub(data.len() as u64);
            return Ok(Some(Record::Data(data)));
        }
        let Some((path, item)) = self.items.pop_front() else { return Ok(None) };
        self.left = item.size();
        let kind = match item.kind {
            Kind::File(_) => Given::File { size: self.left },
            Kind::Folder { opaque } => Given::Folder { opaque },
            Kind::Link(target) => Given::Link { target },
            Kind::Removed => Given::Removed,
        };
        Ok(Some(Record::Entry(Entry { path, kind, mode: item.mode, stamp: 0, modified: item.modified })))
    }
}
