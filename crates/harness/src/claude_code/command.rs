//! The command line of one session.

use serde_json::json;

use super::{discover, settings, wire};
use crate::launch::{Native, Seed};
use crate::{Command, Error, Launch, Transport};
use karta_types::session::PermissionMode;

/// Where programs are found; nothing of the server's own environment is passed on.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Makes the command.
///
/// # Errors
/// An agent the folder doesn't define (the harness would silently go on without it), or a broken settings file.
pub(super) fn command(launch: &Launch<'_>) -> Result<Command, Error> {
    let folder = settings::settings(launch.tree)?;
    if let Some(agent) = launch.agent {
        known(launch, agent)?;
    }
    let config = format!("{}/.claude", launch.home);
    let own_settings = format!("{config}/karta-settings.json");
    let mut args: Vec<String> = [
        "-p",
        "--input-format=stream-json",
        "--output-format=stream-json",
        "--verbose",
        "--include-partial-messages",
        "--forward-subagent-text",
        "--permission-prompt-tool=stdio",
        "--setting-sources=project,local",
    ]
    .map(str::to_owned)
    .into();
    args.push(format!("--permission-mode={}", wire::mode_word(launch.permission_mode)));
    args.push(format!("--settings={own_settings}"));
    args.push(match &launch.native {
        Native::New(id) => format!("--session-id={id}"),
        Native::Resume(id) => format!("--resume={id}"),
    });
    // Else a resumed session keeps the prompt it began with: a hand-off to another agent, or a new release, would change nothing.
    args.push("--system-prompt-snapshot=off".to_owned());
    if let Some(agent) = launch.agent {
        args.push(format!("--agent={agent}"));
    }
    if !launch.policy.mcp {
        args.extend(["--strict-mcp-config".to_owned(), r#"--mcp-config={"mcpServers":{}}"#.to_owned()]);
    }
    if !launch.policy.denied_tools.is_empty() {
        args.push(format!("--disallowedTools={}", launch.policy.denied_tools.join(",")));
    }
    let mut env = Environment::default();
    env.set("HOME", launch.home);
    env.set("PATH", PATH);
    env.set("LANG", "C.UTF-8");
    env.set("TERM", "dumb");
    env.set("TMPDIR", launch.temp);
    env.set("CLAUDE_CONFIG_DIR", &config);
    env.set("CLAUDE_CODE_TMPDIR", launch.temp);
    env.set("CLAUDE_CODE_ENTRYPOINT", "sdk-karta");
    env.set("CLAUDE_CODE_SDK_READS_SESSION_STATE", "1");
    env.set("CLAUDE_CODE_MAX_RETRIES", "2");
    for quiet in [
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC",
        "DISABLE_AUTOUPDATER",
        "DISABLE_TELEMETRY",
        "DISABLE_ERROR_REPORTING",
        // What outlives a turn would run unseen, unmetered, and die when the idle process is stopped.
        "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS",
        "CLAUDE_CODE_DISABLE_CRON",
    ] {
        env.set(quiet, "1");
    }
    env.set("ANTHROPIC_BASE_URL", &launch.gateway.anthropic);
    env.set("ANTHROPIC_AUTH_TOKEN", launch.gateway.token.expose());
    // A variable loses against an agent's own model; the flag would win. Against the settings it wins, so they are asked first.
    if settings::model(&folder).is_none() {
        env.set("ANTHROPIC_MODEL", &launch.gateway.model);
    }
    env.set("ANTHROPIC_DEFAULT_HAIKU_MODEL", &launch.gateway.small_model);
    if let Some(budget) = launch.thinking_budget {
        env.set("MAX_THINKING_TOKENS", &budget.to_string());
    }
    if launch.permission_mode == PermissionMode::AllowAll {
        // Else it refuses to start as root in this mode. Whether it is a sandbox is for the one who chose the mode to know.
        env.set("IS_SANDBOX", "1");
    }
    for (name, value) in launch.env {
        env.set(name, value);
    }
    Ok(Command {
        program: launch.program.to_owned(),
        args,
        env: env.0,
        cwd: launch.workspace.to_owned(),
        seeds: vec![Seed { path: own_settings, content: own(launch).to_string().into_bytes() }],
        transport: Transport::Stdio,
    })
}

/// Settings that win over the folder's: models are reached through the gateway only, whatever the folder says.
fn own(launch: &Launch<'_>) -> serde_json::Value {
    let mut own = json!({
        "apiKeyHelper": "",
        "env": {
            "ANTHROPIC_BASE_URL": launch.gateway.anthropic,
            "ANTHROPIC_AUTH_TOKEN": launch.gateway.token.expose(),
            "ANTHROPIC_API_KEY": "",
            "CLAUDE_CODE_USE_BEDROCK": "",
            "CLAUDE_CODE_USE_VERTEX": "",
            "CLAUDE_CODE_USE_FOUNDRY": "",
        },
    });
    if !launch.policy.hooks {
        own["disableAllHooks"] = json!(true);
    }
    own
}

fn known(launch: &Launch<'_>, agent: &str) -> Result<(), Error> {
    let agents = discover::discover(launch.tree)?.agents;
    if agents.iter().any(|known| known.name == agent) {
        return Ok(());
    }
    let names: Vec<_> = agents.iter().map(|known| known.name.as_str()).collect();
    let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    Err(Error::UnknownAgent { name: agent.to_owned(), known })
}

/// Variables in order, each once: the last word wins.
#[derive(Default)]
struct Environment(Vec<(String, String)>);

impl Environment {
    fn set(&mut self, name: &str, value: &str) {
        self.0.retain(|(known, _)| known != name);
        self.0.push((name.to_owned(), value.to_owned()));
    }
}
