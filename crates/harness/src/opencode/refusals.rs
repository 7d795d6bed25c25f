//! What OpenCode would refuse in a folder's files, or leave out without a word.
//!
//! One value of the wrong kind, in its configuration or in the front matter of an agent or a command, and it answers every request for the
//! folder with an error. The kinds of values are the pinned version's own: `config.schema.json` is the part `Config` of what it says of
//! itself at `GET /doc` (MIT). Each kind of refusal was tried on it (`tests/it/refusals.rs`).

use serde_json::Value;

use super::discover::{self, Config};
use crate::jsonc::{self, Step};
use crate::schema::{Breach, Kind, Schemas};
use crate::yaml::{self, Trouble};
use crate::{Fault, Tree, frontmatter};

const SCHEMAS: &str = include_str!("config.schema.json");
/// The schema of a file that is an agent, and the one made here for a file that is a command: its body is the template.
const AGENT: &str = "AgentConfig";
const COMMAND: &str = "CommandFile";
/// What becomes of it.
const REFUSED: &str = "OpenCode would refuse to work in this folder";
/// The agents that are always there and take messages.
const PRIMARY: [&str; 2] = ["build", "plan"];

fn refused(meant: Option<String>) -> String {
    meant.map_or_else(|| REFUSED.to_owned(), |meant| format!("did you mean `{meant}`?"))
}

/// The schemas, as they are used here.
pub(super) fn schemas() -> Schemas {
    let mut schemas = Schemas::new(SCHEMAS);
    let command =
        schemas.get("Config").and_then(|config| config.pointer("/properties/command/additionalProperties"));
    let mut command = command.cloned().unwrap_or_default();
    if let Some(command) = command.as_object_mut() {
        command.remove("required");
    }
    schemas.add(COMMAND, command);
    schemas
}

/// Looks at all of the folder.
pub(super) fn refusals(tree: &Tree) -> Vec<Fault> {
    let schemas = schemas();
    let mut faults = Vec::new();
    // What can't be read at all is told by `discover`.
    let configs = discover::configs(tree).unwrap_or_default();
    for config in &configs {
        in_config(&schemas, tree, config, &mut faults);
    }
    default_agent(tree, &configs, &mut faults);
    for (path, kind, text) in discover::markdown(tree) {
        match kind {
            discover::Kind::Skill => faults.extend(skill(path, text)),
            discover::Kind::Command => in_markdown(&schemas, COMMAND, path, text, &mut faults),
            discover::Kind::Agent | discover::Kind::Mode => {
                in_markdown(&schemas, AGENT, path, text, &mut faults);
            }
        }
    }
    faults.sort_by(|one, other| {
        (&one.file, one.line, one.column).cmp(&(&other.file, other.line, other.column))
    });
    faults
}

fn at(config: &Config<'_>, steps: &[Step], key: bool, message: impl Into<String>) -> Fault {
    let (line, column) = jsonc::line_and_column(config.text, jsonc::find(config.text, steps, key));
    Fault::of(config.file, message).at(line, column)
}

fn in_config(schemas: &Schemas, tree: &Tree, config: &Config<'_>, faults: &mut Vec<Fault>) {
    for breach in breaches(schemas, config) {
        let name = breach.name();
        match breach.kind {
            Kind::Wrong(must, meant) => {
                let fault = at(config, &breach.at, false, format!("`{name}` {must}"));
                faults.push(fault.help(refused(meant)));
            }
            Kind::Unknown(Some(meant)) => {
                let fault = at(config, &breach.at, true, format!("unknown key `{name}`"));
                faults.push(fault.help(format!("did you mean `{meant}`?")));
            }
            // A warning of `discover`.
            Kind::Unknown(None) => {}
        }
    }
    for (place, path) in files(config.text) {
        if let Err(reason) = included(tree, config.file, path) {
            let (line, column) = jsonc::line_and_column(config.text, place);
            let fault = Fault::of(config.file, format!("`{{file:{path}}}` {reason}")).at(line, column);
            faults.push(fault.help(REFUSED));
        }
    }
}

/// What of a configuration is not as the schema has it.
pub(super) fn breaches(schemas: &Schemas, config: &Config<'_>) -> Vec<Breach> {
    schemas.check("Config", &Value::Object(config.values.clone()))
}

/// The files that a text is to be filled with, and where each is named. A comment is no protection.
fn files(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.match_indices("{file:").filter_map(|(at, start)| {
        let rest = &text[at + start.len()..];
        rest.find('}').map(|end| (at, &rest[..end]))
    })
}

/// Whether a file is there to be read, from the folder of the one that names it.
fn included(tree: &Tree, from: &str, path: &str) -> Result<(), &'static str> {
    if path.starts_with("~/") {
        return Err("lies in a home, which is empty for every session");
    }
    if path.starts_with('/') {
        // What a machine has there is not the folder's.
        return Ok(());
    }
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => parts.pop().map(drop).ok_or("leads out of the folder")?,
            part => parts.push(part),
        }
    }
    let path = parts.join("/");
    if tree.has(&path) { Ok(()) } else { Err("is not there") }
}

/// The agent that takes messages where none is named: it must be there, and must take messages.
fn default_agent(tree: &Tree, configs: &[Config<'_>], faults: &mut Vec<Fault>) {
    let named = |config: &&Config<'_>| config.values.get("default_agent").is_some_and(Value::is_string);
    let Some(config) = configs.iter().rev().find(named) else { return };
    let name = config.values["default_agent"].as_str().unwrap_or_default();
    let Ok(found) = discover::discover(tree) else { return };
    let agent = found.agents.iter().find(|agent| agent.name == name);
    let reason = match agent {
        Some(agent) if agent.mode.as_deref() == Some("subagent") => "is only called by others",
        None if !PRIMARY.contains(&name) => "is not there",
        _ => return,
    };
    let step = [Step::Key("default_agent".to_owned())];
    let fault = at(config, &step, false, format!("the agent `{name}` {reason}"));
    faults.push(fault.help("OpenCode would fail at the first message"));
}

fn in_markdown(schemas: &Schemas, schema: &str, file: &str, text: &str, faults: &mut Vec<Fault>) {
    let fault =
        |line: usize, message: String| Fault { line: u64::try_from(line).ok(), ..Fault::of(file, message) };
    let block = match frontmatter::block(text) {
        Ok(Some(block)) => block,
        Ok(None) => return,
        Err(_) => {
            let fault = fault(1, "the front matter is not closed".to_owned());
            faults.push(fault.help("OpenCode would take all of the file for it"));
            return;
        }
    };
    match yaml::parse(block) {
        Ok(fields) => {
            for breach in schemas.check(schema, &Value::Object(fields)) {
                let name = breach.name();
                let Kind::Wrong(must, meant) = breach.kind else { continue };
                let key = match breach.at.first() {
                    Some(Step::Key(key)) => key.as_str(),
                    _ => "",
                };
                // The first line is the fence.
                let line = yaml::line_of(block, key).map_or(1, |line| line + 1);
                let fault = fault(line, format!("`{name}` {must}"));
                faults.push(fault.help(refused(meant)));
            }
        }
        Err(Trouble::Broken(line, why)) => {
            let fault = fault(line + 1, format!("the front matter can't be read: {why}"));
            faults.push(fault.help("OpenCode would take it for a part of the text"));
        }
        Err(Trouble::Beyond) => {}
    }
}

/// A skill that would be offered to nobody.
fn skill(file: &str, text: &str) -> Option<Fault> {
    let fault = |line: usize, message: &str| {
        let fault = Fault { line: u64::try_from(line).ok(), ..Fault::of(file, message) };
        Some(fault.help("OpenCode would offer this skill to no agent"))
    };
    let Some(block) = frontmatter::block(text).ok()? else {
        return fault(1, "a skill needs front matter with `name` and `description`");
    };
    match yaml::parse(block) {
        Ok(fields) => {
            let lacking = ["name", "description"]
                .into_iter()
                .find(|key| !fields.get(*key).is_some_and(Value::is_string))?;
            let line = yaml::line_of(block, lacking).map_or(1, |line| line + 1);
            fault(line, &format!("a skill needs `{lacking}`, a text"))
        }
        Err(Trouble::Broken(line, why)) => fault(line + 1, &format!("the front matter can't be read: {why}")),
        Err(Trouble::Beyond) => {
            let (matter, _) = frontmatter::split(text).ok()?;
            let lacking = ["name", "description"].into_iter().find(|key| matter.get(key).is_none())?;
            fault(1, &format!("a skill needs `{lacking}`, a text"))
        }
    }
}
