//! Publishing: an archive becomes a release.
//!
//! What is read is checked before anything of it is seen: unpacked into a folder of its own, judged, and only then does the project
//! exist (if it is the first), are the contents put into the blob store, the files on the shelf, and the record into the database, in
//! that order. A crash before the record leaves nothing that anybody sees; what it leaves on disk is swept ([`super::keep`]).

use std::collections::{BTreeSet, HashMap};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use karta_harness::{Harness, Tree, registry};
use karta_release::archive::{self, Limits};
use karta_release::check::{self, Checked, Others};
use karta_release::{Fault, Files, Hash, folder, release_digest};
use karta_store::{Added, NewRelease, PackRow, ProjectRow, ReleaseRow, Wanted};
use karta_types::release::{Activation, LogLine, Preview, Release, ReleaseState};
use karta_types::session::Isolation;
use karta_types::{ErrorCode, OrgId, Problem, ProjectId, ReleaseId};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use super::loaded::show_release;
use super::previews::check_name;
use super::shelf::{Incoming, Library, off_runtime, place, settle, unpacked, unread};
use crate::{Engine, Error, Principal, Result};

/// The most characters of a message.
const MESSAGE: usize = 2000;
/// The most characters of a commit's name.
const COMMIT: usize = 200;

/// How to publish.
#[derive(Debug, Clone, Default)]
pub struct Publish {
    /// Whether it becomes the active release. Not with a preview.
    pub activate: bool,
    /// The preview that shows it.
    pub preview: Option<String>,
    /// Whether it is only made: it is then neither activated nor shown, however it says. What belongs together is shown together.
    pub held: bool,
    /// The commit that it was made of.
    pub commit: Option<String>,
    /// What the publisher says of it.
    pub message: Option<String>,
}

/// What was published.
#[derive(Debug, Clone)]
pub struct Published {
    /// The release.
    pub release: Release,
    /// Whether there was none with this content, or none that could run.
    pub fresh: bool,
    /// The activation that stands afterwards, if one was asked for.
    pub activation: Option<Activation>,
    /// The preview that shows it.
    pub preview: Option<Preview>,
}

/// Who publishes to which project: one after the other.
#[derive(Debug, Default)]
pub(crate) struct Publishing(Mutex<HashMap<(OrgId, String), Weak<Turns>>>);

/// One holds it at a time.
pub(crate) type Turns = tokio::sync::Mutex<()>;

impl Publishing {
    /// The queue of one project.
    pub(crate) fn of(&self, org: OrgId, slug: &str) -> Arc<Turns> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (org, slug.to_owned());
        if let Some(one) = all.get(&key).and_then(Weak::upgrade) {
            return one;
        }
        all.retain(|_, one| one.strong_count() > 0);
        let one = Arc::default();
        all.insert(key, Arc::downgrade(&one));
        one
    }

    /// A turn at changing what is kept of the project, if nobody has it.
    pub(crate) fn try_turn(&self, org: OrgId, slug: &str) -> Option<tokio::sync::OwnedMutexGuard<()>> {
        self.of(org, slug).try_lock_owned().ok()
    }

    /// A turn at changing what is kept of the project.
    pub(crate) async fn turn(&self, org: OrgId, slug: &str) -> tokio::sync::OwnedMutexGuard<()> {
        self.of(org, slug).lock_owned().await
    }
}

/// What was read and found good.
struct Accepted {
    checked: Checked,
    files: Files,
    /// The unpacked files.
    root: PathBuf,
    incoming: Arc<Incoming>,
}

impl Engine {
    /// Reads an archive to its end (off the runtime), checks it, runs its setup, keeps it, and makes it active or shows it in a
    /// preview. The first one makes the project. Once it is read, it goes on whether or not the caller waits. `lines` hears what the
    /// setup prints.
    ///
    /// # Errors
    /// `not_found` for a project that is not the caller's to make; `invalid_release` with all its faults; `payload_too_large`;
    /// `content_missing` for a partial archive that relies on what is not here; `build_failed`; `storage_full`. What runs stays as it is.
    pub async fn publish(
        &self,
        who: &Principal,
        project: &str,
        archive: Box<dyn Read + Send>,
        how: Publish,
        lines: Option<mpsc::Sender<LogLine>>,
    ) -> Result<Published> {
        self.check_space()?;
        if who.restriction.is_some() {
            return Err(Error::told(ErrorCode::Forbidden, "a session token does not publish"));
        }
        let known = self.publishable(who, project).await?;
        if let Some(name) = &how.preview {
            check_name(name)?;
        }
        check_text("/message", how.message.as_deref(), MESSAGE)?;
        check_text("/commit", how.commit.as_deref(), COMMIT)?;
        let transfer = self.transfers().begin(who.org)?;
        let accepted = self.accept(who.org, known.as_deref(), archive).await?;
        drop(transfer);
        self.judge(&accepted.checked)?;
        let (reply, answer) = oneshot::channel();
        let (engine, who, slug) = (self.clone(), who.clone(), project.to_owned());
        self.tasks().spawn(async move {
            let done = engine.keep_published(&who, known, &slug, accepted, how, lines).await;
            // Whoever published may be gone: it is done all the same.
            let _ = reply.send(done);
        });
        answer
            .await
            .unwrap_or_else(|_| Err(Error::told(ErrorCode::InterruptedByRestart, "the server is stopping")))
    }

    /// Makes a release of a folder on this machine and activates it; makes the project at the first. The same content again is the
    /// same release, and is left as it stands: the answer's state says whether it is active.
    ///
    /// # Errors
    /// As [`Engine::publish`].
    pub async fn publish_folder(&self, org: OrgId, slug: &str, folder: &Path) -> Result<Release> {
        let who = Principal::system(org);
        let source = folder.to_owned();
        let picked = off_runtime("reading the folder", move || {
            Ok(folder::pick(&source, &folder::Choice::default()).map_err(|error| unread(&error))?)
        })
        .await?;
        if picked.files.is_empty() {
            // What is looked for says more than that an archive is empty.
            registry::detect(&Tree::new(), &registry::Declared::default())?;
        }
        let (reader, writer) =
            std::io::pipe().map_err(|error| Error::internal("making a pipe for the folder", error))?;
        let packing =
            tokio::task::spawn_blocking(move || archive::pack(&picked.root, &picked.files, None, writer));
        let published = self.publish(&who, slug, Box::new(reader), Publish::default(), None).await;
        match packing.await {
            // Why the archive ended early says more than that it did. A refusal closes the pipe: then it is what counts.
            Ok(Err(error)) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                return Err(Error::told(ErrorCode::InvalidRelease, error.to_string()));
            }
            _ => {}
        }
        let published = published?;
        let mut release = published.release;
        let project = self.project_row(&who, slug).await?;
        // What this folder was when it was last made active: a rollback since then is not undone by a restart.
        let last = self.store().activation_last_by(org, project.id, &who.actor.to_string()).await?;
        if project.active_version.is_none() || last != Some(release.version) {
            self.flip(&who, project.id, Wanted::Version(release.version), None).await?;
            release.state = ReleaseState::Active;
        }
        Ok(release)
    }

    /// Which of these contents are not kept for the project.
    ///
    /// # Errors
    /// `not_found`; `invalid_request` for what is no hash.
    pub async fn missing_contents(
        &self,
        who: &Principal,
        reference: &str,
        hashes: Vec<String>,
    ) -> Result<Vec<String>> {
        let project = self.own_project(who, reference).await?;
        if let Some(index) = hashes.iter().position(|hash| hash.parse::<Hash>().is_err()) {
            return Err(Error::invalid(&format!("/hashes/{index}"), "not a SHA-256 in hexadecimal"));
        }
        let kept = self.store().contents_find(who.org, project, &hashes).await?;
        Ok(hashes.into_iter().filter(|hash| !kept.contains_key(hash)).collect())
    }

    /// The project to publish to; none if it is yet to be made.
    pub(crate) async fn publishable(
        &self,
        who: &Principal,
        reference: &str,
    ) -> Result<Option<Arc<ProjectRow>>> {
        match self.project_row(who, reference).await {
            Ok(row) if row.parent.is_some() => Err(Error::invalid(
                "/project",
                "publish to the project of the preview, with the preview's name",
            )),
            Ok(row) => Ok(Some(row)),
            // A key for one project makes no other.
            Err(error) if who.project.is_some() || reference.parse::<ProjectId>().is_ok() => Err(error),
            Err(error) if error.code() == ErrorCode::NotFound => {
                crate::data::projects::check_slug(reference)?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Unpacks and checks an archive. Nothing of it is kept yet.
    async fn accept(
        &self,
        org: OrgId,
        project: Option<&ProjectRow>,
        archive: Box<dyn Read + Send>,
    ) -> Result<Accepted> {
        let active = match project.and_then(|project| Some((project, project.active_version?))) {
            // It may be one that can't be read any more: then its contents are not relied on.
            Some((project, version)) => self.load(project, version).await.ok(),
            None => None,
        };
        let engine = self.clone();
        // A project that is yet to be made has no contents.
        let id = project.map_or_else(|| ProjectId::from_u128(0), |project| project.id);
        let most = self.settings().releases.max_bytes;
        let limits = Limits { bytes: most, file: most, ..Limits::default() };
        off_runtime("unpacking an archive", move || {
            let incoming = Incoming::make(engine.data_dir())?;
            let unpack = || {
                let root = incoming.folder("tree")?;
                let mut library = Library::new(&engine, org, id, incoming.join("contents"));
                if let Some(active) = &active {
                    library = library.with(&active.path, &active.files);
                }
                let files =
                    archive::unpack(archive, &root, &limits, &library).map_err(|error| unpacked(&error))?;
                let tree = files.tree(&root).map_err(|error| unread(&error))?;
                let installed =
                    |harness: &dyn Harness| Others::Only(engine.harnesses().versions(harness.id()));
                let checked = check::check(&files, &tree, &installed).map_err(|faults| refused(&faults))?;
                Ok((checked, files, root))
            };
            match unpack() {
                Ok((checked, files, root)) => {
                    Ok(Accepted { checked, files, root, incoming: Arc::new(incoming) })
                }
                Err(error) => {
                    incoming.remove();
                    Err(error)
                }
            }
        })
        .await
    }

    /// Whether this server can hold what the release asks of it.
    fn judge(&self, checked: &Checked) -> Result<()> {
        let given = self.driver(checked.harness.id()).isolation();
        let policy = &checked.recipe.policy;
        let no = |detail: String| Err(Error::told(ErrorCode::InvalidRelease, detail));
        if let Some(wanted) = policy.isolation.filter(|wanted| *wanted > given) {
            return no(format!(
                "karta.toml: `policy.isolation` asks for `{}`; this server gives `{}`",
                wanted.as_str(),
                given.as_str()
            ));
        }
        if !policy.egress.is_empty() && given <= Isolation::Process {
            return no(format!(
                "karta.toml: `policy.egress` can't be held here: isolation `{}` does not keep sessions from the network; remove it \
                 to accept that",
                given.as_str()
            ));
        }
        if let Some(name) = checked.recipe.secrets.keys().next()
            && given <= Isolation::Process
        {
            return no(format!(
                "karta.toml: `env.{name}` can't be a secret here: isolation `{}` does not keep sessions from the network, so that \
                 nothing could put its value in",
                given.as_str()
            ));
        }
        Ok(())
    }

    /// Everything after the archive is read and found good.
    async fn keep_published(
        &self,
        who: &Principal,
        known: Option<Arc<ProjectRow>>,
        slug: &str,
        accepted: Accepted,
        how: Publish,
        lines: Option<mpsc::Sender<LogLine>>,
    ) -> Result<Published> {
        let slug = known.as_ref().map_or(slug, |row| row.slug.as_str());
        let _turn = self.publishing().turn(who.org, slug).await;
        let project = match &known {
            // What was removed while the archive came is not made anew, least of all as another's.
            Some(row) => self.project_row(who, &row.id.to_string()).await?,
            None => Arc::new(self.project_for(who, slug).await?),
        };
        let (mut row, fresh) = self.record(who, &project, &accepted, &how).await?;
        if row.state == ReleaseState::Building {
            row = self.build(who, &project, row, &accepted.files, how.preview.is_some(), lines).await?;
        }
        let mut published =
            Published { release: show_release(row.clone()), fresh, activation: None, preview: None };
        if how.held {
            // Whoever asked for it does that.
        } else if let Some(name) = &how.preview {
            published.preview = Some(self.show_preview(who, &project, name, row.version).await?);
        } else if how.activate {
            published.activation =
                self.flip(who, project.id, Wanted::Version(row.version), how.message.clone()).await?;
            published.release.state = ReleaseState::Active;
        }
        // What is held is shown later, and must be there then.
        if fresh && !how.held {
            self.keep_releases_of(&project).await;
        }
        Ok(published)
    }

    /// The release's record, and whether it is new: contents first, then files, then the row.
    async fn record(
        &self,
        who: &Principal,
        project: &ProjectRow,
        accepted: &Accepted,
        how: &Publish,
    ) -> Result<(ReleaseRow, bool)> {
        let Accepted { checked, files, root, incoming } = accepted;
        // Sessions run on the host's own programs so far: there is no image to tell apart.
        let digest = release_digest(files, &checked.pin, "", &checked.recipe).to_string();
        let found = self.store().release_by_digest(who.org, project.id, &digest).await?;
        if let Some(row) = found.filter(|row| row.can_run() && row.files.is_some()) {
            return Ok((row, false));
        }
        let id = ReleaseId::new(self.clock(), self.rng());
        let pack =
            self.put_pack(project, &id.to_string(), root.clone(), files.clone(), incoming.clone()).await?;
        let state = match (&checked.recipe.build.setup, &how.preview) {
            (Some(_), _) => ReleaseState::Building,
            (None, Some(_)) => ReleaseState::Preview,
            (None, None) => ReleaseState::Ready,
        };
        let row = ReleaseRow {
            id,
            org: who.org,
            project: project.id,
            version: 0,
            digest,
            harness: checked.pin.clone(),
            found: checked.found.clone(),
            recipe: checked.recipe.clone(),
            files: Some(pack.pack.clone()),
            built: None,
            commit: how.commit.clone(),
            message: how.message.clone(),
            actor: who.actor.to_string(),
            bytes: files.bytes(),
            file_count: files.len() as u64,
            preview: how.preview.clone(),
            state,
            error: None,
            created_at: self.clock().now(),
        };
        let place = place(self.data_dir(), &row);
        let (from, kept) = (root.clone(), incoming.clone());
        off_runtime("putting the release on the shelf", move || {
            settle(&from, &place)?;
            drop(kept);
            Ok(())
        })
        .await?;
        let told = self.told(who, "release.publish", project.id);
        let name = pack.pack.clone();
        let added = self.store().release_insert(NewRelease { row, pack }, told).await;
        match added {
            Ok(Added::New(row)) => {
                // One that was deleted or had failed lives again under its number, in another pack.
                self.catalogue().forget_release(project.id, row.version);
                Ok((row, true))
            }
            Ok(Added::Known(row)) if row.files.as_ref() == Some(&name) => Ok((row, false)),
            // Another node had it first: this pack is nobody's.
            Ok(Added::Known(row)) => {
                self.packs().remove(project.id, &name).await?;
                Ok((row, false))
            }
            // Whether it is on record is not known: if it is not, the pack is swept.
            Err(error) => Err(error.into()),
        }
    }

    /// Puts the list of files into the blob store, with the contents that are not kept for the project yet.
    pub(super) async fn put_pack(
        &self,
        project: &ProjectRow,
        name: &str,
        root: PathBuf,
        files: Files,
        incoming: Arc<Incoming>,
    ) -> Result<PackRow> {
        let hashes: Vec<String> = files.hashes().iter().map(Hash::to_string).collect();
        let kept = self.store().contents_find(project.org, project.id, &hashes).await?;
        let fresh: BTreeSet<Hash> =
            files.hashes().into_iter().filter(|hash| !kept.contains_key(&hash.to_string())).collect();
        let contents = fresh.iter().map(Hash::to_string).collect();
        let path = incoming.join(name);
        let at = path.clone();
        off_runtime("packing a release", move || {
            let file = std::io::BufWriter::new(std::fs::File::create(&at)?);
            archive::pack(&root, &files, Some(&fresh), file)?;
            Ok(())
        })
        .await?;
        self.packs().put(project.id, name, &path).await?;
        drop(incoming);
        Ok(PackRow { pack: name.to_owned(), contents })
    }

    /// The project of this slug, made if it does not exist.
    async fn project_for(&self, who: &Principal, slug: &str) -> Result<ProjectRow> {
        match self.project_row(who, slug).await {
            Ok(row) => Ok((*row).clone()),
            Err(error) if error.code() == ErrorCode::NotFound => self.make_project(who, slug, None).await,
            Err(error) => Err(error),
        }
    }
}

/// The problem of a folder that breaks rules, with all of them.
fn refused(faults: &[Fault]) -> Error {
    let detail = faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    let faults: Vec<_> = faults
        .iter()
        .map(|fault| {
            json!({
                "file": fault.file, "line": fault.line, "column": fault.column, "message": fault.message,
                "help": fault.help,
            })
        })
        .collect();
    Problem::new(ErrorCode::InvalidRelease, detail).with("faults", faults).into()
}

fn check_text(pointer: &str, text: Option<&str>, most: usize) -> Result<()> {
    match text.map(|text| text.chars().count()) {
        Some(count) if count > most => {
            Err(Error::invalid(pointer, format!("{count} characters; at most {most}")))
        }
        _ => Ok(()),
    }
}
