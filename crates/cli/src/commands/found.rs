//! What a release holds, for people: the harness, and what its files declare, each with the file that does.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use karta_types::policy::Policy;
use karta_types::release::{Discovery, HarnessPin, Named, Started};

use crate::printer::{DIM, tame};

/// How wide the names before the values are.
const NAMES: usize = 12;

/// A name and what stands behind it; more lines are under the first.
pub(super) fn entry(name: &str, values: &[String]) -> String {
    let mut text = String::new();
    for (at, value) in values.iter().flat_map(|value| value.lines()).enumerate() {
        let name = if at == 0 { name } else { "" };
        // Writing to a text never fails.
        let _ = writeln!(text, "  {DIM}{name:NAMES$}{DIM:#}{value}");
    }
    text
}

/// Harness, agents, skills, commands, hooks, MCP servers; what there is none of is not named.
pub(super) fn found(harness: &HarnessPin, found: &Discovery) -> String {
    let agents = found.agents.iter().map(|agent| declared(&agent.name, &agent.file));
    [
        entry("harness", &[format!("{} {}", harness.kind, harness.version)]),
        entry("agents", &agents.collect::<Vec<_>>()),
        entry("skills", &named(&found.skills)),
        entry("commands", &named(&found.commands)),
        entry("hooks", &started(&found.hooks)),
        entry("MCP servers", &started(&found.mcp_servers)),
    ]
    .concat()
}

fn declared(what: &str, file: &str) -> String {
    format!("{} {DIM}({}){DIM:#}", tame(what), tame(file))
}

fn named(all: &[Named]) -> Vec<String> {
    all.iter().map(|one| declared(&one.name, &one.file)).collect()
}

fn started(all: &[Started]) -> Vec<String> {
    all.iter().map(|one| declared(&format!("{}: {}", one.name, one.command), &one.file)).collect()
}

/// Variables that stand for secrets, and where each may go.
pub(super) fn secrets(secrets: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    secrets.iter().map(|(name, hosts)| tame(&format!("{name} to {}", hosts.join(", ")))).collect()
}

/// What of a policy is not as it is for everybody.
pub(super) fn policy(policy: &Policy) -> Vec<String> {
    let mut said = Vec::new();
    if !policy.hooks {
        said.push("hooks off".to_owned());
    }
    if !policy.mcp {
        said.push("MCP servers off".to_owned());
    }
    if !policy.tools.deny.is_empty() {
        said.push(format!("denied tools: {}", tame(&policy.tools.deny.join(", "))));
    }
    if let Some(isolation) = policy.isolation {
        said.push(format!("isolation: {} or stronger", isolation.as_str()));
    }
    if !policy.egress.is_empty() {
        said.push(format!("may reach: {}", tame(&policy.egress.join(", "))));
    }
    if let Some(seconds) = policy.caps.turn_seconds {
        said.push(format!("a turn takes {seconds} s at most"));
    }
    if let Some(cost) = policy.caps.session_cost_micros {
        said.push(format!("a session costs {cost} at most"));
    }
    if let Some(tokens) = policy.caps.session_total_tokens {
        said.push(format!("a session uses {tokens} tokens at most"));
    }
    said
}
