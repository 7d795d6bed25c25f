//! The launcher: it stands outside of the jail, makes what only the outside can make, and ends the jail with its lifeline.
//!
//! It has one thread and lives as long as the jail. When the host's end of the stream closes, however the host ended, it kills the
//! first process in the jail, and the kernel kills the others with that. Should the launcher itself be killed, the kernel kills the
//! first process by its parent-death signal.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use rustix::thread::UnshareFlags;

use super::{DESCRIPTORS, Ids, Item, LONGEST, News, Plan, Range, confine, enter};

/// Ends the launcher when the jail could not be made.
const FAILED: u8 = 125;

/// How long the kernel may take to let go of a control group whose last process has ended: so many waits of that long.
const WAITS: usize = 400;
const WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };

/// What went wrong and with what.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Errno,
    pub(super) doing: String,
}

impl Failure {
    pub(super) fn new(error: Errno, doing: String) -> Self {
        Self { error, doing }
    }
}

/// Says what was being done when something failed.
pub(super) trait Step<T> {
    fn doing<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T, Failure>;
}

impl<T> Step<T> for Result<T, Errno> {
    fn doing<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(error, doing().into()))
    }
}

impl<T> Step<T> for io::Result<T> {
    fn doing<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(Errno::from_io_error(&error).unwrap_or(Errno::IO), doing().into()))
    }
}

/// The answer of a raw system call as a result.
pub(super) fn done(answer: i64) -> Result<(), Errno> {
    if answer >= 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO))
}

/// `karta-guest jail`: the plan comes over the standard input.
pub fn main() -> ExitCode {
    let Ok(lifeline) = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3) else {
        return ExitCode::from(FAILED);
    };
    let mut lifeline = File::from(lifeline);
    match launch(&mut lifeline) {
        Ok(code) => ExitCode::from(code),
        Err(Failure { error, doing }) => {
            // If nobody listens any more, nobody needs to know.
            let _ = lifeline.write_all(News::Failed { error: error.raw_os_error(), doing }.line().as_bytes());
            ExitCode::from(FAILED)
        }
    }
}

fn launch(lifeline: &mut File) -> Result<u8, Failure> {
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    // A terminal's signals to the server are not for its jails.
    let _ = rustix::process::setsid();
    let (plan, descriptors) = receive(lifeline)?;
    confine::no_input()?;
    let groups = Groups::open(&plan)?;
    let result = run(&plan, descriptors, &groups, lifeline);
    groups.remove();
    result
}

fn run(plan: &Plan, descriptors: Vec<OwnedFd>, groups: &Groups, lifeline: &mut File) -> Result<u8, Failure> {
    let myself = rustix::fs::open("/proc/self/exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .doing(|| "finding the launcher's own program (is `/proc` mounted?)")?;
    let maps = plan
        .items
        .iter()
        .map(|item| match item {
            Item::Bind { ids: Some((from, to)), .. } => enter::map(*from, *to).map(Some),
            _ => Ok(None),
        })
        .collect::<Result<Vec<_>, _>>()?;
    if !plan.privileged {
        unshare(UnshareFlags::NEWUSER).doing(|| {
            "making a user namespace (unprivileged user namespaces are switched off here: run the server as root, or set \
             the sysctls `kernel.unprivileged_userns_clone=1` and `kernel.apparmor_restrict_unprivileged_userns=0`)"
        })?;
        write_maps("/proc/self", &plan.users, &plan.members).doing(|| "mapping the user")?;
    }
    unshare(UnshareFlags::NEWPID).doing(|| "making a namespace of processes")?;
    let (go, starter) = pipe()?;
    let (mut news, teller) = pipe()?;
    let Some(first) = fork()? else {
        // What only the launcher has to hold must not be held by the jail: its death would not be seen.
        drop(starter);
        drop(news);
        enter::enter(plan, descriptors, &maps, &myself, go, &teller);
    };
    drop((go, teller, descriptors, maps, myself));
    let mut jail = Jail { first, handle: None, starter };
    jail.handle = rustix::process::pidfd_open(first, PidfdFlags::empty()).ok();
    let made = jail.make(plan, groups, lifeline, &mut news);
    if made.is_err() || jail.handle.is_none() {
        jail.kill(groups);
    }
    let code = jail.wait(groups, lifeline);
    made.map(|()| code)
}

/// The first process of the jail.
struct Jail {
    first: Pid,
    handle: Option<OwnedFd>,
    starter: File,
}

impl Jail {
    /// Does what the first process can't do itself, until it is the program.
    fn make(
        &mut self,
        plan: &Plan,
        groups: &Groups,
        lifeline: &mut File,
        news: &mut File,
    ) -> Result<(), Failure> {
        groups.join(self.first)?;
        self.go()?;
        let mut text = Vec::new();
        loop {
            let mut ready = [PollFd::new(&*news, PollFlags::IN), PollFd::new(&*lifeline, PollFlags::IN)];
            match poll(&mut ready, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).doing(|| "waiting for the jail"),
            }
            let [told, ended] = ready.map(|one| !one.revents().is_empty());
            if ended {
                return Err(Failure::new(Errno::PIPE, "making a jail that nobody needs any more".to_owned()));
            }
            if !told {
                continue;
            }
            let mut buffer = [0; 512];
            let read = news.read(&mut buffer).doing(|| "hearing from the jail")?;
            match buffer.get(..read) {
                // The pipe closes as the program starts.
                None | Some([]) => break,
                Some([enter::MAP_ME]) if plan.privileged => {
                    let folder = format!("/proc/{}", self.first.as_raw_nonzero());
                    write_maps(&folder, &plan.users, &plan.members).doing(|| "mapping the users")?;
                    self.go()?;
                }
                Some(more) => text.extend_from_slice(more),
            }
            if text.len() > super::LINE {
                break;
            }
        }
        if !text.is_empty() {
            return Err(enter::untold(&text));
        }
        let pid = self.first.as_raw_nonzero().get().unsigned_abs();
        let landlock = if plan.access.is_some() { confine::landlock() } else { 0 };
        if plan.privileged {
            confine::keep_only_kill().doing(|| "giving up the launcher's powers")?;
        }
        lifeline
            .write_all(News::Running { pid, landlock }.line().as_bytes())
            .doing(|| "telling that the jail runs")
    }

    fn go(&mut self) -> Result<(), Failure> {
        self.starter.write_all(b"g").doing(|| "starting the jail (it ended at once)")
    }

    fn kill(&self, groups: &Groups) {
        // Not reaped before `wait`, so the number means no other process.
        let _ = rustix::process::kill_process(self.first, Signal::KILL);
        groups.thaw();
    }

    /// Waits for the end of the jail, which is brought about by that of the lifeline.
    fn wait(&mut self, groups: &Groups, lifeline: &mut File) -> u8 {
        let mut listening = true;
        while let Some(handle) = &self.handle {
            let mut ready = vec![PollFd::new(handle, PollFlags::IN)];
            if listening {
                ready.push(PollFd::new(&*lifeline, PollFlags::IN));
            }
            match poll(&mut ready, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => self.kill(groups),
            }
            let states: Vec<bool> = ready.iter().map(|one| !one.revents().is_empty()).collect();
            if states.first() == Some(&true) {
                break;
            }
            if states.get(1) == Some(&true) {
                // Nothing is ever said after the plan: it is the end, or a host that doesn't keep to it.
                listening = false;
                self.kill(groups);
            }
        }
        loop {
            match rustix::process::waitid(WaitId::Pid(self.first), WaitIdOptions::EXITED) {
                Ok(Some(status)) => return code(status.exit_status(), status.terminating_signal()),
                Err(Errno::INTR) => {}
                Ok(None) | Err(_) => return FAILED,
            }
        }
    }
}

/// How a process ended, as a shell tells it.
pub(super) fn code(exit: Option<i32>, signal: Option<i32>) -> u8 {
    let exit = exit.or_else(|| signal.map(|signal| 128 + signal));
    exit.and_then(|exit| u8::try_from(exit & 0xff).ok()).unwrap_or(FAILED)
}

/// The plan and the descriptors that came with it.
fn receive(lifeline: &mut File) -> Result<(Plan, Vec<OwnedFd>), Failure> {
    let doing = || "reading the plan";
    let mut length = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [io::IoSliceMut::new(&mut length)];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
    let got = rustix::net::recvmsg(&*lifeline, &mut parts, &mut ancillary, flags).doing(doing)?;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(given) = message {
            descriptors.extend(given);
        }
    }
    let length = usize::try_from(u32::from_le_bytes(length)).ok().filter(|length| *length <= LONGEST);
    let (Some(length), 4) = (length, got.bytes) else {
        return Err(Failure::new(Errno::INVAL, doing().to_owned()));
    };
    let mut bytes = vec![0; length];
    lifeline.read_exact(&mut bytes).doing(doing)?;
    let plan = Plan::decode(&bytes).filter(|plan| plan.descriptors.len() == descriptors.len());
    Ok((plan.ok_or_else(|| Failure::new(Errno::INVAL, doing().to_owned()))?, descriptors))
}

/// The control groups of the jail.
struct Groups(Vec<(OwnedFd, OwnedFd, std::ffi::OsString)>);

impl Groups {
    fn open(plan: &Plan) -> Result<Self, Failure> {
        let folder = |path: &Path| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::openat(CWD, path, flags, Mode::empty())
                .doing(|| format!("opening the control group `{}`", path.display()))
        };
        let open = |path: &std::path::PathBuf| match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => Ok((folder(path)?, folder(parent)?, name.to_owned())),
            _ => Err(Failure::new(Errno::INVAL, format!("opening the control group `{}`", path.display()))),
        };
        plan.groups.iter().map(open).collect::<Result<_, _>>().map(Self)
    }

    fn write(group: &OwnedFd, file: &str, text: &str) -> Result<(), Errno> {
        let file = rustix::fs::openat(group, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(&file, text.as_bytes()).map(|_| ())
    }

    fn join(&self, process: Pid) -> Result<(), Failure> {
        for (group, _, name) in &self.0 {
            Self::write(group, "cgroup.procs", &process.as_raw_nonzero().to_string())
                .doing(|| format!("joining the control group `{}`", name.display()))?;
        }
        Ok(())
    }

    /// A frozen process of the first version of control groups can't even be killed.
    fn thaw(&self) {
        for (group, ..) in &self.0 {
            let _ = Self::write(group, "freezer.state", "THAWED");
            let _ = Self::write(group, "cgroup.freeze", "0");
        }
    }

    fn remove(&self) {
        for (_, parent, name) in &self.0 {
            for _ in 0..WAITS {
                match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
                    Err(Errno::BUSY) => {
                        let _ = poll(&mut [], Some(&WAIT));
                    }
                    _ => break,
                }
            }
        }
    }
}

/// Maps the ids of a user namespace, which can't change its groups from then on unless it has powers over them.
pub(super) fn write_maps(process: &str, users: &[Range], groups: &[Range]) -> io::Result<()> {
    let text = |ranges: &[Range]| -> String {
        let lines = ranges.iter().map(|range| format!("{} {} {}", range.inside, range.outside, range.count));
        lines.collect::<Vec<_>>().join("\n")
    };
    // Each is taken in one write or not at all.
    std::fs::write(format!("{process}/setgroups"), "deny")?;
    std::fs::write(format!("{process}/uid_map"), text(users))?;
    std::fs::write(format!("{process}/gid_map"), text(groups))
}

/// One id as another.
pub(super) fn one(from: u32, to: u32) -> [Range; 1] {
    [Range { inside: from, outside: to, count: 1 }]
}

/// Both of an [`Ids`].
pub(super) fn both(from: Ids, to: Ids) -> ([Range; 1], [Range; 1]) {
    (one(from.user, to.user), one(from.group, to.group))
}

pub(super) fn pipe() -> Result<(File, File), Failure> {
    let (read, write) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).doing(|| "making a pipe")?;
    Ok((File::from(read), File::from(write)))
}

#[expect(unsafe_code, reason = "the call is unsafe where descriptor tables are taken apart")]
pub(super) fn unshare(flags: UnshareFlags) -> Result<(), Errno> {
    // SAFETY: no flag that is given here takes the descriptor table apart, and this process has one thread.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// A child, or none in the child.
#[expect(unsafe_code, reason = "a fork that does not exec at once")]
pub(super) fn fork() -> Result<Option<Pid>, Failure> {
    // SAFETY: this process has one thread, so the child is a whole copy of it.
    let child = unsafe { libc::fork() };
    done(i64::from(child).min(0)).doing(|| "starting a process")?;
    Ok(Pid::from_raw(child))
}

/// Whether the other end of a stream is closed.
pub(super) fn closed(stream: &File) -> bool {
    let mut ready = [PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut ready, Some(&now)), Ok(1..))
}
