//! `karta logs`: what a project did, line by line.

use std::process::ExitCode;
use std::time::Duration;

use karta_client::{Client, LogFilter, LogStream, Retry};
use karta_types::release::{Line, LogLine};
use karta_types::session::{Turn, TurnState};

use super::chat::usage;
use crate::printer::{CYAN, DIM, Printer, RED, YELLOW, tame};

/// Somebody who follows waits for a server to come back: about five minutes.
const PATIENT: Retry = Retry {
    attempts: 60,
    first: Duration::from_millis(250),
    most: Duration::from_secs(5),
    silence: Duration::from_secs(50),
};
/// How long a connection may be away before that is said.
const AWAY: Duration = Duration::from_secs(2);

pub(super) async fn run(
    client: Client,
    project: &str,
    filter: &LogFilter,
    follow: bool,
    json: bool,
    printer: &Printer,
) -> anyhow::Result<ExitCode> {
    if follow {
        let mut log = client.with_retry(PATIENT).follow_logs(project, filter);
        while let Some(line) = next(&mut log, printer).await {
            print(&line?, json, printer)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let lines = client.logs(project, filter).await?.data;
    for line in &lines {
        print(line, json, printer)?;
    }
    if lines.is_empty() && !json {
        printer.note(&format!("{project} has no such line yet; `--follow` waits for what comes"));
    }
    Ok(ExitCode::SUCCESS)
}

/// The next line; that the server is away is said once.
async fn next(log: &mut LogStream, printer: &Printer) -> Option<Result<LogLine, karta_client::Error>> {
    let mut said = false;
    loop {
        if let Ok(line) = tokio::time::timeout(AWAY, log.next()).await {
            return line;
        }
        if log.reconnecting() && !said {
            printer.note(&format!("{DIM}The server is away; waiting for it{DIM:#}"));
            said = true;
        }
    }
}

fn print(line: &LogLine, json: bool, printer: &Printer) -> std::io::Result<()> {
    if json { printer.json(line) } else { printer.data(&show(line)) }
}

/// `11-24 12:30:01  v3   build  npm ci`
fn show(line: &LogLine) -> String {
    let (kind, text) = match &line.line {
        Line::Build { text } => (format!("{CYAN}build{CYAN:#}"), tame(text.trim_end())),
        Line::Turn { turn } => ("turn ".to_owned(), turned(turn)),
    };
    let version = line.version.map(|version| format!("v{version}")).unwrap_or_default();
    let at = line.at.to_string();
    // Month, day and time to the second.
    let at = at.get(5..19).unwrap_or(&at).replace('T', " ");
    format!("{DIM}{at}{DIM:#}  {version:<4} {kind}  {text}")
}

/// How a turn ended and what it used.
fn turned(turn: &Turn) -> String {
    let state = turn.state.as_str().replace('_', " ");
    let state = match (turn.state, turn.error) {
        (TurnState::Failed, Some(code)) => format!("{RED}failed: {code}{RED:#}"),
        (TurnState::Failed, None) => format!("{RED}{state}{RED:#}"),
        (TurnState::Completed, _) => state,
        _ => format!("{YELLOW}{state}{YELLOW:#}"),
    };
    let took = turn.ended_at.map(|end| end.since(turn.started_at.unwrap_or(turn.created_at)));
    let took = took.map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)).unwrap_or_default();
    let agent = turn.agent.as_deref().map(|agent| format!(" · {}", tame(agent))).unwrap_or_default();
    format!("{state}{agent} · {} {DIM}{}{DIM:#}", usage(&turn.usage, took), turn.session_id)
}
