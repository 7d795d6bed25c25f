//! `karta doctor`: what is ready on this machine, and how to mend what is not.

use std::process::ExitCode;

use karta_engine::{Builder, Settings};
use serde_json::json;

use crate::printer::{CYAN, Printer, RED, YELLOW};

pub(super) async fn run(settings: Settings, json: bool, printer: &Printer) -> anyhow::Result<ExitCode> {
    let mut checks: Vec<(String, bool, String)> = Vec::new();
    let data = settings.data.display().to_string();
    let (anthropic, openai) = (settings.providers.anthropic.is_some(), settings.providers.openai.is_some());
    let harnesses = karta_engine::harnesses::Harnesses::new(settings.data.join("harnesses"));
    // A server that runs has the data directory; a second owner of its sessions must not come up beside it.
    match Builder::new(settings).check().await {
        Ok(parts) => {
            checks.push(("data directory".to_owned(), true, data));
            for (name, state) in parts {
                let ok = state.is_ok();
                checks.push((name.to_owned(), ok, state.unwrap_or_else(|why| why)));
            }
        }
        Err(error) => checks.push(("data directory".to_owned(), false, error.chain())),
    }
    for status in harnesses.list() {
        for check in harnesses.doctor(status.id).await? {
            checks.push((format!("{}: {}", status.id, check.name), check.ok, check.detail));
        }
    }
    let keys = match (anthropic, openai) {
        (false, false) => {
            "none: set ANTHROPIC_API_KEY or OPENAI_API_KEY, or use `karta dev --scripted-model`"
        }
        (true, false) => "anthropic",
        (false, true) => "openai",
        (true, true) => "anthropic, openai",
    };
    checks.push(("provider keys".to_owned(), anthropic || openai, keys.to_owned()));
    // One harness and no key is enough to look around: only what nothing runs without makes the exit code.
    let fatal = checks.iter().take(1).any(|(_, ok, _)| !ok);
    if json {
        let rows: Vec<_> = checks
            .iter()
            .map(|(name, ok, detail)| json!({ "check": name, "ok": ok, "detail": detail }))
            .collect();
        printer.json(&rows)?;
    } else {
        for (name, ok, detail) in &checks {
            let mark = if *ok { format!("{CYAN}ok{CYAN:#}  ") } else { format!("{YELLOW}no{YELLOW:#}  ") };
            printer.data(&format!("{mark}  {name}: {detail}"))?;
        }
        if fatal {
            printer.note(&format!("{RED}Karta can't serve from here{RED:#}"));
        }
    }
    Ok(if fatal { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
