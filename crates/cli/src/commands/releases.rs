//! `karta releases` and `karta rollback`.

use std::process::ExitCode;

use karta_client::Client;
use karta_types::release::{Activation, Release};
use serde_json::Value;

use crate::args::{ReleasesCommand, RollbackArgs};
use crate::printer::Printer;

pub(super) async fn run(
    client: &Client,
    command: ReleasesCommand,
    json: bool,
    printer: &Printer,
) -> anyhow::Result<ExitCode> {
    match command {
        ReleasesCommand::List { project } => {
            let releases = client.releases(&project).await?;
            if json {
                printer.json(&releases.data)?;
            } else {
                let rows: Vec<_> = releases.data.iter().map(release).collect();
                printer.table(&["VERSION", "STATE", "HARNESS", "MADE", "DIGEST"], &rows)?;
            }
        }
        ReleasesCommand::History { project } => {
            let history = client.activations(&project).await?;
            if json {
                printer.json(&history.data)?;
            } else {
                let rows: Vec<_> = history.data.iter().map(activation).collect();
                printer.table(&["AT", "VERSION", "HOW", "BY", "WHY"], &rows)?;
            }
        }
        ReleasesCommand::Activate { project, release, reason } => {
            let made = client.activate(&project, release, reason.as_deref()).await?;
            tell(&made, json, printer)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn rollback(
    client: &Client,
    args: &RollbackArgs,
    json: bool,
    printer: &Printer,
) -> anyhow::Result<ExitCode> {
    let made = client.roll_back(&args.project, args.to, args.reason.as_deref()).await?;
    tell(&made, json, printer)?;
    Ok(ExitCode::SUCCESS)
}

fn tell(made: &Activation, json: bool, printer: &Printer) -> anyhow::Result<()> {
    if json {
        return Ok(printer.json(made)?);
    }
    Ok(printer.data(&format!("v{} is active", made.version))?)
}

/// The name of a plain enum on the wire.
fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(word)) => word,
        _ => String::new(),
    }
}

fn release(one: &Release) -> Vec<String> {
    vec![
        format!("v{}", one.version),
        word(&one.state),
        format!("{} {}", one.harness.kind, one.harness.version),
        one.created_at.to_string(),
        one.digest.chars().take(12).collect(),
    ]
}

fn activation(one: &Activation) -> Vec<String> {
    vec![
        one.at.to_string(),
        format!("v{}", one.version),
        word(&one.kind),
        one.by.clone(),
        one.reason.clone().unwrap_or_default(),
    ]
}
