//! A folder's files in memory: what adapters read instead of a disk.

use std::collections::BTreeMap;

/// Files of a release by path from its root, with `/`. Every path is listed; only what adapters read has its content loaded.
#[derive(Debug, Clone, Default)]
pub struct Tree(BTreeMap<String, Option<Vec<u8>>>);

/// Configuration files larger than this are not loaded.
pub const MAX_LOADED: u64 = 1 << 20;

impl Tree {
    /// An empty folder.
    pub const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// Adds a file; `content` is `None` when it was not loaded.
    pub fn insert(&mut self, path: impl Into<String>, content: Option<Vec<u8>>) {
        self.0.insert(path.into(), content);
    }

    /// Whether adapters may want to read this file: the engine loads exactly these (and at most [`MAX_LOADED`] of each).
    pub fn wanted(path: &str) -> bool {
        let configured =
            path.starts_with(".claude/") || path.starts_with(".opencode/") || !path.contains('/');
        let extension = path.rsplit('.').next().unwrap_or_default();
        configured && matches!(extension, "md" | "json" | "jsonc" | "toml")
    }

    /// All paths, sorted.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Paths below a folder (given with its trailing slash), sorted.
    pub fn under<'a>(&'a self, folder: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .range(folder.to_owned()..)
            .map(|(path, _)| path.as_str())
            .take_while(move |path| path.starts_with(folder))
    }

    /// Whether a signal is there: a file, or a folder when it ends with a slash.
    pub fn has(&self, signal: &str) -> bool {
        if signal.ends_with('/') { self.under(signal).next().is_some() } else { self.0.contains_key(signal) }
    }

    /// A file's bytes, if it is there and loaded.
    pub fn read(&self, path: &str) -> Option<&[u8]> {
        self.0.get(path)?.as_deref()
    }

    /// A file's text, if it is there, loaded and UTF-8 (a byte order mark is dropped).
    pub fn text(&self, path: &str) -> Option<&str> {
        let text = std::str::from_utf8(self.read(path)?).ok()?;
        Some(text.strip_prefix('\u{feff}').unwrap_or(text))
    }

    /// Whether there is no file at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<P: Into<String>, C: Into<Vec<u8>>> FromIterator<(P, C)> for Tree {
    fn from_iter<I: IntoIterator<Item = (P, C)>>(files: I) -> Self {
        Self(files.into_iter().map(|(path, content)| (path.into(), Some(content.into()))).collect())
    }
}
