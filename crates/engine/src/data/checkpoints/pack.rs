//! Pieces being made and packed: cut, named, compressed and sealed off the runtime, put into the blob store a pack at a time.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use karta_types::{OrgId, Rng, SessionId};
use tokio::sync::Semaphore;

use super::blobs::Blobs;
use super::error::CheckpointError;
use super::seal::{Name, Role, SessionKey};
use super::tree::{PIECE, PackId, Piece};

/// Open bytes that are worked on at once.
const WORK: usize = 1 << 20;
/// Pieces that are worked on at once.
const PIECES: usize = 256;
/// When a pack is full.
const PACK: usize = 4 << 20;

/// Pieces that are known: they need not be put again.
pub(super) type Known = HashMap<Name, Piece>;

/// Packs one checkpoint.
pub(super) struct Packer {
    blobs: Blobs,
    key: Arc<SessionKey>,
    cpu: Arc<Semaphore>,
    rng: Arc<dyn Rng>,
    org: OrgId,
    session: SessionId,
    generation: u64,
    known: Arc<Known>,
    made: Known,
    /// Pieces not yet worked on, in order.
    waiting: Vec<(Role, Bytes)>,
    waiting_bytes: usize,
    /// Pieces that were worked on and not yet collected, in order.
    done: Vec<Piece>,
    pack: PackId,
    buffer: Vec<u8>,
    /// Packs that were put, with their bytes.
    pub(super) put: BTreeMap<PackId, u64>,
}

/// Who packs, and where to.
pub(super) struct Packing {
    pub(super) blobs: Blobs,
    pub(super) key: Arc<SessionKey>,
    pub(super) cpu: Arc<Semaphore>,
    pub(super) rng: Arc<dyn Rng>,
    pub(super) org: OrgId,
    pub(super) session: SessionId,
    pub(super) generation: u64,
}

impl Packer {
    pub(super) fn new(packing: Packing, known: Arc<Known>) -> Self {
        let Packing { blobs, key, cpu, rng, org, session, generation } = packing;
        let pack = PackId { generation, chance: rng.next_u128() };
        Self {
            blobs,
            key,
            cpu,
            rng,
            org,
            session,
            generation,
            known,
            made: Known::new(),
            waiting: Vec::new(),
            waiting_bytes: 0,
            done: Vec::new(),
            pack,
            buffer: Vec::new(),
            put: BTreeMap::new(),
        }
    }

    /// Adds a piece of at most [`PIECE`] bytes, or of a list.
    pub(super) async fn add(&mut self, role: Role, plain: Bytes) -> Result<(), CheckpointError> {
        self.waiting_bytes += plain.len();
        self.waiting.push((role, plain));
        if self.waiting_bytes >= WORK || self.waiting.len() >= PIECES { self.work().await } else { Ok(()) }
    }

    /// The pieces that were added since the last call, in order.
    pub(super) async fn collect(&mut self) -> Result<Vec<Piece>, CheckpointError> {
        self.work().await?;
        Ok(std::mem::take(&mut self.done))
    }

    async fn work(&mut self) -> Result<(), CheckpointError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        self.waiting_bytes = 0;
        let waiting = std::mem::take(&mut self.waiting);
        let (key, known) = (self.key.clone(), self.known.clone());
        let sealed = off_runtime(&self.cpu, move || {
            let seal = |(role, plain): (Role, Bytes)| {
                let name = key.name(role, &plain);
                let mut sealed = Vec::new();
                if !known.contains_key(&name) {
                    key.seal(role, &name.0, &plain, &mut sealed)?;
                }
                Ok((name, plain.len(), sealed))
            };
            waiting.into_iter().map(seal).collect::<Result<Vec<_>, CheckpointError>>()
        })
        .await??;
        for (name, plain, sealed) in sealed {
            let known = self.known.get(&name).or_else(|| self.made.get(&name)).copied();
            let piece = if let Some(piece) = known {
                piece
            } else {
                let plain = u32::try_from(plain).map_err(|_| CheckpointError::Own("a piece is too long"))?;
                self.append(name, plain, &sealed).await?
            };
            self.done.push(piece);
        }
        Ok(())
    }

    /// Appends a piece that is sealed already. The piece says where it lies now.
    pub(super) async fn append(
        &mut self,
        name: Name,
        plain: u32,
        sealed: &[u8],
    ) -> Result<Piece, CheckpointError> {
        let length = u32::try_from(sealed.len()).map_err(|_| CheckpointError::Own("a piece is too long"))?;
        let at = self.buffer.len() as u64;
        let piece = Piece { name, pack: self.pack, at, sealed: length, plain };
        self.buffer.extend_from_slice(sealed);
        self.made.insert(name, piece);
        if self.buffer.len() >= PACK {
            self.flush().await?;
        }
        Ok(piece)
    }

    /// What the open pack holds so far.
    pub(super) fn open(&self) -> (PackId, u64) {
        (self.pack, self.buffer.len() as u64)
    }

    /// Puts the open pack, with these sealed bytes at its end.
    pub(super) async fn finish(&mut self, last: &[u8]) -> Result<(), CheckpointError> {
        self.buffer.extend_from_slice(last);
        self.flush().await
    }

    async fn flush(&mut self) -> Result<(), CheckpointError> {
        let next = PackId { generation: self.generation, chance: self.rng.next_u128() };
        let (pack, bytes) = (std::mem::replace(&mut self.pack, next), std::mem::take(&mut self.buffer));
        let length = bytes.len() as u64;
        self.blobs.put(self.org, self.session, pack, bytes).await?;
        self.put.insert(pack, length);
        Ok(())
    }
}

/// A file's bytes cut into pieces as they come.
#[derive(Default)]
pub(super) struct Cutter(Vec<u8>);

impl Cutter {
    /// Takes bytes; answers a piece when one is full.
    pub(super) fn take(&mut self, bytes: &mut Bytes) -> Option<Bytes> {
        let some = bytes.split_to(bytes.len().min(PIECE - self.0.len()));
        self.0.extend_from_slice(&some);
        (self.0.len() == PIECE).then(|| std::mem::take(&mut self.0).into())
    }

    /// The last piece, if there is one.
    pub(super) fn end(&mut self) -> Option<Bytes> {
        (!self.0.is_empty()).then(|| std::mem::take(&mut self.0).into())
    }
}

/// Runs what takes a processor's time where that is allowed, as many at once as there are processors.
pub(super) async fn off_runtime<T, F>(cpu: &Semaphore, work: F) -> Result<T, CheckpointError>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    // Never closed.
    let _turn = cpu.acquire().await;
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| CheckpointError::Own("work on a checkpoint broke off"))
}
