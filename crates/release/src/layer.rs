//! What a setup makes of a release's files, taken over by the next release with the same inputs.

use std::collections::BTreeSet;

use karta_types::policy::Recipe;
use karta_types::release::HarnessPin;

use crate::files::{Collected, Entry, Files};
use crate::folder;
use crate::hash::{Hash, Hasher};

/// The digest of everything that the result of a setup depends on: the script, what it runs on and sees, and the files that `inputs` names
/// (patterns of `.gitignore`; none is all files).
///
/// # Errors
/// A pattern that can't be read.
pub fn inputs_digest(
    files: &Files,
    pin: &HarnessPin,
    image: &str,
    recipe: &Recipe,
) -> Result<Hash, folder::Error> {
    let build = &recipe.build;
    let patterns = folder::matcher("the build's inputs", build.inputs.iter().map(String::as_str))?;
    let mut all = Hasher::new();
    for field in ["karta setup 1", &pin.kind, &pin.version, image, build.setup.as_deref().unwrap_or_default()]
    {
        all.field(field.as_bytes());
    }
    for host in &build.egress {
        all.field(host.as_bytes());
    }
    for (name, value) in &recipe.env {
        all.field(name.as_bytes());
        all.field(value.as_bytes());
    }
    all.field(b"inputs");
    let named =
        |path: &str| build.inputs.is_empty() || patterns.matched_path_or_any_parents(path, false).is_ignore();
    for (path, entry) in files.iter().filter(|(path, _)| named(path)) {
        entry.put(path, &mut all);
    }
    Ok(all.finish())
}

impl Files {
    /// These files with what changed from `before` to `after`: what was added or changed there is as there, what was removed is not here.
    ///
    /// # Errors
    /// The two don't go together: a file would lie where a folder is, or under another file.
    pub fn with_changes(&self, before: &Self, after: &Self) -> Result<Self, folder::Error> {
        let changed = before.diff(after);
        let mut collected = Collected::default();
        let mut take = |path: &str, entry: &Entry| {
            collected
                .take(path, entry.clone())
                .map_err(|rule| folder::Error::Refused { path: path.to_owned(), rule })
        };
        let other: BTreeSet<&str> = [&changed.added, &changed.changed, &changed.removed]
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect();
        for (path, entry) in self.iter().filter(|(path, _)| !other.contains(path)) {
            take(path, entry)?;
        }
        for path in changed.added.iter().chain(&changed.changed) {
            if let Some(entry) = after.get(path) {
                take(path, entry)?;
            }
        }
        Ok(collected.into_files())
    }
}

#[cfg(test)]
mod tests {
    use karta_types::policy::Build;

    use super::*;

    fn files(list: &[(&str, &str)]) -> Files {
        let entry = |content: &str| Entry::File {
            hash: Hash::of(content.as_bytes()),
            size: content.len() as u64,
            executable: false,
        };
        let mut collected = Collected::default();
        for (path, content) in list {
            collected.take(path, entry(content)).unwrap();
        }
        collected.into_files()
    }

    fn pin() -> HarnessPin {
        HarnessPin { kind: "scripted".into(), version: "1".into() }
    }

    #[test]
    fn only_the_inputs_count() {
        let one = files(&[("package.json", "1"), ("CLAUDE.md", "a")]);
        let other = files(&[("package.json", "1"), ("CLAUDE.md", "b")]);
        let new = files(&[("package.json", "2"), ("CLAUDE.md", "b")]);
        let digest = |files: &Files, inputs: &[&str]| {
            let build = Build {
                setup: Some("npm ci".into()),
                inputs: inputs.iter().map(|one| (*one).to_owned()).collect(),
                egress: Vec::new(),
            };
            let recipe = Recipe { build, ..Recipe::default() };
            inputs_digest(files, &pin(), "", &recipe).unwrap()
        };
        assert_eq!(digest(&one, &["package*.json"]), digest(&other, &["package*.json"]));
        assert_ne!(digest(&one, &["package*.json"]), digest(&new, &["package*.json"]));
        assert_ne!(digest(&one, &[]), digest(&other, &[]), "without a word all files are inputs");
    }

    #[test]
    fn what_a_setup_changed_is_laid_over_other_files() {
        let before = files(&[("a", "1"), ("b", "1"), ("gone", "1")]);
        let after = files(&[("a", "1"), ("b", "2"), ("made/x", "3")]);
        let next = files(&[("a", "new"), ("b", "1"), ("gone", "1"), ("c", "new")]);
        let made = next.with_changes(&before, &after).unwrap();
        assert_eq!(made, files(&[("a", "new"), ("b", "2"), ("c", "new"), ("made/x", "3")]));
        let clash = files(&[("made", "a file")]);
        assert!(clash.with_changes(&before, &after).is_err());
    }
}
