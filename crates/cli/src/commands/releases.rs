//! `karta releases` and `karta rollback`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use futures_util::StreamExt as _;
use karta_client::Client;
use karta_types::release::{Activation, Canary, Project, Release, ReleaseDiff};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;

use super::{diff, found, project};
use crate::args::{ReleasesCommand, RollbackArgs, version};
use crate::printer::{Printer, count, minute, size, tame};

type Exit = anyhow::Result<ExitCode>;

/// `served` is the project that the running server was started for.
pub(super) async fn run(
    client: &Client,
    served: Option<String>,
    command: ReleasesCommand,
    json: bool,
    printer: &Printer,
) -> Exit {
    let chosen = |named| project::chosen(client, named, served, printer);
    match command {
        ReleasesCommand::List { project, limit } => {
            list(client, &chosen(project).await?, limit, json, printer).await?;
        }
        ReleasesCommand::History { project } => {
            let history = client.activations(&chosen(project).await?).await?;
            if json {
                printer.json(&history.data)?;
            } else {
                let rows: Vec<_> = history.data.iter().map(activation).collect();
                printer.table(&["AT", "VERSION", "HOW", "BY", "WHY"], &rows)?;
            }
        }
        ReleasesCommand::Show { project, release } => {
            let release = client.release(&chosen(project).await?, release).await?;
            if json {
                printer.json(&release)?;
            } else {
                printer.data(show(&release).trim_end())?;
            }
        }
        ReleasesCommand::Activate { project, release, percent: None, reason } => {
            let project = chosen(project).await?;
            tell(&project, &client.activate(&project, release, reason.as_deref()).await?, json, printer)?;
        }
        ReleasesCommand::Activate { project, release, percent: Some(percent), reason } => {
            let project = chosen(project).await?;
            let now = client.canary(&project, release, percent, reason.as_deref()).await?;
            shares(&now, json, printer)?;
            if !json {
                printer.note(&format!(
                    "All of them by `karta releases promote {project}`, none by `karta releases abort {project}`"
                ));
            }
        }
        ReleasesCommand::Promote { project, reason } => {
            let project = chosen(project).await?;
            tell(&project, &client.promote(&project, reason.as_deref()).await?, json, printer)?;
        }
        ReleasesCommand::Abort { project, reason } => {
            let now = client.abort(&chosen(project).await?, reason.as_deref()).await?;
            shares(&now, json, printer)?;
        }
        ReleasesCommand::Diff { words } => {
            let (named, before, after) = pair(&words)?;
            let changes = client.diff(&chosen(named).await?, before, after).await?;
            compared(&changes, before, after, json, printer)?;
        }
        ReleasesCommand::Delete { project, release } => {
            let project = chosen(project).await?;
            client.delete_release(&project, release).await?;
            printer.note(&format!("{project} v{release} is deleted; its record stays"));
        }
        ReleasesCommand::Download { project, release, to } => {
            download(client, &chosen(project).await?, release, to, json, printer).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn rollback(
    client: &Client,
    served: Option<String>,
    args: RollbackArgs,
    json: bool,
    printer: &Printer,
) -> Exit {
    let project = project::chosen(client, args.project, served, printer).await?;
    let made = client.roll_back(&project, args.to, args.reason.as_deref()).await?;
    tell(&project, &made, json, printer)?;
    Ok(ExitCode::SUCCESS)
}

fn tell(project: &str, made: &Activation, json: bool, printer: &Printer) -> anyhow::Result<()> {
    if json {
        return Ok(printer.json(made)?);
    }
    Ok(printer.data(&format!("{project} v{} is active", made.version))?)
}

/// Which releases new sessions run on.
fn shares(project: &Project, json: bool, printer: &Printer) -> anyhow::Result<()> {
    if json {
        return Ok(printer.json(project)?);
    }
    let active = project.active_release.as_ref().map(|active| active.release.version);
    let rest = active.map_or_else(|| "none".to_owned(), |version| format!("v{version}"));
    let slug = &project.slug;
    Ok(printer.data(&match &project.canary {
        Some(canary) => format!(
            "{slug}: {} of 100 new sessions run on v{}, the others on {rest}",
            canary.percent, canary.release.version
        ),
        None => format!("{slug}: all new sessions run on {rest}"),
    })?)
}

async fn list(
    client: &Client,
    project: &str,
    limit: usize,
    json: bool,
    printer: &Printer,
) -> anyhow::Result<()> {
    let mut releases = Vec::new();
    let mut cursor = None;
    let more = loop {
        let page = client.releases(project, cursor.as_deref()).await?;
        releases.extend(page.data);
        cursor = page.next_cursor;
        if cursor.is_none() || releases.len() >= limit {
            break cursor.is_some() || releases.len() > limit;
        }
    };
    releases.truncate(limit);
    if json {
        return Ok(printer.json(&releases)?);
    }
    let canary = client.project(project).await?.canary;
    let rows: Vec<_> = releases.iter().map(|release| row(release, canary.as_ref())).collect();
    printer
        .table(&["VERSION", "STATE", "HARNESS", "FILES", "SIZE", "MADE (UTC)", "COMMIT", "MESSAGE"], &rows)?;
    if releases.is_empty() {
        printer.note(&format!("{project} has no release yet: publish one by `karta deploy`"));
    } else if more {
        printer.note("There are older ones: `--limit` shows more");
    }
    Ok(())
}

/// The name of a plain enum on the wire.
fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(word)) => word,
        _ => String::new(),
    }
}

fn state(one: &Release, canary: Option<&Canary>) -> String {
    let state = one.state.as_str();
    match (&one.preview, canary) {
        (_, Some(canary)) if canary.release.version == one.version => {
            format!("{state}, canary {} %", canary.percent)
        }
        (Some(name), _) if state == "preview" => format!("preview {}", tame(name)),
        _ => state.to_owned(),
    }
}

fn row(one: &Release, canary: Option<&Canary>) -> Vec<String> {
    let message = one.message.as_deref().unwrap_or_default();
    vec![
        format!("v{}", one.version),
        state(one, canary),
        format!("{} {}", one.harness.kind, one.harness.version),
        one.file_count.to_string(),
        size(one.size_bytes),
        minute(one.created_at),
        one.commit.as_deref().map(commit).unwrap_or_default(),
        tame(message.lines().next().unwrap_or_default()).chars().take(50).collect(),
    ]
}

/// A commit, short; that something was not committed stays to be seen.
pub(super) fn commit(commit: &str) -> String {
    let (name, rest) =
        commit.split_once('-').map_or((commit, String::new()), |(name, rest)| (name, format!("-{rest}")));
    tame(&format!("{}{rest}", name.chars().take(10).collect::<String>()))
}

fn show(one: &Release) -> String {
    let mut about = vec![format!("{} by {}", one.created_at, tame(&one.created_by))];
    about.extend(one.message.as_deref().map(tame));
    let entry = |name, value: Option<String>| found::entry(name, &Vec::from_iter(value));
    [
        format!("v{} {}\n", one.version, state(one, None)),
        entry("error", one.error.as_deref().map(tame)),
        found::entry("made", &about),
        entry("commit", one.commit.as_deref().map(tame)),
        found::found(&one.harness, &one.found),
        found::entry("policy", &found::policy(&one.policy)),
        found::entry("warnings", &one.found.warnings.iter().map(|text| tame(text)).collect::<Vec<_>>()),
        entry("files", Some(format!("{}, {}", count(one.file_count, "file"), size(one.size_bytes)))),
        entry("digest", Some(one.digest.clone())),
        entry(
            "build log",
            one.build_log_url.as_ref().map(|_| format!("karta logs --kind build --release v{}", one.version)),
        ),
    ]
    .concat()
}

fn activation(one: &Activation) -> Vec<String> {
    vec![
        one.at.to_string(),
        format!("v{}", one.version),
        word(&one.kind),
        one.by.clone(),
        tame(one.reason.as_deref().unwrap_or_default()),
    ]
}

/// The words of `diff`: perhaps a project, then two releases.
fn pair(words: &[String]) -> anyhow::Result<(Option<String>, u64, u64)> {
    let parse = |word: &str| version(word).map_err(anyhow::Error::msg);
    Ok(match words {
        [project, before, after] => (Some(project.clone()), parse(before)?, parse(after)?),
        [before, after] => (None, parse(before)?, parse(after)?),
        _ => bail!("name two releases: `karta releases diff v1 v2`"),
    })
}

fn compared(
    changes: &ReleaseDiff,
    before: u64,
    after: u64,
    json: bool,
    printer: &Printer,
) -> anyhow::Result<()> {
    if json {
        return Ok(printer.json(changes)?);
    }
    let text = diff::show(changes);
    if text.is_empty() {
        return Ok(printer.data(&format!("v{before} and v{after} are the same"))?);
    }
    Ok(printer.data(text.trim_end())?)
}

async fn download(
    client: &Client,
    project: &str,
    release: u64,
    to: Option<PathBuf>,
    json: bool,
    printer: &Printer,
) -> anyhow::Result<()> {
    let to = to.unwrap_or_else(|| format!("{}-v{release}.tar.gz", project.replace('@', "-")).into());
    if to == Path::new("-") {
        let mut pieces = client.download(project, release).await?;
        let mut out = tokio::io::stdout();
        while let Some(piece) = pieces.next().await {
            out.write_all(&piece?).await?;
        }
        return Ok(out.flush().await?);
    }
    if to.exists() {
        bail!("`{}` is there already: name another place by `--to`", to.display());
    }
    // Put together beside its place: what has the name is whole.
    let mut beside = to.clone().into_os_string();
    beside.push(".part");
    let beside = PathBuf::from(beside);
    let fetched = printer.working(fetch(client, project, release, &beside, printer)).await;
    let fetched = fetched.and_then(|bytes| {
        std::fs::rename(&beside, &to).with_context(|| format!("writing `{}`", to.display()))?;
        Ok(bytes)
    });
    if fetched.is_err() {
        // It may not even be there.
        let _ = std::fs::remove_file(&beside);
    }
    let bytes = fetched?;
    if json {
        return Ok(printer.json(&serde_json::json!({ "file": to, "bytes": bytes }))?);
    }
    printer.note(&format!("{project} v{release}, {}", size(bytes)));
    Ok(printer.data(&to.display().to_string())?)
}

async fn fetch(
    client: &Client,
    project: &str,
    release: u64,
    to: &Path,
    printer: &Printer,
) -> anyhow::Result<u64> {
    let mut pieces = client.download(project, release).await?;
    let writing = || format!("writing `{}`", to.display());
    let mut file = tokio::fs::File::create(to).await.with_context(writing)?;
    let mut bytes = 0;
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        bytes += piece.len() as u64;
        printer.progress(format!("downloading {project} v{release}: {}", size(bytes)));
        file.write_all(&piece).await.with_context(writing)?;
    }
    file.flush().await.with_context(writing)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_may_have_its_project_before_it() {
        let pair = |words: &[&str]| pair(&words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>());
        assert_eq!(pair(&["app", "v1", "2"]).unwrap(), (Some("app".to_owned()), 1, 2));
        assert_eq!(pair(&["1", "v2"]).unwrap(), (None, 1, 2));
        assert!(pair(&["app", "v1"]).unwrap_err().to_string().contains("`app` is no release"));
    }

    #[test]
    fn a_commit_is_short_and_says_when_it_is_not_all() {
        assert_eq!(commit("0123456789abcdef0123-dirty"), "0123456789-dirty");
        assert_eq!(commit("0123456789abcdef0123"), "0123456789");
    }
}
