//! The filters of system calls: what a session's processes, and a virtual machine's process on the host, may ask of the kernel.
//!
//! They are lists of what is allowed. What a program is known to ask for in vain is refused with "not permitted"; what is on no list
//! is answered as by a kernel that doesn't have it, so that programs fall back to what they did before it was there.

mod calls;

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Is, SeccompCondition as Condition,
    SeccompFilter, SeccompRule as Rule, TargetArch, sock_filter,
};

use crate::Error;

/// The flags of `clone` and `unshare` that make namespaces.
const NAMESPACES: u64 = 0x7e02_0080;

const LOAD: u16 = 0x20;
const EQUALS: u16 = 0x15;
const ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;
const REFUSED: u32 = 0x0005_0000;

/// The rules by the numbers of the calls; no rules for a call that is always allowed.
type Rules = BTreeMap<i64, Vec<Rule>>;

/// For the processes of a session.
pub(crate) fn session() -> Result<Vec<u8>, Error> {
    compile(session_rules()).map_err(|error| unavailable(&error))
}

/// For the process of a virtual machine: no new processes, no sockets, no way to look at others.
pub(crate) fn machine() -> Result<Vec<u8>, Error> {
    let rules = || -> Result<Rules, seccompiler::BackendError> {
        let mut rules = session_rules()?;
        for call in calls::NOT_FOR_MACHINES {
            rules.remove(call);
        }
        let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
        rules.insert(libc::SYS_clone, vec![all(vec![masked(0, thread | NAMESPACES, thread)?])?]);
        rules.insert(libc::SYS_ioctl, Vec::new());
        Ok(rules)
    };
    compile(rules()).map_err(|error| unavailable(&error))
}

fn unavailable(error: &seccompiler::BackendError) -> Error {
    Error::Unavailable(format!("the filter of system calls could not be made ({error})"))
}

fn session_rules() -> Result<Rules, seccompiler::BackendError> {
    let mut rules: Rules = calls::ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    rules.insert(libc::SYS_clone, vec![all(vec![masked(0, NAMESPACES & !0x80, 0)?])?]);
    rules.insert(libc::SYS_unshare, vec![all(vec![masked(0, NAMESPACES, 0)?])?]);
    // Sockets: of this host, of the loopback that is there, and the questions that programs ask about network devices.
    let (unix, inet, inet6, netlink) = (1, 2, 10, 16);
    let (stream, datagram, raw) = (1, 2, 3);
    let mut sockets = vec![all(vec![number(0, unix)?])?];
    for family in [inet, inet6] {
        for (kind, protocol) in [(stream, 0), (stream, 6), (datagram, 0), (datagram, 17)] {
            sockets.push(all(vec![number(0, family)?, masked(1, 0xf, kind)?, number(2, protocol)?])?);
        }
    }
    for kind in [datagram, raw] {
        sockets.push(all(vec![number(0, netlink)?, masked(1, 0xf, kind)?, number(2, 0)?])?);
    }
    rules.insert(libc::SYS_socket, sockets);
    rules.insert(libc::SYS_socketpair, vec![all(vec![number(0, unix)?])?]);
    // Typing into a terminal on another's behalf.
    let (type_in, console) = (0x5412, 0x541c);
    rules.insert(libc::SYS_ioctl, vec![all(vec![not(1, type_in)?, not(1, console)?])?]);
    let layouts = [0, 0x0008, 0x0002_0000, 0x0004_0000, 0xffff_ffff];
    let layouts =
        layouts.into_iter().map(|layout| all(vec![number(0, layout)?])).collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_personality, layouts);
    // Files, pipes and sockets have names; devices are not made.
    let names = |argument| -> Result<Vec<Rule>, seccompiler::BackendError> {
        [0, 0o010_000, 0o100_000, 0o140_000]
            .into_iter()
            .map(|kind| all(vec![masked(argument, 0o170_000, kind)?]))
            .collect()
    };
    rules.insert(libc::SYS_mknodat, names(2)?);
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_mknod, names(1)?);
    Ok(rules)
}

fn all(conditions: Vec<Condition>) -> Result<Rule, seccompiler::BackendError> {
    Rule::new(conditions)
}

fn number(argument: u8, value: u64) -> Result<Condition, seccompiler::BackendError> {
    Condition::new(argument, Length::Dword, Is::Eq, value)
}

fn not(argument: u8, value: u64) -> Result<Condition, seccompiler::BackendError> {
    Condition::new(argument, Length::Dword, Is::Ne, value)
}

fn masked(argument: u8, mask: u64, value: u64) -> Result<Condition, seccompiler::BackendError> {
    Condition::new(argument, Length::Dword, Is::MaskedEq(mask), value)
}

/// The filter as the kernel takes it: eight bytes an instruction.
fn compile(rules: Result<Rules, seccompiler::BackendError>) -> Result<Vec<u8>, seccompiler::BackendError> {
    let unknown = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    let allowed: BpfProgram =
        SeccompFilter::new(rules?, unknown, SeccompAction::Allow, architecture)?.try_into()?;
    // The refused ones come first. Another architecture's calls of the same numbers are refused here too, and all its others there.
    let mut program = vec![instruction(LOAD, 0, 0, 0)];
    for call in calls::REFUSED {
        let Ok(call) = u32::try_from(*call) else { continue };
        program.push(instruction(EQUALS, 0, 1, call));
        program.push(instruction(RETURN, 0, 0, REFUSED | libc::EPERM.unsigned_abs()));
    }
    // Where the first argument of these two asks for a namespace.
    let namespaces = u32::try_from(NAMESPACES & !0xff).unwrap_or(u32::MAX);
    let first_argument = if cfg!(target_endian = "little") { 16 } else { 20 };
    program.extend([
        instruction(EQUALS, 1, 0, u32::try_from(libc::SYS_clone).unwrap_or(u32::MAX)),
        instruction(EQUALS, 0, 4, u32::try_from(libc::SYS_unshare).unwrap_or(u32::MAX)),
        instruction(LOAD, 0, 0, first_argument),
        instruction(ANY_BIT, 0, 1, namespaces),
        instruction(RETURN, 0, 0, REFUSED | libc::EPERM.unsigned_abs()),
        instruction(LOAD, 0, 0, 0),
    ]);
    program.extend(allowed);
    let mut bytes = Vec::with_capacity(program.len() * 8);
    for sock_filter { code, jt, jf, k } in program {
        bytes.extend_from_slice(&code.to_ne_bytes());
        bytes.extend_from_slice(&[jt, jf]);
        bytes.extend_from_slice(&k.to_ne_bytes());
    }
    Ok(bytes)
}

fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_call_is_both_allowed_and_refused() {
        for rules in [session_rules().unwrap()] {
            for call in calls::REFUSED {
                assert!(!rules.contains_key(call), "{call}");
            }
        }
    }

    #[test]
    fn the_filters_are_ones_the_kernel_can_take() {
        for filter in [session().unwrap(), machine().unwrap()] {
            assert!(filter.len() % 8 == 0 && filter.len() / 8 < 4096, "{}", filter.len());
        }
    }
}
