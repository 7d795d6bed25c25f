//! Things with their content, as the bytes of a stream: each with its length before it.
//!
//! A survey, what is taken and what is put back travel so; the last item says how it ended.

use super::CHUNK;
use super::message::{Failure, PATH};
use super::wire::{Malformed, Reader, Writer};

/// Most bytes of one item.
pub const ITEM: usize = 2 * PATH + 64 + CHUNK;

/// One item of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// The next thing. A file's bytes follow.
    Entry(Entry),
    /// Bytes of the file that was named last; never empty.
    Data(Vec<u8>),
    /// A path that is asked for.
    Path(Vec<u8>),
    /// All is said.
    End,
    /// It failed; nothing follows.
    Failed(Failure),
}

/// One thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where.
    pub path: Vec<u8>,
    /// What.
    pub kind: Kind,
    /// The permission bits.
    pub mode: u32,
    /// Tells one state of a file from another on the same machine.
    pub stamp: u64,
    /// When it was modified, in nanoseconds since 1970.
    pub modified: i64,
}

/// What a thing is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A file of so many bytes.
    File {
        /// How many.
        size: u64,
    },
    /// A folder.
    Folder {
        /// Whether what the release has below is hidden.
        opaque: bool,
    },
    /// A symbolic link.
    Link {
        /// Where it points.
        target: Vec<u8>,
    },
    /// A thing of the release that was removed.
    Removed,
}

impl Item {
    /// Writes it to the end of `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut to = Writer::default();
        match self {
            Self::Entry(entry) => {
                to.u8(1).bytes(&entry.path);
                match &entry.kind {
                    Kind::File { size } => to.u8(0).u64(*size),
                    Kind::Folder { opaque } => to.u8(1).flag(*opaque),
                    Kind::Link { target } => to.u8(2).bytes(target),
                    Kind::Removed => to.u8(3),
                };
                to.u32(entry.mode).u64(entry.stamp).i64(entry.modified);
            }
            Self::Data(bytes) => {
                to.u8(2).0.extend_from_slice(bytes);
            }
            Self::Path(path) => {
                to.u8(3).bytes(path);
            }
            Self::End => {
                to.u8(4);
            }
            Self::Failed(failure) => failure.encode(to.u8(5)),
        }
        let length = u32::try_from(to.0.len()).unwrap_or(u32::MAX);
        out.extend(length.to_le_bytes());
        out.extend(to.0);
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(bytes);
        let item = match from.u8()? {
            1 => Self::Entry(Entry {
                path: from.bytes(PATH)?.to_vec(),
                kind: match from.u8()? {
                    0 => Kind::File { size: from.u64()? },
                    1 => Kind::Folder { opaque: from.flag()? },
                    2 => Kind::Link { target: from.bytes(PATH)?.to_vec() },
                    3 => Kind::Removed,
                    _ => return Err(Malformed("a thing is of no known kind")),
                },
                mode: from.u32()?,
                stamp: from.u64()?,
                modified: from.i64()?,
            }),
            2 => {
                let bytes = from.rest();
                if bytes.is_empty() || bytes.len() > CHUNK {
                    return Err(Malformed("a piece of a file is empty or too long"));
                }
                Self::Data(bytes.to_vec())
            }
            3 => Self::Path(from.bytes(PATH)?.to_vec()),
            4 => Self::End,
            5 => Self::Failed(Failure::decode(&mut from)?),
            _ => return Err(Malformed("an item is of no known kind")),
        };
        from.end()?;
        if let Self::Entry(entry) = &item
            && entry.mode > 0o7777
        {
            return Err(Malformed("a mode is none"));
        }
        Ok(item)
    }
}

/// Makes items of bytes that come in any pieces. Holds at most one item and what was pushed last.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// Takes bytes in.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.start);
        self.start = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next item; none if more bytes are needed.
    pub fn next_item(&mut self) -> Result<Option<Item>, Malformed> {
        let Some(length) = self.bytes[self.start..].first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if length == 0 || length > ITEM {
            return Err(Malformed("an item has a length none can have"));
        }
        let begin = self.start + 4;
        let Some(bytes) = self.bytes.get(begin..begin + length) else { return Ok(None) };
        let item = Item::decode(bytes)?;
        self.start = begin + length;
        Ok(Some(item))
    }

    /// How many bytes are held.
    pub fn held(&self) -> usize {
        self.bytes.len() - self.start
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn items() -> impl Strategy<Value = Item> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..40);
        let kind = prop_oneof![
            any::<u64>().prop_map(|size| Kind::File { size }),
            any::<bool>().prop_map(|opaque| Kind::Folder { opaque }),
            bytes().prop_map(|target| Kind::Link { target }),
            Just(Kind::Removed),
        ];
        prop_oneof![
            (bytes(), kind, 0u32..0o1000, any::<u64>(), any::<i64>()).prop_map(
                |(path, kind, mode, stamp, modified)| Item::Entry(Entry {
                    path,
                    kind,
                    mode,
                    stamp,
                    modified
                })
            ),
            prop::collection::vec(any::<u8>(), 1..100).prop_map(Item::Data),
            bytes().prop_map(Item::Path),
            Just(Item::End),
            "[a-z]{0,9}".prop_map(|text| Item::Failed(Failure { errno: 5, text })),
        ]
    }

    proptest! {
        #[test]
        fn items_come_back_whatever_the_pieces(items in prop::collection::vec(items(), 0..20), cut in 1usize..50) {
            let mut bytes = Vec::new();
            for item in &items {
                item.encode(&mut bytes);
            }
            let mut decoder = Decoder::default();
            let mut back = Vec::new();
            for piece in bytes.chunks(cut) {
                decoder.push(piece);
                while let Some(item) = decoder.next_item().unwrap() {
                    back.push(item);
                }
            }
            prop_assert_eq!(back, items);
            prop_assert_eq!(decoder.held(), 0);
        }

        #[test]
        fn no_bytes_make_it_panic_or_hold_more_than_an_item(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..40),
        ) {
            let mut decoder = Decoder::default();
            for piece in pieces {
                decoder.push(&piece);
                loop {
                    match decoder.next_item() {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => return Ok(()),
                    }
                }
                prop_assert!(decoder.held() < 4 + ITEM);
            }
        }
    }
}
