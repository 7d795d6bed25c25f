//! The command line, environment and configuration of one server.

use serde_json::{Map, Value, json};

use super::discover::{self, Config, PLUGINS, PROVIDERS, TOOLS};
use crate::launch::{HttpTransport, Launch, Seed};
use crate::{Command, Error, Transport};

/// The variant of every model that shows its thinking.
pub(super) const THINKING: &str = "thinking";
/// Tokens of thinking where nobody says how many.
const THINKING_TOKENS: u32 = 8_000;
/// The variable that holds the session's token; the configuration names it.
const TOKEN: &str = "KARTA_MODEL_TOKEN";
/// What programs are looked for in, unless the operator lets another path through.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Makes the command of a session.
pub(super) fn command(launch: &Launch<'_>) -> Result<Command, Error> {
    let configs = discover::configs(launch.tree)?;
    let names_plugins = |config: &&Config<'_>| {
        let named = ["plugin", "plugins"].into_iter().filter_map(|key| config.values.get(key)?.as_array());
        named.flatten().next().is_some()
    };
    if !launch.policy.hooks
        && let Some(config) = configs.iter().find(names_plugins)
    {
        return Err(Error::File {
            file: config.file.to_owned(),
            reason: "OpenCode loads what `plugin` names and can't be told not to, but what a folder starts by itself is switched \
                     off here; take it out, or allow hooks"
                .to_owned(),
        });
    }
    let words = ["serve", "--hostname", "127.0.0.1", "--port", "0"];
    Ok(Command {
        program: launch.program.to_owned(),
        args: words.map(str::to_owned).to_vec(),
        env: environment(launch, &configuration(launch, &configs)?),
        cwd: launch.workspace.to_owned(),
        seeds: seeds(launch),
        transport: Transport::Http(HttpTransport {
            announced_by: "opencode server listening on ".to_owned(),
            events: "/event".to_owned(),
            basic_auth: Some(("opencode".to_owned(), launch.gateway.token.expose().clone())),
        }),
    })
}

fn environment(launch: &Launch<'_>, configuration: &Value) -> Vec<(String, String)> {
    let home = launch.home;
    let token = launch.gateway.token.expose();
    let mut env: Vec<(String, String)> = [
        ("HOME", home.to_owned()),
        ("XDG_CONFIG_HOME", format!("{home}/.config")),
        ("XDG_DATA_HOME", format!("{home}/.local/share")),
        ("XDG_STATE_HOME", format!("{home}/.local/state")),
        ("XDG_CACHE_HOME", format!("{home}/.cache")),
        ("TMPDIR", launch.temp.to_owned()),
        ("PATH", PATH.to_owned()),
        ("LANG", "C.UTF-8".to_owned()),
        ("OPENCODE_CONFIG_CONTENT", configuration.to_string()),
        // Any process of this machine could drive the server otherwise.
        ("OPENCODE_SERVER_PASSWORD", token.clone()),
        (TOKEN, token.clone()),
        // The client that shows questions to people is this platform.
        ("OPENCODE_ENABLE_QUESTION_TOOL", "1".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec();
    let off = ["MODELS_FETCH", "AUTOUPDATE", "SHARE", "LSP_DOWNLOAD", "DEFAULT_PLUGINS", "CLAUDE_CODE"];
    env.extend(off.map(|what| (format!("OPENCODE_DISABLE_{what}"), "1".to_owned())));
    if !launch.policy.hooks {
        env.push(("OPENCODE_PURE".to_owned(), "1".to_owned()));
    }
    for (name, value) in launch.env {
        env.retain(|(other, _)| other != name);
        env.push((name.clone(), value.clone()));
    }
    env
}

/// What goes over the folder's own configuration.
fn configuration(launch: &Launch<'_>, configs: &[Config<'_>]) -> Result<Value, Error> {
    let gateway = launch.gateway;
    let mut config = json!({
        "share": "disabled",
        "autoupdate": false,
        "enabled_providers": PROVIDERS,
        "provider": {
            "anthropic": provider("@ai-sdk/anthropic", &format!("{}/v1", gateway.anthropic), &models(launch, configs, "anthropic")?),
            "openai": provider("@ai-sdk/openai", &gateway.openai, &models(launch, configs, "openai")?),
        },
    });
    let own = |key: &str| discover::setting(configs, key).is_some();
    if !own("model") {
        config["model"] = format!("{}/{}", gateway.provider, gateway.model).into();
    }
    if !own("small_model") {
        config["small_model"] = format!("{}/{}", gateway.provider, gateway.small_model).into();
    }
    // OpenCode allows what no rule is about. A folder that has rules knows what it wants; the mode is kept by the codec.
    if !own("permission") {
        config["permission"] = json!({"bash": "ask", "edit": "ask", "webfetch": "ask"});
    }
    if !launch.policy.denied_tools.is_empty() {
        let off: Map<String, Value> =
            launch.policy.denied_tools.iter().map(|tool| (tool.clone(), false.into())).collect();
        config["tools"] = off.into();
    }
    if !launch.policy.hooks {
        config["formatter"] = false.into();
        config["lsp"] = false.into();
    }
    if !launch.policy.mcp {
        let servers = discover::discover(launch.tree)?.mcp_servers;
        let off: Map<String, Value> =
            servers.into_iter().map(|server| (server.name, json!({"enabled": false}))).collect();
        config["mcp"] = off.into();
    }
    Ok(config)
}

fn provider(package: &str, base: &str, models: &Map<String, Value>) -> Value {
    json!({
        "npm": package,
        "options": {"baseURL": base, "apiKey": format!("{{env:{TOKEN}}}")},
        "models": models,
    })
}

/// Every model of a provider that the launch or the folder names: OpenCode calls none that it does not know.
fn models(launch: &Launch<'_>, configs: &[Config<'_>], provider: &str) -> Result<Map<String, Value>, Error> {
    let gateway = launch.gateway;
    let mut names: Vec<String> = Vec::new();
    if gateway.provider == provider {
        names.extend([gateway.model.clone(), gateway.small_model.clone()]);
    }
    let settings =
        ["model", "small_model"].into_iter().filter_map(|key| discover::setting(configs, key)?.as_str());
    let agents = discover::discover(launch.tree)?.agents;
    let asked = settings.chain(agents.iter().filter_map(|agent| agent.model.as_deref()));
    names.extend(
        asked
            .filter_map(|model| model.split_once('/'))
            .filter(|(of, _)| *of == provider)
            .map(|(_, name)| name.to_owned()),
    );
    let model = |name: String| {
        let described = described(provider, launch.thinking_budget.unwrap_or(THINKING_TOKENS), &name);
        (name, described)
    };
    Ok(names.into_iter().map(model).collect())
}

fn described(provider: &str, thinking: u32, name: &str) -> Value {
    let options = match provider {
        "anthropic" => json!({"thinking": {"type": "enabled", "budgetTokens": thinking.max(1024)}}),
        _ => json!({"reasoningEffort": "medium", "reasoningSummary": "auto"}),
    };
    json!({
        "name": name,
        "tool_call": true,
        "reasoning": true,
        "attachment": true,
        "modalities": {"input": ["text", "image"], "output": ["text"]},
        "limit": {"context": 200_000, "output": 32_000},
        "variants": {THINKING: options},
    })
}

/// Three files that make OpenCode believe that the package for writing plugins is installed: else every start asks the registry
/// for it, in the background, in the home and in the folder's `.opencode/`. A folder with code of its own needs the package.
fn seeds(launch: &Launch<'_>) -> Vec<Seed> {
    const PACKAGE: &str = "@opencode-ai/plugin";
    let version = launch.version;
    let dependencies = json!({PACKAGE: version});
    let files = [
        ("package.json", json!({"dependencies": dependencies})),
        (
            "package-lock.json",
            json!({"lockfileVersion": 3, "packages": {"": {"dependencies": dependencies}}}),
        ),
        ("node_modules/@opencode-ai/plugin/package.json", json!({"name": PACKAGE, "version": version})),
    ];
    let has_code =
        discover::code(launch.tree, PLUGINS).chain(discover::code(launch.tree, TOOLS)).next().is_some();
    let own = has_code || launch.tree.has(".opencode/package.json");
    let folder = (launch.tree.has(".opencode/") && !own).then(|| format!("{}/.opencode", launch.workspace));
    // Only a part of OpenCode heeds the variable that switches plugins off, and nothing switches tools off: in the session's own
    // copy, each becomes a module that does nothing.
    let inert = discover::code(launch.tree, PLUGINS).chain(discover::code(launch.tree, TOOLS));
    let inert = inert
        .filter(|_| !launch.policy.hooks)
        .map(|path| Seed { path: format!("{}/{path}", launch.workspace), content: b"export {}\n".to_vec() });
    let places = [Some(format!("{}/.config/opencode", launch.home)), folder];
    places
        .into_iter()
        .flatten()
        .flat_map(|place| {
            files.clone().map(|(name, content)| Seed {
                path: format!("{place}/{name}"),
                content: content.to_string().into_bytes(),
            })
        })
        .chain(inert)
        .collect()
}
