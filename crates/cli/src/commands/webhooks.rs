//! `karta webhooks`.

use std::process::ExitCode;

use anyhow::bail;
use karta_client::Client;
use karta_types::webhook::{Delivery, Endpoint};

use super::account::secret;
use crate::args::WebhooksCommand;
use crate::printer::Printer;

pub(super) async fn run(
    client: &Client,
    command: WebhooksCommand,
    json: bool,
    printer: &Printer,
) -> anyhow::Result<ExitCode> {
    match command {
        WebhooksCommand::List => show(&client.webhooks().await?.data, json, printer)?,
        WebhooksCommand::Create { address, events } => {
            let made = client.create_webhook(&address, &events).await?;
            secret(
                json,
                printer,
                &made,
                &made.secret,
                "Deliveries are signed by this; it is shown only now.",
            )?;
        }
        WebhooksCommand::Enable { id } => show(&[client.enable_webhook(id, true).await?], json, printer)?,
        WebhooksCommand::Disable { id } => show(&[client.enable_webhook(id, false).await?], json, printer)?,
        WebhooksCommand::Remove { id } => {
            client.remove_webhook(id).await?;
            printer.note(&format!("{id} is removed."));
        }
        WebhooksCommand::Rotate { id, overlap } => {
            let made = client.rotate_webhook(id, overlap * 3600).await?;
            let note = format!("For {overlap} hours both secrets sign. This one is shown only now.");
            secret(json, printer, &made, &made.secret, &note)?;
        }
        WebhooksCommand::Deliveries { id, state, limit } => {
            let deliveries = client.deliveries(id, state, limit).await?.data;
            if json {
                printer.json(&deliveries)?;
                return Ok(ExitCode::SUCCESS);
            }
            let rows: Vec<_> = deliveries.iter().map(row).collect();
            printer.table(&["ID", "EVENT", "STATE", "TRIES", "HAPPENED", "NEXT", "LAST ANSWER"], &rows)?;
        }
        WebhooksCommand::Redeliver { id, delivery: Some(delivery), .. } => {
            client.redeliver(id, delivery).await?;
            printer.note("It is delivered again.");
        }
        WebhooksCommand::Redeliver { id, delivery: None, since } => {
            // A time as JSON has it: read by the same rules.
            let since = serde_json::from_value(serde_json::Value::from(since.unwrap_or_default()));
            let Ok(since) = since else { bail!("--since takes a time like `2026-11-01T00:00:00Z`") };
            let count = client.redeliver_since(id, since).await?;
            printer.note(&format!("{count} are delivered again."));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show(endpoints: &[Endpoint], json: bool, printer: &Printer) -> anyhow::Result<()> {
    if json {
        return Ok(printer.json(&endpoints)?);
    }
    let row = |one: &Endpoint| {
        let events: Vec<_> = one.events.iter().map(|event| event.as_str()).collect();
        let events = if events.is_empty() { "everything".to_owned() } else { events.join(",") };
        let state = match (&one.disabled_reason, one.failing_since) {
            (Some(why), _) => format!("disabled: {why}"),
            (None, Some(since)) => format!("failing since {since}"),
            (None, None) => "good".to_owned(),
        };
        vec![one.id.to_string(), one.url.clone(), events, state]
    };
    let rows: Vec<_> = endpoints.iter().map(row).collect();
    Ok(printer.table(&["ID", "ADDRESS", "TOLD", "STATE"], &rows)?)
}

fn row(one: &Delivery) -> Vec<String> {
    let status = one.last_status.map(|status| status.to_string());
    vec![
        one.id.to_string(),
        one.event.to_string(),
        one.state.as_str().to_owned(),
        one.attempts.to_string(),
        one.happened_at.to_string(),
        one.next_attempt_at.map(|at| at.to_string()).unwrap_or_default(),
        one.last_error.clone().or(status).unwrap_or_default(),
    ]
}
