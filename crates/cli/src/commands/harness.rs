//! `karta harness`: what there is, what is installed, and whether it starts.

use std::path::Path;
use std::process::ExitCode;

use karta_engine::harnesses::{Harnesses, Progress};
use serde_json::json;

use crate::args::{HarnessCommand, Wanted};
use crate::printer::Printer;

pub(super) async fn run(
    command: HarnessCommand,
    data: &Path,
    json: bool,
    printer: &Printer,
) -> anyhow::Result<ExitCode> {
    let harnesses = Harnesses::new(data.join("harnesses"));
    match command {
        HarnessCommand::List => list(&harnesses, json, printer),
        HarnessCommand::Install { wanted } => install(&harnesses, &wanted, json, printer).await,
        HarnessCommand::Doctor { id } => doctor(&harnesses, id, json, printer).await,
    }
}

fn list(harnesses: &Harnesses, json: bool, printer: &Printer) -> anyhow::Result<ExitCode> {
    let all = harnesses.list();
    if json {
        printer.json(&all)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = Vec::new();
    for status in &all {
        let about = [status.default_version.to_owned(), status.licence.to_owned()];
        let row = |installed: String, size: String| {
            let [default, licence] = about.clone();
            vec![status.id.to_owned(), default, installed, size, licence]
        };
        for version in &status.installed {
            let note = if version.record.pinned { "" } else { " (not pinned by this Karta)" };
            rows.push(row(format!("{}{note}", version.record.version), megabytes(version.size)));
        }
        if status.installed.is_empty() {
            let none = if status.available { "no" } else { "not for this machine" };
            rows.push(row(none.to_owned(), String::new()));
        }
    }
    printer.table(&["HARNESS", "DEFAULT", "INSTALLED", "SIZE", "LICENCE"], &rows)?;
    if let Some(status) = all.iter().find(|status| status.installed.is_empty() && status.available) {
        printer.note(&format!("Install one by `karta harness install {}`", status.id));
    }
    Ok(ExitCode::SUCCESS)
}

async fn install(
    harnesses: &Harnesses,
    wanted: &Wanted,
    json: bool,
    printer: &Printer,
) -> anyhow::Result<ExitCode> {
    let Wanted { id, version } = wanted;
    let tell = |progress| match progress {
        Progress::Waiting => printer.doing(format!("waiting for another installation of {id}")),
        Progress::Fetching => {
            announce(harnesses, wanted, printer);
            printer.doing(format!("fetching {id} by npm"));
        }
        Progress::Trying => printer.doing(format!("trying {id}")),
    };
    let installed = printer.working(harnesses.install(id, version.as_deref(), &tell)).await?;
    if json {
        printer.json(&json!({ "id": id, "version": installed.version, "program": installed.program }))?;
    } else {
        printer.note(&format!("Installed {id} {}", installed.version));
        printer.data(&installed.program.display().to_string())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Says what is about to be fetched, and on whose terms.
fn announce(harnesses: &Harnesses, wanted: &Wanted, printer: &Printer) {
    let Some(status) = harnesses.list().into_iter().find(|status| status.id == wanted.id) else { return };
    let version = wanted.version.as_deref().unwrap_or(status.default_version);
    printer.note(&format!(
        "Installing {} {version}; by that you accept its licence: {}",
        status.id, status.licence
    ));
    if version != status.default_version {
        printer
            .note("This version is not pinned by this Karta: the registry's word is taken for what it holds");
    }
}

async fn doctor(
    harnesses: &Harnesses,
    id: Option<String>,
    json: bool,
    printer: &Printer,
) -> anyhow::Result<ExitCode> {
    let ids = id
        .map_or_else(|| harnesses.list().iter().map(|status| status.id.to_owned()).collect(), |id| vec![id]);
    let mut well = true;
    let (mut rows, mut found) = (Vec::new(), Vec::new());
    for id in ids {
        let checks = printer.working(harnesses.doctor(&id)).await?;
        well &= checks.iter().all(|check| check.ok);
        for check in &checks {
            let mark = if check.ok { "ok" } else { "WRONG" };
            rows.push(vec![
                id.clone(),
                check.name.to_owned(),
                mark.to_owned(),
                check.detail.replace('\n', " / "),
            ]);
        }
        found.push(json!({ "id": id, "checks": checks }));
    }
    if json {
        printer.json(&found)?;
    } else {
        printer.table(&["HARNESS", "CHECK", "", "FOUND"], &rows)?;
    }
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn megabytes(bytes: u64) -> String {
    format!("{} MB", bytes.div_ceil(1_000_000))
}
