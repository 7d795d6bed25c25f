//! The members of a tar stream, one after the other: what each is, with everything refused that a release never has.

use std::io;

use super::header::{BLOCK, BLOCK_LENGTH, Header};
use super::stream::Stream;
use super::{Error, LISTING, Limits};
use crate::hash::{Hash, Hasher};
use crate::names::Rule;

/// The longest header that only describes the next member: a long name, or pax.
const MAX_DESCRIPTION: u64 = 1 << 20;
/// The most bytes of all such headers together.
const MAX_DESCRIPTIONS: u64 = 256 << 20;
/// How many bytes may follow the end of the archive; tar pads to whole records, of ten kibibytes if nobody says otherwise.
const MAX_PADDING: u64 = 4 << 20;
/// The rights of setuid, setgid and the sticky bit.
const SPECIAL: u64 = 0o7000;

/// What a member is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File { size: u64, executable: bool },
    Folder,
    Link { target: String },
}

/// A member.
#[derive(Debug)]
pub(super) struct Member {
    /// Its path; a folder's without its slash. Empty for the folder that the archive was made of (`./`).
    pub(super) path: String,
    pub(super) kind: Kind,
}

/// What headers say of the member that follows them.
#[derive(Default)]
struct Described {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

/// A stream of members.
pub(super) struct Members<'a> {
    stream: Stream<'a>,
    limits: Limits,
    seen: u64,
    bytes: u64,
    described: u64,
    /// The member that is being read, for faults.
    current: Vec<u8>,
    /// What is left of its content.
    left: u64,
    /// What follows it up to the next header.
    padding: u64,
}

impl<'a> Members<'a> {
    pub(super) fn new(stream: Stream<'a>, limits: &Limits) -> Self {
        Self {
            stream,
            limits: *limits,
            seen: 0,
            bytes: 0,
            described: 0,
            current: Vec::new(),
            left: 0,
            padding: 0,
        }
    }

    /// The next member; `None` at the end of the archive, which is then read to its last byte.
    pub(super) fn next(&mut self) -> Result<Option<Member>, Error> {
        let mut described = Described::default();
        loop {
            self.skip()?;
            let mut block = [0; BLOCK];
            if self.stream.fill(&mut block, &self.current)? < BLOCK {
                return Err(Error::Truncated);
            }
            if block.iter().all(|&byte| byte == 0) {
                if described.name.is_some() || described.link.is_some() || described.size.is_some() {
                    return Err(Error::Truncated);
                }
                return self.end().map(|()| None);
            }
            let header = Header::read(&block).ok_or_else(|| {
                Error::Broken("a header's checksum is wrong: it is no tar, or damaged".to_owned())
            })?;
            let name = described.name.clone().unwrap_or_else(|| header.name());
            self.current.clone_from(&name);
            let unreadable = || {
                Error::Broken(format!(
                    "the header of `{}` has a number that is none",
                    super::printable(&name)
                ))
            };
            let size = header.size().ok_or_else(unreadable)?;
            match header.kind() {
                b'L' => described.name = Some(cut(self.describe(size)?)),
                b'K' => described.link = Some(cut(self.describe(size)?)),
                b'x' => {
                    let records = self.describe(size)?;
                    self.pax(&records, Some(&mut described))?;
                }
                b'g' => {
                    let records = self.describe(size)?;
                    self.pax(&records, None)?;
                }
                kind => {
                    let size = described.size.unwrap_or(size);
                    let link = described.link.unwrap_or_else(|| header.link().to_vec());
                    let mode = header.mode().ok_or_else(unreadable)?;
                    return self.member(&name, kind, size, mode, &link).map(Some);
                }
            }
        }
    }

    fn member(&mut self, name: &[u8], kind: u8, size: u64, mode: u64, link: &[u8]) -> Result<Member, Error> {
        self.seen += 1;
        if self.seen > self.limits.members {
            return Err(self.refused(Rule::TooMany(self.limits.members)));
        }
        let kind = match kind {
            // Before there was a type for folders, a slash at the end said so.
            0 | b'0' if name.ends_with(b"/") => b'5',
            0 | b'0' | b'7' => b'0',
            other => other,
        };
        let rule = match kind {
            b'0' | b'2' | b'5' => None,
            b'1' => Some(Rule::HardLink),
            b'3' | b'4' => Some(Rule::Device),
            b'6' => Some(Rule::Pipe),
            b'S' => Some(Rule::Sparse),
            other => Some(Rule::Unknown(char::from(other))),
        };
        if let Some(rule) = rule {
            return Err(self.refused(rule));
        }
        if kind != b'2' && mode & SPECIAL != 0 {
            return Err(self.refused(Rule::SpecialMode));
        }
        if kind != b'0' && size != 0 {
            return Err(self.refused(Rule::Content));
        }
        let path = self.path(name, kind == b'5')?;
        let kind = match kind {
            b'5' => Kind::Folder,
            b'2' => {
                let target = String::from_utf8(link.to_vec()).map_err(|_| self.refused(Rule::BadTarget))?;
                Kind::Link { target }
            }
            _ => {
                // A listing is no file of the release.
                let listing = self.seen == 1 && path == LISTING;
                let most = if listing { self.limits.listing } else { self.limits.file };
                if size > most {
                    return Err(self.refused(Rule::LargeFile(most)));
                }
                if listing {
                    self.seen = 0;
                } else {
                    self.bytes = self.bytes.saturating_add(size);
                }
                if self.bytes > self.limits.bytes {
                    return Err(self.refused(Rule::TooLarge(self.limits.bytes)));
                }
                self.begin(size);
                Kind::File { size, executable: mode & u64::from(crate::folder::EXECUTE) != 0 }
            }
        };
        Ok(Member { path, kind })
    }

    /// The path as releases have it: `tar -c .` puts `./` before every name, and folders end with a slash.
    fn path(&self, name: &[u8], folder: bool) -> Result<String, Error> {
        let path = std::str::from_utf8(name).map_err(|_| self.refused(Rule::NotUtf8))?;
        if folder && matches!(path, "." | "./") {
            return Ok(String::new());
        }
        let path = path.strip_prefix("./").unwrap_or(path);
        let path = if folder { path.strip_suffix('/').unwrap_or(path) } else { path };
        Ok(path.to_owned())
    }

    const fn begin(&mut self, size: u64) {
        self.left = size;
        self.padding = (BLOCK_LENGTH - size % BLOCK_LENGTH) % BLOCK_LENGTH;
    }

    /// Reads a header's content, which describes the next member.
    fn describe(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        self.described = self.described.saturating_add(size).saturating_add(BLOCK_LENGTH);
        for (length, most) in [(size, MAX_DESCRIPTION), (self.described, MAX_DESCRIPTIONS)] {
            if length > most {
                return Err(self.refused(Rule::LongHeader(most)));
            }
        }
        self.begin(size);
        self.content()
    }

    /// Reads the records of a pax header: `length key=value\n`. One for all members may say nothing that changes what a member is.
    fn pax(&self, records: &[u8], mut described: Option<&mut Described>) -> Result<(), Error> {
        let broken = || Error::Broken("a pax header can't be read".to_owned());
        let mut rest = records;
        while !rest.is_empty() {
            let blank = rest.iter().position(|&byte| byte == b' ').ok_or_else(broken)?;
            let digits = std::str::from_utf8(&rest[..blank]).map_err(|_| broken())?;
            let length: usize = digits.parse().map_err(|_| broken())?;
            if length <= blank + 1 || length > rest.len() {
                return Err(broken());
            }
            let record = rest[blank + 1..length].strip_suffix(b"\n").ok_or_else(broken)?;
            rest = &rest[length..];
            let equals = record.iter().position(|&byte| byte == b'=').ok_or_else(broken)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            if key.starts_with(b"GNU.sparse.") || key.starts_with(b"SCHILY.realsize") {
                return Err(self.refused(Rule::Sparse));
            }
            match (key, described.as_deref_mut()) {
                (b"path" | b"linkpath" | b"size", None) => {
                    return Err(Error::Broken("a pax header for all members names one of them".to_owned()));
                }
                (b"path", Some(described)) => described.name = Some(value.to_vec()),
                (b"linkpath", Some(described)) => described.link = Some(value.to_vec()),
                (b"size", Some(described)) => {
                    let text = std::str::from_utf8(value).map_err(|_| broken())?;
                    described.size = Some(text.parse().map_err(|_| broken())?);
                }
                // Times, owners, other attributes: nothing of them is kept.
                _ => {}
            }
        }
        Ok(())
    }

    /// Reads of the current member's content; 0 at its end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        match self.stream.read(&mut buffer[..most], &self.current)? {
            0 => Err(Error::Truncated),
            length => {
                self.left -= length as u64;
                Ok(length)
            }
        }
    }

    /// The current member's content, all of it.
    pub(super) fn content(&mut self) -> Result<Vec<u8>, Error> {
        let mut content = Vec::new();
        let mut buffer = [0; 8192];
        loop {
            match self.read(&mut buffer)? {
                0 => return Ok(content),
                length => content.extend_from_slice(&buffer[..length]),
            }
        }
    }

    /// Copies the current member's content: what it was, and how long. `at` makes the fault of a failed write.
    pub(super) fn copy(
        &mut self,
        to: &mut dyn io::Write,
        at: impl Fn(io::Error) -> Error,
    ) -> Result<(Hash, u64), Error> {
        let mut hasher = Hasher::new();
        let mut size = 0;
        let mut buffer = vec![0; 64 << 10];
        loop {
            match self.read(&mut buffer)? {
                0 => return Ok((hasher.finish(), size)),
                length => {
                    size += length as u64;
                    hasher.update(&buffer[..length]);
                    to.write_all(&buffer[..length]).map_err(&at)?;
                }
            }
        }
    }

    /// Goes on to the next header.
    fn skip(&mut self) -> Result<(), Error> {
        let mut buffer = [0; 8192];
        while self.read(&mut buffer)? > 0 {}
        let padding = usize::try_from(std::mem::take(&mut self.padding)).unwrap_or_default();
        if self.stream.fill(&mut buffer[..padding], &self.current)? < padding {
            return Err(Error::Truncated);
        }
        Ok(())
    }

    /// After the first block of zeros: another one, and nothing but zeros to the end.
    fn end(&mut self) -> Result<(), Error> {
        let mut buffer = [0; 8192];
        let mut length = 0;
        loop {
            let read = self.stream.fill(&mut buffer, b"(the end)")?;
            if buffer[..read].iter().any(|&byte| byte != 0) {
                return Err(Error::Broken("something follows its end".to_owned()));
            }
            length += read as u64;
            if length > MAX_PADDING {
                return Err(Error::Broken("its end is padded with too much".to_owned()));
            }
            if read == 0 {
                return if length < BLOCK_LENGTH { Err(Error::Truncated) } else { Ok(()) };
            }
        }
    }

    /// A fault of the current member.
    pub(super) fn refused(&self, rule: Rule) -> Error {
        Error::refused(&self.current, rule)
    }
}

/// A name of GNU's long kind, up to its NUL.
fn cut(mut name: Vec<u8>) -> Vec<u8> {
    if name.last() == Some(&0) {
        name.pop();
    }
    name
}
