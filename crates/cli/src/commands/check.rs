//! `karta check`: what publishing a folder would refuse, said offline.

use std::process::ExitCode;

use serde_json::json;

use super::folder::{self, Looked};
use super::running;
use crate::args::CheckArgs;
use crate::printer::{CYAN, Printer, RED, count};

pub(super) async fn run(args: CheckArgs, as_json: bool, printer: &Printer) -> anyhow::Result<ExitCode> {
    let path = running::folder(&args.path)?;
    let looked = folder::look(path.clone(), args.allow_secrets, printer).await?;
    let faults = looked.faults();
    if as_json {
        printer.json(&machine(&looked))?;
    } else {
        let project = looked.checked.as_ref().ok().and_then(|checked| checked.project.clone());
        let project = project.unwrap_or_else(|| running::slug_of(&path));
        printer
            .data(format!("{CYAN}{project}{CYAN:#}: {}\n{}", looked.amount(), looked.about()).trim_end())?;
        for fault in &faults {
            printer.data(&format!("{RED}refused{RED:#}: {fault}"))?;
        }
        if faults.is_empty() {
            printer.note("Fine: publishing would take it");
        } else {
            let number = count(faults.len() as u64, "reason");
            printer.note(&format!("Publishing would refuse it, for {number}"));
            if let Some(advice) = looked.advice() {
                printer.note(&format!("  {CYAN}hint{CYAN:#}: {advice}"));
            }
        }
    }
    Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// All of it, for machines.
fn machine(looked: &Looked) -> serde_json::Value {
    let checked = looked.checked.as_ref().ok();
    let faults = looked.checked.as_ref().err().into_iter().flatten().map(|fault| {
        json!({ "file": fault.file, "line": fault.line, "column": fault.column, "message": fault.message, "help": fault.help })
    });
    let secrets = looked.picked.secrets.iter();
    let secrets = secrets.map(|one| json!({ "path": one.path, "line": one.line, "what": one.what }));
    let left_out = looked.picked.left_out.iter().map(|one| json!({ "path": one.path, "why": one.why }));
    json!({
        "ok": looked.faults().is_empty(),
        "project": checked.and_then(|checked| checked.project.clone()),
        "harness": checked.map(|checked| &checked.pin),
        "found": checked.map(|checked| &checked.found),
        "policy": checked.map(|checked| &checked.recipe.policy),
        "file_count": looked.picked.files.len(),
        "size_bytes": looked.picked.files.bytes(),
        "left_out": left_out.collect::<Vec<_>>(),
        "secrets": secrets.collect::<Vec<_>>(),
        "faults": faults.collect::<Vec<_>>(),
        "warnings": checked.map(|checked| checked.warnings.clone()).unwrap_or_default(),
    })
}
