//! Whether what a sandbox says it has can be kept: nothing that comes from inside is taken on trust.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use karta_sandbox::paths::{LEVELS, plain};
use karta_sandbox::state::{Entry, HOME, Kind, WORK};

use super::Limits;
use super::error::CheckpointError;

/// The most bytes of a path, and of a link's target.
const PATH: usize = 4096;
/// The most bytes of a name.
const NAME: usize = 255;

/// A survey by path, every entry of it fit to be kept.
pub(super) fn survey(
    entries: Vec<Entry>,
    limits: &Limits,
) -> Result<BTreeMap<PathBuf, Entry>, CheckpointError> {
    let count = entries.len() as u64;
    if count > limits.files {
        return Err(CheckpointError::Refused { what: "files", have: count, most: limits.files });
    }
    let mut bytes = 0_u64;
    let mut found = BTreeMap::new();
    for entry in entries {
        check(&entry)?;
        if let Kind::File { size } = entry.kind {
            bytes = bytes.saturating_add(size);
        }
        if let Some(twice) = found.insert(entry.path.clone(), entry) {
            return Err(unfit(&twice.path, "it is there twice"));
        }
    }
    if bytes > limits.bytes {
        return Err(CheckpointError::Refused { what: "bytes", have: bytes, most: limits.bytes });
    }
    // What lies in a folder follows it at once in this order: whatever else has something in it is caught here.
    let mut leaf: Option<&Path> = None;
    for (path, entry) in &found {
        if leaf.is_some_and(|leaf| path.starts_with(leaf)) {
            return Err(unfit(path, "it is in something that is no folder"));
        }
        if !matches!(entry.kind, Kind::Folder { .. }) {
            leaf = Some(path);
        }
    }
    Ok(found)
}

/// Whether one entry is fit.
pub(super) fn check(entry: &Entry) -> Result<(), CheckpointError> {
    let path = &entry.path;
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() > PATH || path.iter().any(|name| name.len() > NAME) {
        return Err(unfit(path, "its path is too long"));
    }
    if path.iter().count() > LEVELS {
        return Err(unfit(path, "it is too deep"));
    }
    // Byte for byte: `a//b` and `a/./b` are not plain, though they are the same path as `a/b`.
    let as_is = plain(path).is_some_and(|plain| plain.as_os_str() == path.as_os_str());
    let placed = path.strip_prefix(HOME).or_else(|_| path.strip_prefix(WORK));
    let inside = placed.is_ok_and(|rest| !rest.as_os_str().is_empty());
    if !as_is || !inside || bytes.contains(&0) {
        return Err(unfit(path, "it is not in the session's home or workspace"));
    }
    if entry.mode > 0o777 {
        return Err(unfit(path, "its permissions are more than permissions"));
    }
    let only_work = matches!(entry.kind, Kind::Removed | Kind::Folder { opaque: true });
    if only_work && !path.starts_with(WORK) {
        return Err(unfit(path, "there is no release below the home"));
    }
    if let Kind::Link { target } = &entry.kind {
        let target = target.as_os_str().as_bytes();
        if target.is_empty() || target.len() > PATH || target.contains(&0) {
            return Err(unfit(path, "its target is no path"));
        }
    }
    Ok(())
}

/// That something can't be kept, with a path of at most a readable length.
pub(super) fn unfit(path: &Path, why: &str) -> CheckpointError {
    let shown: String = path.to_string_lossy().chars().take(200).collect();
    CheckpointError::Unfit(format!("`{}`: {why}", shown.escape_debug()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { bytes: 100, files: 5, keep: 3, seconds: 60 };

    fn file(path: &str, size: u64) -> Entry {
        Entry { path: path.into(), kind: Kind::File { size }, mode: 0o644, stamp: 1, modified: 0 }
    }

    fn refused(entries: Vec<Entry>) -> String {
        survey(entries, &LIMITS).unwrap_err().to_string()
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        let long = format!("home/{}", "n".repeat(256));
        let deep = format!("home/{}x", "d/".repeat(70));
        for path in [
            "",
            "home",
            "work",
            "home/",
            "/etc/passwd",
            "home/../x",
            "../home/x",
            "home/./x",
            "home//x",
            "homes/x",
            "tmp/x",
            "home/x/",
            "./home/x",
            "home/a\0b",
            &long,
            &deep,
        ] {
            assert!(survey(vec![file(path, 1)], &LIMITS).is_err(), "{path:?}");
        }
        assert!(survey(vec![file("home/.claude/a b\n", 1), file("work/x", 1)], &LIMITS).is_ok());
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let link = Entry { kind: Kind::Link { target: "/etc".into() }, ..file("home/a", 0) };
        assert!(refused(vec![link.clone(), file("home/a/passwd", 1)]).contains("no folder"));
        assert!(refused(vec![file("home/a", 1), file("home/a/b/c", 1)]).contains("no folder"));
        assert!(refused(vec![file("home/a", 1), link.clone()]).contains("twice"));
        let between = vec![link.clone(), file("home/a-b", 1), file("home/a/b", 1)];
        assert!(refused(between).contains("no folder"), "a name that sorts between as text");
        let removed = Entry { kind: Kind::Removed, ..file("home/a", 0) };
        assert!(refused(vec![removed]).contains("below the home"));
        assert!(refused(vec![Entry { mode: 0o4755, ..file("home/a", 0) }]).contains("permissions"));
        let nowhere = Entry { kind: Kind::Link { target: "".into() }, ..link };
        assert!(refused(vec![nowhere]).contains("target"));
    }

    #[test]
    fn more_than_the_quota_is_refused_by_name() {
        let many = (0..6).map(|number| file(&format!("home/{number}"), 0)).collect();
        assert!(matches!(
            survey(many, &LIMITS),
            Err(CheckpointError::Refused { what: "files", have: 6, most: 5 })
        ));
        let much = vec![file("home/a", u64::MAX), file("home/b", 2)];
        assert!(matches!(
            survey(much, &LIMITS),
            Err(CheckpointError::Refused { what: "bytes", have: u64::MAX, .. })
        ));
    }

    proptest! {
        #[test]
        fn what_is_kept_stays_inside(path in "(home|work|/|\\.\\.|\\.|a|/|\0){0,6}") {
            if survey(vec![file(&path, 1)], &LIMITS).is_ok() {
                prop_assert!(path.starts_with("home/") || path.starts_with("work/"));
                prop_assert!(path.split('/').all(|name| !name.is_empty() && name != ".." && !name.contains('\0')));
            }
        }
    }
}
