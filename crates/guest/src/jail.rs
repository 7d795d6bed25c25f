//! What a jail is made of: the plan that a host sends to `karta-guest jail`, and what it hears back.
//!
//! The launcher gets one Unix stream as its standard input. The host writes the plan's length (four bytes, with the descriptors
//! that the plan speaks of attached) and the plan, and keeps its end open: the jail lives as long as that end does. The launcher
//! answers with lines of text, see [`News`]. When the jailed program has ended the launcher removes the jail's control groups and
//! ends as the program did.

pub mod launch;

mod confine;
mod disk;
mod enter;
mod root;
mod wire;

pub use confine::landlock;

use std::path::PathBuf;

/// The longest plan in bytes: it must fit into a socket's buffer, so that sending it never waits.
pub const LONGEST: usize = 96 * 1024;

/// Most descriptors that can go with a plan.
pub const DESCRIPTORS: usize = 64;

/// The longest line the launcher answers, in bytes.
pub const LINE: usize = 1024;

/// A range of ids: `count` ids that begin with `inside` in the jail are those that begin with `outside` on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first one inside.
    pub inside: u32,
    /// The first one outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// A user and a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ids {
    /// The user.
    pub user: u32,
    /// The group.
    pub group: u32,
}

/// One thing in the jail's root. They are made in order; paths are inside the new root, and links in them lead nowhere else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A folder; the folders above it are made too. Nothing if it is there.
    Folder {
        /// Where.
        to: PathBuf,
        /// Its permissions.
        mode: u32,
        /// Whose it is: on the host, or inside where the launcher is not privileged.
        owner: Ids,
    },
    /// A symbolic link.
    Link {
        /// Where.
        to: PathBuf,
        /// Where it points.
        target: PathBuf,
    },
    /// A small file that only root can write. Where the file system there can't be written it is laid over the file that is
    /// there; if none is, it is left out.
    File {
        /// Where.
        to: PathBuf,
        /// What it says.
        content: Vec<u8>,
    },
    /// A file or a folder of the host with everything mounted below it.
    Bind {
        /// What, on the host.
        from: PathBuf,
        /// Where.
        to: PathBuf,
        /// Whether it can be written.
        writable: bool,
        /// Whether device nodes in it work.
        devices: bool,
        /// Files of the first ids seem to belong to the second ids, both as the host counts them.
        ids: Option<(Ids, Ids)>,
    },
    /// A file system in memory.
    Memory {
        /// Where.
        to: PathBuf,
        /// How many bytes it may hold.
        size: u64,
        /// The permissions of its root.
        mode: u32,
    },
    /// The processes of the jail.
    Processes {
        /// Where.
        to: PathBuf,
    },
    /// Terminals of the jail's own.
    Terminals {
        /// Where.
        to: PathBuf,
    },
    /// A disk: an ext4 file system in the file of this descriptor.
    Disk {
        /// Which of the descriptors that came with the plan.
        descriptor: u32,
        /// Where.
        to: PathBuf,
        /// Whose its root becomes, as the host counts.
        owner: Ids,
    },
}

/// What the jailed program may still do with files, where the kernel has Landlock. Everything else is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// A file or a folder, inside the jail.
    pub path: PathBuf,
    /// Whether it may be changed.
    pub writable: bool,
}

/// A limit of the kernel for each process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Which: a number of `RLIMIT_…`.
    pub resource: u32,
    /// How much; soft and hard are the same.
    pub most: u64,
}

/// A whole jail and the program in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Whether the launcher has root's powers. If not it takes what it needs from a user namespace, and can map one id.
    pub privileged: bool,
    /// The host name inside.
    pub name: String,
    /// Control groups of the host that the program joins, and that the launcher removes when it has ended.
    pub groups: Vec<PathBuf>,
    /// The users inside.
    pub users: Vec<Range>,
    /// The groups inside.
    pub members: Vec<Range>,
    /// Whom the program runs as, inside.
    pub user: u32,
    /// The group it runs as, inside.
    pub group: u32,
    /// The groups of the host that it is in besides: they have no number inside, but the kernel minds them where it asks who may
    /// open a file. Only where the launcher is privileged; elsewhere the program is in those of the launcher.
    pub kept: Vec<u32>,
    /// How many bytes the jail's own root may hold: files, links and mount points, no content.
    pub root: u64,
    /// What is in the root.
    pub items: Vec<Item>,
    /// The capabilities that the program keeps in the jail's namespaces, a bit each.
    pub capabilities: u64,
    /// Whether the first process of the jail stays beside the program and reaps what it leaves; if not, it becomes the program.
    pub reaper: bool,
    /// The program, inside; none for the launcher's own program.
    pub program: Option<PathBuf>,
    /// Its arguments, the first one its name.
    pub arguments: Vec<Vec<u8>>,
    /// Its environment.
    pub environment: Vec<Vec<u8>>,
    /// Its working directory, inside.
    pub folder: PathBuf,
    /// The numbers under which the program gets the descriptors that came with the plan, in their order; none for those it
    /// doesn't get. Its standard output and error are the launcher's.
    pub descriptors: Vec<Option<u32>>,
    /// Limits.
    pub limits: Vec<Limit>,
    /// What it may do with files; none for no such rules.
    pub access: Option<Vec<Access>>,
    /// The filter of its system calls, as the kernel takes it; empty for none.
    pub filter: Vec<u8>,
}

/// A line that the launcher answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// The program has started.
    Running {
        /// The first process of the jail, as the host counts.
        pid: u32,
        /// The version of Landlock that holds it; 0 for none.
        landlock: u32,
    },
    /// The jail could not be made.
    Failed {
        /// The kernel's number of the error.
        error: i32,
        /// What was being done.
        doing: String,
    },
}

impl News {
    /// The line, its end included.
    pub fn line(&self) -> String {
        match self {
            Self::Running { pid, landlock } => format!("running {pid} {landlock}\n"),
            Self::Failed { error, doing } => {
                let doing: String =
                    doing.chars().filter(|one| !one.is_control()).take(LINE / 4 - 32).collect();
                format!("failed {error} {doing}\n")
            }
        }
    }

    /// Reads a line without its end; none if it is no such line.
    pub fn read(line: &str) -> Option<Self> {
        let (word, rest) = line.split_once(' ')?;
        let (first, second) = rest.split_once(' ')?;
        match word {
            "running" => Some(Self::Running { pid: first.parse().ok()?, landlock: second.parse().ok()? }),
            "failed" => Some(Self::Failed { error: first.parse().ok()?, doing: second.to_owned() }),
            _ => None,
        }
    }
}
