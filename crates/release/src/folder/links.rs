//! Links as a harness sees them: what they lead to, under their own names.

use std::collections::BTreeMap;

use crate::files::{Entry, Files};
use crate::names::MAX_PATH;

/// How many links one path may lead over, as most kernels have it.
const MAX_HOPS: usize = 40;
/// How many names links may add: a link to the folder it lies in would add names for ever.
const MAX_ADDED: usize = 10_000;
/// The folders that harnesses read.
const READ: [&str; 2] = [".claude", ".opencode"];

/// Every path, and for what a harness reads through a link also that name, each with the path of the entry that is there really.
pub(super) fn followed(files: &Files) -> BTreeMap<String, &str> {
    let mut all: BTreeMap<String, &str> = files.iter().map(|(path, _)| (path.to_owned(), path)).collect();
    let links = files.iter().filter(|(path, entry)| is_read(path) && matches!(entry, Entry::Link { .. }));
    // Names that a link has; what lies behind one may hold links again.
    let mut open: Vec<(String, &str)> = links.map(|(path, _)| (path.to_owned(), path)).collect();
    let mut added = open.len();
    while let Some((name, link)) = open.pop() {
        let Some(real) = resolve(files, link) else { continue };
        if let Some((path, _)) = files.find(&real) {
            all.insert(name, path);
            continue;
        }
        let folder = if real.is_empty() { String::new() } else { format!("{real}/") };
        for path in files.under(&folder).take(MAX_ADDED.saturating_sub(added)) {
            added += 1;
            // The path as it is kept, which outlives the folder's name.
            let Some((path, entry)) = files.find(path) else { continue };
            let name = format!("{name}/{}", &path[folder.len()..]);
            if name.len() > MAX_PATH {
                continue;
            }
            if matches!(entry, Entry::Link { .. }) {
                open.push((name, path));
            } else {
                all.insert(name, path);
            }
        }
    }
    all
}

/// Whether a harness may read this: a file at the top, or something in its folder.
fn is_read(path: &str) -> bool {
    let first = path.split('/').next().unwrap_or(path);
    !path.contains('/') || READ.contains(&first)
}

/// Where a path leads when all links on its way are followed: a file, a folder (the root is empty), or nowhere.
fn resolve(files: &Files, path: &str) -> Option<String> {
    let mut hops = 0;
    let mut real: Vec<String> = Vec::new();
    let mut ahead: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
    while let Some(part) = ahead.pop() {
        match part.as_str() {
            "" | "." => continue,
            ".." => {
                real.pop()?;
                continue;
            }
            _ => real.push(part),
        }
        let here = real.join("/");
        if let Some(Entry::Link { target }) = files.get(&here) {
            hops += 1;
            if hops > MAX_HOPS {
                return None;
            }
            real.pop();
            ahead.extend(target.split('/').rev().map(str::to_owned));
        }
    }
    let real = real.join("/");
    let there =
        real.is_empty() || files.get(&real).is_some() || files.under(&format!("{real}/")).next().is_some();
    there.then_some(real)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Collected;
    use crate::hash::Hash;

    fn files(paths: &[&str], links: &[(&str, &str)]) -> Files {
        let mut collected = Collected::default();
        for path in paths {
            let entry = Entry::File { hash: Hash::of(b""), size: 0, executable: false };
            collected.take(path, entry).unwrap();
        }
        for (path, target) in links {
            collected.take(path, Entry::Link { target: (*target).to_owned() }).unwrap();
        }
        collected.into_files()
    }

    fn names(files: &Files) -> Vec<(String, &str)> {
        followed(files).into_iter().filter(|(name, real)| name != real).collect()
    }

    #[test]
    fn a_link_is_what_it_leads_to() {
        let files = files(
            &["AGENTS.md", "shared/agents/a.md", "shared/skills/x/SKILL.md"],
            &[
                ("CLAUDE.md", "AGENTS.md"),
                (".claude/agents", "../shared/agents"),
                (".claude/skills/y", "../../shared/skills/x"),
                (".claude/nowhere", "../none"),
                ("elsewhere/link", "../shared"),
            ],
        );
        assert_eq!(
            names(&files),
            [
                (".claude/agents/a.md".to_owned(), "shared/agents/a.md"),
                (".claude/skills/y/SKILL.md".to_owned(), "shared/skills/x/SKILL.md"),
                ("CLAUDE.md".to_owned(), "AGENTS.md"),
            ]
        );
    }

    #[test]
    fn links_over_links_are_followed_and_circles_are_not_for_ever() {
        let chain = files(
            &["real/a.md"],
            &[("one", "real"), (".claude/agents", "../one"), ("b.md", ".claude/agents/a.md")],
        );
        assert!(names(&chain).contains(&(".claude/agents/a.md".to_owned(), "real/a.md")));
        assert!(names(&chain).contains(&("b.md".to_owned(), "real/a.md")));
        let circle = files(&["a"], &[(".claude/l", "m"), (".claude/m", "l")]);
        assert_eq!(names(&circle), []);
        let up = files(&["a.md"], &[(".claude/up", "..")]);
        assert!(names(&up).contains(&(".claude/up/a.md".to_owned(), "a.md")));
        assert!(names(&up).contains(&(".claude/up/.claude/up/a.md".to_owned(), "a.md")));
        assert!(names(&up).len() < MAX_ADDED);
    }
}
