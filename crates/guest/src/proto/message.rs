//! What requests, answers and news hold.

use super::wire::{Malformed, Reader, Writer};

/// Most bytes of a path and of a name.
pub const PATH: usize = 4096;
/// Most arguments, and most variables, of a program.
const ARGUMENTS: usize = 4096;
/// Most bytes of one argument.
const ARGUMENT: usize = 512 << 10;
/// Most bytes of a filter of system calls.
const FILTER: usize = 64 << 10;
/// Most bytes of a text that a person reads.
pub const TEXT: usize = 1024;
/// Most notes.
const NOTES: usize = 8;

/// The first thing a guest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// [`super::VERSION`] of the guest.
    pub version: u32,
}

impl Hello {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        self.version.to_le_bytes().to_vec()
    }

    /// From bytes. What a later version adds is passed over.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        Ok(Self { version: Reader::new(bytes).u32()? })
    }
}

/// What a stream is opened for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Whether it is there.
    Ping,
    /// In a virtual machine: the system is mounted and becomes the root.
    Prepare(Prepare),
    /// The machine becomes one session's: before it nothing of a session may run. Its frame brings the generation.
    Configure(Configure),
    /// Starts a program. The stream carries its standard input and output; the next number of the host its standard error.
    Spawn(Spawn),
    /// Connects to a port of the loopback.
    Connect {
        /// The port.
        port: u16,
    },
    /// Writes a file: its bytes follow. Answered in the stream by records, as all that follow until [`Request::Freeze`].
    Put {
        /// Where its path begins.
        base: Base,
        /// The path.
        path: Vec<u8>,
        /// How many bytes follow.
        size: u64,
    },
    /// Files of the home that match.
    Find {
        /// Levels with at most one `*` each.
        pattern: Vec<u8>,
        /// Most bytes of each.
        limit: u64,
    },
    /// What the session made or changed.
    Survey,
    /// The same with content, for the paths that follow.
    Take,
    /// Puts back the records that follow.
    Restore,
    /// The whole workspace with content.
    Export,
    /// Stops all processes of the session.
    Freeze,
    /// Lets them go on.
    Thaw,
    /// Writes everything to the disks.
    Sync,
    /// Sets the clock, in nanoseconds since 1970.
    Clock(i64),
    /// Ends everything.
    Shutdown,
    /// Says nothing more and takes nothing more until [`Request::Unpark`], or [`Request::Adopt`] of a later generation: the machine is
    /// about to be saved. What was said before the answer is all there is.
    Park,
    /// The machine was not saved, and goes on.
    Unpark,
    /// The machine was saved, and goes on with another host: programs stay, all other streams have ended. Sets the clock to these
    /// nanoseconds since 1970; 0 leaves it. The answer says how many programs there are; the first has the numbers 3 and 5, each further one four
    /// more, in the order of their start.
    Adopt(i64),
}

/// The folders of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// The home.
    Home,
    /// The temporary folder.
    Temp,
    /// The workspace.
    Work,
}

/// The system's disks in a virtual machine, by the kernel's names: `vda`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepare {
    /// The base (erofs): becomes the root.
    pub base: String,
    /// The harness (erofs), to `/opt/harness`.
    pub harness: Option<String>,
}

/// How the workspace is made of the release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workspace {
    /// An overlay, where that works with the release's owner as it is; else a copy.
    Overlay,
    /// A copy.
    Copy,
}

/// What makes a machine one session's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configure {
    /// Random bytes for the kernel, of this machine alone. 32 to 512.
    pub entropy: Vec<u8>,
    /// The machine's id.
    pub machine: [u8; 16],
    /// The host's name: letters, digits, `-`.
    pub name: String,
    /// The time in nanoseconds since 1970; 0 leaves the clock.
    pub clock: i64,
    /// In a virtual machine: the disk with the release (erofs), to `/release`.
    pub release: Option<String>,
    /// In a virtual machine: the session's disk (ext4), to `/state`.
    pub state: Option<String>,
    /// How the workspace is made.
    pub workspace: Workspace,
    /// Most bytes of `/tmp`; 0 leaves it as it is.
    pub temp: u64,
    /// Most open files of a process.
    pub files: u64,
    /// Most processes of the session; 0 for no limit.
    pub processes: u64,
    /// A filter of system calls for the session's processes: instructions of 8 bytes. Empty for none.
    pub filter: Vec<u8>,
    /// Whether Landlock should hold the session's processes too, where the kernel has it.
    pub landlock: bool,
}

/// A program to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spawn {
    /// A path, or a name to be looked up in the `PATH` of `env`.
    pub program: Vec<u8>,
    /// Its arguments, without its name.
    pub args: Vec<Vec<u8>>,
    /// Its whole environment: `NAME=value`.
    pub env: Vec<Vec<u8>>,
    /// Its working directory.
    pub cwd: Vec<u8>,
}

fn text(bytes: &[u8]) -> Result<String, Malformed> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Malformed("a text is not UTF-8"))
}

/// A C string's bytes: not empty, without NUL.
fn name(bytes: &[u8]) -> Result<Vec<u8>, Malformed> {
    if bytes.contains(&0) { Err(Malformed("a text holds a zero byte")) } else { Ok(bytes.to_vec()) }
}

/// A disk by its name.
fn disk(bytes: &[u8]) -> Result<String, Malformed> {
    let plain = !bytes.is_empty() && bytes.len() < 16 && bytes.iter().all(u8::is_ascii_alphanumeric);
    if plain { text(bytes) } else { Err(Malformed("a disk has no plain name")) }
}

fn write_maybe(to: &mut Writer, value: Option<&String>) {
    to.bytes(value.map_or(b"", |value| value.as_bytes()));
}

fn read_maybe(from: &mut Reader) -> Result<Option<String>, Malformed> {
    let bytes = from.bytes(16)?;
    if bytes.is_empty() { Ok(None) } else { disk(bytes).map(Some) }
}

impl Request {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Writer::default();
        match self {
            Self::Ping => to.u8(1),
            Self::Prepare(prepare) => {
                to.u8(2).bytes(prepare.base.as_bytes());
                write_maybe(&mut to, prepare.harness.as_ref());
                &mut to
            }
            Self::Configure(configure) => {
                to.u8(3);
                configure.encode(&mut to);
                &mut to
            }
            Self::Spawn(spawn) => to
                .u8(4)
                .bytes(&spawn.program)
                .list(&spawn.args, |to, one| {
                    to.bytes(one);
                })
                .list(&spawn.env, |to, one| {
                    to.bytes(one);
                })
                .bytes(&spawn.cwd),
            Self::Connect { port } => to.u8(5).u16(*port),
            Self::Put { base, path, size } => to
                .u8(6)
                .u8(match base {
                    Base::Home => 0,
                    Base::Temp => 1,
                    Base::Work => 2,
                })
                .bytes(path)
                .u64(*size),
            Self::Find { pattern, limit } => to.u8(7).bytes(pattern).u64(*limit),
            Self::Survey => to.u8(8),
            Self::Take => to.u8(9),
            Self::Restore => to.u8(10),
            Self::Export => to.u8(11),
            Self::Freeze => to.u8(12),
            Self::Thaw => to.u8(13),
            Self::Sync => to.u8(14),
            Self::Clock(nanos) => to.u8(15).i64(*nanos),
            Self::Shutdown => to.u8(16),
            Self::Park => to.u8(17),
            Self::Unpark => to.u8(18),
            Self::Adopt(nanos) => to.u8(19).i64(*nanos),
        };
        to.0
    }

    /// From bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(bytes);
        let request = match from.u8()? {
            1 => Self::Ping,
            2 => Self::Prepare(Prepare { base: disk(from.bytes(16)?)?, harness: read_maybe(&mut from)? }),
            3 => Self::Configure(Configure::decode(&mut from)?),
            4 => Self::Spawn(Spawn {
                program: name(from.bytes(PATH)?)?,
                args: from.list(ARGUMENTS, |from| name(from.bytes(ARGUMENT)?))?,
                env: from.list(ARGUMENTS, |from| name(from.bytes(ARGUMENT)?))?,
                cwd: name(from.bytes(PATH)?)?,
            }),
            5 => Self::Connect { port: from.u16()? },
            6 => Self::Put {
                base: match from.u8()? {
                    0 => Base::Home,
                    1 => Base::Temp,
                    2 => Base::Work,
                    _ => return Err(Malformed("there is no such folder")),
                },
                path: name(from.bytes(PATH)?)?,
                size: from.u64()?,
            },
            7 => Self::Find { pattern: name(from.bytes(PATH)?)?, limit: from.u64()? },
            8 => Self::Survey,
            9 => Self::Take,
            10 => Self::Restore,
            11 => Self::Export,
            12 => Self::Freeze,
            13 => Self::Thaw,
            14 => Self::Sync,
            15 => Self::Clock(from.i64()?),
            16 => Self::Shutdown,
            17 => Self::Park,
            18 => Self::Unpark,
            19 => Self::Adopt(from.i64()?),
            _ => return Err(Malformed("there is no such request")),
        };
        from.end()?;
        Ok(request)
    }
}

impl Configure {
    fn encode(&self, to: &mut Writer) {
        to.bytes(&self.entropy);
        to.0.extend_from_slice(&self.machine);
        to.bytes(self.name.as_bytes()).i64(self.clock);
        write_maybe(to, self.release.as_ref());
        write_maybe(to, self.state.as_ref());
        to.flag(self.workspace == Workspace::Copy)
            .u64(self.temp)
            .u64(self.files)
            .u64(self.processes)
            .bytes(&self.filter)
            .flag(self.landlock);
    }

    fn decode(from: &mut Reader) -> Result<Self, Malformed> {
        let entropy = from.bytes(512)?.to_vec();
        let mut machine = [0; 16];
        for byte in &mut machine {
            *byte = from.u8()?;
        }
        let configure = Self {
            entropy,
            machine,
            name: text(from.bytes(64)?)?,
            clock: from.i64()?,
            release: read_maybe(from)?,
            state: read_maybe(from)?,
            workspace: if from.flag()? { Workspace::Copy } else { Workspace::Overlay },
            temp: from.u64()?,
            files: from.u64()?,
            processes: from.u64()?,
            filter: from.bytes(FILTER)?.to_vec(),
            landlock: from.flag()?,
        };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if configure.entropy.len() < 32 {
            return Err(Malformed("there are too few random bytes"));
        }
        if configure.name.is_empty() || !configure.name.bytes().all(plain) {
            return Err(Malformed("the host's name is not plain"));
        }
        if !configure.filter.len().is_multiple_of(8) {
            return Err(Malformed("the filter is not whole"));
        }
        Ok(configure)
    }
}

/// The first bytes of a stream that a guest opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// The port inside that was connected to.
    pub port: u16,
}

impl Accepted {
    /// As bytes.
    pub fn encode(self) -> Vec<u8> {
        self.port.to_le_bytes().to_vec()
    }

    /// From bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(bytes);
        let accepted = Self { port: from.u16()? };
        from.end()?;
        Ok(accepted)
    }
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The error's number as Linux has it; 0 if it has none.
    pub errno: i32,
    /// What was being done and why it failed.
    pub text: String,
}

impl Failure {
    /// Writes it.
    pub fn encode(&self, to: &mut Writer) {
        let mut end = self.text.len().min(TEXT);
        while !self.text.is_char_boundary(end) {
            end -= 1;
        }
        to.u32(u32::from_ne_bytes(self.errno.to_ne_bytes())).bytes(&self.text.as_bytes()[..end]);
    }

    /// Reads it. Whoever wrote it may be hostile: what doesn't print is replaced.
    pub fn decode(from: &mut Reader) -> Result<Self, Malformed> {
        let errno = i32::from_ne_bytes(from.u32()?.to_ne_bytes());
        Ok(Self { errno, text: printable(from.bytes(TEXT)?) })
    }
}

/// Bytes of somebody else as a text for a person.
fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .map(|letter| if letter.is_control() { '\u{fffd}' } else { letter })
        .collect()
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It was done, or is under way. With what whoever runs the server should know.
    Done(Vec<String>),
    /// It failed; the stream is over.
    Failed(Failure),
    /// The machine goes on with so many programs.
    Adopted(u16),
}

impl Answer {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Writer::default();
        match self {
            Self::Done(notes) => {
                let notes: Vec<&String> = notes.iter().filter(|note| note.len() <= 900).take(NOTES).collect();
                to.u8(0).list(&notes, |to, note| {
                    to.bytes(note.as_bytes());
                });
            }
            Self::Failed(failure) => failure.encode(to.u8(1)),
            Self::Adopted(programs) => {
                to.u8(2).u16(*programs);
            }
        }
        to.0
    }

    /// From bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(bytes);
        let answer = match from.u8()? {
            0 => Self::Done(from.list(NOTES, |from| Ok(printable(from.bytes(TEXT)?)))?),
            1 => Self::Failed(Failure::decode(&mut from)?),
            2 => Self::Adopted(from.u16()?),
            _ => return Err(Malformed("an answer is neither yes nor no")),
        };
        from.end()?;
        Ok(answer)
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With this status.
    Status(i32),
    /// By this signal.
    Signal(i32),
    /// Nobody knows: what watched over it was killed.
    Unknown,
}

impl Ended {
    /// As bytes.
    pub fn encode(self) -> Vec<u8> {
        let (kind, value) = match self {
            Self::Status(status) => (0, status),
            Self::Signal(signal) => (1, signal),
            Self::Unknown => (2, 0),
        };
        let mut to = Writer::default();
        to.u8(kind).u32(u32::from_ne_bytes(value.to_ne_bytes()));
        to.0
    }

    /// From bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(bytes);
        let kind = from.u8()?;
        let value = i32::from_ne_bytes(from.u32()?.to_ne_bytes());
        from.end()?;
        match (kind, value) {
            (0, 0..=255) => Ok(Self::Status(value)),
            (1, 1..=64) => Ok(Self::Signal(value)),
            (2, 0) => Ok(Self::Unknown),
            _ => Err(Malformed("a process ended as none can")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_come_back() {
        let configure = Configure {
            entropy: vec![3; 64],
            machine: [9; 16],
            name: "karta-1".to_owned(),
            clock: -5,
            release: Some("vdc".to_owned()),
            state: None,
            workspace: Workspace::Copy,
            temp: 1 << 40,
            files: 1024,
            processes: 0,
            filter: vec![1; 80],
            landlock: true,
        };
        let spawn = Spawn {
            program: b"sh".to_vec(),
            args: vec![b"-c".to_vec(), Vec::new()],
            env: vec![b"A=\xff".to_vec()],
            cwd: b"/".to_vec(),
        };
        for request in [
            Request::Ping,
            Request::Prepare(Prepare { base: "vda".to_owned(), harness: None }),
            Request::Configure(configure),
            Request::Spawn(spawn),
            Request::Connect { port: 65535 },
            Request::Put { base: Base::Work, path: b"a/b".to_vec(), size: 7 },
            Request::Find { pattern: b"*".to_vec(), limit: u64::MAX },
            Request::Survey,
            Request::Take,
            Request::Restore,
            Request::Export,
            Request::Freeze,
            Request::Thaw,
            Request::Sync,
            Request::Clock(-1),
            Request::Shutdown,
            Request::Park,
            Request::Unpark,
            Request::Adopt(7),
        ] {
            let bytes = request.encode();
            assert_eq!(Request::decode(&bytes).as_ref(), Ok(&request));
            for cut in 0..bytes.len() {
                assert!(Request::decode(&bytes[..cut]).is_err(), "{request:?} cut to {cut}");
            }
        }
    }

    #[test]
    fn answers_come_back() {
        for answer in [
            Answer::Done(vec!["a note".to_owned()]),
            Answer::Failed(Failure { errno: 28, text: "no room".to_owned() }),
            Answer::Adopted(3),
        ] {
            assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
        }
        for ended in [Ended::Status(255), Ended::Signal(9), Ended::Unknown] {
            assert_eq!(Ended::decode(&ended.encode()), Ok(ended));
        }
        let long = Answer::Failed(Failure { errno: 1, text: "ü".repeat(5000) });
        assert!(matches!(Answer::decode(&long.encode()), Ok(Answer::Failed(_))));
        let hostile = Answer::Failed(Failure { errno: 1, text: "a\u{1b}[2J\n".to_owned() });
        let Ok(Answer::Failed(read)) = Answer::decode(&hostile.encode()) else { panic!("it reads") };
        assert_eq!(read.text, "a\u{fffd}[2J\u{fffd}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), first in 0u8..20) {
            let mut with = vec![first];
            with.extend(&bytes);
            let _ = Request::decode(&with);
            let _ = Answer::decode(&with);
            let _ = Ended::decode(&bytes);
            let _ = Hello::decode(&bytes);
            let _ = Accepted::decode(&bytes);
        }
    }
}
