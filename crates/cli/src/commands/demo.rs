//! `karta demo`: an example, served and used at once.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use karta_client::{Client, CreateSession, SendMessage};
use karta_engine::Settings;
use karta_engine::harnesses::{Harnesses, Progress};
use karta_model::{Rule, Step};
use karta_types::message::{Answer, Decision};
use karta_types::session::TurnState;
use karta_types::{Body, Event};

use super::running::{announce, curl, headline, start, use_scripted_model};
use crate::args::DemoArgs;
use crate::printer::{CYAN, DIM, Printer, RED, YELLOW, tame};

/// What the demo says.
const MESSAGE: &str = "Order 1042 arrived broken. Please look it up and open a ticket.";
/// How long the demo's turn may take before it is given up, so that nothing hangs where nobody looks.
const PATIENCE: Duration = Duration::from_mins(5);

/// The example's files, in this binary, so that the demo runs wherever it is.
const CLAUDE_CODE: &[(&str, &str)] = &[
    ("CLAUDE.md", include_str!("../../../../examples/support-bot/CLAUDE.md")),
    ("orders.csv", include_str!("../../../../examples/support-bot/orders.csv")),
    (".claude/agents/refunds.md", include_str!("../../../../examples/support-bot/.claude/agents/refunds.md")),
    (
        ".claude/skills/tone/SKILL.md",
        include_str!("../../../../examples/support-bot/.claude/skills/tone/SKILL.md"),
    ),
];
const OPENCODE: &[(&str, &str)] = &[
    ("AGENTS.md", include_str!("../../../../examples/support-bot-opencode/AGENTS.md")),
    ("orders.csv", include_str!("../../../../examples/support-bot-opencode/orders.csv")),
    (
        ".opencode/agents/refunds.md",
        include_str!("../../../../examples/support-bot-opencode/.opencode/agents/refunds.md"),
    ),
];

pub(super) async fn run(
    args: DemoArgs,
    mut settings: Settings,
    printer: &Printer,
) -> anyhow::Result<ExitCode> {
    let (files, project) = match args.harness.as_str() {
        "opencode" => (OPENCODE, "support-bot-opencode"),
        _ => (CLAUDE_CODE, "support-bot"),
    };
    install(&settings, &args.harness, printer).await?;
    let folder = write_example(&settings.data.join("examples").join(project), files)?;
    let keyless = settings.providers.anthropic.is_none() && settings.providers.openai.is_none();
    let _model = if keyless {
        headline(
            "No provider key is set: the built-in scripted model answers, and no provider is called",
            printer,
        );
        Some(use_scripted_model(&mut settings, rules(&args.harness)).await?)
    } else {
        None
    };
    let shown = settings.clone();
    let running = start(settings, args.listen).await?;
    let release = running.engine.publish_folder(running.org, project, &folder).await?;
    let key = running.own_key(Some(project)).await?;
    headline(&format!("Serving {} as {project} v{}", folder.display(), release.version), printer);
    announce(&release, &shown, printer);
    let client = Client::new(&running.url, key.clone())?;
    let turn = tokio::time::timeout(PATIENCE, first_turn(&client, project, printer));
    let outcome = match turn.await {
        Ok(outcome) => outcome,
        Err(_) => Err(anyhow::anyhow!("the first turn did not end within {} s", PATIENCE.as_secs())),
    };
    if args.once || outcome.is_err() {
        running.server.shutdown().await;
        return outcome.map(|done| if done { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    printer.note("");
    headline(&format!("{} is yours: it serves until Ctrl-C", running.url), printer);
    printer.note(&format!("  {DIM}key{DIM:#} {}", key.expose()));
    printer.note("Talk to it by `karta chat`, or:");
    printer.data(&curl(&running.url, project, &key))?;
    running.until_stopped(printer).await
}

async fn install(settings: &Settings, id: &str, printer: &Printer) -> anyhow::Result<()> {
    std::fs::create_dir_all(&settings.data)
        .with_context(|| format!("making the data directory `{}`", settings.data.display()))?;
    let harnesses = Harnesses::new(settings.data.join("harnesses"));
    let tell = |progress| match progress {
        Progress::Waiting => printer.doing(format!("waiting for another installation of {id}")),
        Progress::Fetching => {
            let licence = harnesses
                .list()
                .into_iter()
                .find(|status| status.id == id)
                .map_or("", |status| status.licence);
            printer.doing(format!("installing {id} by npm (licence: {licence})"));
        }
        Progress::Trying => printer.doing(format!("trying {id}")),
    };
    printer.working(harnesses.install(id, None, &tell)).await?;
    Ok(())
}

fn write_example(folder: &Path, files: &[(&str, &str)]) -> anyhow::Result<PathBuf> {
    for (name, content) in files {
        let path = folder.join(name);
        let parent = path.parent().unwrap_or(folder);
        std::fs::create_dir_all(parent)
            .and_then(|()| std::fs::write(&path, content))
            .with_context(|| format!("writing the example to `{}`", path.display()))?;
    }
    Ok(folder.to_owned())
}

/// What the scripted model says in the demo. With a provider key the provider's own model decides.
fn rules(harness: &str) -> Vec<Rule> {
    let shell = if harness == "opencode" { "bash" } else { "Bash" };
    let command = "grep '^1042,' orders.csv && echo '- 1042: arrived broken, replacement wanted' >> tickets.md && cat tickets.md";
    let look = Step {
        text: Some("I will look up order 1042 and open a ticket for it.".to_owned()),
        tool: Some(shell.to_owned()),
        input: Some(
            serde_json::json!({ "command": command, "description": "Look up the order and open a ticket" }),
        ),
        chunk_delay_ms: 40,
        ..Step::default()
    };
    let done = Step {
        text: Some(
            "I'm sorry about the broken teapot. Order 1042 is now in tickets.md, and a replacement is on its way.".to_owned(),
        ),
        chunk_delay_ms: 40,
        ..Step::default()
    };
    vec![Rule { contains: "order 1042".to_owned(), steps: vec![look, done] }]
}

/// Runs the turn over HTTP like any client, prints its events as they come and approves what it asks. Answers whether it completed.
async fn first_turn(client: &Client, project: &str, printer: &Printer) -> anyhow::Result<bool> {
    let new = CreateSession { project: Some(project.to_owned()), ..CreateSession::default() };
    let session = client.create_session(&new).await?;
    printer.note("");
    headline(&format!("You: {MESSAGE}"), printer);
    let mut events = client.send_streaming(session.id, &SendMessage::text(MESSAGE))?;
    while let Some(event) = events.next().await {
        let event = event?;
        printer.data(&line(&event))?;
        match &event.body {
            Body::InputRequired(asked) => {
                printer.note(&format!("{YELLOW}the demo approves this once{YELLOW:#}"));
                let answer = Answer {
                    decision: Decision::ApproveOnce,
                    message: None,
                    updated_input: None,
                    answers: None,
                };
                client.answer(session.id, asked.request_id, &answer).await?;
            }
            Body::Done { status, .. } => return Ok(*status == TurnState::Completed),
            _ => {}
        }
    }
    Ok(false)
}

/// An event on one line.
fn line(event: &Event) -> String {
    let json = serde_json::to_value(&event.body).unwrap_or_default();
    let data = match &event.body {
        Body::Text { part, .. } | Body::Reasoning { part, .. } => format!("{:?}", part.text),
        Body::Error(problem) => format!("{RED}{}{RED:#}", tame(&problem.to_string())),
        _ => tame(&json.get("data").map(ToString::to_string).unwrap_or_default()),
    };
    let short: String = data.chars().take(240).collect();
    format!("{DIM}{:>4}{DIM:#} {CYAN}{:<15}{CYAN:#} {short}", event.seq, event.body.kind())
}
