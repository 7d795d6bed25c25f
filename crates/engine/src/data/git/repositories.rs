//! The folders: one bare repository for each project that was pushed to, each used by one push at a time.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use karta_types::{ErrorCode, OrgId, ProjectId, Rng};
use rustix::fs::{Access, access};
use tokio::sync::{OnceCell, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};

use super::hook;
use super::program::Git;
use crate::data::releases::Publishing;
use crate::{Error, Result};

/// What is known of every tree, whatever its own `.gitattributes` say: nothing is hidden from an archive, nothing in it is replaced, no
/// line end is changed. This file of a repository's own wins over all others.
const ATTRIBUTES: &str =
    "* -export-ignore -export-subst -text !eol -ident -filter !working-tree-encoding -diff -merge\n";

/// How long packing may take. What it leaves when it is stopped goes before the next push.
const PACKING: Duration = Duration::from_mins(10);

/// Every repository, below one folder.
#[derive(Debug)]
pub(crate) struct Repositories {
    root: PathBuf,
    git: OnceCell<Git>,
    pushing: Publishing,
    places: Mutex<HashMap<OrgId, Weak<Semaphore>>>,
    at_once: usize,
}

/// The right to push to one project: nobody else does meanwhile.
#[derive(Debug)]
pub(super) struct Turn(
    #[expect(dead_code, reason = "held, not read")] OwnedMutexGuard<()>,
    #[expect(dead_code, reason = "held, not read")] Option<OwnedSemaphorePermit>,
);

/// A bare repository.
#[derive(Debug, Clone)]
pub(super) struct Repository {
    /// Its folder.
    pub(super) path: PathBuf,
    /// git, to work on it.
    pub(super) git: Git,
}

impl Repositories {
    /// Those below `root`, with so many pushes of one organisation at once.
    pub(crate) fn new(root: PathBuf, at_once: usize) -> Self {
        Self {
            root,
            git: OnceCell::new(),
            pushing: Publishing::default(),
            places: Mutex::default(),
            at_once: at_once.max(1),
        }
    }

    /// The folder that holds the hook.
    pub(super) fn hooks(&self) -> PathBuf {
        self.root.join("hooks")
    }

    /// git, with its configuration and the hook in place.
    ///
    /// # Errors
    /// There is no git, or the data directory can't hold what it needs.
    pub(super) async fn git(&self) -> Result<&Git> {
        let git = self.git.get_or_try_init(|| async {
            let home = self.root.join("home");
            let git = Git::find(&home)?;
            let (root, hooks) = (self.root.clone(), self.hooks());
            blocking("preparing the git folder", move || {
                std::fs::create_dir_all(&home)?;
                Git::configure(&home)?;
                hook::write(&hooks)?;
                // First pushes that a crash cut off.
                remove(&root.join("new"))
            })
            .await?;
            Ok::<_, Error>(git)
        });
        let git = git.await?;
        // git passes over a hook that it may not run, and takes what is pushed as it comes.
        if access(hook::path(&self.hooks()), Access::EXEC_OK).is_err() {
            return Err(Error::told(
                ErrorCode::IsolationUnavailable,
                format!(
                    "programs can't be run in `{}`: mount the data directory without `noexec` for `git push` to work",
                    self.root.display()
                ),
            ));
        }
        Ok(git)
    }

    /// Waits until nobody else pushes to the project, and for a place among the organisation's pushes at once. One that is slow to send
    /// what it pushes is in nobody else's way.
    pub(super) async fn turn(&self, org: OrgId, slug: &str) -> Turn {
        let alone = self.pushing.of(org, slug).lock_owned().await;
        // It is never closed.
        let place = self.places_of(org).acquire_owned().await.ok();
        Turn(alone, place)
    }

    /// The same for a moment, if nobody has it.
    pub(super) fn turn_if_free(&self, org: OrgId, slug: &str) -> Option<Turn> {
        self.pushing.of(org, slug).try_lock_owned().ok().map(|alone| Turn(alone, None))
    }

    fn places_of(&self, org: OrgId) -> Arc<Semaphore> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = places.get(&org).and_then(Weak::upgrade) {
            return known;
        }
        places.retain(|_, known| known.strong_count() > 0);
        let fresh = Arc::new(Semaphore::new(self.at_once));
        places.insert(org, Arc::downgrade(&fresh));
        fresh
    }

    /// The project's repository, if it was ever pushed to.
    pub(super) async fn find(&self, project: ProjectId) -> Result<Option<Repository>> {
        let repository = self.at(self.root.join(format!("{project}.git"))).await?;
        Ok(repository.path.is_dir().then_some(repository))
    }

    /// The project's repository, made if there is none, in order. Only for whoever has its [`Turn`].
    pub(super) async fn of(&self, project: ProjectId, rng: &dyn Rng) -> Result<Repository> {
        if let Some(repository) = self.find(project).await? {
            repository.tidy().await?;
            return Ok(repository);
        }
        let fresh = self.fresh(rng).await?;
        self.adopt(fresh, project).await
    }

    /// One for a project that does not exist yet.
    pub(super) async fn fresh(&self, rng: &dyn Rng) -> Result<Repository> {
        self.make(self.root.join("new").join(format!("{:032x}.git", rng.next_u128()))).await
    }

    /// The one that stands for all that do not exist yet. Nothing is ever pushed to it.
    pub(super) async fn empty(&self, rng: &dyn Rng) -> Result<Repository> {
        let path = self.root.join("empty.git");
        if path.is_dir() {
            return self.at(path).await;
        }
        let fresh = self.fresh(rng).await?;
        let to = path.clone();
        blocking("naming a repository", move || match std::fs::rename(&fresh.path, &to) {
            // Two at once: the other was first, and this one goes with the next start's sweep.
            Err(_) if to.is_dir() => Ok(()),
            named => named,
        })
        .await?;
        self.at(path).await
    }

    /// Makes a fresh one the project's.
    pub(super) async fn adopt(&self, fresh: Repository, project: ProjectId) -> Result<Repository> {
        let path = self.root.join(format!("{project}.git"));
        let (from, to) = (fresh.path, path.clone());
        blocking("naming a repository", move || {
            remove(&to)?;
            std::fs::rename(&from, &to)
        })
        .await?;
        self.at(path).await
    }

    /// Lets go of a project's.
    pub(crate) async fn forget(&self, project: ProjectId) -> Result<()> {
        let path = self.root.join(format!("{project}.git"));
        blocking("removing a repository", move || remove(&path)).await
    }

    async fn at(&self, path: PathBuf) -> Result<Repository> {
        Ok(Repository { path, git: self.git().await?.clone() })
    }

    async fn make(&self, path: PathBuf) -> Result<Repository> {
        let repository = self.at(path.clone()).await?;
        let folder = path.clone();
        blocking("making a repository", move || std::fs::create_dir_all(&folder)).await?;
        let init = [
            "init",
            "--quiet",
            "--bare",
            "--template=",
            "--initial-branch=main",
            "--object-format=sha1",
            ".",
        ];
        repository.git.ask(&path, init, 1 << 10).await?;
        blocking("making a repository", move || {
            std::fs::create_dir_all(path.join("info"))?;
            std::fs::write(path.join("info").join("attributes"), ATTRIBUTES)
        })
        .await?;
        Ok(repository)
    }
}

impl Repository {
    /// Removes what a git that was killed left: its quarantine, half-written packs, locks. Only for whoever has its [`Turn`].
    pub(super) async fn tidy(&self) -> Result<()> {
        let path = self.path.clone();
        blocking("tidying a repository", move || {
            let objects = path.join("objects");
            for entry in std::fs::read_dir(&objects)? {
                let entry = entry?;
                let name = entry.file_name();
                let name = name.to_string_lossy();
                if name.starts_with("tmp_objdir-") || name.starts_with("incoming-") {
                    remove(&entry.path())?;
                }
            }
            remove_files(&objects.join("pack"), 0, &|name| {
                name.starts_with("tmp_") || name.starts_with(".tmp-")
            })?;
            remove_files(&path, 0, &|name| is_lock(name))?;
            remove_files(&path.join("refs"), DEEP, &|name| is_lock(name))
        })
        .await
    }

    /// Removes it.
    pub(super) async fn remove(self) -> Result<()> {
        blocking("removing a repository", move || remove(&self.path)).await
    }

    /// Packs what many pushes left, once there is enough of it.
    pub(super) async fn pack(&self) -> Result<()> {
        let command = self.git.command(&self.path, ["gc", "--auto", "--quiet"]);
        Git::output_within(command, 64 << 10, PACKING).await.map(drop)
    }
}

/// How deep branches' names may be nested.
const DEEP: usize = 64;

fn is_lock(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|end| end == "lock")
}

fn remove_files(folder: &Path, deep: usize, which: &dyn Fn(&str) -> bool) -> io::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if deep > 0 {
                remove_files(&entry.path(), deep - 1, which)?;
            }
        } else if which(&entry.file_name().to_string_lossy()) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Removes a folder that may not be there.
fn remove(folder: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

async fn blocking<T, F>(doing: &'static str, work: F) -> Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> io::Result<T> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(full)) if matches!(full.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
            Err(Error::told(ErrorCode::StorageFull, "the disk under the data directory is full"))
        }
        Ok(Err(why)) => Err(Error::internal(doing, why)),
        Err(panicked) => Err(Error::internal(doing, panicked)),
    }
}

/// These need git.
#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use karta_types::rng::System;

    use super::*;

    #[tokio::test]
    async fn what_a_killed_git_left_is_gone_before_the_next_push_and_nothing_else() {
        let data = tempfile::tempdir().unwrap();
        let repositories = Repositories::new(data.path().join("git"), 1);
        let project = ProjectId::from_u128(1);
        let repository = repositories.of(project, &System).await.unwrap();
        let litter = [
            "objects/tmp_objdir-incoming-x/pack/p.pack",
            "objects/incoming-y/a",
            "objects/pack/tmp_pack_1",
            "objects/pack/.tmp-2-pack-1.pack",
            "packed-refs.lock",
            "refs/heads/a/b.lock",
        ];
        let kept = ["objects/pack/pack-1.pack", "refs/heads/a/c", "config"];
        for path in litter.iter().chain(&kept) {
            let path = repository.path.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let again = repositories.of(project, &System).await.unwrap();
        assert_eq!(again.path, repository.path);
        for path in litter {
            assert!(!again.path.join(path).exists(), "{path}");
        }
        assert!(!again.path.join("objects/tmp_objdir-incoming-x").exists());
        for path in kept {
            assert!(again.path.join(path).exists(), "{path}");
        }
        repositories.forget(project).await.unwrap();
        assert!(repositories.find(project).await.unwrap().is_none());
        repositories.forget(project).await.unwrap();
    }

    #[tokio::test]
    async fn a_project_has_one_turn_an_organisation_some_and_no_other_waits() {
        let data = tempfile::tempdir().unwrap();
        let repositories = Repositories::new(data.path().to_owned(), 2);
        let (one, two) = (OrgId::from_u128(1), OrgId::from_u128(2));
        let first = repositories.turn(one, "a").await;
        assert!(repositories.turn(one, "a").now_or_never().is_none());
        assert!(repositories.turn_if_free(one, "a").is_none());
        let second = repositories.turn(one, "b").await;
        assert!(repositories.turn(one, "c").now_or_never().is_none());
        assert!(repositories.turn(two, "a").now_or_never().is_some());
        drop(first);
        assert!(repositories.turn(one, "a").now_or_never().is_some());
        drop(second);
    }
}
