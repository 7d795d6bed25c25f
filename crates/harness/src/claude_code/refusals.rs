//! What Claude Code would refuse in a folder's files, or leave out without a word.
//!
//! Without a terminal it says nothing of it: a settings file with one value of the wrong kind is left out as a whole, with the rules in it,
//! and so are an agent without a description, a malformed rule, an MCP server that lacks a key. The kinds of values are those of the
//! pinned version; each was tried on it (`tests/it/refusals.rs`).

use serde_json::Value;

use super::discover;
use super::settings;
use crate::jsonc::{self, Step};
use crate::schema::{Kind, Schemas};
use crate::yaml::{self, Trouble};
use crate::{Fault, Tree, frontmatter};

/// The kinds of values in settings and in `.mcp.json`.
const SCHEMAS: &str = include_str!("files.schema.json");
/// What becomes of it.
const WITHOUT: &str = "Claude Code would go on without it, and say nothing";
/// The lists of rules about tools.
const RULES: [&str; 3] = ["allow", "ask", "deny"];

/// Looks at all of the folder.
pub(super) fn refusals(tree: &Tree) -> Vec<Fault> {
    let schemas = Schemas::new(SCHEMAS);
    let mut faults = Vec::new();
    for file in settings::SETTINGS {
        if let Some((text, value)) = read(tree, file) {
            in_json(&schemas, "Settings", file, text, &value, &mut faults);
            rules(file, text, &value, &mut faults);
            if value.get("mcpServers").is_some() {
                let fault = at(
                    file,
                    text,
                    &[Step::Key("mcpServers".to_owned())],
                    true,
                    "`mcpServers` is not read here",
                );
                faults.push(fault.help(format!("put it in `{}`", settings::MCP)));
            }
        }
    }
    if let Some((text, value)) = read(tree, settings::MCP) {
        in_json(&schemas, "Servers", settings::MCP, text, &value, &mut faults);
    }
    for file in discover::markdown(tree, discover::AGENTS) {
        faults.extend(tree.text(file).and_then(|text| agent(file, text)));
    }
    faults.sort_by(|one, other| {
        (&one.file, one.line, one.column).cmp(&(&other.file, other.line, other.column))
    });
    faults
}

/// A JSON file that can be read.
fn read<'a>(tree: &'a Tree, file: &str) -> Option<(&'a str, Value)> {
    let text = tree.text(file)?;
    Some((text, serde_json::from_str(text).ok()?))
}

fn at(file: &str, text: &str, steps: &[Step], key: bool, message: impl Into<String>) -> Fault {
    let (line, column) = jsonc::line_and_column(text, jsonc::find(text, steps, key));
    Fault::of(file, message).at(line, column)
}

fn in_json(schemas: &Schemas, schema: &str, file: &str, text: &str, value: &Value, faults: &mut Vec<Fault>) {
    for breach in schemas.check(schema, value) {
        let name = breach.name();
        let event = matches!(&breach.at[..], [Step::Key(first), Step::Key(_)] if first == "hooks");
        match breach.kind {
            Kind::Wrong(must, meant) => {
                let name = if name.is_empty() { "it".to_owned() } else { format!("`{name}`") };
                let fault = at(file, text, &breach.at, false, format!("{name} {must}"));
                let help =
                    meant.map_or_else(|| WITHOUT.to_owned(), |meant| format!("did you mean `{meant}`?"));
                faults.push(fault.help(help));
            }
            // Only what looks like a slip: newer versions have keys of which this one knows nothing.
            Kind::Unknown(meant) if meant.is_some() || event => {
                let what = if event { "event of hooks" } else { "key" };
                let fault = at(file, text, &breach.at, true, format!("unknown {what} `{name}`"));
                faults.push(
                    meant
                        .into_iter()
                        .fold(fault, |fault, meant| fault.help(format!("did you mean `{meant}`?"))),
                );
            }
            Kind::Unknown(_) => {}
        }
    }
}

/// Rules about tools that would be skipped one by one.
fn rules(file: &str, text: &str, settings: &Value, faults: &mut Vec<Fault>) {
    for list in RULES {
        let all = settings.get("permissions").and_then(|permissions| permissions.get(list));
        for (index, rule) in all.and_then(Value::as_array).into_iter().flatten().enumerate() {
            let Some(Err(reason)) = rule.as_str().map(|rule| check_rule(rule, list == "allow")) else {
                continue;
            };
            let steps = [Step::Key("permissions".to_owned()), Step::Key(list.to_owned()), Step::Index(index)];
            let message = format!("the rule `{}` {reason}", rule.as_str().unwrap_or_default());
            faults.push(at(file, text, &steps, false, message).help(WITHOUT));
        }
    }
}

fn check_rule(rule: &str, allows: bool) -> Result<(), &'static str> {
    if rule.is_empty() {
        return Err("is empty");
    }
    let pattern = rule.find('(').map(|open| &rule[open..]);
    let tool = rule.split('(').next().unwrap_or(rule);
    let server = tool.strip_prefix("mcp__").and_then(|rest| rest.split_once("__"));
    if allows && tool.contains('*') && server.is_none_or(|(server, _)| server.contains('*')) {
        return Err("allows tools by a pattern, which only the tools of one MCP server may be");
    }
    if rule.starts_with("mcp__") {
        return if pattern.is_some() { Err("has a pattern, which rules of MCP don't") } else { Ok(()) };
    }
    match pattern {
        Some("()") => Err("has empty parentheses"),
        Some(pattern) if !pattern.ends_with(')') => Err("must end with `)`"),
        _ if rule.starts_with(|first: char| first.is_ascii_lowercase()) => {
            Err("must begin with a tool's name, in capitals as Claude Code writes it")
        }
        _ => Ok(()),
    }
}

/// An agent that would be left out. A file without any front matter is taken for a note.
fn agent(file: &str, text: &str) -> Option<Fault> {
    let left_out = |message: &str, line: usize| {
        let fault = Fault { line: u64::try_from(line).ok(), ..Fault::of(file, message) };
        Some(fault.help(WITHOUT))
    };
    let block = match frontmatter::block(text) {
        Ok(block) => block?,
        Err(_) => return left_out("the front matter is not closed", 1),
    };
    // The first line is the fence.
    let line = |key: &str| yaml::line_of(block, key).map_or(1, |line| line + 1);
    match yaml::parse(block) {
        Ok(fields) => {
            for key in ["name", "description"] {
                if !fields.contains_key(key) {
                    return left_out(&format!("it lacks `{key}`"), 1);
                }
                // A block of text is read as an empty one: that it is a text is what counts.
                let is_text = fields[key].is_string();
                if !is_text {
                    return left_out(&format!("`{key}` must be a text"), line(key));
                }
            }
            let events =
                |hooks: &Value| hooks.as_object().is_some_and(|events| events.values().all(Value::is_array));
            if fields.get("hooks").is_some_and(|hooks| !events(hooks)) {
                return left_out("`hooks` must be lists of hooks by event", line("hooks"));
            }
            None
        }
        Err(Trouble::Broken(at, "a quote is not closed")) => left_out("a quote is not closed", at + 1),
        Err(_) => {
            let (matter, _) = frontmatter::split(text).ok()?;
            let lacking = ["name", "description"].into_iter().find(|key| matter.get(key).is_none())?;
            left_out(&format!("it lacks `{lacking}`"), 1)
        }
    }
}
