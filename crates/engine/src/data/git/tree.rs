//! Reading what was pushed: branches, commits, and a commit's files as an archive.

use std::collections::BTreeMap;
use std::io::PipeReader;
use std::process::Stdio;

use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use super::hook::Quarantine;
use super::plan::ObjectId;
use super::program::{Git, Group};
use super::repositories::Repository;
use crate::terminal::tame;
use crate::{Error, Result};

/// Bytes of the list of branches.
const BRANCHES: u64 = 1 << 20;
/// Bytes of what is read of a commit.
const COMMIT: u64 = 16 << 10;
/// Files and folders that are looked through for what can't be published; more are refused by then.
const ENTRIES: u64 = 250_000;
/// Bytes of a name that a sentence shows.
const SHOWN: usize = 200;

/// A commit, in its maker's words.
#[derive(Debug)]
pub(super) struct Commit {
    /// Its first line.
    pub(super) subject: String,
    /// Who made it.
    pub(super) author: String,
}

impl Repository {
    /// The branches that were taken, by full name.
    pub(super) async fn branches(&self) -> Result<BTreeMap<String, ObjectId>> {
        let list = ["for-each-ref", "--format=%(objectname) %(refname)", "refs/heads/"];
        let text = self.git.ask(&self.path, list, BRANCHES).await?;
        let text = String::from_utf8_lossy(&text);
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        Ok(lines.filter_map(|(id, name)| Some((name.to_owned(), ObjectId::parse(id)?))).collect())
    }

    /// Deletes a branch that stands at this commit.
    pub(super) async fn delete_branch(&self, name: &str, at: &ObjectId) -> Result<()> {
        let delete = ["update-ref", "-d", name, at.as_str()];
        self.git.ask(&self.path, delete, 0).await.map(drop)
    }

    /// A pushed commit; `None` if it is not a commit.
    pub(super) async fn commit(&self, id: &ObjectId, quarantine: &Quarantine) -> Result<Option<Commit>> {
        let kind = self.quarantined(["cat-file", "-t", id.as_str()], quarantine);
        if Git::output(kind, 64).await? != b"commit\n" {
            return Ok(None);
        }
        // Cut by git, which can have more of a line in memory than we want to read.
        // Without its parents: a shallow clone pushes none.
        let format = "--format=%<(300,trunc)%s%n%<(100,trunc)%an";
        let words = ["log", "--no-walk", "--no-notes", "--encoding=UTF-8", format];
        let words = self.quarantined(words.into_iter().chain([id.as_str(), "--"]), quarantine);
        let text = Git::output(words, COMMIT).await?;
        let text = String::from_utf8_lossy(&text);
        let mut lines = text.lines().map(|line| tame(line).trim().to_owned());
        let (subject, author) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        Ok(Some(Commit { subject, author }))
    }

    /// Looks for what an archive would leave out without a word: submodules. Also ends a tree that has no end, which a few bytes can
    /// make: the same folder ten times in the same folder ten times in …
    ///
    /// # Errors
    /// git can't read the tree. The sentence inside is for the pusher.
    pub(super) async fn check_entries(
        &self,
        id: &ObjectId,
        quarantine: &Quarantine,
    ) -> Result<Result<(), String>> {
        let failed = |why: std::io::Error| Error::internal("reading a pushed tree", why);
        let list = self.quarantined(["ls-tree", "-r", "-t", "-z", "--full-tree", id.as_str()], quarantine);
        let mut group = Group::spawn(list, Stdio::piped(), Stdio::null()).map_err(failed)?;
        let Some(mut output) = group.child.stdout.take() else { return Ok(Ok(())) };
        let mut entries = Entries::default();
        let mut block = vec![0; 64 << 10];
        loop {
            let read = output.read(&mut block).await.map_err(failed)?;
            if read == 0 {
                break;
            }
            if let Err(refusal) = entries.feed(block.get(..read).unwrap_or_default()) {
                return Ok(Err(refusal));
            }
        }
        let status = group.child.wait().await.map_err(failed)?;
        if status.success() {
            Ok(Ok(()))
        } else {
            Err(Error::internal("reading a pushed tree", status.to_string()))
        }
    }

    /// The files of a pushed commit as a tar stream, and the process that writes it: drop it, and the stream ends early.
    ///
    /// `--worktree-attributes` is for memory: without it git reads the whole tree before it writes the first file. In a bare repository
    /// it means that the tree's own attributes are not read at all, and `info/attributes` sees to that as well.
    pub(super) fn archive(&self, id: &ObjectId, quarantine: &Quarantine) -> Result<(PipeReader, Group)> {
        let failed = |why: std::io::Error| Error::internal("reading a pushed commit", why);
        let (reader, writer) = std::io::pipe().map_err(failed)?;
        let archive = ["archive", "--format=tar", "--worktree-attributes", id.as_str()];
        let group = Group::spawn(self.quarantined(archive, quarantine), Stdio::from(writer), Stdio::null())
            .map_err(failed)?;
        Ok((reader, group))
    }

    fn quarantined<'a>(&self, args: impl IntoIterator<Item = &'a str>, quarantine: &Quarantine) -> Command {
        let git_dir = ["--git-dir=."];
        let mut command = self.git.command(&self.path, git_dir.into_iter().chain(args));
        quarantine.show(&mut command);
        command
    }
}

/// `ls-tree -z`, record by record, whatever the blocks it comes in.
#[derive(Debug, Default)]
struct Entries {
    count: u64,
    /// The record that is not over yet, as much of it as can matter.
    record: Vec<u8>,
}

impl Entries {
    fn feed(&mut self, block: &[u8]) -> Result<(), String> {
        let mut parts = block.split(|byte| *byte == 0).peekable();
        while let Some(part) = parts.next() {
            let room = (SHOWN * 2).saturating_sub(self.record.len());
            self.record.extend_from_slice(part.get(..part.len().min(room)).unwrap_or_default());
            if parts.peek().is_none() {
                return Ok(());
            }
            self.end()?;
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), String> {
        let record = std::mem::take(&mut self.record);
        self.count += 1;
        if self.count > ENTRIES {
            return Err(format!("the tree has more than {ENTRIES} files and folders"));
        }
        if record.starts_with(b"160000 ") {
            let path = record.split(|byte| *byte == b'\t').nth(1).unwrap_or_default();
            let path: String = tame(&String::from_utf8_lossy(path)).chars().take(SHOWN).collect();
            return Err(format!(
                "`{path}` is a submodule: git pushes its commit's number and not its files; put the files into the repository itself"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIST: &[u8] = b"040000 tree aa\tdir\x00100644 blob bb\tdir/a b\x00160000 commit cc\tdir/sub\x00";

    #[test]
    fn a_submodule_is_found_however_the_list_is_cut() {
        for cut in 0..LIST.len() {
            let (one, two) = LIST.split_at(cut);
            let mut entries = Entries::default();
            let refusal = entries.feed(one).and_then(|()| entries.feed(two)).unwrap_err();
            assert!(refusal.starts_with("`dir/sub` is a submodule"), "{refusal}");
        }
    }

    #[test]
    fn a_tree_without_end_has_one() {
        let mut entries = Entries::default();
        let block = b"040000 tree aa\td\x00".repeat(1000);
        let fed = (0..=ENTRIES / 1000).try_for_each(|_| entries.feed(&block));
        assert!(fed.unwrap_err().contains("more than"));
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_fault(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = Entries::default().feed(&bytes);
        }
    }
}
