//! The first process of the jail, from its birth outside to the program it becomes.
#![expect(unsafe_code, reason = "the end of a forked process, exec, and the control call for the loopback")]

use std::convert::Infallible;
use std::ffi::{CString, c_char};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, Signal, WaitOptions};
use rustix::thread::{Gid, UnshareFlags};

use super::launch::{Failure, Step as _, both, closed, code, done, fork, pipe, unshare, write_maps};
use super::{Ids, Plan, confine, root};

/// The first process has a user namespace and needs its ids mapped.
pub(super) const MAP_ME: u8 = b'm';

/// Ends the first process when the program could not be started: the launcher knows why.
const UNTOLD: i32 = 126;

/// Becomes the program, or tells through `teller` why not and ends.
pub(super) fn enter(
    plan: &Plan,
    descriptors: Vec<OwnedFd>,
    maps: &[Option<OwnedFd>],
    myself: &OwnedFd,
    go: File,
    mut teller: &File,
) -> ! {
    let Err(Failure { error, doing }) = become_program(plan, descriptors, maps, myself, go, teller);
    let _ = teller.write_all(format!("{} {doing}", error.raw_os_error()).as_bytes());
    leave(UNTOLD)
}

/// What [`enter`] told.
pub(super) fn untold(text: &[u8]) -> Failure {
    let text = String::from_utf8_lossy(text);
    let (error, doing) = text.split_once(' ').unwrap_or(("", &text));
    let error = error.parse().ok().map_or(Errno::IO, Errno::from_raw_os_error);
    Failure::new(error, doing.to_owned())
}

fn become_program(
    plan: &Plan,
    descriptors: Vec<OwnedFd>,
    maps: &[Option<OwnedFd>],
    myself: &OwnedFd,
    mut go: File,
    mut teller: &File,
) -> Result<Infallible, Failure> {
    die_with_parent(&go)?;
    wait(&mut go)?;
    let own = UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS | UnshareFlags::NEWCGROUP;
    if plan.privileged {
        // Those that stay are set here: from the jail's own namespace of users on, no group can be joined any more.
        let kept: Vec<_> = plan.kept.iter().map(|group| Gid::from_raw(*group)).collect();
        rustix::thread::set_thread_groups(&kept).doing(|| "leaving the groups")?;
        unshare(UnshareFlags::NEWNS).doing(|| "making a namespace of mounts")?;
        root::build(plan, &descriptors, maps)?;
        // The mounts are made by root and then seen from a namespace with fewer powers: in there, nothing can undo them.
        unshare(own | UnshareFlags::NEWUSER | UnshareFlags::NEWNS).doing(|| "making the namespaces")?;
        teller.write_all(&[MAP_ME]).doing(|| "asking for the users")?;
        wait(&mut go)?;
    } else {
        unshare(own | UnshareFlags::NEWNS).doing(|| "making the namespaces")?;
        root::build(plan, &descriptors, maps)?;
    }
    rustix::system::sethostname(plan.name.as_bytes()).doing(|| "setting the host name")?;
    loopback().doing(|| "bringing the loopback up")?;
    confine::user(plan)?;
    // A change of the user takes the signal back.
    die_with_parent(&go)?;
    if plan.reaper {
        if let Some(program) = fork()? {
            reap(program);
        }
        // This process's parent is the first of the jail now, which can't end before it.
        return program(plan, descriptors, myself);
    }
    program(plan, descriptors, myself)
}

fn program(plan: &Plan, descriptors: Vec<OwnedFd>, myself: &OwnedFd) -> Result<Infallible, Failure> {
    let text = |bytes: &[u8]| {
        CString::new(bytes).map_err(|_| Failure::new(Errno::INVAL, "reading the plan".to_owned()))
    };
    let arguments = plan.arguments.iter().map(|one| text(one)).collect::<Result<Vec<_>, _>>()?;
    let environment = plan.environment.iter().map(|one| text(one)).collect::<Result<Vec<_>, _>>()?;
    let path = plan.program.as_ref().map(|path| text(path.as_os_str().as_bytes())).transpose()?;
    rustix::process::chdir(&plan.folder).doing(|| format!("entering `{}`", plan.folder.display()))?;
    let myself = rustix::io::fcntl_dupfd_cloexec(myself, confine::HIGH).doing(|| "keeping the program")?;
    confine::descriptors(plan, descriptors)?;
    confine::limits(&plan.limits)?;
    confine::access(plan)?;
    let ends = [std::ptr::null::<c_char>()];
    let pointers = |texts: &[CString]| texts.iter().map(|one| one.as_ptr()).chain(ends).collect::<Vec<_>>();
    let (arguments_at, environment_at) = (pointers(&arguments), pointers(&environment));
    confine::filter(&plan.filter)?;
    let (from, path, flags) = match &path {
        Some(path) => (libc::AT_FDCWD, path.as_c_str(), 0),
        None => (myself.as_raw_fd(), c"", libc::AT_EMPTY_PATH),
    };
    // SAFETY: both arrays end with a null pointer, and they, the texts they point to and the path live until the call returns,
    // which it does only if it failed.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            from,
            path.as_ptr(),
            arguments_at.as_ptr(),
            environment_at.as_ptr(),
            flags,
        )
    };
    done(answer).doing(|| match &plan.program {
        Some(program) => format!("starting `{}`", program.display()),
        None => "starting the program".to_owned(),
    })?;
    Err(Failure::new(Errno::IO, "starting the program".to_owned()))
}

/// Has the kernel end this process with the launcher.
fn die_with_parent(go: &File) -> Result<(), Failure> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .doing(|| "tying the jail to its launcher")?;
    // It may have ended before.
    if closed(go) {
        leave(UNTOLD);
    }
    Ok(())
}

/// Waits for the launcher's word.
fn wait(go: &mut File) -> Result<(), Failure> {
    match go.read(&mut [0]) {
        Ok(1..) => Ok(()),
        Ok(_) => leave(UNTOLD),
        Err(error) => Err(error).doing(|| "waiting for the launcher"),
    }
}

/// Stays the first process beside the program, and ends as it does.
fn reap(program: Pid) -> ! {
    // What the program leaves behind comes to this process; it holds nothing that the program's end should close.
    // SAFETY: a plain call with numbers; nothing of this process is used any more but its standard descriptors.
    unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((ended, status))) if ended == program => {
                leave(i32::from(code(status.exit_status(), status.terminating_signal())));
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => leave(UNTOLD),
        }
    }
}

fn leave(code: i32) -> ! {
    // SAFETY: the call ends the process at once; nothing of a forked copy has to be written out or given back.
    unsafe { libc::_exit(code) }
}

/// Brings the jail's own loopback up, which is all of its network.
fn loopback() -> Result<(), Errno> {
    let socket =
        rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut name = [0; libc::IFNAMSIZ];
    for (to, from) in name.iter_mut().zip(b"lo") {
        *to = c_char::from_ne_bytes([*from]);
    }
    let flags = i16::try_from(libc::IFF_UP | libc::IFF_RUNNING).map_err(|_| Errno::INVAL)?;
    let request =
        libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags } };
    // SAFETY: the structure is the one the call expects and lives until it returns.
    done(i64::from(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) }))
}

/// A user namespace in which files of `from` belong to `to`. No process lives in it.
pub(super) fn map(from: Ids, to: Ids) -> Result<OwnedFd, Failure> {
    let doing = || "making a map of owners";
    let (mut ready, tell) = pipe()?;
    let (end, hold) = pipe()?;
    let Some(child) = fork()? else {
        drop((ready, hold));
        let made = unshare(UnshareFlags::NEWUSER);
        let mut tell = &tell;
        let _ = tell.write_all(if made.is_ok() { b"y" } else { b"n" });
        let mut end = &end;
        let _ = end.read(&mut [0]);
        leave(0)
    };
    drop((tell, end));
    let folder = format!("/proc/{}", child.as_raw_nonzero());
    let made = (|| -> Result<OwnedFd, Failure> {
        let mut word = [0];
        ready.read_exact(&mut word).doing(doing)?;
        if word != *b"y" {
            return Err(Failure::new(Errno::NOSPC, "making a user namespace".to_owned()));
        }
        let (users, groups) = both(from, to);
        write_maps(&folder, &users, &groups).doing(doing)?;
        rustix::fs::open(format!("{folder}/ns/user"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .doing(doing)
    })();
    drop(hold);
    while matches!(rustix::process::waitpid(Some(child), WaitOptions::empty()), Err(Errno::INTR)) {}
    made
}
