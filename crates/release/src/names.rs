//! The rules that every path and every link of a release keeps, whoever sends it.
//!
//! They are chosen so that a release means the same on every machine: no name leads out of the folder, none hides another on a file
//! system that does not tell cases apart, and nothing lies under a link.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;
use std::path::{Component, Path};

/// The longest path, in bytes.
pub(crate) const MAX_PATH: usize = 1024;
/// The longest part of a path, in bytes.
pub(crate) const MAX_PART: usize = 255;
/// The most parts of a path.
pub(crate) const MAX_DEPTH: usize = 64;
/// The most bytes of all paths, their folders and their links' targets together: what a hostile list of names may cost in memory.
const MAX_NAMES: usize = 48 << 20;

/// First parts that are not the release's own.
const RESERVED: [&str; 2] = [".git", ".karta"];

/// Why a path, a link or a member of an archive is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rule {
    /// It has no name.
    #[error("its name is empty")]
    Nameless,
    /// It starts at the root.
    #[error("its path is absolute")]
    Absolute,
    /// It steps up.
    #[error("its path has a part `..`")]
    Parent,
    /// It has a part that names nothing.
    #[error("its path has an empty part or a part `.`")]
    Hollow,
    /// Another system's separator.
    #[error("its path has a backslash")]
    Backslash,
    /// A character that is not for printing.
    #[error("its name has a control character")]
    Control,
    /// Not text.
    #[error("its name is not UTF-8")]
    NotUtf8,
    /// Too long a path.
    #[error("its path is longer than {MAX_PATH} bytes")]
    LongPath,
    /// Too long a part.
    #[error("a part of its path is longer than {MAX_PART} bytes")]
    LongPart,
    /// Too many folders.
    #[error("it lies deeper than {MAX_DEPTH} folders")]
    Deep,
    /// A folder that is not for releases.
    #[error("`{0}` is reserved at the top of a release")]
    Reserved(String),
    /// A link that leads, or may lead, out.
    #[error("it is a link to `{0}`, which leads out of the folder, or steps up after a name")]
    LeavingLink(String),
    /// A link to nothing, or to too long a path, or to one with control characters.
    #[error("it is a link whose target is empty, too long, not UTF-8, or has a control character")]
    BadTarget,
    /// Two names that are one elsewhere.
    #[error("its name differs from `{0}` only in case")]
    Case(String),
    /// Twice the same.
    #[error("the path is there twice")]
    Twice,
    /// A file is no folder.
    #[error("it lies under `{0}`, which is a file or a link")]
    UnderFile(String),
    /// A hard link.
    #[error("it is a hard link")]
    HardLink,
    /// A device.
    #[error("it is a device")]
    Device,
    /// A pipe.
    #[error("it is a pipe")]
    Pipe,
    /// A socket, or whatever else a file system can hold.
    #[error("it is neither file, folder nor link")]
    Special,
    /// A file with holes, in one of tar's ways of writing them.
    #[error("it is a sparse member")]
    Sparse,
    /// A kind of member that is not known.
    #[error("it is of the unknown type {0:?}")]
    Unknown(char),
    /// Rights that a file of a release never has.
    #[error("its mode has setuid, setgid or the sticky bit")]
    SpecialMode,
    /// A folder or link that carries bytes.
    #[error("it has a content, but is no file")]
    Content,
    /// Too many members.
    #[error("there are more than {0} members")]
    TooMany(u64),
    /// Too many bytes.
    #[error("the files are more than {0} bytes")]
    TooLarge(u64),
    /// Too large a file.
    #[error("it is larger than {0} bytes")]
    LargeFile(u64),
    /// Names that would fill the memory.
    #[error("all names together are longer than {MAX_NAMES} bytes")]
    LongNames,
    /// A header that would fill the memory.
    #[error("what describes it is longer than {0} bytes")]
    LongHeader(u64),
    /// It becomes too much.
    #[error("the archive unpacks to more than {0} times its size; send it as plain tar")]
    Ratio(u64),
    /// A content that is not what its name says.
    #[error("its content is not what its name says")]
    OtherContent,
    /// A content that the listing doesn't name.
    #[error("the listing names no such content")]
    Unlisted,
    /// A length that the listing got wrong.
    #[error("its size is not the one in the listing")]
    OtherSize,
    /// A listing that can't be read.
    #[error("the listing can't be read: {0}")]
    Listing(String),
}

/// Checks one path by itself.
pub(crate) fn path(path: &str) -> Result<(), Rule> {
    let first = path.split('/').next().unwrap_or_default();
    if path.is_empty() {
        return Err(Rule::Nameless);
    }
    if path.len() > MAX_PATH {
        return Err(Rule::LongPath);
    }
    if path.starts_with('/') {
        return Err(Rule::Absolute);
    }
    if path.chars().any(char::is_control) {
        return Err(Rule::Control);
    }
    if path.contains('\\') {
        return Err(Rule::Backslash);
    }
    let mut depth = 0;
    for part in path.split('/') {
        depth += 1;
        match part {
            ".." => return Err(Rule::Parent),
            "" | "." => return Err(Rule::Hollow),
            part if part.len() > MAX_PART => return Err(Rule::LongPart),
            _ => {}
        }
    }
    if depth > MAX_DEPTH {
        return Err(Rule::Deep);
    }
    if let Some(reserved) = RESERVED.iter().find(|reserved| first.eq_ignore_ascii_case(reserved)) {
        return Err(Rule::Reserved((*reserved).to_owned()));
    }
    Ok(())
}

/// Checks a link's target. Steps up may only come first: they leave from a real folder; after a name, which may be a link itself, a
/// step up could lead anywhere.
pub(crate) fn link(path: &str, target: &str) -> Result<(), Rule> {
    if target.is_empty() || target.len() > MAX_PATH || target.chars().any(char::is_control) {
        return Err(Rule::BadTarget);
    }
    let mut above = path.matches('/').count();
    let mut named = false;
    for part in Path::new(target).components() {
        match part {
            Component::Normal(_) => named = true,
            Component::CurDir => {}
            Component::ParentDir if !named && above > 0 => above -= 1,
            _ => return Err(Rule::LeavingLink(target.to_owned())),
        }
    }
    Ok(())
}

/// What a name is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Folder,
    Leaf,
}

/// All names that were seen, and how they stand to each other.
#[derive(Default)]
pub(crate) struct Names {
    /// By the name without case: the name as it was written, and what it is.
    seen: HashMap<String, (String, Kind)>,
    bytes: usize,
}

impl Names {
    /// Takes a file's path.
    pub(crate) fn file(&mut self, name: &str) -> Result<(), Rule> {
        path(name)?;
        self.above(name)?;
        self.take(name, Kind::Leaf)
    }

    /// Takes a link's path and target.
    pub(crate) fn link(&mut self, name: &str, target: &str) -> Result<(), Rule> {
        path(name)?;
        link(name, target)?;
        self.above(name)?;
        self.bytes += target.len();
        self.take(name, Kind::Leaf)
    }

    /// Takes a folder's path. The same folder again is fine.
    pub(crate) fn folder(&mut self, name: &str) -> Result<(), Rule> {
        path(name)?;
        self.above(name)?;
        self.take(name, Kind::Folder)
    }

    fn above(&mut self, name: &str) -> Result<(), Rule> {
        name.match_indices('/').try_for_each(|(at, _)| self.take(&name[..at], Kind::Folder))
    }

    fn take(&mut self, name: &str, kind: Kind) -> Result<(), Rule> {
        match self.seen.entry(without_case(name)) {
            Place::Vacant(place) => {
                self.bytes += 2 * name.len();
                if self.bytes > MAX_NAMES {
                    return Err(Rule::LongNames);
                }
                place.insert((name.to_owned(), kind));
                Ok(())
            }
            Place::Occupied(place) => match place.get() {
                (other, _) if other != name => Err(Rule::Case(other.clone())),
                (_, Kind::Folder) if kind == Kind::Folder => Ok(()),
                (other, Kind::Leaf) if kind == Kind::Folder => Err(Rule::UnderFile(other.clone())),
                _ => Err(Rule::Twice),
            },
        }
    }
}

/// The name as file systems see it that don't tell cases apart.
fn without_case(name: &str) -> String {
    if name.is_ascii() {
        return name.to_ascii_lowercase();
    }
    // Up and down again: letters that share only one of the two are one to such a file system too.
    name.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_plain() {
        for good in ["a", "a/b.c", ".claude/x", "a/.git/x", ".gitignore", "é/日本", "a b", "...", "a/..b"]
        {
            assert_eq!(path(good), Ok(()), "{good}");
        }
        let deep = ["d"; MAX_DEPTH + 1].join("/");
        for (bad, rule) in [
            ("", Rule::Nameless),
            ("/a", Rule::Absolute),
            ("../a", Rule::Parent),
            ("a/../b", Rule::Parent),
            ("a//b", Rule::Hollow),
            ("a/", Rule::Hollow),
            ("./a", Rule::Hollow),
            ("a/./b", Rule::Hollow),
            ("a\\b", Rule::Backslash),
            ("a\0b", Rule::Control),
            ("a\nb", Rule::Control),
            ("a\u{85}b", Rule::Control),
            (&"a/".repeat(600), Rule::LongPath),
            (&"a".repeat(256), Rule::LongPart),
            (&deep, Rule::Deep),
            (".git", Rule::Reserved(".git".into())),
            (".GIT/config", Rule::Reserved(".git".into())),
            (".karta/x", Rule::Reserved(".karta".into())),
        ] {
            assert_eq!(path(bad), Err(rule), "{bad}");
        }
    }

    #[test]
    fn links_stay_inside() {
        for (at, target) in
            [("l", "a"), ("a/l", "../b"), ("a/b/l", "../../c/d"), ("a/l", ".."), ("l", "./a"), ("l", ".")]
        {
            assert_eq!(link(at, target), Ok(()), "{at} -> {target}");
        }
        for (at, target) in
            [("l", ".."), ("l", "/etc"), ("a/l", "../.."), ("a/l", "x/../../.."), ("l", "x/..")]
        {
            assert_eq!(link(at, target), Err(Rule::LeavingLink(target.into())), "{at} -> {target}");
        }
        for target in ["", "a\nb", &"a".repeat(2000)] {
            assert_eq!(link("l", target), Err(Rule::BadTarget));
        }
    }

    #[test]
    fn names_do_not_hide_each_other() {
        let mut names = Names::default();
        names.file("a/b").unwrap();
        names.folder("a").unwrap();
        names.link("a/l", "b").unwrap();
        assert_eq!(names.file("a/b"), Err(Rule::Twice));
        assert_eq!(names.file("a"), Err(Rule::Twice));
        assert_eq!(names.file("a/B"), Err(Rule::Case("a/b".into())));
        assert_eq!(names.file("A/c"), Err(Rule::Case("a".into())));
        assert_eq!(names.file("a/l/x"), Err(Rule::UnderFile("a/l".into())));
        assert_eq!(names.file("a/b/x"), Err(Rule::UnderFile("a/b".into())));
        names.file("straße").unwrap();
        assert_eq!(names.file("STRASSE"), Err(Rule::Case("straße".into())));
        names.file("σ").unwrap();
        assert_eq!(names.file("ς"), Err(Rule::Case("σ".into())));
    }

    #[test]
    fn many_long_names_are_too_many() {
        let mut names = Names::default();
        let long = "x".repeat(250);
        let refused = (0..1_000_000).find_map(|number| {
            let path = format!("{number}/{long}/{long}/{long}");
            names.file(&path).err()
        });
        assert_eq!(refused, Some(Rule::LongNames));
    }
}
