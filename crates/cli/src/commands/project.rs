//! Which project a command is about, where none is named.

use anyhow::{Context as _, bail};
use karta_client::Client;

use crate::printer::{DIM, Printer};
use crate::settings;

/// The project that is meant; if it was not named, it is said, so that nobody has to guess.
pub(super) async fn chosen(
    client: &Client,
    named: Option<String>,
    served: Option<String>,
    printer: &Printer,
) -> anyhow::Result<String> {
    if let Some(project) = named {
        return Ok(project);
    }
    let project = meant(client, served).await?;
    printer.note(&format!("{DIM}project {project}{DIM:#}"));
    Ok(project)
}

/// This folder's project; else the one that the running server was started for, or its only one.
pub(super) async fn meant(client: &Client, served: Option<String>) -> anyhow::Result<String> {
    if let Some(project) = settings::project_here()?.or(served) {
        return Ok(project);
    }
    let projects = client.projects().await.context("looking which project is meant")?.data;
    match projects.as_slice() {
        [project] => Ok(project.slug.clone()),
        [] => bail!("the server has no project yet: publish one by `karta deploy`"),
        many => {
            let slugs: Vec<_> = many.iter().map(|project| project.slug.as_str()).collect();
            bail!(
                "which project? There is no `project` in a karta.toml here or above, and the server has several; name one: {}",
                slugs.join(", ")
            )
        }
    }
}
