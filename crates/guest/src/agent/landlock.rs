//! Landlock for the session's processes: a second lock on what the mounts already say.

use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _,
};

/// The newest kind that is used; an older kernel holds what it can.
const KIND: ABI = ABI::V6;

/// Lets this process and what it becomes read and execute everything, and write only in these folders. Where the kernel has no
/// Landlock, nothing happens.
pub(super) fn hold(writable: &[PathBuf]) -> io::Result<()> {
    let (all, read) = (AccessFs::from_all(KIND), AccessFs::from_read(KIND));
    let mut rules =
        Ruleset::default().handle_access(all).and_then(Ruleset::create).map_err(io::Error::other)?;
    let below = |path: &Path, access: BitFlags<AccessFs>| {
        PathFd::new(path).ok().map(|folder| PathBeneath::new(folder, access))
    };
    let everything = below(Path::new("/"), read);
    for rule in everything.into_iter().chain(writable.iter().filter_map(|path| below(path, all))) {
        rules = rules.add_rule(rule).map_err(io::Error::other)?;
    }
    rules.restrict_self().map(|_| ()).map_err(io::Error::other)
}
