//! `karta projects` and `karta previews`.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use karta_client::Client;
use karta_types::release::{Preview, Project};

use super::project;
use crate::args::{PreviewsCommand, ProjectsCommand};
use crate::printer::{Printer, YELLOW, minute, tame};

type Exit = anyhow::Result<ExitCode>;

pub(super) async fn projects(
    client: &Client,
    command: ProjectsCommand,
    json: bool,
    printer: &Printer,
) -> Exit {
    match command {
        ProjectsCommand::List => {
            let projects = client.projects().await?.data;
            if json {
                printer.json(&projects)?;
            } else {
                let rows: Vec<_> = projects.iter().map(row).collect();
                printer.table(&["PROJECT", "ACTIVE", "CANARY", "AGENTS", "MADE", "ID"], &rows)?;
            }
        }
        ProjectsCommand::Create { slug, name } => {
            let made = client.create_project(&slug, name.as_deref()).await?;
            if json {
                printer.json(&made)?;
            } else {
                printer.note(&format!(
                    "{} is made; it runs once something is published: `karta deploy --project {}`",
                    made.slug, made.slug
                ));
            }
        }
        ProjectsCommand::Delete { project, yes } => {
            let known = client.project(&project).await?;
            if !yes && !sure(&known, printer)? {
                printer.note("Nothing was deleted");
                return Ok(ExitCode::FAILURE);
            }
            client.delete_project(&project).await?;
            printer.note(&format!("{} is deleted", known.slug));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether the person means it: they type the name.
fn sure(project: &Project, printer: &Printer) -> anyhow::Result<bool> {
    if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
        bail!("this erases {} with its releases and sessions: say `--yes` if that is meant", project.slug);
    }
    printer.ask(&format!(
        "{YELLOW}This erases {} with its releases, previews and sessions.{YELLOW:#} Type its name to go on: ",
        project.slug
    ));
    let mut typed = String::new();
    std::io::stdin().read_line(&mut typed).context("reading the answer")?;
    Ok(typed.trim() == project.slug)
}

fn row(one: &Project) -> Vec<String> {
    let agents: Vec<_> = one.agents.iter().map(|agent| tame(&agent.name)).collect();
    vec![
        one.slug.clone(),
        one.active_release
            .as_ref()
            .map_or_else(|| "-".to_owned(), |active| format!("v{}", active.release.version)),
        one.canary
            .as_ref()
            .map_or_else(String::new, |canary| format!("v{} {} %", canary.release.version, canary.percent)),
        agents.join(", "),
        one.created_at.day(),
        one.id.to_string(),
    ]
}

/// `served` is the project that the running server was started for.
pub(super) async fn previews(
    client: &Client,
    served: Option<String>,
    command: PreviewsCommand,
    json: bool,
    printer: &Printer,
) -> Exit {
    match command {
        PreviewsCommand::List { project } => {
            let project = project::chosen(client, project, served, printer).await?;
            let previews = all_previews(client, &project).await?;
            if json {
                printer.json(&previews)?;
            } else if previews.is_empty() {
                printer.note(&format!("{project} has no preview: `karta deploy --preview NAME` makes one"));
            } else {
                let row = |one: &Preview| {
                    let version = format!("v{}", one.release.version);
                    vec![one.name.clone(), version, one.slug.clone(), minute(one.expires_at)]
                };
                let rows: Vec<_> = previews.iter().map(row).collect();
                printer.table(&["PREVIEW", "VERSION", "USED AS PROJECT", "ENDS (UTC)"], &rows)?;
            }
        }
        PreviewsCommand::Remove { project, name } => {
            let project = project::chosen(client, project, served, printer).await?;
            client.remove_preview(&project, &name).await?;
            printer.note(&format!("The preview {name} of {project} is ended, and its sessions with it"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Every preview of a project.
pub(super) async fn all_previews(client: &Client, project: &str) -> anyhow::Result<Vec<Preview>> {
    let mut previews = Vec::new();
    let mut cursor = None;
    loop {
        let page = client.previews(project, cursor.as_deref()).await?;
        previews.extend(page.data);
        cursor = page.next_cursor;
        if cursor.is_none() {
            return Ok(previews);
        }
    }
}
