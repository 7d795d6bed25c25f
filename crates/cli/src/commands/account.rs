//! `karta keys`, `budget`, `usage`, `provider-keys`, `token`, `audit`: one call of the API each, shown.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use futures_util::StreamExt as _;
use karta_client::{Client, CreateKey, MintToken, UsageQuery};
use karta_types::Secret;
use karta_types::budget::{Budget, Caps, Unit};

use crate::args::{AuditCommand, BudgetCommand, KeysCommand, ProviderKeysCommand, TokenCommand, UsageArgs};
use crate::printer::Printer;

type Exit = anyhow::Result<ExitCode>;

/// The longest key that is read from standard input, in bytes.
const MAX_KEY: u64 = 16 << 10;

pub(super) async fn keys(client: &Client, command: KeysCommand, json: bool, printer: &Printer) -> Exit {
    match command {
        KeysCommand::List => {
            let mut keys = Vec::new();
            let mut cursor = None;
            loop {
                let page = client.keys(cursor.as_deref()).await?;
                keys.extend(page.data);
                cursor = page.next_cursor;
                if cursor.is_none() {
                    break;
                }
            }
            if json {
                printer.json(&keys)?;
                return Ok(ExitCode::SUCCESS);
            }
            let row = |key: &karta_types::key::ApiKey| {
                let scopes: Vec<_> = key.scopes.iter().map(|scope| scope.as_str()).collect();
                let state = match (key.revoked_at, key.expires_at) {
                    (Some(at), _) => format!("revoked {at}"),
                    (None, Some(at)) => format!("until {at}"),
                    (None, None) => "good".to_owned(),
                };
                let used = key.last_used_at.map_or_else(|| "never".to_owned(), |at| at.to_string());
                let shown = format!("{}…{}", key.prefix, key.last4);
                vec![key.id.to_string(), key.name.clone(), shown, scopes.join(","), state, used]
            };
            let rows: Vec<_> = keys.iter().map(row).collect();
            printer.table(&["ID", "NAME", "KEY", "SCOPES", "STATE", "LAST USED"], &rows)?;
        }
        KeysCommand::Create { name, scopes, project, test } => {
            let scopes = scopes.iter().collect();
            let made =
                client.create_key(&CreateKey { name, scopes, project, expires_at: None, test }).await?;
            secret(json, printer, &made, &made.key, "This is the only time the key is shown.")?;
        }
        KeysCommand::Rotate { id, overlap } => {
            let made = client.rotate_key(id, overlap * 3600).await?;
            let note =
                format!("The old key ends in {overlap} hours. This is the only time the new one is shown.");
            secret(json, printer, &made, &made.key, &note)?;
        }
        KeysCommand::Revoke { id } => {
            client.revoke_key(id).await?;
            printer.note(&format!("{id} is revoked, and the session tokens it minted with it."));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Something that is shown once: alone on standard output, so that it can be piped.
pub(super) fn secret(
    json: bool,
    printer: &Printer,
    whole: &impl serde::Serialize,
    text: &str,
    note: &str,
) -> anyhow::Result<()> {
    if json {
        printer.json(whole)?;
    } else {
        printer.data(text)?;
        printer.note(note);
    }
    Ok(())
}

pub(super) async fn budget(client: &Client, command: BudgetCommand, json: bool, printer: &Printer) -> Exit {
    let budgets = match command {
        BudgetCommand::List => client.budgets().await?.data,
        BudgetCommand::Set { level, id, period, cost_micros, input_tokens, output_tokens, total_tokens } => {
            let caps = Caps { input_tokens, output_tokens, total_tokens, cost_micros };
            ensure!(
                !caps.is_empty(),
                "name a cap: --cost-micros, --input-tokens, --output-tokens or --total-tokens"
            );
            vec![client.set_budget(level, &id, period, caps).await?]
        }
        BudgetCommand::Remove { level, id, period } => {
            client.remove_budget(level, &id, period).await?;
            printer.note("The cap is removed.");
            return Ok(ExitCode::SUCCESS);
        }
    };
    if json {
        printer.json(&budgets)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<_> = budgets.iter().flat_map(budget_rows).collect();
    printer.table(&["LEVEL", "ID", "PERIOD", "UNIT", "CAP", "USED", "SET ASIDE", "LEFT"], &rows)?;
    Ok(ExitCode::SUCCESS)
}

fn budget_rows(budget: &Budget) -> Vec<Vec<String>> {
    let capped = Unit::ALL.iter().filter_map(|unit| budget.caps.of(*unit).map(|cap| (*unit, cap)));
    capped
        .map(|(unit, cap)| {
            vec![
                budget.level.to_string(),
                budget.id.clone(),
                budget.period.to_string(),
                unit.to_string(),
                amount(unit, cap),
                amount(unit, budget.settled.of(unit)),
                amount(unit, budget.reserved.of(unit)),
                amount(unit, budget.left.of(unit).unwrap_or_default()),
            ]
        })
        .collect()
}

/// Money in dollars, tokens as they are.
fn amount(unit: Unit, number: i64) -> String {
    if unit == Unit::CostMicros { dollars(number) } else { number.to_string() }
}

pub(super) fn dollars(micros: i64) -> String {
    format!("${}.{:06}", micros / 1_000_000, micros.rem_euclid(1_000_000))
}

pub(super) async fn usage(client: &Client, args: &UsageArgs, json: bool, printer: &Printer) -> Exit {
    let group_by: Vec<String> =
        args.by.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect();
    let query =
        UsageQuery { group_by: group_by.clone(), project: args.project.clone(), ..UsageQuery::default() };
    let rows = client.usage(&query).await?.data;
    if json {
        printer.json(&rows)?;
        return Ok(ExitCode::SUCCESS);
    }
    let most = rows.iter().map(|row| row.metered.cost_micros.get()).max().unwrap_or_default().max(1);
    let table: Vec<_> = rows
        .iter()
        .map(|row| {
            let mut cells: Vec<_> = group_by
                .iter()
                .map(|key| row.keys.get(key).and_then(|value| value.as_str()).unwrap_or_default().to_owned())
                .collect();
            let cost = row.metered.cost_micros.get();
            let share = usize::try_from(cost.saturating_mul(24) / most).unwrap_or(0);
            cells.extend([
                row.turns.to_string(),
                row.metered.input_tokens.to_string(),
                row.metered.output_tokens.to_string(),
                row.metered.cache_read_tokens.to_string(),
                row.metered.cache_write_tokens.to_string(),
                dollars(cost),
                "▇".repeat(share),
            ]);
            cells
        })
        .collect();
    let mut head: Vec<String> = group_by.iter().map(|key| key.to_uppercase()).collect();
    head.extend(["TURNS", "INPUT", "OUTPUT", "CACHE READ", "CACHE WRITE", "COST", ""].map(str::to_owned));
    let head: Vec<_> = head.iter().map(String::as_str).collect();
    printer.table(&head, &table)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn provider_keys(
    client: &Client,
    command: ProviderKeysCommand,
    json: bool,
    printer: &Printer,
) -> Exit {
    match command {
        ProviderKeysCommand::List => {
            let keys = client.provider_keys().await?.data;
            if json {
                printer.json(&keys)?;
                return Ok(ExitCode::SUCCESS);
            }
            let rows: Vec<_> = keys
                .iter()
                .map(|key| {
                    let (provider, end) = (key.provider.to_string(), format!("…{}", key.last4));
                    vec![provider, end, key.created_by.clone(), key.created_at.to_string()]
                })
                .collect();
            printer.table(&["PROVIDER", "KEY", "SET BY", "SET AT"], &rows)?;
        }
        ProviderKeysCommand::Set { provider, region } => {
            if std::io::stdin().is_terminal() {
                printer.note(&format!("Paste the key for {provider}, then Enter and Ctrl-D."));
            }
            let mut text = String::new();
            std::io::stdin().take(MAX_KEY).read_to_string(&mut text).context("reading the key")?;
            let key = Secret::new(text.trim().to_owned());
            let set = client.set_provider_key(provider, &key, region.as_deref()).await?;
            if json {
                printer.json(&set)?;
            } else {
                printer.note(&format!("The key …{} is used for {provider} from now on.", set.last4));
            }
        }
        ProviderKeysCommand::Erase { provider } => {
            client.erase_provider_key(provider).await?;
            printer.note(&format!("The key for {provider} is erased."));
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn token(client: &Client, command: TokenCommand, json: bool, printer: &Printer) -> Exit {
    match command {
        TokenCommand::Mint { project, end_user, session, origins, minutes, max_cost_micros } => {
            let new = MintToken {
                project,
                end_user_id: end_user,
                session_id: session,
                origins,
                ttl_seconds: Some(minutes * 60),
                max_cost_micros,
            };
            let minted = client.mint_token(&new).await?;
            let note = format!("{} is good until {}.", minted.id, minted.expires_at);
            secret(json, printer, &minted, &minted.token, &note)?;
        }
        TokenCommand::Revoke { id } => {
            client.revoke_token(id).await?;
            printer.note(&format!("{id} is revoked."));
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn audit(client: &Client, command: AuditCommand, json: bool, printer: &Printer) -> Exit {
    match command {
        AuditCommand::List { action, limit } => {
            let entries = client.audit(action.as_deref(), limit).await?.data;
            if json {
                printer.json(&entries)?;
                return Ok(ExitCode::SUCCESS);
            }
            let rows: Vec<_> = entries
                .iter()
                .map(|entry| {
                    let why = entry.reason.clone().unwrap_or_default();
                    vec![
                        entry.seq.to_string(),
                        entry.at.to_string(),
                        entry.actor.clone(),
                        entry.action.clone(),
                        entry.resource.clone(),
                        why,
                    ]
                })
                .collect();
            printer.table(&["SEQ", "AT", "ACTOR", "ACTION", "RESOURCE", "WHY"], &rows)?;
        }
        AuditCommand::Export { after } => {
            let mut lines = std::pin::pin!(client.audit_export(after).await?);
            let mut out = printer.out();
            while let Some(part) = lines.next().await {
                out.write_all(&part?).context("writing the export")?;
            }
        }
        AuditCommand::Verify => {
            let verdict = client.audit_verify().await?;
            if json {
                printer.json(&verdict)?;
            } else {
                for fault in &verdict.faults {
                    printer.data(&format!("row {}: {}", fault.seq, fault.what))?;
                }
                let whole = if verdict.intact { "whole" } else { "not whole" };
                printer.note(&format!(
                    "The log is {whole}: {} rows and {} signed ends checked.",
                    verdict.rows, verdict.seals
                ));
            }
            return Ok(if verdict.intact { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
    }
    Ok(ExitCode::SUCCESS)
}
