//! `karta admin`: on the server's machine, by whoever runs it.

use std::path::PathBuf;
use std::process::ExitCode;

use karta_engine::Settings;
use karta_engine::control::billing::{self, Change};
use karta_engine::control::sign_in;
use serde_json::json;

use crate::args::AdminCommand;
use crate::printer::{DIM, Printer};
use crate::settings;

pub(super) async fn run(
    command: AdminCommand,
    data: Option<PathBuf>,
    as_json: bool,
    printer: &Printer,
) -> anyhow::Result<ExitCode> {
    let (email, org, config) = match command {
        AdminCommand::Grants { role } => {
            printer.data(karta_engine::control::grants(&role).trim_end())?;
            return Ok(ExitCode::SUCCESS);
        }
        AdminCommand::Credit { org, amount, expires, note, config } => {
            let expires_at = expires.map(|text| {
                // A time as JSON has it: read by the same rules.
                serde_json::from_value(serde_json::Value::from(text))
                    .map_err(|_| anyhow::anyhow!("--expires takes a time like `2027-01-01T00:00:00Z`"))
            });
            let grant = Change::Grant { amount, expires_at: expires_at.transpose()?, note };
            return change(&settings::server(data, config.as_deref())?, &org, grant, printer).await;
        }
        AdminCommand::Subscription { org, plan, status, config } => {
            let subscribe = Change::Subscribe { plan, status };
            return change(&settings::server(data, config.as_deref())?, &org, subscribe, printer).await;
        }
        AdminCommand::Shred { org, yes, config } => {
            let settings = settings::server(data, config.as_deref())?;
            return shred(&settings, &org, yes, as_json, printer).await;
        }
        AdminCommand::Bootstrap { email, org, config } => (email, org, config),
    };
    let settings = settings::server(data, config.as_deref())?;
    let made = sign_in::bootstrap(&settings, &org, &email).await.map_err(|error| {
        anyhow::anyhow!(error.chain()).context(format!("making {email} an owner of `{org}`"))
    })?;
    let base = settings.public_url.clone().or_else(|| settings::running_url(&settings.data));
    let base = base.unwrap_or_else(|| format!("http://{}", settings.listen));
    let link = format!("{}/login?code={}", base.trim_end_matches('/'), made.code.expose());
    if as_json {
        printer.json(&json!({ "link": link, "key": made.key.as_ref().map(karta_types::Secret::expose) }))?;
        return Ok(ExitCode::SUCCESS);
    }
    printer.note(&format!("This link signs {email} in, {DIM}once, within a day{DIM:#}:"));
    printer.data(&link)?;
    if let Some(key) = made.key {
        printer.note(&format!("The first key, with every scope; it is shown {DIM}only now{DIM:#}:"));
        printer.data(key.expose())?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn change(settings: &Settings, org: &str, what: Change, printer: &Printer) -> anyhow::Result<ExitCode> {
    billing::change(settings, org, what)
        .await
        .map_err(|error| anyhow::anyhow!(error.chain()).context(format!("changing what `{org}` pays")))?;
    printer.note(&format!("It is done, and in the audit log of `{org}`."));
    Ok(ExitCode::SUCCESS)
}

async fn shred(
    settings: &Settings,
    org: &str,
    yes: bool,
    as_json: bool,
    printer: &Printer,
) -> anyhow::Result<ExitCode> {
    if !yes {
        anyhow::bail!(
            "this can't be undone: nobody can read again what the sessions of `{org}` have made; to do it, add --yes"
        );
    }
    let gone = karta_engine::data::checkpoints::shred(settings, org)
        .await
        .map_err(|error| anyhow::anyhow!(error.chain()).context(format!("destroying the keys of `{org}`")))?;
    if as_json {
        printer.json(&json!({ "checkpoints": gone }))?;
    } else {
        printer.note(&format!(
            "The keys of `{org}` are destroyed, and {gone} checkpoints with them; it is in the audit log."
        ));
        printer.note(
            "Backups of the database from before still hold the keys, wrapped: see docs/guides/state.md.",
        );
    }
    Ok(ExitCode::SUCCESS)
}
