//! `karta deploy`: a folder goes up as a release, and runs.

mod upload;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, anyhow};
use karta_client::{Client, Publish};
use karta_release::Hash;
use karta_types::ErrorCode;
use karta_types::release::{Project, Release, ReleaseState};
use serde_json::json;

use super::folder::{self, Looked};
use super::git::Repository;
use super::projects::all_previews;
use super::running;
use crate::args::DeployArgs;
use crate::printer::{Advised, CYAN, DIM, Printer, YELLOW, count, minute, size};
use crate::settings::Connection;

/// What a deployment needs to know.
pub(super) struct Settings {
    /// The server; unless one is known only a dry run works.
    pub(super) connection: anyhow::Result<Connection>,
    pub(super) args: DeployArgs,
    pub(super) json: bool,
}

/// What the server has of a project before anything is sent.
#[derive(Default)]
struct Before {
    /// Whether there is no such project yet.
    new: bool,
    /// The project, if it is there and this key may read it.
    project: Option<Project>,
    /// The number of its newest release.
    newest: u64,
    /// What it lacks of the folder's contents; everything, if nobody knows.
    missing: Option<BTreeSet<Hash>>,
}

/// How much was sent.
#[derive(Debug, Default, Clone, Copy)]
struct Sent {
    bytes: u64,
    files: u64,
}

/// The person stopped it.
#[derive(Debug, thiserror::Error)]
#[error(
    "stopped by Ctrl-C; unless the server had everything, nothing was published: `karta releases list {0}` shows"
)]
struct Stopped(String);

pub(super) async fn run(settings: Settings, printer: &Printer) -> anyhow::Result<ExitCode> {
    let Settings { connection, args, json } = settings;
    // Asked before the folder is read: nobody waits for that to hear that there is no server.
    let connection = match connection {
        Err(error) if !args.dry_run => return Err(error),
        other => other.ok(),
    };
    let path = running::folder(&args.path)?;
    let looked = folder::look(path.clone(), args.allow_secrets.clone(), printer).await?;
    let slug = slug(&args, &looked, &path);
    printer.note(&format!("{CYAN}{slug}{CYAN:#}: {}", looked.amount()));
    let about = looked.about();
    if !about.is_empty() {
        printer.note(about.trim_end());
    }
    let client = connection.map(|known| Client::new(&known.url, known.key)).transpose()?;
    if let Some(refused) = refused(&looked) {
        let code = printer.failed(&refused);
        // Only to say that it is as it was.
        if let Some(client) = &client
            && let Ok(project) = client.project(&slug).await
        {
            stays(&project, printer);
        }
        return Ok(code);
    }
    let Some(client) = client else {
        printer.note("No server is known: everything would be sent");
        return Ok(ExitCode::SUCCESS);
    };
    let before = look_up(&client, &slug, &looked, printer).await?;
    let deployment = Deployment { client, slug, path, args, looked, before, json, printer };
    if deployment.args.dry_run {
        deployment.dry()?;
        return Ok(ExitCode::SUCCESS);
    }
    match deployment.publish().await {
        Ok((release, sent)) => {
            deployment.done(&release, sent).await?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            let code = printer.failed(&error);
            if let Some(project) = &deployment.before.project {
                stays(project, printer);
            }
            // As a shell tells of a program that Ctrl-C ended.
            Ok(if error.is::<Stopped>() { ExitCode::from(130) } else { code })
        }
    }
}

/// The project's name: as said, else as the folder says, else the folder's own.
fn slug(args: &DeployArgs, looked: &Looked, path: &Path) -> String {
    let said = looked.checked.as_ref().ok().and_then(|checked| checked.project.clone());
    args.project.clone().or(said).unwrap_or_else(|| running::slug_of(path))
}

/// Why the folder can't be published, if it can't.
fn refused(looked: &Looked) -> Option<anyhow::Error> {
    let faults = looked.faults();
    if faults.is_empty() {
        return None;
    }
    let what = format!("this can't be published, and nothing was sent\n{}", faults.join("\n"));
    Some(anyhow!(Advised { what, advice: looked.advice() }))
}

fn stays(project: &Project, printer: &Printer) {
    if let Some(active) = &project.active_release {
        printer.note(&format!("Still active, as before: {} v{}", project.slug, active.release.version));
    }
}

/// Asks what the server has. A key that may publish need not be one that may read.
async fn look_up(client: &Client, slug: &str, looked: &Looked, printer: &Printer) -> anyhow::Result<Before> {
    printer.progress("asking what the server lacks".to_owned());
    let asking = async {
        let project = if_readable(client.project(slug).await)?;
        let newest = match &project {
            Some(_) => if_readable(client.releases(slug, None).await)?,
            None => None,
        };
        let newest = newest.and_then(|page| page.data.first().map(|release| release.version));
        let hashes: Vec<_> = looked.picked.files.hashes().iter().map(ToString::to_string).collect();
        let missing = match client.missing(slug, &hashes).await {
            Ok(missing) => missing,
            Err(error) if error.code() == Some(ErrorCode::NotFound) => {
                return Ok(Before { new: true, ..Before::default() });
            }
            Err(error) => return Err(anyhow::Error::from(error)),
        };
        let missing = missing.iter().map(|hash| hash.parse()).collect::<Result<_, _>>();
        let missing = missing.map_err(|_| anyhow!("the server names a content by what is no hash"))?;
        Ok(Before { new: false, project, newest: newest.unwrap_or_default(), missing: Some(missing) })
    };
    printer.working(asking).await
}

/// Nothing, where there is nothing or this key may not see it.
fn if_readable<T>(answer: Result<T, karta_client::Error>) -> Result<Option<T>, karta_client::Error> {
    match answer {
        Err(error) if matches!(error.code(), Some(ErrorCode::NotFound | ErrorCode::Forbidden)) => Ok(None),
        other => other.map(Some),
    }
}

/// A folder that can go up, and where it goes.
struct Deployment<'a> {
    client: Client,
    slug: String,
    path: PathBuf,
    args: DeployArgs,
    looked: Looked,
    before: Before,
    json: bool,
    printer: &'a Printer,
}

impl Deployment<'_> {
    /// Says what would be sent.
    fn dry(&self) -> std::io::Result<()> {
        let slug = &self.slug;
        let (files, bytes) = upload::amount(&self.looked.picked.files, self.before.missing.as_ref());
        if self.json {
            let said = json!({ "project": slug, "missing_files": files, "missing_bytes": bytes });
            return self.printer.json(&said);
        }
        let new = if self.before.new { ", and the project would be made" } else { "" };
        let (files, bytes) = (count(files, "file"), size(bytes));
        self.printer.data(&format!("{files}, {bytes} before they are packed, would be sent to {slug}{new}"))
    }

    async fn publish(&self) -> anyhow::Result<(Release, Sent)> {
        let how = Publish {
            activate: !self.args.no_activate && self.args.preview.is_none(),
            preview: self.args.preview.clone(),
            commit: Repository::of(&self.path).and_then(|repository| repository.commit()),
            message: self.args.message.clone(),
        };
        let up = upload::Upload {
            client: &self.client,
            slug: &self.slug,
            path: &self.path,
            files: &self.looked.picked.files,
            how: &how,
            printer: self.printer,
        };
        let missing = &self.before.missing;
        let sending = async {
            match up.send(missing.clone()).await {
                // Somebody cleaned up on the server in between.
                Err(error) if missing.is_some() && lacking(&error) => up.send(None).await,
                other => other,
            }
        };
        tokio::select! {
            // It is listened for from its first poll on: before anything is sent.
            biased;
            stopped = tokio::signal::ctrl_c() => {
                stopped.context("listening for Ctrl-C")?;
                Err(Stopped(self.slug.clone()).into())
            }
            sent = sending => sent,
        }
    }

    /// Says what there is now, and where.
    async fn done(&self, release: &Release, sent: Sent) -> anyhow::Result<()> {
        if self.json {
            let mut value = serde_json::to_value(release)?;
            value["uploaded_bytes"] = sent.bytes.into();
            value["uploaded_files"] = sent.files.into();
            return Ok(self.printer.json(&value)?);
        }
        let version = format!("{CYAN}{} v{}{CYAN:#}", self.slug, release.version);
        let amount = format!("{DIM}{} sent, {}{DIM:#}", count(sent.files, "file"), size(sent.bytes));
        let address = if let Some(name) = &self.args.preview {
            self.printer.note(&format!("The preview {name} shows {version}  {amount}"));
            self.previewed(name).await
        } else {
            self.printer.note(&format!("{}  {amount}", self.became(release, &version)));
            self.next_step(release);
            self.slug.clone()
        };
        let base = self.client.base_url().trim_end_matches('/');
        Ok(self.printer.data(&format!("{base}/v1/projects/{address}"))?)
    }

    /// What became of the release.
    fn became(&self, release: &Release, version: &str) -> String {
        let was = self.before.project.as_ref().and_then(|project| project.active_release.as_ref());
        let was_active = was.is_some_and(|active| active.release.version == release.version);
        let old = release.version <= self.before.newest;
        match (old, release.state == ReleaseState::Active) {
            (true, true) if was_active => format!("Nothing changed: {version} is active"),
            (true, true) => format!("{version} had this content already, and is active again"),
            (true, false) => format!("Nothing changed: {version} has this content"),
            (false, true) => format!("{version} is active"),
            (false, false) => format!("{version} is there"),
        }
    }

    fn next_step(&self, release: &Release) {
        let slug = &self.slug;
        if release.state == ReleaseState::Active {
            if self.before.new {
                self.printer.note(&format!("The project is new; try it by `karta chat --project {slug}`"));
            }
            return;
        }
        let wanted =
            if self.args.no_activate { String::new() } else { format!("{YELLOW}not active{YELLOW:#}: ") };
        self.printer.note(&format!(
            "{wanted}make it the active one by `karta releases activate {slug} v{}`",
            release.version
        ));
    }

    /// Says when a preview ends, if this key may know. Answers what it is used as.
    async fn previewed(&self, name: &str) -> String {
        let previews = all_previews(&self.client, &self.slug).await.unwrap_or_default();
        let preview = previews.into_iter().find(|preview| preview.name == name);
        let address = format!("{}@{name}", self.slug);
        if let Some(preview) = preview {
            let end = minute(preview.expires_at);
            self.printer.note(&format!("It ends {end} UTC; until then `karta chat --project {address}`"));
        }
        address
    }
}

fn lacking(error: &anyhow::Error) -> bool {
    let of = |error: &karta_client::Error| error.code() == Some(ErrorCode::ContentMissing);
    error.downcast_ref::<karta_client::Error>().is_some_and(of)
}
