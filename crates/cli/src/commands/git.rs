//! The person's own git: what is asked of it, and what of its configuration is changed, which is one repository's alone.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

/// The name of the remote.
pub(super) const REMOTE: &str = "karta";

/// A repository, as seen from a folder in it.
pub(super) struct Repository {
    folder: PathBuf,
    /// The top of its working copy.
    pub(super) top: PathBuf,
}

impl Repository {
    /// The repository that a folder is in; none where there is no git, too.
    pub(super) fn of(folder: &Path) -> Option<Self> {
        let top = ask(folder, &["rev-parse", "--show-toplevel"])?;
        Some(Self { folder: folder.to_owned(), top: PathBuf::from(top) })
    }

    /// The commit that is checked out, with `-dirty` if the folder has what was not committed.
    pub(super) fn commit(&self) -> Option<String> {
        let commit = ask(&self.folder, &["rev-parse", "--verify", "--quiet", "HEAD"])?;
        let changed = ask(&self.folder, &["status", "--porcelain", "--", "."]);
        let clean = changed.is_some_and(|changed| changed.is_empty());
        Some(if clean { commit } else { format!("{commit}-dirty") })
    }

    /// Where the remote leads, if it is there.
    pub(super) fn remote(&self) -> Option<String> {
        ask(&self.folder, &["config", "--get", &format!("remote.{REMOTE}.url")])
    }

    /// Adds the remote.
    pub(super) fn add_remote(&self, url: &str) -> anyhow::Result<()> {
        self.change(&["remote", "add", REMOTE, url])
    }

    /// Lets git ask `helper` for the key of a server, and nobody else: what other helpers keep is not theirs to keep. Whether
    /// that is new.
    pub(super) fn set_helper(&self, server: &str, helper: &str) -> anyhow::Result<bool> {
        let name = format!("credential.{server}.helper");
        let known = ask(&self.folder, &["config", "--local", "--get-all", &name]).unwrap_or_default();
        if known.lines().eq(["", helper]) {
            return Ok(false);
        }
        // The empty one forgets those that are configured for everything.
        self.change(&["config", "--local", "--replace-all", &name, ""])?;
        self.change(&["config", "--local", "--add", &name, helper])?;
        Ok(true)
    }

    fn change(&self, args: &[&str]) -> anyhow::Result<()> {
        let doing = || format!("running `git {}`", args.join(" "));
        let done = git(&self.folder, args).stderr(Stdio::piped()).output().with_context(doing)?;
        if !done.status.success() {
            bail!("`git {}`: {}", args.join(" "), String::from_utf8_lossy(&done.stderr).trim());
        }
        Ok(())
    }
}

/// Git in a folder, with nobody to talk to.
fn git(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("git");
    command
        .arg("-C")
        .arg(folder)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command
}

/// What git says, if it says anything.
fn ask(folder: &Path, args: &[&str]) -> Option<String> {
    let said = git(folder, args).output().ok().filter(|said| said.status.success())?;
    let text = String::from_utf8(said.stdout).ok()?;
    Some(text.strip_suffix('\n').unwrap_or(&text).to_owned())
}
