//! The real git client, in a working tree of its own.

use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::support::{App, PATIENCE};

/// A working tree, with nothing of this machine's configuration.
pub(crate) struct Work {
    pub(crate) folder: TempDir,
}

/// How a git command ended, and everything that it printed.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) well: bool,
    pub(crate) said: String,
}

impl Work {
    /// A tree without a commit, on `main`.
    pub(crate) async fn new() -> Self {
        let work = Self { folder: tempfile::tempdir().unwrap() };
        work.git(&["init", "--quiet", "--initial-branch=main"]).await;
        work
    }

    /// git in this tree, not started.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("git");
        command.args(args).current_dir(self.folder.path()).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", self.folder.path());
        command.envs([
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("LC_ALL", "C"),
            ("GIT_AUTHOR_NAME", "Ann"),
            ("GIT_AUTHOR_EMAIL", "ann@example.com"),
            ("GIT_COMMITTER_NAME", "Ann"),
            ("GIT_COMMITTER_EMAIL", "ann@example.com"),
            ("GIT_AUTHOR_DATE", "2026-01-01T00:00:00Z"),
            ("GIT_COMMITTER_DATE", "2026-01-01T00:00:00Z"),
        ]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// git, however it ends.
    pub(crate) async fn try_git(&self, args: &[&str]) -> Ended {
        let output = tokio::time::timeout(PATIENCE, self.command(args).output()).await.unwrap().unwrap();
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        Ended { well: output.status.success(), said }
    }

    /// git, which ends well.
    pub(crate) async fn git(&self, args: &[&str]) -> String {
        let ended = self.try_git(args).await;
        assert!(ended.well, "git {args:?}: {}", ended.said);
        ended.said.trim().to_owned()
    }

    /// git, which reads this and ends well.
    pub(crate) async fn git_with(&self, args: &[&str], input: &[u8]) -> String {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).await.unwrap();
        let output = child.wait_with_output().await.unwrap();
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Writes a file.
    pub(crate) fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// Commits everything. Answers the commit.
    pub(crate) async fn commit(&self, message: &str) -> String {
        self.git(&["add", "--all"]).await;
        self.git(&["commit", "--quiet", "--allow-empty", "--message", message]).await;
        self.git(&["rev-parse", "HEAD"]).await
    }

    /// A commit of a tree that was put together by hand.
    pub(crate) async fn commit_tree(&self, tree: &str) -> String {
        self.git(&["commit-tree", tree, "-m", "by hand"]).await
    }

    /// The remote `karta` of a project, with a key as the password.
    pub(crate) async fn remote(&self, app: &App, project: &str, key: &str) {
        let url = app.url.replace("http://", &format!("http://karta:{key}@"));
        // One that is there already is another's.
        self.try_git(&["remote", "remove", "karta"]).await;
        self.git(&["remote", "add", "karta", &format!("{url}/git/{project}.git")]).await;
    }

    /// Pushes to it.
    pub(crate) async fn push(&self, refspecs: &[&str]) -> Ended {
        let args: Vec<_> = ["push", "karta"].into_iter().chain(refspecs.iter().copied()).collect();
        self.try_git(&args).await
    }
}

/// A project's repository on the server.
pub(crate) struct Kept(std::path::PathBuf);

/// The repository of a project that was pushed to.
pub(crate) async fn repository(app: &App, project: &str) -> Kept {
    let id = app.get(&format!("/v1/projects/{project}")).await["id"].as_str().unwrap().to_owned();
    Kept(folder(app).join(format!("{id}.git")))
}

impl Kept {
    async fn git(&self, args: &[&str]) -> Option<String> {
        let mut command = Command::new("git");
        command.arg("--git-dir").arg(&self.0).args(args).env("GIT_CONFIG_GLOBAL", "/dev/null");
        let output = command.stdin(Stdio::null()).output().await.unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
    }

    /// Where a branch is.
    pub(crate) async fn head(&self, branch: &str) -> Option<String> {
        self.git(&["rev-parse", "--verify", "--quiet", &format!("refs/heads/{branch}")]).await
    }

    /// Whether an object is there.
    pub(crate) async fn has(&self, object: &str) -> bool {
        self.git(&["cat-file", "-e", object]).await.is_some()
    }

    /// What a push leaves if it is not ended well: a quarantine, a half pack, a lock.
    pub(crate) fn litter(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![self.0.clone()];
        while let Some(folder) = folders.pop() {
            // One that goes while we look is no litter.
            let Ok(entries) = std::fs::read_dir(&folder) else { continue };
            for entry in entries.flatten() {
                let name = entry.file_name().into_string().unwrap();
                let lock = entry.path().extension().is_some_and(|end| end == "lock");
                let litter = lock || name.contains("tmp_") || name.contains("incoming");
                if litter {
                    found.push(name);
                } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    folders.push(entry.path());
                }
            }
        }
        found
    }
}

/// The refs that are kept of a project, once nothing half-done is beside them.
pub(crate) async fn kept(app: &App, project: &str) -> Vec<String> {
    let kept = repository(app, project).await;
    let new = folder(app).join("new");
    // Who was cut off does not see the server clean up: it comes a moment later.
    let clean =
        || kept.litter().is_empty() && std::fs::read_dir(&new).map_or(true, |mut new| new.next().is_none());
    until(|| clean().then_some(())).await;
    kept.git(&["for-each-ref", "--format=%(refname)"]).await.unwrap().lines().map(str::to_owned).collect()
}

fn folder(app: &App) -> std::path::PathBuf {
    app.data.path().join("data").join("git")
}

/// The processes that work in the server's repositories, by their numbers.
pub(crate) fn processes_in(app: &App) -> Vec<u32> {
    let folder = folder(app);
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(number) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        // One that ended meanwhile has no folder.
        if std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(&folder)) {
            found.push(number);
        }
    }
    found
}

/// Waits for something that comes without a word: looks again and again.
pub(crate) async fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    tokio::time::timeout(PATIENCE, async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("it comes")
}
