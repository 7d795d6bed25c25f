//! What a folder declares in Claude Code's own files.

use karta_types::release::{Agent, Discovery, Named, Started};
use serde_json::Value;

use super::settings;
use crate::frontmatter::{self, Field, FrontMatter};
use crate::{Error, Tree};

/// Where agents lie.
pub(super) const AGENTS: &str = ".claude/agents/";
const SKILLS: &str = ".claude/skills/";
const COMMANDS: &str = ".claude/commands/";

/// Descriptions taken from a body are cut here.
const MAX_DESCRIPTION: usize = 300;

/// Reads the folder.
///
/// # Errors
/// A JSON file that can't be read: the harness would go on without what it sets.
pub(super) fn discover(tree: &Tree) -> Result<Discovery, Error> {
    let mut found = Discovery::default();
    for file in markdown(tree, AGENTS) {
        if let Some((matter, _)) = read(tree, file, &mut found.warnings) {
            agent(file, &matter, &mut found);
        }
    }
    for file in tree.under(SKILLS) {
        let Some(folder) =
            file[SKILLS.len()..].strip_suffix("/SKILL.md").filter(|folder| !folder.contains('/'))
        else {
            continue;
        };
        if let Some((matter, body)) = read(tree, file, &mut found.warnings) {
            let name = matter.text("name").unwrap_or(folder).to_owned();
            found.skills.push(Named { name, description: description(&matter, body), file: file.to_owned() });
            started_by(file, &matter, &mut found);
        }
    }
    for file in markdown(tree, COMMANDS) {
        if let Some((matter, body)) = read(tree, file, &mut found.warnings) {
            let name = file[COMMANDS.len()..].trim_end_matches(".md").replace('/', ":");
            found.commands.push(Named {
                name,
                description: description(&matter, body),
                file: file.to_owned(),
            });
            started_by(file, &matter, &mut found);
        }
    }
    for (file, value) in settings::settings(tree)? {
        started(file, settings::hooks(&value), &mut found.hooks);
    }
    if tree.has(settings::MCP) {
        let value: Value = settings::json(tree, settings::MCP)?;
        started(settings::MCP, settings::mcp_servers(&value), &mut found.mcp_servers);
    }
    Ok(found)
}

/// The Markdown files of a folder.
pub(super) fn markdown<'a>(tree: &'a Tree, folder: &'a str) -> impl Iterator<Item = &'a str> {
    tree.under(folder).filter(|file| file.rsplit_once('.').is_some_and(|(_, extension)| extension == "md"))
}

/// The front matter and body of a file; a warning if it has none that can be read.
fn read<'a>(tree: &'a Tree, file: &str, warnings: &mut Vec<String>) -> Option<(FrontMatter, &'a str)> {
    let Some(text) = tree.text(file) else {
        warnings.push(format!("{file}: it is not UTF-8 text, or too large to be read"));
        return None;
    };
    frontmatter::split(text).map_err(|reason| warnings.push(format!("{file}: {reason}"))).ok()
}

fn agent(file: &str, matter: &FrontMatter, found: &mut Discovery) {
    let (name, description) = match (matter.text("name"), matter.text("description")) {
        (Some(name), Some(description)) => (name, description),
        (name, _) => {
            let lacking = if name.is_none() { "name" } else { "description" };
            let fault = format!("no `{lacking}` in its front matter, so Claude Code leaves this agent out");
            found.warnings.push(format!("{file}: {fault}"));
            return;
        }
    };
    found.agents.push(Agent {
        name: name.to_owned(),
        description: description.to_owned(),
        model: matter.text("model").filter(|&model| model != "inherit").map(str::to_owned),
        tools: matter.list("tools"),
        mode: None,
        file: file.to_owned(),
    });
    started_by(file, matter, found);
}

/// Hooks and servers that are declared in front matter: their names; what they run is nested deeper than is read here.
fn started_by(file: &str, matter: &FrontMatter, found: &mut Discovery) {
    let names = |key: &str| -> Vec<(String, String)> {
        let names = match matter.get(key) {
            Some(Field::Map(fields)) => fields.iter().map(|(name, _)| name.clone()).collect(),
            _ => matter.list(key),
        };
        names.into_iter().map(|name| (name, "in the front matter".to_owned())).collect()
    };
    started(file, names("hooks"), &mut found.hooks);
    started(file, names("mcpServers"), &mut found.mcp_servers);
}

fn started(file: &str, all: Vec<(String, String)>, to: &mut Vec<Started>) {
    to.extend(all.into_iter().map(|(name, command)| Started { name, command, file: file.to_owned() }));
}

/// What it is for: as declared, else the first line of the body that has words.
fn description(matter: &FrontMatter, body: &str) -> String {
    let first = || body.lines().map(|line| line.trim_start_matches('#').trim()).find(|line| !line.is_empty());
    let text = matter.text("description").or_else(first).unwrap_or_default();
    text.chars().take(MAX_DESCRIPTION).collect()
}
