//! Work on the session's files: each piece in a process of its own, with the session's rights.
//!
//! The process opens the folders it works on, gives up the agent's rights, and from there on can do nothing that the session could
//! not do itself (but read what the session has closed to itself). So nothing that a session puts in the way of a path leads
//! anywhere; that links are never followed on top of it keeps the answers true.

mod copy;
mod find;
mod put;
mod restore;
mod send;
mod survey;

use std::fs::File;
use std::io::{self, BufWriter, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};

use karta_guest::beneath::Folder;
use karta_guest::proto::message::{Base, Failure, Request};
use karta_guest::proto::record::{Decoder, Item};
use rustix::process::{Pid, WaitOptions};
use rustix::thread::CapabilitySet;

use super::child::{Confinement, give_up};
use super::core::failure;
use super::place::Place;
use super::spawn::pipe;
use super::sys::{self, Fork};

/// A piece of work that is under way.
pub(super) struct Work {
    pub(super) pid: Pid,
    pub(super) input: OwnedFd,
    pub(super) output: OwnedFd,
}

/// What a piece of work is.
enum Task<'a> {
    /// What the host asked for.
    Asked(&'a Request),
    /// The workspace is made of the release.
    Copy,
}

/// The folders it works on.
struct Folders {
    home: Folder,
    temp: Folder,
    work: Folder,
    release: Folder,
    /// What the overlay has of the session's own.
    upper: Option<Folder>,
}

/// Items for the host.
struct Out(BufWriter<File>);

/// Why the work came to an end too early.
enum Stop {
    /// It failed: the host is told.
    Failed(Failure),
    /// The host does not listen any more, or broke the rules.
    Gone,
}

type Done = Result<(), Stop>;

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Out {
    fn item(&mut self, item: &Item) -> Done {
        let mut bytes = Vec::new();
        item.encode(&mut bytes);
        self.0.write_all(&bytes).map_err(|_| Stop::Gone)
    }
}

/// Starts what the host asked for.
pub(super) fn start(request: &Request, place: &Place, confinement: &Confinement) -> io::Result<Work> {
    fork(&Task::Asked(request), place, confinement)
}

/// Makes the workspace of the release, and waits for it.
pub(super) fn copy(place: &Place, confinement: &Confinement) -> Result<(), Failure> {
    let failed = |error: io::Error| failure(&error, "copying the release");
    let Work { pid, input, output } = fork(&Task::Copy, place, confinement).map_err(failed)?;
    drop(input);
    let flags = rustix::fs::fcntl_getfl(&output).map_err(|error| failed(error.into()))?;
    rustix::fs::fcntl_setfl(&output, flags - rustix::fs::OFlags::NONBLOCK)
        .map_err(|error| failed(error.into()))?;
    let mut bytes = Vec::new();
    let read = File::from(output).read_to_end(&mut bytes);
    let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
    read.map_err(failed)?;
    let mut decoder = Decoder::default();
    decoder.push(&bytes);
    match decoder.next_item() {
        Ok(Some(Item::End)) => Ok(()),
        Ok(Some(Item::Failed(failure))) => Err(failure),
        _ => Err(Failure { errno: 0, text: "copying the release ended early".to_owned() }),
    }
}

fn fork(task: &Task, place: &Place, confinement: &Confinement) -> io::Result<Work> {
    let (their_input, input) = pipe(false)?;
    let (output, their_output) = pipe(true)?;
    match sys::fork()? {
        Fork::Child => {
            work(task, place, confinement, their_input, their_output);
            sys::leave(0)
        }
        Fork::Parent(pid) => Ok(Work { pid, input, output }),
    }
}

fn work(task: &Task, place: &Place, confinement: &Confinement, input: OwnedFd, output: OwnedFd) {
    let mut input = File::from(input);
    let mut out = Out(BufWriter::with_capacity(64 << 10, File::from(output)));
    let done = ready(place, confinement, &input, &out.0)
        .map_err(|error| failure(&error, "opening the session's folders").into())
        .and_then(|folders| match task {
            Task::Copy => copy::copy(&folders.release, &folders.work),
            Task::Asked(Request::Put { base, path, size }) => {
                put::put(&folders, *base, path, *size, &mut input)
            }
            Task::Asked(Request::Find { pattern, limit }) => find::find(&folders, pattern, *limit, &mut out),
            Task::Asked(Request::Survey) => survey::survey(&folders, &mut out),
            Task::Asked(Request::Take) => survey::take(&folders, &mut input, &mut out),
            Task::Asked(Request::Restore) => restore::restore(&folders, &mut input),
            Task::Asked(Request::Export) => survey::export(&folders, &mut out),
            Task::Asked(_) => Err(Failure { errno: 0, text: "this is no work on files".to_owned() }.into()),
        });
    let last = match done {
        Ok(()) => Item::End,
        Err(Stop::Failed(failure)) => Item::Failed(failure),
        Err(Stop::Gone) => return,
    };
    if out.item(&last).is_ok() {
        let _ = out.0.flush();
    }
}

fn ready(
    place: &Place,
    confinement: &Confinement,
    input: &File,
    output: &BufWriter<File>,
) -> io::Result<Folders> {
    let folders = Folders {
        home: Folder::open(&place.base(Base::Home))?,
        temp: Folder::open(&place.base(Base::Temp))?,
        work: Folder::open(&place.base(Base::Work))?,
        release: Folder::open(&place.release())?,
        upper: if place.overlay { Some(Folder::open(&place.upper())?) } else { None },
    };
    let mut kept = vec![input.as_fd(), output.get_ref().as_fd()];
    kept.extend([&folders.home, &folders.temp, &folders.work, &folders.release].map(|folder| folder.as_fd()));
    kept.extend(folders.upper.as_ref().map(|folder| folder.as_fd()));
    sys::close_others(&kept)?;
    give_up(confinement.user, CapabilitySet::DAC_READ_SEARCH)?;
    // A session's process of the same user may not look into this one.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    Ok(folders)
}

impl Folders {
    fn base(&self, base: Base) -> &Folder {
        match base {
            Base::Home => &self.home,
            Base::Temp => &self.temp,
            Base::Work => &self.work,
        }
    }
}
