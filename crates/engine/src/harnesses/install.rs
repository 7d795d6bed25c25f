//! Installing: one version, whole or not at all, by one installer at a time.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use karta_harness::{Harness, Package};
use serde_json::json;

use super::catalogue::{Harnesses, Installed, Missing, RECORD, Record, is_version};
use super::npm;

/// How an installation gets on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Another installer is at work on the same harness.
    Waiting,
    /// npm fetches and checks the package.
    Fetching,
    /// The program is tried.
    Trying,
}

/// Why an installation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such harness.
    #[error("there is no harness `{id}`; there are: {known}")]
    Unknown {
        /// What was asked for.
        id: String,
        /// What there is, comma-separated.
        known: String,
    },
    /// Nothing to install, or no version.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// The harness's makers publish nothing for this machine, or none is pinned.
    #[error("{id} has no package for this machine ({})", std::env::consts::ARCH)]
    NotHere {
        /// The harness.
        id: &'static str,
    },
    /// There is no npm.
    #[error(
        "npm was not found on PATH; harnesses are installed by it. Install Node.js 20 or newer, which brings npm \
         (`apt-get install npm`, `brew install node`, or https://nodejs.org), and try again"
    )]
    NoNpm,
    /// npm or the program it installed failed.
    #[error("{doing}: {said}")]
    Npm {
        /// What was being done.
        doing: String,
        /// What it printed.
        said: String,
    },
    /// What was installed is not what was wanted.
    #[error("{program} should be version {version}: {reason}")]
    NotWhatItShouldBe {
        /// The program.
        program: PathBuf,
        /// The version wanted.
        version: String,
        /// What it is instead.
        reason: String,
    },
    /// The data directory.
    #[error("{doing} `{path}`")]
    File {
        /// What was being done.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    pub(super) fn file(doing: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::File { doing, path: path.to_owned(), source }
    }
}

/// Held while installing; let go when dropped, and by the kernel when the process ends however.
struct Lock(#[expect(dead_code, reason = "held, not read")] File);

impl Harnesses {
    /// Installs the harness `id` in `version`, or in its pinned default version. What is there already is left as it is.
    ///
    /// # Errors
    /// Why not; nothing is left behind that counts as installed.
    pub async fn install(
        &self,
        id: &str,
        version: Option<&str>,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Installed, Error> {
        let harness = self.find(id)?;
        let package = harness.package().ok_or_else(|| Missing::BuiltIn(harness.id()))?;
        let version = version.unwrap_or(package.default_version).to_owned();
        if !is_version(&version) {
            let (id, default) = (harness.id(), package.default_version);
            return Err(Missing::Version { id, version, default }.into());
        }
        let home = self.home(harness.id());
        tokio::fs::create_dir_all(&home).await.map_err(|why| Error::file("making", &home, why))?;
        let _lock = lock(&home, progress).await?;
        if let Some(installed) = self.installed(harness.id(), &version) {
            return Ok(installed);
        }
        // Under the lock nobody else is at work here: what stands there was left by one that was killed.
        let partial = home.join(".partial");
        clear(&partial).await?;
        let done = self.put_together(harness.id(), package, &version, &partial, progress).await;
        let moved = match done {
            Ok(()) => move_in(&partial, &home.join(&version)).await,
            Err(error) => Err(error),
        };
        if let Err(error) = moved {
            // The first error is the one to tell.
            let _ = clear(&partial).await;
            return Err(error);
        }
        let id = harness.id();
        self.installed(id, &version).ok_or(Error::Missing(Missing::NotInstalled { id, version }))
    }

    pub(super) fn find(&self, id: &str) -> Result<&'static dyn Harness, Error> {
        self.known.iter().copied().find(|harness| harness.id() == id).ok_or_else(|| {
            let known: Vec<_> = self.known.iter().map(|harness| harness.id()).collect();
            Error::Unknown { id: id.to_owned(), known: known.join(", ") }
        })
    }

    async fn put_together(
        &self,
        id: &'static str,
        package: &Package,
        version: &str,
        partial: &Path,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<(), Error> {
        let here = package.here().ok_or(Error::NotHere { id })?;
        let trial = partial.join("trial");
        tokio::fs::create_dir_all(&trial).await.map_err(|why| Error::file("making", &trial, why))?;
        progress(Progress::Fetching);
        let pinned = version == package.default_version;
        let integrity = if pinned {
            self.npm.install_pinned(partial, here.name, version, here.integrity).await?;
            here.integrity.to_owned()
        } else {
            self.npm.install_unpinned(partial, here.name, version).await?
        };
        progress(Progress::Trying);
        let program = Path::new("node_modules").join(here.name).join(here.program);
        try_out(&partial.join(&program), version, &trial).await?;
        clear(&trial).await?;
        let record =
            Record { version: version.to_owned(), package: here.name.to_owned(), program, integrity, pinned };
        npm::write(&partial.join(RECORD), &json!(record)).await
    }
}

/// The program starts, and is the version it should be.
pub(super) async fn try_out(program: &Path, version: &str, home: &Path) -> Result<(), Error> {
    let wrong = |reason: String| Error::NotWhatItShouldBe {
        program: program.to_owned(),
        version: version.to_owned(),
        reason,
    };
    if !program.is_file() {
        return Err(wrong("there is no such file in the package".to_owned()));
    }
    let printed = npm::version_of(program, home).await?;
    if printed.split_whitespace().any(|word| word.trim_start_matches('v') == version) {
        return Ok(());
    }
    let printed: String = printed.trim().chars().take(200).collect();
    Err(wrong(format!("`--version` printed {printed:?}")))
}

/// Waits for other installers, in this process and in others.
async fn lock(home: &Path, progress: &(dyn Fn(Progress) + Send + Sync)) -> Result<Lock, Error> {
    let path = home.join(".lock");
    let open = File::options().create(true).truncate(false).write(true).open(&path);
    let file = Arc::new(open.map_err(|why| Error::file("opening", &path, why))?);
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            progress(Progress::Waiting);
            let waiting = Arc::clone(&file);
            let locked = tokio::task::spawn_blocking(move || waiting.lock()).await;
            locked
                .map_err(std::io::Error::other)
                .flatten()
                .map_err(|why| Error::file("locking", &path, why))?;
        }
        Err(TryLockError::Error(why)) => return Err(Error::file("locking", &path, why)),
    }
    let file = Arc::try_unwrap(file).or_else(|file| file.try_clone());
    file.map(Lock).map_err(|why| Error::file("locking", &path, why))
}

async fn move_in(partial: &Path, place: &Path) -> Result<(), Error> {
    // What stands there has no record or no program, so it is no installation.
    clear(place).await?;
    tokio::fs::rename(partial, place).await.map_err(|why| Error::file("making", place, why))
}

async fn clear(folder: &Path) -> Result<(), Error> {
    match tokio::fs::remove_dir_all(folder).await {
        Err(why) if why.kind() != std::io::ErrorKind::NotFound => Err(Error::file("clearing", folder, why)),
        _ => Ok(()),
    }
}
