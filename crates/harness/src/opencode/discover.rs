//! What a folder declares, read from OpenCode's own files.

use std::collections::BTreeMap;

use karta_types::release::{Agent, Discovery, Named, Started};
use serde_json::{Map, Value};

use super::refusals;
use crate::frontmatter::{self, Field, FrontMatter};
use crate::{Error, Tree, jsonc, schema};

/// The configuration files of a folder, weakest first, as OpenCode merges them.
const CONFIGS: &[&str] =
    &["opencode.json", "opencode.jsonc", ".opencode/opencode.json", ".opencode/opencode.jsonc"];

/// Providers that the platform's gateway serves.
pub(super) const PROVIDERS: &[&str] = &["anthropic", "openai"];

/// One configuration file.
pub(super) struct Config<'a> {
    /// Its path.
    pub(super) file: &'static str,
    /// Its text.
    pub(super) text: &'a str,
    /// Its content.
    pub(super) values: Map<String, Value>,
}

/// The folder's configuration files, weakest first. An empty one says nothing.
pub(super) fn configs(tree: &Tree) -> Result<Vec<Config<'_>>, Error> {
    let mut found = Vec::new();
    for &file in CONFIGS.iter().filter(|file| tree.has(file)) {
        let fault = |reason: String| Error::File { file: file.to_owned(), reason };
        let text = tree.text(file).ok_or_else(|| fault("it is not UTF-8 text, or too large".to_owned()))?;
        if jsonc::plain(text).trim_ascii().is_empty() {
            continue;
        }
        match jsonc::parse(text).map_err(fault)? {
            Value::Object(values) => found.push(Config { file, text, values }),
            _ => return Err(fault("it must hold one JSON object".to_owned())),
        }
    }
    Ok(found)
}

/// The strongest value of a key of the configuration.
pub(super) fn setting<'a>(configs: &'a [Config<'_>], key: &str) -> Option<&'a Value> {
    configs.iter().rev().find_map(|config| config.values.get(key))
}

/// Code of the folder that OpenCode runs inside its own process: plugins and tools.
pub(super) fn code<'a>(tree: &'a Tree, kinds: &'a [&str]) -> impl Iterator<Item = &'a str> {
    tree.paths().filter(move |path| {
        let Some((kind, name)) = path.strip_prefix(".opencode/").and_then(|rest| rest.split_once('/')) else {
            return false;
        };
        kinds.contains(&kind)
            && !name.contains('/')
            && matches!(name.rsplit_once('.'), Some((_, "js" | "ts")))
    })
}

/// Both names of the folder for plugins.
pub(super) const PLUGINS: &[&str] = &["plugin", "plugins"];
/// Both names of the folder for tools.
pub(super) const TOOLS: &[&str] = &["tool", "tools"];

/// What several files say of the same thing: OpenCode lays the stronger over the weaker, field by field.
#[derive(Default)]
struct Drafts {
    agents: BTreeMap<String, Draft>,
    /// Servers, and whether each is on.
    servers: BTreeMap<String, (Started, bool)>,
}

#[derive(Default)]
struct Draft {
    agent: Agent,
    off: bool,
}

/// What one file says of an agent.
struct Layer<'a> {
    description: Option<String>,
    model: Option<String>,
    tools: Option<Vec<String>>,
    mode: Option<String>,
    off: Option<bool>,
    file: &'a str,
}

impl Draft {
    fn lay(&mut self, layer: Layer<'_>) {
        let agent = &mut self.agent;
        agent.description = layer.description.unwrap_or_else(|| std::mem::take(&mut agent.description));
        agent.model = layer.model.or_else(|| agent.model.take());
        agent.tools = layer.tools.unwrap_or_else(|| std::mem::take(&mut agent.tools));
        agent.mode = layer.mode.or_else(|| agent.mode.take());
        layer.file.clone_into(&mut agent.file);
        self.off = layer.off.unwrap_or(self.off);
    }
}

/// Reads everything the folder declares.
pub(super) fn discover(tree: &Tree) -> Result<Discovery, Error> {
    let configs = configs(tree)?;
    let (mut found, mut drafts) = (Discovery::default(), Drafts::default());
    for config in &configs {
        from_config(config, &mut drafts, &mut found);
    }
    from_markdown(tree, &mut drafts, &mut found);
    let agents = drafts.agents.into_iter().filter(|(_, draft)| !draft.off);
    found.agents = agents.map(|(name, draft)| Agent { name, ..draft.agent }).collect();
    let servers = drafts.servers.into_values();
    found.mcp_servers = servers.filter(|(_, on)| *on).map(|(started, _)| started).collect();
    for (kinds, name) in [(PLUGINS, "plugin"), (TOOLS, "tool")] {
        for path in code(tree, kinds) {
            let command = format!("code that OpenCode loads at its start: {path}");
            found.hooks.push(Started { name: name.to_owned(), command, file: path.to_owned() });
        }
    }
    found.commands.sort_by(|a, b| a.name.cmp(&b.name));
    found.skills.sort_by(|a, b| a.name.cmp(&b.name));
    foreign_models(&configs, &mut found);
    unknown_keys(&configs, &mut found);
    Ok(found)
}

/// Model calls pass the gateway, so a model of a provider that it does not serve can't be reached.
fn foreign_models(configs: &[Config<'_>], found: &mut Discovery) {
    let own = configs
        .iter()
        .filter_map(|config| Some((config.file, "model", config.values.get("model")?.as_str()?)));
    let agents = found
        .agents
        .iter()
        .filter_map(|agent| Some((agent.file.as_str(), agent.name.as_str(), agent.model.as_deref()?)));
    let warnings: Vec<String> = own
        .chain(agents)
        .filter(|(_, _, model)| {
            model.split_once('/').is_none_or(|(provider, _)| !PROVIDERS.contains(&provider))
        })
        .map(|(file, what, model)| {
            let served = PROVIDERS.join("/…` and `");
            format!("{file}: `{what}` asks for the model `{model}`; the gateway serves `{served}/…`")
        })
        .collect();
    found.warnings.extend(warnings);
}

/// Keys that OpenCode leaves out; one that looks like a slip is refused instead.
fn unknown_keys(configs: &[Config<'_>], found: &mut Discovery) {
    let schemas = refusals::schemas();
    for config in configs {
        for breach in refusals::breaches(&schemas, config) {
            if breach.kind == schema::Kind::Unknown(None) {
                let name = breach.name();
                found.warnings.push(format!("{}: OpenCode knows no `{name}` and leaves it out", config.file));
            }
        }
    }
}

fn from_config(config: &Config<'_>, drafts: &mut Drafts, found: &mut Discovery) {
    let file = config.file.to_owned();
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    for (kind, mode) in [("mode", Some("primary")), ("agent", None)] {
        for (name, agent) in entries(config, kind, &mut found.warnings) {
            let tools = agent.get("tools").and_then(Value::as_object);
            let on = |(name, on): (&'_ String, &Value)| on.as_bool().map(|on| (name.clone(), on));
            drafts.agents.entry(name.clone()).or_default().lay(Layer {
                description: text(agent, "description"),
                model: text(agent, "model"),
                tools: tools.map(|tools| allowed(tools.iter().filter_map(on))),
                mode: mode.map(str::to_owned).or_else(|| text(agent, "mode")),
                off: agent.get("disable").and_then(Value::as_bool),
                file: &file,
            });
        }
    }
    for (name, command) in entries(config, "command", &mut found.warnings) {
        found.commands.retain(|other| other.name != *name);
        let description = text(command, "description").unwrap_or_default();
        found.commands.push(Named { name: name.clone(), description, file: file.clone() });
    }
    for (name, server) in entries(config, "mcp", &mut found.warnings) {
        let words = server
            .get("command")
            .and_then(Value::as_array)
            .map(|words| words.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "));
        let (started, on) = drafts.servers.entry(name.clone()).or_insert_with(|| (Started::default(), true));
        if let Some(command) = words.or_else(|| text(server, "url")) {
            *started = Started { name: name.clone(), command, file: file.clone() };
        }
        if let Some(enabled) = server.get("enabled").and_then(Value::as_bool) {
            *on = enabled;
        }
    }
    let plugins = ["plugin", "plugins"].into_iter().filter_map(|key| config.values.get(key)?.as_array());
    for plugin in plugins.flatten() {
        let named = plugin.as_str().or_else(|| plugin.get(0)?.as_str());
        if let Some(package) = named.or_else(|| plugin.get("package")?.as_str()) {
            let command = format!("package that OpenCode installs and loads at its start: {package}");
            found.hooks.push(Started { name: "plugin".to_owned(), command, file: file.clone() });
        }
    }
    for kind in ["formatter", "lsp"] {
        for (name, started) in config.values.get(kind).and_then(Value::as_object).into_iter().flatten() {
            if let Some(words) = started.get("command").and_then(Value::as_array) {
                let command = words.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ");
                found.hooks.push(Started { name: format!("{kind} {name}"), command, file: file.clone() });
            }
        }
    }
}

/// The entries of a block of the configuration.
fn entries<'a>(
    config: &'a Config<'_>,
    block: &str,
    warnings: &mut Vec<String>,
) -> impl Iterator<Item = (&'a String, &'a Value)> {
    let value = config.values.get(block);
    if value.is_some_and(|value| !value.is_object()) {
        warnings.push(format!("{}: `{block}` must be an object", config.file));
    }
    value.and_then(Value::as_object).into_iter().flatten()
}

/// The tools that are switched on by name; OpenCode takes all where none is.
fn allowed(tools: impl Iterator<Item = (String, bool)>) -> Vec<String> {
    tools.filter(|(_, on)| *on).map(|(name, _)| name).collect()
}

/// What a Markdown file of the folder defines.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Agent,
    Mode,
    Command,
    Skill,
}

/// What a path in `.opencode/` defines, and the name that it has from its path.
fn kind_of(path: &str) -> Option<(Kind, &str)> {
    let (folder, name) = path.strip_prefix(".opencode/")?.split_once('/')?;
    let name = name.strip_suffix(".md")?;
    let kind = match folder {
        "agent" | "agents" => Kind::Agent,
        "mode" | "modes" => Kind::Mode,
        "command" | "commands" => Kind::Command,
        "skill" | "skills" if name.ends_with("/SKILL") => Kind::Skill,
        _ => return None,
    };
    Some((kind, name))
}

/// The Markdown files that define something, with their texts.
pub(super) fn markdown(tree: &Tree) -> impl Iterator<Item = (&str, Kind, &str)> {
    tree.under(".opencode/").filter_map(|path| Some((path, kind_of(path)?.0, tree.text(path)?)))
}

fn from_markdown(tree: &Tree, drafts: &mut Drafts, found: &mut Discovery) {
    for path in tree.under(".opencode/") {
        let Some((kind, name)) = kind_of(path) else { continue };
        let front = match tree.text(path).map(frontmatter::split) {
            Some(Ok((front, _))) => front,
            Some(Err(reason)) => {
                found.warnings.push(format!("{path}: {reason}"));
                continue;
            }
            None => {
                found.warnings.push(format!("{path}: it is too large, or not text"));
                continue;
            }
        };
        let description = front.text("description").unwrap_or_default().to_owned();
        if kind == Kind::Skill {
            skill(&front, name, description, path.to_owned(), found);
            continue;
        }
        // What the front matter says wins over the path.
        let (name, file) = (front.text("name").unwrap_or(name).to_owned(), path.to_owned());
        if kind == Kind::Command {
            found.commands.retain(|other| other.name != name);
            found.commands.push(Named { name, description, file });
            continue;
        }
        let mode = if kind == Kind::Mode { Some("primary") } else { front.text("mode") };
        drafts.agents.entry(name).or_default().lay(Layer {
            description: front.text("description").map(str::to_owned),
            model: front.text("model").map(str::to_owned),
            tools: front.get("tools").map(|field| tools(field, &front)),
            mode: mode.map(str::to_owned),
            off: front.text("disable").map(|word| word == "true"),
            file: path,
        });
    }
}

fn skill(front: &FrontMatter, path: &str, description: String, file: String, found: &mut Discovery) {
    let folder = path.trim_end_matches("/SKILL");
    if front.text("name").is_none() || description.is_empty() {
        found
            .warnings
            .push(format!("{file}: a skill needs `name` and `description`; OpenCode leaves it out"));
        return;
    }
    let name = front.text("name").unwrap_or(folder).to_owned();
    found.skills.push(Named { name, description, file });
}

fn tools(field: &Field, front: &FrontMatter) -> Vec<String> {
    match field {
        Field::Map(tools) => allowed(tools.iter().map(|(name, on)| (name.clone(), on == "true"))),
        _ => front.list("tools"),
    }
}
