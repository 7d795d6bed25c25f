//! What a process of a jail gives up before it becomes the program.
#![expect(unsafe_code, reason = "system calls that the system call library lacks")]

use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, Scope,
};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid};

use super::launch::{Failure, Step as _, done};
use super::{Limit, Plan};

/// Descriptors above this are the launcher's own while it arranges the program's.
pub(super) const HIGH: RawFd = 512;

/// The version of the rules that are asked for; an older kernel enforces what it knows.
const RULES: ABI = ABI::V7;

/// Becomes the plan's user with the plan's capabilities, and can't become more again.
pub(super) fn user(plan: &Plan) -> Result<(), Failure> {
    let become_user = || -> Result<(), Errno> {
        // SAFETY: a plain call with numbers.
        done(i64::from(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) }))?;
        let (user, group) = (Uid::from_raw(plan.user), Gid::from_raw(plan.group));
        rustix::thread::set_thread_res_gid(group, group, group)?;
        rustix::thread::set_thread_res_uid(user, user, user)
    };
    become_user().doing(|| "becoming the jail's user")?;
    let kept = CapabilitySet::from_bits_retain(plan.capabilities);
    for bit in 0..64 {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        if kept.contains(one) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(one) {
            // The kernel's last capability was before.
            Err(Errno::INVAL) => break,
            other => other.doing(|| "giving up capabilities")?,
        }
    }
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: kept };
    rustix::thread::set_capabilities(None, sets).doing(|| "giving up capabilities")?;
    rustix::thread::clear_ambient_capability_set().doing(|| "giving up capabilities")?;
    for one in kept.iter() {
        rustix::thread::configure_capability_in_ambient_set(one, true).doing(|| "keeping capabilities")?;
    }
    rustix::thread::set_no_new_privs(true).doing(|| "giving up new privileges")
}

/// Gives the launcher's own process only the right to end what it started.
pub(super) fn keep_only_kill() -> Result<(), Errno> {
    let kept = CapabilitySet::KILL;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets)
}

/// Sets the limits; one that is above what is left here stays as it is.
pub(super) fn limits(limits: &[Limit]) -> Result<(), Failure> {
    for limit in limits {
        // SAFETY: the structure lives until the call returns.
        let set = |most: u64| unsafe {
            let value = libc::rlimit64 { rlim_cur: most, rlim_max: most };
            libc::syscall(
                libc::SYS_prlimit64,
                0,
                limit.resource,
                &raw const value,
                std::ptr::null_mut::<libc::rlimit64>(),
            )
        };
        match done(set(limit.most)) {
            Err(Errno::PERM) => {
                let mut now = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
                // SAFETY: the structure lives until the call returns.
                let got = unsafe {
                    libc::syscall(
                        libc::SYS_prlimit64,
                        0,
                        limit.resource,
                        std::ptr::null::<libc::rlimit64>(),
                        &raw mut now,
                    )
                };
                done(got).and_then(|()| done(set(now.rlim_max.min(limit.most))))
            }
            other => other,
        }
        .doing(|| "setting limits")?;
    }
    Ok(())
}

/// The kernel's version of Landlock; 0 where there is none.
pub fn landlock() -> u32 {
    const VERSION: u32 = 1;
    // SAFETY: asked for the version, the call takes no structure.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0usize, VERSION) };
    u32::try_from(version).unwrap_or(0)
}

/// Sets the rules on files, and refuses the network.
pub(super) fn access(plan: &Plan) -> Result<(), Failure> {
    let Some(rules) = &plan.access else { return Ok(()) };
    if landlock() == 0 {
        return Ok(());
    }
    let (readable, writable): (Vec<_>, Vec<_>) = rules.iter().partition(|rule| !rule.writable);
    let enforce = || {
        let readable =
            landlock::path_beneath_rules(readable.iter().map(|rule| &rule.path), AccessFs::from_read(RULES));
        let writable =
            landlock::path_beneath_rules(writable.iter().map(|rule| &rule.path), AccessFs::from_all(RULES));
        Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(RULES))?
            .handle_access(AccessNet::from_all(RULES))?
            .scope(Scope::from_all(RULES))?
            .create()?
            .add_rules(readable)?
            .add_rules(writable)?
            .restrict_self()
    };
    enforce()
        .map(|_| ())
        .map_err(|error| Failure::new(Errno::INVAL, format!("setting rules on files: {error}")))
}

/// Sets the filter of system calls.
pub(super) fn filter(filter: &[u8]) -> Result<(), Failure> {
    if filter.is_empty() {
        return Ok(());
    }
    let mut program: Vec<libc::sock_filter> = filter
        .as_chunks::<8>()
        .0
        .iter()
        .map(|[a, b, jt, jf, k @ ..]| libc::sock_filter {
            code: u16::from_ne_bytes([*a, *b]),
            jt: *jt,
            jf: *jf,
            k: u32::from_ne_bytes(*k),
        })
        .collect();
    let length = u16::try_from(program.len()).ok().filter(|length| usize::from(*length) * 8 == filter.len());
    let length =
        length.ok_or_else(|| Failure::new(Errno::INVAL, "reading the filter of system calls".to_owned()))?;
    let whole = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    // SAFETY: the program and the structure that points to it live until the call returns, and the length is the true one.
    let answer =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0u32, &raw const whole) };
    done(answer).doing(|| "setting the filter of system calls")
}

/// Moves a descriptor out of the way of those the program gets.
pub(super) fn high(descriptor: OwnedFd) -> Result<OwnedFd, Errno> {
    rustix::io::fcntl_dupfd_cloexec(descriptor, HIGH)
}

/// Gives the program its descriptors under their numbers, and nothing else but its output and error.
pub(super) fn descriptors(plan: &Plan, given: Vec<OwnedFd>) -> Result<(), Failure> {
    let doing = || "arranging the descriptors";
    let mut wanted = Vec::new();
    for (target, given) in plan.descriptors.iter().zip(given) {
        let Some(target) = target.and_then(|target| RawFd::try_from(target).ok()) else { continue };
        if target >= HIGH || target == 1 || target == 2 {
            return Err(Failure::new(Errno::BADF, doing().to_owned()));
        }
        wanted.push((target, high(given).doing(doing)?));
    }
    let mut kept = vec![0, 1, 2];
    for (target, given) in wanted {
        // SAFETY: numbers below HIGH are used by nothing of this process any more but the three standard ones, and the first of
        // those is replaced on purpose: from here on the number is the program's.
        let moved = unsafe { libc::dup2(given.as_raw_fd(), target) };
        done(i64::from(moved).min(0)).doing(doing)?;
        kept.push(target);
    }
    kept.sort_unstable();
    kept.dedup();
    let mut from = 0;
    for number in kept.into_iter().chain([RawFd::MAX]) {
        if number > from {
            // Closed at exec, not at once: the program's own file and the way to report a failure are among them.
            // SAFETY: a plain call with numbers.
            let answer =
                unsafe { libc::syscall(libc::SYS_close_range, from, number - 1, libc::CLOSE_RANGE_CLOEXEC) };
            done(answer).doing(doing)?;
        }
        from = number.saturating_add(1);
    }
    Ok(())
}

/// Replaces the standard input by nothing.
pub(super) fn no_input() -> Result<(), Failure> {
    let open = || {
        let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty())?;
        rustix::stdio::dup2_stdin(&null)
    };
    open().doing(|| "opening `/dev/null`")
}
