//! A release's files: the list that is hashed, kept and compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use karta_types::policy::Recipe;
use karta_types::release::{Changed, HarnessPin};
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::hash::{Hash, Hasher};
use crate::names::{Names, Rule};

/// One entry of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Entry {
    /// A file.
    File {
        /// Its content.
        hash: Hash,
        /// Its length in bytes.
        size: u64,
        /// Whether it can be run.
        executable: bool,
    },
    /// A symbolic link, which stays in the release.
    Link {
        /// Where it leads, from the folder it lies in.
        target: String,
    },
}

impl Entry {
    /// Adds the entry of a path to a digest: its kind and its content.
    pub(crate) fn put(&self, path: &str, to: &mut Hasher) {
        to.field(path.as_bytes());
        match self {
            Self::Link { target } => {
                to.field(b"link");
                to.field(target.as_bytes());
            }
            Self::File { hash, executable, .. } => {
                to.field(if *executable { b"exec" } else { b"file" });
                to.field(hash.as_bytes());
            }
        }
    }
}

/// A release's files by path from its root, sorted. Paths are relative, UTF-8, with `/`; every list there is keeps the rules of
/// [`Rule`]. Its JSON is an object of entries by path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Files(BTreeMap<String, Entry>);

impl Files {
    /// The digest over all paths, kinds and contents: the same files have the same on every machine.
    pub fn digest(&self) -> Hash {
        let mut all = Hasher::new();
        all.field(b"karta files 1");
        for (path, entry) in self.iter() {
            entry.put(path, &mut all);
        }
        all.finish()
    }

    /// The contents, each once.
    pub fn hashes(&self) -> BTreeSet<Hash> {
        self.contents().map(|(hash, _)| hash).collect()
    }

    /// How many bytes the files are together.
    pub fn bytes(&self) -> u64 {
        self.contents().fold(0, |sum, (_, size)| sum.saturating_add(size))
    }

    fn contents(&self) -> impl Iterator<Item = (Hash, u64)> {
        self.0.values().filter_map(|entry| match entry {
            Entry::File { hash, size, .. } => Some((*hash, *size)),
            Entry::Link { .. } => None,
        })
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All entries, sorted by path.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.0.iter().map(|(path, entry)| (path.as_str(), entry))
    }

    /// The entry of a path.
    pub fn get(&self, path: &str) -> Option<&Entry> {
        self.0.get(path)
    }

    /// The entry of a path, with the path as it is kept here.
    pub(crate) fn find(&self, path: &str) -> Option<(&str, &Entry)> {
        self.0.get_key_value(path).map(|(path, entry)| (path.as_str(), entry))
    }

    /// The paths below a folder, given with its slash; all for an empty one.
    pub(crate) fn under<'a>(&'a self, folder: &'a str) -> impl Iterator<Item = &'a str> {
        let from = self.0.range::<str, _>((std::ops::Bound::Included(folder), std::ops::Bound::Unbounded));
        from.map(|(path, _)| path.as_str()).take_while(move |path| path.starts_with(folder))
    }

    /// What is another way in `newer`.
    pub fn diff(&self, newer: &Self) -> Changed {
        let missing = |from: &Self, to: &Self| -> Vec<String> {
            from.0.keys().filter(|path| !to.0.contains_key(*path)).cloned().collect()
        };
        let changed = |(path, entry): (&String, &Entry)| {
            let other = newer.0.get(path)?;
            let same = match (entry, other) {
                (Entry::File { hash, executable, .. }, Entry::File { hash: new, executable: now, .. }) => {
                    hash == new && executable == now
                }
                _ => entry == other,
            };
            (!same).then(|| path.clone())
        };
        Changed {
            added: missing(newer, self),
            removed: missing(self, newer),
            changed: self.0.iter().filter_map(changed).collect(),
        }
    }
}

/// Entries on their way to become [`Files`]: each keeps the rules, or is refused.
#[derive(Default)]
pub(crate) struct Collected {
    files: Files,
    names: Names,
}

impl Collected {
    /// Takes an entry.
    pub(crate) fn take(&mut self, path: &str, entry: Entry) -> Result<(), Rule> {
        match &entry {
            Entry::File { .. } => self.names.file(path)?,
            Entry::Link { target } => self.names.link(path, target)?,
        }
        self.files.0.insert(path.to_owned(), entry);
        Ok(())
    }

    /// Whether a file of this path could be taken; if so, its name is.
    pub(crate) fn name_file(&mut self, path: &str) -> Result<(), Rule> {
        self.names.file(path)
    }

    /// Takes a folder's name.
    pub(crate) fn name_folder(&mut self, path: &str) -> Result<(), Rule> {
        self.names.folder(path)
    }

    /// Adds the file whose name was taken before.
    pub(crate) fn named(&mut self, path: String, entry: Entry) {
        self.files.0.insert(path, entry);
    }

    /// All of them.
    pub(crate) fn into_files(self) -> Files {
        self.files
    }
}

impl<'de> Deserialize<'de> for Files {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Listing;

        impl<'de> Visitor<'de> for Listing {
            type Value = Files;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of entries by path")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Files, A::Error> {
                let mut collected = Collected::default();
                while let Some((path, entry)) = map.next_entry::<String, Entry>()? {
                    collected
                        .take(&path, entry)
                        .map_err(|rule| A::Error::custom(format!("`{}`: {rule}", path.escape_debug())))?;
                }
                Ok(collected.into_files())
            }
        }

        deserializer.deserialize_map(Listing)
    }
}

/// The digest of a release: of its files and of what they run on. Two releases with the same digest can't be told apart by what
/// their sessions do.
pub fn release_digest(files: &Files, pin: &HarnessPin, image: &str, recipe: &Recipe) -> Hash {
    let mut all = Hasher::new();
    all.field(b"karta release 1");
    all.field(files.digest().as_bytes());
    all.field(pin.kind.as_bytes());
    all.field(pin.version.as_bytes());
    all.field(image.as_bytes());
    // Plain texts, numbers and lists, and names that are texts: nothing of it can fail to be JSON.
    all.field(&serde_json::to_vec(recipe).unwrap_or_default());
    all.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &str, executable: bool) -> Entry {
        Entry::File { hash: Hash::of(content.as_bytes()), size: content.len() as u64, executable }
    }

    fn files(entries: &[(&str, Entry)]) -> Files {
        let mut collected = Collected::default();
        for (path, entry) in entries {
            collected.take(path, entry.clone()).unwrap();
        }
        collected.into_files()
    }

    fn link(target: &str) -> Entry {
        Entry::Link { target: target.to_owned() }
    }

    #[test]
    fn every_difference_makes_another_digest() {
        let all = [
            files(&[]),
            files(&[("a", file("x", false))]),
            files(&[("a", file("x", true))]),
            files(&[("a", file("y", false))]),
            files(&[("b", file("x", false))]),
            files(&[("a", link("x"))]),
            files(&[("a", file("x", false)), ("b", file("x", false))]),
        ];
        let digests: BTreeSet<_> = all.iter().map(Files::digest).collect();
        assert_eq!(digests.len(), all.len());

        let pin = HarnessPin { kind: "scripted".into(), version: "1".into() };
        let other = HarnessPin { version: "2".into(), ..pin.clone() };
        let mut recipe = Recipe::default();
        let one = release_digest(&all[0], &pin, "", &recipe);
        assert_eq!(one, release_digest(&all[0], &pin, "", &recipe));
        assert_ne!(one, release_digest(&all[1], &pin, "", &recipe));
        assert_ne!(one, release_digest(&all[0], &other, "", &recipe));
        assert_ne!(one, release_digest(&all[0], &pin, "image", &recipe));
        recipe.policy.hooks = false;
        assert_ne!(one, release_digest(&all[0], &pin, "", &recipe));
    }

    #[test]
    fn the_digest_is_the_one_that_was_kept() {
        // Stored releases are known by it: it never changes for the same files.
        let one = files(&[("a/b", file("x", true)), ("l", link("a/b"))]);
        assert_eq!(
            one.digest().to_string(),
            "191b38a54a0db57e21d5f0d549c7f0fd7f885c2e182b84ced98c0e5b86bf8f51"
        );
    }

    #[test]
    fn a_diff_names_what_changed() {
        let old = files(&[
            ("a", file("1", false)),
            ("b", file("1", false)),
            ("c", link("a")),
            ("d", file("1", false)),
        ]);
        let new = files(&[
            ("a", file("1", false)),
            ("b", file("1", true)),
            ("c", file("1", false)),
            ("e", file("1", false)),
        ]);
        let diff = old.diff(&new);
        assert_eq!(
            (diff.added, diff.removed, diff.changed),
            (vec!["e".into()], vec!["d".into()], vec!["b".into(), "c".into()])
        );
        assert!(old.diff(&old).is_empty());
    }

    #[test]
    fn a_listing_is_read_as_it_is_written_and_keeps_the_rules() {
        let one = files(&[("a/b", file("x", true)), ("l", link("a/b"))]);
        let json = serde_json::to_string(&one).unwrap();
        assert_eq!(serde_json::from_str::<Files>(&json).unwrap(), one);
        assert_eq!((one.len(), one.bytes(), one.hashes().len()), (2, 1, 1));
        let hash = Hash::of(b"");
        let entry = format!(r#"{{"file":{{"hash":"{hash}","size":0,"executable":false}}}}"#);
        for bad in [
            format!(r#"{{"../a":{entry}}}"#),
            format!(r#"{{"a":{entry},"a":{entry}}}"#),
            format!(r#"{{"a":{entry},"A":{entry}}}"#),
            format!(r#"{{"a":{entry},"a/b":{entry}}}"#),
            r#"{"a":{"link":{"target":"/etc/passwd"}}}"#.to_owned(),
            r#"{"a":{"link":{"target":"b","more":1}}}"#.to_owned(),
            "[]".to_owned(),
        ] {
            assert!(serde_json::from_str::<Files>(&bad).is_err(), "{bad}");
        }
    }
}
