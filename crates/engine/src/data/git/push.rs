//! What becomes of a push: every branch of it is published, or none is taken.

use std::collections::BTreeSet;

use karta_types::page::MAX_LIMIT;
use karta_types::release::{Line, LogLine};
use karta_types::{ErrorCode, ProjectId};
use tokio::sync::mpsc;

use super::hook::{Quarantine, Question};
use super::plan::{self, ObjectId, Step};
use super::repositories::Repository;
use crate::data::releases::{Publish, Published};
use crate::{Engine, Error, Principal, Result};

/// Lines of a build that a pusher is shown.
const LINES: u32 = 5_000;
/// Characters of a line.
const LINE: usize = 500;

/// One push to one project.
pub(super) struct Push {
    pub(super) engine: Engine,
    pub(super) who: Principal,
    /// The project's name, also before there is one.
    pub(super) slug: String,
    /// Where the pusher reaches this server.
    pub(super) base: String,
    pub(super) repository: Repository,
    /// The project, if there is one already.
    pub(super) project: Option<ProjectId>,
}

/// A branch on its way to be a release.
struct Branch<'a> {
    name: &'a str,
    commit: &'a ObjectId,
    preview: Option<&'a String>,
    message: String,
}

impl Engine {
    /// The project that is pushed to: its slug, and its id unless it is yet to be made.
    ///
    /// # Errors
    /// `not_found`, also for a preview and for a project that the caller's key is not for.
    pub(super) async fn push_target(
        &self,
        who: &Principal,
        reference: &str,
    ) -> Result<(String, Option<ProjectId>)> {
        let known = self.publishable(who, reference).await?;
        Ok(known.map_or_else(|| (reference.to_owned(), None), |row| (row.slug.clone(), Some(row.id))))
    }

    /// Forgets the branches whose previews ended by themselves or were removed, so that pushing one again makes its preview again. While
    /// somebody pushes they are left alone.
    pub(super) async fn forget_ended_previews(
        &self,
        who: &Principal,
        slug: &str,
        repository: &Repository,
    ) -> Result<()> {
        let Some(_turn) = self.repositories().turn_if_free(who.org, slug) else { return Ok(()) };
        let branches = repository.branches().await?;
        let mut shown = BTreeSet::new();
        let mut cursor = None;
        loop {
            let page = self.previews(who, slug, cursor, MAX_LIMIT).await?;
            cursor = page.data.last().map(|last| last.id);
            shown.extend(page.data.into_iter().map(|preview| preview.name));
            if page.next_cursor.is_none() {
                break;
            }
        }
        for (name, at) in branches {
            if plan::preview_of(&name).is_some_and(|preview| !shown.contains(&preview)) {
                repository.delete_branch(&name, &at).await?;
            }
        }
        Ok(())
    }
}

impl Push {
    /// Publishes all of it. What is said meanwhile is for the pusher.
    ///
    /// # Errors
    /// Why nothing of it is taken, in lines for the pusher.
    pub(super) async fn judge(&self, question: &Question, say: mpsc::Sender<String>) -> Result<(), String> {
        let done = self.publish_all(question, &say).await;
        done.map_err(|error| {
            if let Error::Internal { .. } = error {
                tracing::error!(error = error.chain(), "a push failed");
            }
            self.refusal(&error)
        })
    }

    async fn publish_all(&self, question: &Question, say: &mpsc::Sender<String>) -> Result<()> {
        let refuse = |why: String| Error::told(ErrorCode::InvalidRequest, why);
        let steps = plan::plan(&question.updates, &self.repository.branches().await?).map_err(refuse)?;
        let mut branches = Vec::new();
        for step in &steps {
            if let Step::Publish { branch, commit, preview } = step {
                let message = self.check(branch, commit, &question.quarantine, say).await?;
                branches.push(Branch { name: branch, commit, preview: preview.as_ref(), message });
            }
        }
        // All of them are made before one is shown: when one can't be, none is.
        let mut made = Vec::new();
        for branch in &branches {
            made.push(self.make(branch, &question.quarantine, say).await?);
        }
        for (branch, made) in branches.iter().zip(made) {
            self.show(branch, &made, say).await?;
        }
        for step in &steps {
            if let Step::Remove { branch, preview } = step {
                match self.engine.remove_preview(&self.who, &self.slug, preview).await {
                    Ok(()) => {
                        tell(say, format!("The preview {preview} is gone, with the branch {branch}.")).await;
                    }
                    // It ended by itself before.
                    Err(error) if error.code() == ErrorCode::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Looks at what a branch shall be. Answers the message of its release.
    async fn check(
        &self,
        branch: &str,
        commit: &ObjectId,
        quarantine: &Quarantine,
        say: &mpsc::Sender<String>,
    ) -> Result<String> {
        let refuse = |why: String| Error::told(ErrorCode::InvalidRelease, why);
        let words = self.repository.commit(commit, quarantine).await?;
        let words = words.ok_or_else(|| {
            refuse(format!("`{branch}` shall be {}, which is not a commit", commit.short()))
        })?;
        tell(say, format!("{branch} at {}: {}", commit.short(), words.subject)).await;
        self.repository.check_entries(commit, quarantine).await?.map_err(refuse)?;
        Ok(if words.author.is_empty() {
            words.subject
        } else {
            format!("{} ({})", words.subject, words.author)
        })
    }

    /// Makes the release of a branch. Nobody sees it yet.
    async fn make(
        &self,
        branch: &Branch<'_>,
        quarantine: &Quarantine,
        say: &mpsc::Sender<String>,
    ) -> Result<Published> {
        let how = Publish {
            activate: false,
            preview: branch.preview.cloned(),
            held: true,
            commit: Some(branch.commit.as_str().to_owned()),
            message: Some(branch.message.clone()),
        };
        // Its end of the pipe is this process: whoever stops waiting ends it, and the archive ends early.
        let (archive, mut writer) = self.repository.archive(branch.commit, quarantine)?;
        let (lines, heard) = mpsc::channel(64);
        let publishing = self.engine.publish(&self.who, &self.slug, Box::new(archive), how, Some(lines));
        let (published, ()) = tokio::join!(publishing, relay(heard, say));
        if published.is_err() {
            // A refusal breaks the pipe, which ends git by a signal. A status is its own.
            let status = writer.child.wait().await;
            if status.is_ok_and(|status| status.code().is_some_and(|code| code != 0)) {
                let why =
                    format!("git can't read all files of `{}`: one is broken, or too large", branch.name);
                return Err(Error::told(ErrorCode::InvalidRelease, why));
            }
        }
        published
    }

    /// Shows what was made: live, or in a preview. Says where.
    async fn show(&self, branch: &Branch<'_>, made: &Published, say: &mpsc::Sender<String>) -> Result<()> {
        let version = made.release.version;
        let project = self.engine.project_row(&self.who, &self.slug).await?;
        let slug = if let Some(name) = branch.preview {
            let preview = self.engine.show_preview(&self.who, &project, name, version).await?;
            tell(say, format!("v{version} is the preview {name} until {}.", preview.expires_at)).await;
            preview.slug
        } else {
            let reason = Some(branch.message.clone());
            self.engine.activate(&self.who, &self.slug, version, reason).await?;
            let how = if project.active_version == Some(version) {
                "is active, as it was: its content is the same"
            } else if made.fresh {
                "is active"
            } else {
                "is active again: its content was published before"
            };
            tell(say, format!("v{version} of {} {how}.", self.slug)).await;
            project.slug.clone()
        };
        tell(say, format!("{}/v1/projects/{slug}", self.base)).await;
        Ok(())
    }

    /// An error in lines for the pusher.
    fn refusal(&self, error: &Error) -> String {
        let problem = error.problem();
        let detail = match error.code() {
            ErrorCode::Internal => {
                let request = self.who.origin.request.as_deref().unwrap_or("unknown");
                format!("Give the request id {request} to whoever runs the server.")
            }
            _ => problem.detail.lines().map(cut).collect::<Vec<_>>().join("\n"),
        };
        format!("{detail}\n{} ({}). What runs stays as it is.", problem.title, problem.error)
    }

    /// Leaves the repository as the next push needs it: nothing half-done in it, and under the project's id, if the project came to be.
    pub(super) async fn settle(&mut self) -> Result<()> {
        self.repository.tidy().await?;
        let now = self.engine.push_target(&self.who, &self.slug).await?.1;
        match (self.project, now) {
            (None, Some(project)) if !self.repository.branches().await?.is_empty() => {
                self.repository = self.engine.repositories().adopt(self.repository.clone(), project).await?;
                self.project = now;
                Ok(())
            }
            (Some(before), Some(now)) if before == now => Ok(()),
            // Nothing was taken, or the project was deleted meanwhile.
            _ => {
                self.project = None;
                self.repository.clone().remove().await
            }
        }
    }
}

/// Passes on what a build prints.
async fn relay(mut heard: mpsc::Receiver<LogLine>, say: &mpsc::Sender<String>) {
    let mut count = 0;
    while let Some(line) = heard.recv().await {
        let Line::Build { text } = line.line else { continue };
        count += 1;
        if count < LINES {
            tell(say, format!("  {text}")).await;
        } else if count == LINES {
            tell(say, "  … `karta logs` has the rest".to_owned()).await;
        }
    }
}

/// Says a line to the pusher. One who is gone is noticed elsewhere.
async fn tell(say: &mpsc::Sender<String>, line: String) {
    let _ = say.send(cut(&line)).await;
}

/// A line that can be shown on a terminal.
fn cut(line: &str) -> String {
    let tame = crate::terminal::tame(line);
    match tame.char_indices().nth(LINE) {
        Some((end, _)) => format!("{}…", tame.get(..end).unwrap_or_default()),
        None => tame,
    }
}
