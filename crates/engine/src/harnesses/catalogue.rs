//! What is installed, and where its program is.

use std::path::{Path, PathBuf};

use karta_harness::{Harness, Package, registry};
use serde::{Deserialize, Serialize};

use super::npm::Npm;

/// The file in each installed version that says what it is. It is written last, so where it is, the rest is.
pub(super) const RECORD: &str = "installed.json";

/// The folder of installed harnesses.
#[derive(Clone)]
pub struct Harnesses {
    pub(super) root: PathBuf,
    pub(super) npm: Npm,
    pub(super) known: &'static [&'static dyn Harness],
}

impl std::fmt::Debug for Harnesses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Harnesses").field("root", &self.root).finish_non_exhaustive()
    }
}

/// A program that can be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// The program.
    pub program: PathBuf,
    /// Its exact version.
    pub version: String,
    /// The folder that holds it, and everything that it needs.
    pub folder: PathBuf,
}

/// Why there is no program; the text says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// It can be installed, but isn't.
    #[error("{id} {version} is not installed; run `karta harness install {id}@{version}`")]
    NotInstalled {
        /// The harness.
        id: &'static str,
        /// The version that was wanted.
        version: String,
    },
    /// What stands where the version belongs is not a version.
    #[error("`{version}` is not an exact version of {id}; write it like `{id}@{default}`")]
    Version {
        /// The harness.
        id: &'static str,
        /// What was given.
        version: String,
        /// The version that is used when nobody says another.
        default: &'static str,
    },
    /// The harness is part of Karta and has no program of its own.
    #[error("{0} is built in and needs no installation")]
    BuiltIn(&'static str),
}

/// What is known of one installed version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The version.
    pub version: String,
    /// The package that was fetched.
    pub package: String,
    /// The program, from the version's folder.
    pub program: PathBuf,
    /// The package's integrity: what npm checked the download against.
    pub integrity: String,
    /// Whether that integrity is the one this Karta was built with. Otherwise it is the registry's word alone.
    pub pinned: bool,
}

/// An installed version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Version {
    /// What it is.
    #[serde(flatten)]
    pub record: Record,
    /// Bytes on disk.
    pub size: u64,
}

/// How a harness stands here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Its id.
    pub id: &'static str,
    /// The version that is used when nobody says another.
    pub default_version: &'static str,
    /// What is installed, newest name last.
    pub installed: Vec<Version>,
    /// The licence people accept by installing it.
    pub licence: &'static str,
    /// Whether there is a pinned package for this machine.
    pub available: bool,
}

impl Harnesses {
    /// The harnesses under `root` (`<data>/harnesses`), which need not exist yet. npm is looked for on `PATH`.
    pub fn new(root: PathBuf) -> Self {
        Self { root, npm: Npm::from_path(), known: registry::ALL }
    }

    /// With another npm.
    #[must_use]
    pub fn with_npm(mut self, npm: Npm) -> Self {
        self.npm = npm;
        self
    }

    /// With other harnesses than the registry's.
    #[must_use]
    pub const fn with_known(mut self, known: &'static [&'static dyn Harness]) -> Self {
        self.known = known;
        self
    }

    /// The program of `harness` in `version`, or in its default version.
    ///
    /// # Errors
    /// Why there is none; the text names the command that installs it.
    pub fn program(&self, harness: &dyn Harness, version: Option<&str>) -> Result<Installed, Missing> {
        let id = harness.id();
        let package = harness.package().ok_or(Missing::BuiltIn(id))?;
        let version = version.unwrap_or(package.default_version);
        if !is_version(version) {
            let default = package.default_version;
            return Err(Missing::Version { id, version: version.to_owned(), default });
        }
        self.installed(id, version).ok_or_else(|| Missing::NotInstalled { id, version: version.to_owned() })
    }

    /// Every harness that can be installed, and what is.
    pub fn list(&self) -> Vec<Status> {
        let packaged = self.known.iter().filter_map(|harness| Some((harness.id(), harness.package()?)));
        packaged.map(|(id, package)| self.status(id, package)).collect()
    }

    /// The versions of a harness that are installed.
    pub fn versions(&self, id: &str) -> Vec<String> {
        entries(&self.home(id)).filter_map(|folder| Some(read(&folder)?.version)).collect()
    }

    fn status(&self, id: &'static str, package: &'static Package) -> Status {
        let mut installed: Vec<_> = entries(&self.home(id))
            .filter_map(|folder| {
                let record = read(&folder)?;
                Some(Version { size: size(&folder), record })
            })
            .collect();
        installed.sort_by_key(|version: &Version| order(&version.record.version));
        Status {
            id,
            default_version: package.default_version,
            installed,
            licence: package.licence,
            available: package.here().is_some(),
        }
    }

    /// The program, if the version is there whole.
    pub(super) fn installed(&self, id: &str, version: &str) -> Option<Installed> {
        let folder = self.home(id).join(version);
        let record = read(&folder)?;
        let program = folder.join(&record.program);
        (record.version == version && program.is_file()).then(|| Installed {
            program,
            version: version.to_owned(),
            folder,
        })
    }

    /// Where the versions of a harness lie.
    pub(super) fn home(&self, id: &str) -> PathBuf {
        self.root.join(id)
    }
}

/// Whether this is an exact version and can be the name of a folder: no range, no tag, no path.
pub(super) fn is_version(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'+');
    text.len() <= 64
        && text.starts_with(|first: char| first.is_ascii_digit())
        && text.bytes().all(plain)
        && text.split(['-', '+']).next().is_some_and(|numbers| {
            let mut numbers = numbers.split('.');
            numbers.clone().count() == 3 && numbers.all(|number| number.parse::<u64>().is_ok())
        })
}

pub(super) fn read(folder: &Path) -> Option<Record> {
    serde_json::from_slice(&std::fs::read(folder.join(RECORD)).ok()?).ok()
}

/// Sorts versions by their numbers.
fn order(version: &str) -> (Vec<u64>, String) {
    (version.split(['.', '-', '+']).map_while(|number| number.parse().ok()).collect(), version.to_owned())
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn size(path: &Path) -> u64 {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => entries(path).map(|entry| size(&entry)).sum(),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_versions_and_nothing_else() {
        for good in ["2.1.330", "0.0.1", "1.2.3-rc.1", "1.2.3+build"] {
            assert!(is_version(good), "{good}");
        }
        for bad in ["", "latest", "^1.2.3", "1.2", "1.2.x", "1.2.3/../..", "../1.2.3", "1.2.3 ", "-1.2.3"] {
            assert!(!is_version(bad), "{bad}");
        }
    }

    #[test]
    fn versions_sort_by_number() {
        let mut versions = ["2.1.330", "2.1.9", "10.0.0", "2.1.330-rc"];
        versions.sort_by_key(|version| order(version));
        assert_eq!(versions, ["2.1.9", "2.1.330", "2.1.330-rc", "10.0.0"]);
    }
}
