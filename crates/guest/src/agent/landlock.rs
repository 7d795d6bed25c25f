//! Landlock for the session's processes: a second lock on what the mounts already say.

use std::io;

use landlock::{
    ABI, Access as _, AccessFs, PathBeneath, PathFd, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _,
};

/// What may be written.
const WRITABLE: [&str; 6] = ["/workspace", "/home/agent", "/tmp", "/run/user", "/dev", "/proc/self"];

/// Lets this process and what it becomes read everything and write only where a session may. Where the kernel has no Landlock,
/// nothing happens.
pub(super) fn hold() -> io::Result<()> {
    let abi = ABI::V5;
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(abi))
        .and_then(Ruleset::create)
        .map_err(io::Error::other)?;
    let below = |path: &str, access| PathFd::new(path).ok().map(|folder| PathBeneath::new(folder, access));
    let read = AccessFs::from_read(abi);
    let writable = WRITABLE.iter().filter_map(|path| below(path, AccessFs::from_all(abi)));
    for rule in below("/", read).into_iter().chain(writable) {
        rules = rules.add_rule(rule).map_err(io::Error::other)?;
    }
    rules.restrict_self().map(|_| ()).map_err(io::Error::other)
}
