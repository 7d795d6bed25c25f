//! What is left out: the patterns of `.gitignore` and `.kartaignore`, as git reads them.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

use super::{Error, at};

/// The platform's own ignore file: what it says wins over git's.
const KARTA: &str = ".kartaignore";
/// Git's.
const GIT: &str = ".gitignore";
/// Larger ignore files are not read.
const MAX_SIZE: u64 = 1 << 20;

/// Patterns, and the path of the folder that they are about from the folder that is picked; negative paths don't exist, so what lies
/// above that folder says how to get down to it instead.
struct Patterns {
    name: String,
    matcher: Gitignore,
}

/// What is left out in one folder and below.
pub(super) struct Level {
    above: Option<Rc<Self>>,
    /// The folder's path, with its slash; empty at the top.
    folder: String,
    git: Option<Patterns>,
    karta: Option<Patterns>,
}

/// What lies above the folder that is picked, in the same working copy.
#[derive(Default)]
pub(super) struct Outer {
    /// From the innermost: the way from that folder down to the picked one, with its slash, and its patterns.
    levels: Vec<(String, Patterns)>,
    /// `.git/info/exclude` of the working copy, and the way down from its root.
    exclude: Option<(String, Patterns)>,
}

impl Outer {
    /// Looks upwards for the root of the working copy that the folder is in, and reads what the folders on the way say. Without a
    /// working copy nothing above the folder counts.
    pub(super) fn find(root: &Path) -> Result<Self, Error> {
        let Ok(root) = fs::canonicalize(root) else { return Ok(Self::default()) };
        let mut above = Vec::new();
        let Some(top) = root.ancestors().find(|folder| {
            above.push(folder.to_path_buf());
            folder.join(".git").exists()
        }) else {
            return Ok(Self::default());
        };
        let way = |from: &Path| match root.strip_prefix(from).ok().and_then(Path::to_str) {
            Some("") | None => String::new(),
            Some(way) => format!("{way}/"),
        };
        let mut outer = Self::default();
        for folder in above.iter().skip(1) {
            if let Some(patterns) = read(&folder.join(GIT), folder.join(GIT).display().to_string())? {
                outer.levels.push((way(folder), patterns));
            }
        }
        let exclude: PathBuf = top.join(".git/info/exclude");
        outer.exclude = read(&exclude, ".git/info/exclude".to_owned())?.map(|patterns| (way(top), patterns));
        // Who publishes a folder that is itself ignored, a build or a server's example, means it all the same.
        let itself = outer.all().any(|(way, patterns)| {
            let folders = way.match_indices('/').map(|(at, _)| &way[..at]);
            folders.into_iter().any(|folder| matches!(patterns.says(folder, true), Some(Some(_))))
        });
        if itself {
            return Ok(Self::default());
        }
        Ok(outer)
    }

    /// All patterns, from the innermost, each with the way down from where they are to the picked folder.
    fn all(&self) -> impl Iterator<Item = (&str, &Patterns)> {
        self.levels.iter().chain(&self.exclude).map(|(way, patterns)| (way.as_str(), patterns))
    }
}

impl Level {
    /// Reads the ignore files of a folder of `root`.
    pub(super) fn read(root: &Path, folder: &str, above: Option<Rc<Self>>) -> Result<Self, Error> {
        let folder = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let read = |name: &str| read(&root.join(format!("{folder}{name}")), format!("{folder}{name}"));
        Ok(Self { git: read(GIT)?, karta: read(KARTA)?, above, folder })
    }

    /// Why this path is left out, if it is.
    pub(super) fn leaves_out(&self, outer: &Outer, path: &str, is_folder: bool) -> Option<String> {
        let all = || std::iter::successors(Some(self), |level| level.above.as_deref());
        let inner = |of: fn(&Self) -> Option<&Patterns>| {
            all().find_map(|level| of(level)?.says(path.get(level.folder.len()..)?, is_folder))
        };
        let outwards =
            || outer.all().find_map(|(way, patterns)| patterns.says(&format!("{way}{path}"), is_folder));
        inner(|level| level.karta.as_ref())
            .or_else(|| inner(|level| level.git.as_ref()))
            .or_else(outwards)
            .and_then(|said| said)
    }
}

impl Patterns {
    /// Whether the patterns say anything of a path: then whether, and why, it is left out.
    #[expect(clippy::option_option, reason = "said nothing, said no, said yes and why")]
    fn says(&self, path: &str, is_folder: bool) -> Option<Option<String>> {
        match self.matcher.matched(path, is_folder) {
            Match::None => None,
            Match::Whitelist(_) => Some(None),
            Match::Ignore(pattern) => Some(Some(format!("`{}` in {}", pattern.original(), self.name))),
        }
    }
}

/// Reads an ignore file; `None` if there is none. Git doesn't follow a link in its place, and neither is it done here.
fn read(path: &Path, name: String) -> Result<Option<Patterns>, Error> {
    let Ok(meta) = fs::symlink_metadata(path) else { return Ok(None) };
    if !meta.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(MAX_SIZE).read_to_end(&mut bytes))
        .map_err(at("reading", path))?;
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.strip_prefix('\u{feff}').unwrap_or(&text).lines();
    matcher(&name, lines).map(|matcher| Some(Patterns { name, matcher }))
}

/// Patterns of `.gitignore`, compiled.
pub(crate) fn matcher<'a>(place: &str, patterns: impl Iterator<Item = &'a str>) -> Result<Gitignore, Error> {
    let mut builder = GitignoreBuilder::new("");
    for (index, pattern) in patterns.enumerate() {
        let fault = |error: ignore::Error| Error::Pattern {
            place: format!("{place}:{}", index + 1),
            pattern: pattern.to_owned(),
            reason: error.to_string(),
        };
        builder.add_line(None, &literal_braces(pattern)).map_err(fault)?;
    }
    builder.build().map_err(|error| Error::Pattern {
        place: place.to_owned(),
        pattern: String::new(),
        reason: error.to_string(),
    })
}

/// Braces mean themselves to git; the matcher would read alternatives in them.
fn literal_braces(pattern: &str) -> String {
    let mut plain = String::with_capacity(pattern.len());
    let mut letters = pattern.chars();
    let mut in_class = false;
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => {
                plain.push(letter);
                plain.extend(letters.next());
                continue;
            }
            '{' | '}' if !in_class => plain.push('\\'),
            '[' => in_class = true,
            ']' => in_class = false,
            _ => {}
        }
        plain.push(letter);
    }
    plain
}
