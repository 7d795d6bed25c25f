//! Paths and patterns that come from outside, brought into a form that can't lead out of a place.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

/// Most levels a path or a pattern may have.
pub const LEVELS: usize = 64;

/// The path without `.`; none if it is absolute, empty, climbs with `..` or is deeper than any place may be.
pub fn plain(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for (level, part) in path.components().enumerate() {
        match part {
            Component::Normal(name) if level < LEVELS => clean.push(name),
            Component::CurDir => {}
            _ => return None,
        }
    }
    (!clean.as_os_str().is_empty()).then_some(clean)
}

/// Whether a link in the folder `at` stays in the tree. Steps up may only come first: they leave from a real folder; after a name,
/// which may be a link itself, a step up could lead anywhere.
pub fn stays(at: &Path, target: &Path) -> bool {
    let mut above = at.components().count();
    let mut named = false;
    for part in target.components() {
        match part {
            Component::Normal(_) => named = true,
            Component::CurDir => {}
            Component::ParentDir if !named && above > 0 => above -= 1,
            _ => return false,
        }
    }
    true
}

/// A pattern of folder levels; a level may hold one `*`, which stands for any characters of that one name.
#[derive(Debug)]
pub struct Pattern(pub Vec<Level>);

/// One level of a pattern.
#[derive(Debug)]
pub enum Level {
    /// Exactly this name.
    Name(OsString),
    /// Any name that begins and ends so.
    Star(OsString, OsString),
}

impl Pattern {
    /// Reads a pattern relative to a home; none if it may not be one.
    pub fn parse(text: &Path) -> Option<Self> {
        let path = plain(text)?;
        let mut levels = Vec::new();
        for name in &path {
            let bytes = name.as_bytes();
            let mut stars = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'*').map(|(at, _)| at);
            levels.push(match (stars.next(), stars.next()) {
                (None, _) => Level::Name(name.to_owned()),
                (Some(at), None) => Level::Star(
                    OsStr::from_bytes(&bytes[..at]).to_owned(),
                    OsStr::from_bytes(&bytes[at + 1..]).to_owned(),
                ),
                (Some(_), Some(_)) => return None,
            });
        }
        Some(Self(levels))
    }

    /// Whether a path relative to the home matches.
    pub fn matches(&self, path: &Path) -> bool {
        let names: Vec<_> = path.iter().collect();
        names.len() == self.0.len() && names.iter().zip(&self.0).all(|(name, level)| level.matches(name))
    }
}

impl Level {
    /// Whether a name matches.
    pub fn matches(&self, name: &OsStr) -> bool {
        match self {
            Self::Name(wanted) => wanted == name,
            Self::Star(before, after) => {
                let (name, before, after) = (name.as_bytes(), before.as_bytes(), after.as_bytes());
                name.len() >= before.len() + after.len() && name.starts_with(before) && name.ends_with(after)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_plain_path_never_leads_out(text in "[a./]{0,24}") {
            if let Some(path) = plain(Path::new(&text)) {
                prop_assert!(path.components().all(|part| matches!(part, Component::Normal(_))));
            }
        }

        #[test]
        fn no_pattern_makes_it_panic(text: String, path: String) {
            if let Some(pattern) = Pattern::parse(Path::new(&text)) {
                let _ = pattern.matches(Path::new(&path));
            }
        }
    }

    #[test]
    fn a_star_stays_on_its_level() {
        let pattern = Pattern::parse(Path::new(".claude/projects/*/a*.jsonl")).unwrap();
        assert!(pattern.matches(Path::new(".claude/projects/x/abc.jsonl")));
        assert!(pattern.matches(Path::new(".claude/projects/x/a.jsonl")));
        assert!(!pattern.matches(Path::new(".claude/projects/x/y/a.jsonl")));
        assert!(!pattern.matches(Path::new(".claude/projects/a.jsonl")));
        assert!(
            !Pattern::parse(Path::new("ab*ba")).unwrap().matches(Path::new("aba")),
            "the two sides don't overlap"
        );
    }

    #[test]
    fn climbing_and_doubled_stars_are_refused() {
        for bad in ["../x", "a/../../b", "/etc/passwd", "", "**", "a*b*c"] {
            assert!(Pattern::parse(Path::new(bad)).is_none(), "{bad}");
        }
    }

    #[test]
    fn links_may_not_lead_out() {
        let at = Path::new("a/b");
        for good in ["x", "./x", "../x", "../../x/y", "../.."] {
            assert!(stays(at, Path::new(good)), "{good}");
        }
        for bad in ["/etc/passwd", "../../../x", "x/../y", "../x/../../../y"] {
            assert!(!stays(at, Path::new(bad)), "{bad}");
        }
        assert!(!stays(Path::new(""), Path::new("..")));
    }
}
