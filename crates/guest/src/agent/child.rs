//! What a process of the session does to itself before it becomes the program.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;

use karta_guest::proto::USER;
use karta_guest::proto::message::Spawn;
use rustix::fs::Mode;
use rustix::process::{Gid, Resource, Rlimit, Signal, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::sys;

/// The program's side of its pipes.
#[derive(Debug)]
pub(super) struct Standard {
    pub(super) input: OwnedFd,
    pub(super) output: OwnedFd,
    pub(super) error: OwnedFd,
}

/// What is to be run.
pub(super) type Program = Spawn;

/// How the session's processes are held.
#[derive(Debug, Clone, Default)]
pub(super) struct Confinement {
    /// Whether they run as [`USER`]: not where this process has only one id to give.
    pub(super) user: bool,
    /// Most open files.
    pub(super) files: u64,
    /// Most processes; 0 for no limit.
    pub(super) processes: u64,
    /// The filter of system calls.
    pub(super) filter: Vec<u8>,
    /// The folders that Landlock lets them write in, if it holds them too.
    pub(super) writable: Option<Vec<PathBuf>>,
}

/// Why a program did not start.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) doing: String,
    pub(super) error: io::Error,
}

/// Becomes the program. Returns only if that failed.
pub(super) fn become_program(standard: Standard, program: &Program, confinement: &Confinement) -> Failure {
    let cwd = OsStr::from_bytes(&program.cwd);
    let name = OsStr::from_bytes(&program.program);
    let fail = |doing: String| move |error: io::Error| Failure { doing, error };
    let prepared = settle(standard, confinement)
        .map_err(fail("confining the process".to_owned()))
        .and_then(|()| {
            std::env::set_current_dir(cwd)
                .map_err(fail(format!("entering its working directory `{}`", cwd.display())))
        })
        .and_then(|()| lock(confinement).map_err(fail("putting the filter of system calls on".to_owned())));
    if let Err(failure) = prepared {
        return failure;
    }
    let variables = program.env.iter().filter_map(|one| {
        let at = one.iter().skip(1).position(|byte| *byte == b'=')? + 1;
        Some((OsStr::from_bytes(&one[..at]), OsStr::from_bytes(&one[at + 1..])))
    });
    let error = std::process::Command::new(name)
        .args(program.args.iter().map(|one| OsStr::from_bytes(one)))
        .env_clear()
        .envs(variables)
        .exec();
    Failure { doing: format!("starting `{}`", name.display()), error }
}

fn settle(standard: Standard, confinement: &Confinement) -> io::Result<()> {
    rustix::process::setsid()?;
    rustix::stdio::dup2_stdin(&standard.input)?;
    rustix::stdio::dup2_stdout(&standard.output)?;
    rustix::stdio::dup2_stderr(&standard.error)?;
    drop(standard);
    sys::close_at_exec(3)?;
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    limit(Resource::Core, 0)?;
    if confinement.files > 0 {
        limit(Resource::Nofile, confinement.files)?;
    }
    if confinement.processes > 0 {
        limit(Resource::Nproc, confinement.processes)?;
    }
    // The agent is the last to be killed when memory runs out, the session's processes are the first.
    let _ = std::fs::write("/proc/self/oom_score_adj", "500");
    give_up(confinement.user, CapabilitySet::empty())?;
    // After the ids: a change of them forgets it.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}

/// Limits a resource to `most`, or to less where this process may have no more itself.
fn limit(resource: Resource, most: u64) -> io::Result<()> {
    let most = rustix::process::getrlimit(resource).maximum.map_or(most, |maximum| most.min(maximum));
    Ok(rustix::process::setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?)
}

/// Gives up all capabilities but `keep`, and with `user` the ids of the agent.
pub(super) fn give_up(user: bool, keep: CapabilitySet) -> io::Result<()> {
    let keep = keep & rustix::thread::capabilities(None)?.permitted;
    for one in CapabilitySet::all().iter().filter(|one| !keep.contains(*one)) {
        match rustix::thread::remove_capability_from_bounding_set(one) {
            // The kernel doesn't know the newest ones, or it can't be done: then no_new_privs stands against them.
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    rustix::thread::clear_ambient_capability_set()?;
    if user {
        become_user(!keep.is_empty())?;
    }
    let sets = CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets)?;
    Ok(())
}

fn become_user(keep: bool) -> io::Result<()> {
    rustix::thread::set_keep_capabilities(keep)?;
    match rustix::thread::set_thread_groups(&[]) {
        // In a user namespace that may not change its groups: whoever made it has left them, as far as that was in its power.
        Err(rustix::io::Errno::PERM) if groups_are_fixed() => {}
        other => other?,
    }
    let (user, group) = (Uid::from_raw(USER), Gid::from_raw(USER));
    rustix::thread::set_thread_res_gid(group, group, group)?;
    Ok(rustix::thread::set_thread_res_uid(user, user, user)?)
}

fn groups_are_fixed() -> bool {
    std::fs::read_to_string("/proc/self/setgroups").is_ok_and(|word| word.trim_end() == "deny")
}

fn lock(confinement: &Confinement) -> io::Result<()> {
    if let Some(writable) = &confinement.writable {
        super::landlock::hold(writable)?;
    }
    if confinement.filter.is_empty() { Ok(()) } else { sys::filter(&confinement.filter) }
}

/// Tells the keeper why the program did not start.
pub(super) fn report(to: &OwnedFd, failure: &Failure) {
    let mut news = failure.error.raw_os_error().unwrap_or(0).to_ne_bytes().to_vec();
    news.extend_from_slice(failure.doing.as_bytes());
    if let Ok(to) = to.try_clone() {
        let _ = std::fs::File::from(to).write_all(&news);
    }
}

/// Waits until the program runs: none, or the reason why it does not.
pub(super) fn outcome(from: &OwnedFd) -> Option<Failure> {
    let mut news = Vec::new();
    let read = from.try_clone().and_then(|from| std::fs::File::from(from).take(8192).read_to_end(&mut news));
    if let Err(error) = read {
        return Some(Failure { doing: "waiting for the program to start".to_owned(), error });
    }
    let (number, doing) = news.split_first_chunk::<4>()?;
    Some(Failure {
        doing: OsString::from_vec(doing.to_vec()).to_string_lossy().into_owned(),
        error: io::Error::from_raw_os_error(i32::from_ne_bytes(*number)),
    })
}
