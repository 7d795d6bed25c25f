//! What a session has made, as a list: things by path, each file as the pieces it is put together from.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::seal::Name;

/// The most bytes of a file in one piece.
pub(super) const PIECE: usize = 1 << 20;
/// A part of the list has at least and at most so many things.
const PART: std::ops::RangeInclusive<usize> = 32..=1024;

/// A pack's name: the generation of the session's owner that wrote it, then chance. An owner removes no pack of a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct PackId {
    pub(super) generation: u64,
    pub(super) chance: u128,
}

impl std::fmt::Display for PackId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}-{:032x}", self.generation, self.chance)
    }
}

impl FromStr for PackId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (generation, chance) = text.split_once('-').ok_or(())?;
        if generation.len() != 16 || chance.len() != 32 {
            return Err(());
        }
        let generation = u64::from_str_radix(generation, 16).map_err(|_| ())?;
        let chance = u128::from_str_radix(chance, 16).map_err(|_| ())?;
        Ok(Self { generation, chance })
    }
}

/// A sealed piece: what it holds, and where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) name: Name,
    pub(super) pack: PackId,
    /// Where in the pack it begins.
    pub(super) at: u64,
    /// Its bytes, sealed.
    pub(super) sealed: u32,
    /// Its bytes, open.
    pub(super) plain: u32,
}

/// One thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) modified: i64,
}

/// What a thing is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    File(Vec<Piece>),
    Folder { opaque: bool },
    Link(PathBuf),
    Removed,
}

impl Item {
    /// The bytes of a file.
    pub(super) fn size(&self) -> u64 {
        self.pieces().iter().map(|piece| u64::from(piece.plain)).sum()
    }

    pub(super) fn pieces(&self) -> &[Piece] {
        if let Kind::File(pieces) = &self.kind { pieces } else { &[] }
    }
}

/// Everything by path, folders before what they hold.
pub(super) type Tree = BTreeMap<PathBuf, Item>;

/// What a checkpoint begins with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Root {
    /// The parts of the list.
    pub(super) lists: Vec<Piece>,
    /// The packs that it needs beside the one it lies in, with their bytes.
    pub(super) packs: BTreeMap<PackId, u64>,
}

/// The list in parts. A part changes only if something in it did, or its neighbour.
pub(super) fn parts(tree: &Tree) -> Vec<Vec<u8>> {
    let mut parts = Vec::new();
    let (mut out, mut count) = (Out::default(), 0);
    for (path, item) in tree {
        out.item(path, item);
        count += 1;
        // Cut by what the path is, not by how many came before it: a new file moves no cut but its own part's.
        let cut = fnv(path).is_multiple_of(256);
        if (count >= *PART.start() && cut) || count >= *PART.end() {
            parts.push(std::mem::take(&mut out).0);
            count = 0;
        }
    }
    if count > 0 {
        parts.push(out.0);
    }
    parts
}

/// Reads a part of the list. False if it is none, or holds what was there before.
pub(super) fn read_part(part: &[u8], tree: &mut Tree) -> bool {
    let mut read = In(part);
    while !read.0.is_empty() {
        let Some((path, item)) = read.item() else { return false };
        if tree.last_key_value().is_some_and(|(last, _)| *last >= path) {
            return false;
        }
        tree.insert(path, item);
    }
    true
}

impl Root {
    pub(super) fn write(&self) -> Vec<u8> {
        let mut out = Out::default();
        out.pieces(&self.lists);
        out.count(self.packs.len());
        for (pack, length) in &self.packs {
            out.pack(*pack);
            out.u64(*length);
        }
        out.0
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let mut read = In(bytes);
        let lists = read.pieces()?;
        let count = read.u32()?;
        let mut packs = BTreeMap::new();
        for _ in 0..count {
            packs.insert(read.pack()?, read.u64()?);
        }
        read.0.is_empty().then_some(Self { lists, packs })
    }
}

/// Every pack that these need.
pub(super) fn packs_of<'a>(tree: &'a Tree, lists: &'a [Piece]) -> BTreeSet<PackId> {
    tree.values().flat_map(Item::pieces).chain(lists).map(|piece| piece.pack).collect()
}

fn fnv(path: &Path) -> u64 {
    path.as_os_str().as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[derive(Default)]
struct Out(Vec<u8>);

impl Out {
    fn u64(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn u32(&mut self, number: u32) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn count(&mut self, count: usize) {
        self.u32(u32::try_from(count).unwrap_or(u32::MAX));
    }

    fn path(&mut self, path: &Path) {
        self.count(path.as_os_str().len());
        self.0.extend_from_slice(path.as_os_str().as_bytes());
    }

    fn pack(&mut self, pack: PackId) {
        self.u64(pack.generation);
        self.0.extend_from_slice(&pack.chance.to_le_bytes());
    }

    fn piece(&mut self, piece: &Piece) {
        self.0.extend_from_slice(&piece.name.0);
        self.pack(piece.pack);
        self.u64(piece.at);
        self.u32(piece.sealed);
        self.u32(piece.plain);
    }

    fn pieces(&mut self, pieces: &[Piece]) {
        self.count(pieces.len());
        for piece in pieces {
            self.piece(piece);
        }
    }

    fn item(&mut self, path: &Path, item: &Item) {
        self.path(path);
        self.u32(item.mode);
        self.0.extend_from_slice(&item.modified.to_le_bytes());
        match &item.kind {
            Kind::File(pieces) => {
                self.0.push(0);
                self.pieces(pieces);
            }
            Kind::Folder { opaque } => self.0.extend_from_slice(&[1, u8::from(*opaque)]),
            Kind::Link(target) => {
                self.0.push(2);
                self.path(target);
            }
            Kind::Removed => self.0.push(3),
        }
    }
}

struct In<'a>(&'a [u8]);

impl<'a> In<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn path(&mut self) -> Option<PathBuf> {
        let length = self.u32()?;
        Some(PathBuf::from(OsStr::from_bytes(self.bytes(usize::try_from(length).ok()?)?)))
    }

    fn pack(&mut self) -> Option<PackId> {
        Some(PackId { generation: self.u64()?, chance: self.array().map(u128::from_le_bytes)? })
    }

    fn piece(&mut self) -> Option<Piece> {
        Some(Piece {
            name: Name(self.array()?),
            pack: self.pack()?,
            at: self.u64()?,
            sealed: self.u32()?,
            plain: self.u32()?,
        })
    }

    fn pieces(&mut self) -> Option<Vec<Piece>> {
        // Grows as pieces are read: a count that lies takes no memory.
        (0..self.u32()?).map(|_| self.piece()).collect()
    }

    fn item(&mut self) -> Option<(PathBuf, Item)> {
        let path = self.path()?;
        let mode = self.u32()?;
        let modified = self.array().map(i64::from_le_bytes)?;
        let kind = match self.u8()? {
            0 => Kind::File(self.pieces()?),
            1 => Kind::Folder { opaque: self.u8()? == 1 },
            2 => Kind::Link(self.path()?),
            3 => Kind::Removed,
            _ => return None,
        };
        Some((path, Item { kind, mode, modified }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn piece(number: u8) -> Piece {
        let pack = PackId { generation: 3, chance: u128::from(number) << 90 };
        Piece { name: Name([number; 32]), pack, at: u64::from(number) << 33, sealed: 7, plain: 9 }
    }

    fn tree(count: usize) -> Tree {
        let kinds = [
            Kind::File(vec![piece(1), piece(2)]),
            Kind::Folder { opaque: true },
            Kind::Link("../x".into()),
            Kind::Removed,
            Kind::File(Vec::new()),
        ];
        let item = |number: usize| Item { kind: kinds[number % 5].clone(), mode: 0o640, modified: -5 };
        (0..count).map(|number| (PathBuf::from(format!("home/{number:06}")), item(number))).collect()
    }

    #[test]
    fn a_list_reads_back_and_a_change_touches_one_part() {
        let mut tree = tree(5000);
        let before = parts(&tree);
        let mut read = Tree::new();
        assert!(before.iter().all(|part| read_part(part, &mut read)));
        assert_eq!(read, tree);
        assert!(before.len() > 5, "{}", before.len());
        tree.insert("home/002500b".into(), Item { kind: Kind::Removed, mode: 0, modified: 0 });
        let after = parts(&tree);
        let same = after.iter().filter(|part| before.contains(part)).count();
        assert!(after.len() - same <= 2, "{} of {} are new", after.len() - same, after.len());
    }

    #[test]
    fn a_root_and_a_packs_name_read_back() {
        let root = Root { lists: vec![piece(4)], packs: [(piece(5).pack, 12)].into() };
        assert_eq!(Root::read(&root.write()), Some(root));
        let pack = piece(7).pack;
        assert_eq!(pack.to_string().parse(), Ok(pack));
        assert!("0-1".parse::<PackId>().is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_panic(bytes: Vec<u8>) {
            let _ = Root::read(&bytes);
            let _ = read_part(&bytes, &mut Tree::new());
        }

        #[test]
        fn damaged_lists_are_refused_or_read(at in 0usize..4000, with: u8) {
            let mut part = parts(&tree(30)).remove(0);
            let at = at % part.len();
            part[at] = with;
            let _ = read_part(&part, &mut Tree::new());
        }
    }
}
