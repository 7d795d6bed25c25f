//! The JSON files of a folder: settings and MCP servers.

use serde_json::Value;

use crate::{Error, Tree};

/// Where a folder's settings lie, in the order in which they win, weakest first.
pub(super) const SETTINGS: [&str; 2] = [".claude/settings.json", ".claude/settings.local.json"];

/// Where a folder's MCP servers lie.
pub(super) const MCP: &str = ".mcp.json";

/// Settings that are commands which the harness runs by itself.
const HELPERS: [&str; 4] = ["apiKeyHelper", "awsAuthRefresh", "awsCredentialExport", "otelHeadersHelper"];

/// The folder's settings files that are there, with their names.
///
/// # Errors
/// A file that is not JSON. The harness would go on without it, and so without the rules that it sets.
pub(super) fn settings(tree: &Tree) -> Result<Vec<(&'static str, Value)>, Error> {
    let files = SETTINGS.into_iter().filter(|file| tree.has(file));
    files.map(|file| json(tree, file).map(|value| (file, value))).collect()
}

/// A JSON file of the folder.
///
/// # Errors
/// The file is not JSON, or too large to be loaded.
pub(super) fn json(tree: &Tree, file: &str) -> Result<Value, Error> {
    let fail = |reason: String| Error::File { file: file.to_owned(), reason };
    let text = tree.text(file).ok_or_else(|| {
        fail("it is not UTF-8 text, or too large; Claude Code would leave all of it out".to_owned())
    })?;
    serde_json::from_str(text).map_err(|error| {
        fail(format!("{error}; Claude Code would leave all of it out, so correct the file or remove it"))
    })
}

/// The model that the folder's settings name.
pub(super) fn model(settings: &[(&str, Value)]) -> Option<String> {
    let named = |value: &Value| {
        let in_env = || value.get("env")?.get("ANTHROPIC_MODEL")?.as_str();
        value.get("model").and_then(Value::as_str).or_else(in_env).map(str::to_owned)
    };
    settings.iter().rev().find_map(|(_, value)| named(value))
}

/// Hook commands of one settings file: event and command line. Helpers that the file names are among them.
pub(super) fn hooks(settings: &Value) -> Vec<(String, String)> {
    let helper = |key: &&str| Some(((*key).to_owned(), settings.get(*key)?.as_str()?.to_owned()));
    let mut found: Vec<_> =
        HELPERS.iter().filter_map(helper).filter(|(_, command)| !command.is_empty()).collect();
    if settings.get("disableAllHooks") == Some(&Value::Bool(true)) {
        return found;
    }
    let events = settings.get("hooks").and_then(Value::as_object);
    for (event, matchers) in events.into_iter().flatten() {
        for hook in
            matchers.as_array().into_iter().flatten().flat_map(|matcher| super::wire::list(matcher, "hooks"))
        {
            let words = ["command", "url", "prompt"].iter().find_map(|key| hook.get(*key)?.as_str());
            found.push((event.clone(), super::wire::shortened(words.unwrap_or_default())));
        }
    }
    found
}

/// MCP servers of one file: name, and command line or URL.
pub(super) fn mcp_servers(file: &Value) -> Vec<(String, String)> {
    let servers = file.get("mcpServers").and_then(Value::as_object);
    servers.into_iter().flatten().map(|(name, server)| (name.clone(), command_line(server))).collect()
}

fn command_line(server: &Value) -> String {
    if let Some(url) = super::wire::text(server, "url") {
        return url.to_owned();
    }
    let command = super::wire::text(server, "command").unwrap_or_default();
    let arguments = super::wire::list(server, "args").iter().filter_map(Value::as_str);
    std::iter::once(command).chain(arguments).collect::<Vec<_>>().join(" ")
}
