//! `karta billing`.

use std::process::ExitCode;

use karta_client::Client;

use super::account::dollars;
use crate::args::BillingCommand;
use crate::printer::Printer;

pub(super) async fn run(
    client: &Client,
    command: BillingCommand,
    json: bool,
    printer: &Printer,
) -> anyhow::Result<ExitCode> {
    match command {
        BillingCommand::Show => {
            let billing = client.billing().await?;
            let credits = client.credits().await?.data;
            if json {
                printer.json(&serde_json::json!({ "billing": billing, "credit": credits }))?;
                return Ok(ExitCode::SUCCESS);
            }
            let subscription = match (&billing.subscription, billing.configured) {
                (Some(known), _) => format!("{} ({})", known.plan, known.status.as_str()),
                (None, true) => format!("none; plans: {}", billing.plans.join(", ")),
                (None, false) => "no billing configured".to_owned(),
            };
            let credit = billing.credit_micros.map_or_else(|| "none granted".to_owned(), dollars);
            printer.data(&format!("subscription  {subscription}\ncredit        {credit}"))?;
            let row = |one: &karta_types::billing::Credit| {
                let until = match (one.expired_at, one.expires_at) {
                    (Some(at), _) => format!("expired {at}"),
                    (None, Some(at)) => at.to_string(),
                    (None, None) => "never".to_owned(),
                };
                vec![
                    one.id.to_string(),
                    dollars(one.amount_micros),
                    dollars(one.used_micros),
                    until,
                    one.note.clone(),
                ]
            };
            if !credits.is_empty() {
                let rows: Vec<_> = credits.iter().map(row).collect();
                printer.table(&["ID", "GRANTED", "USED", "EXPIRES", "NOTE"], &rows)?;
            }
        }
        BillingCommand::Statement { month, format } => {
            let form = if json { "json" } else { &format };
            printer.data(client.statement(&month, form).await?.trim_end())?;
        }
        BillingCommand::Checkout { plan } => {
            let url = client.checkout(&plan).await?;
            if json {
                printer.json(&serde_json::json!({ "url": url }))?;
            } else {
                printer.note("Open this in a browser:");
                printer.data(&url)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
