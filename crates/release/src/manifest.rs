//! `karta.toml`: what a folder says to the platform. Everything else in the folder belongs to its harness.

use std::collections::BTreeMap;

use karta_harness::Fault;
use karta_harness::registry::{self, Declared};
use karta_types::Micros;
use karta_types::egress::{Hosts, Rule};
use karta_types::policy::{Build, Caps, Policy, Tools};
use karta_types::session::Isolation;

use crate::folder;
use crate::read::{Document, Fields, Key, Node, Places, Value};
use crate::version::Wanted;

/// The file's name.
pub const FILE: &str = "karta.toml";

/// The longest script of a setup, in bytes.
const MAX_SETUP: usize = 64 << 10;
/// The longest value of a variable, in bytes.
const MAX_VALUE: usize = 32 << 10;
/// A year: no turn takes longer.
const MAX_SECONDS: u64 = 366 * 24 * 3600;

/// What the file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    /// The project that the folder is published as.
    pub project: Option<String>,
    /// The harness, and the version or constraint.
    pub harness: Declared,
    /// What is done once.
    pub build: Build,
    /// What sessions may do.
    pub policy: Policy,
    /// Variables for the folder's processes.
    pub env: BTreeMap<String, String>,
    /// Variables that stand for a secret, each with the hosts that it may go to.
    pub secrets: BTreeMap<String, Vec<String>>,
    places: Places,
}

impl Manifest {
    /// A fault of the value of one of its keys, with its place.
    pub(crate) fn fault(&self, key: &str, message: impl Into<String>) -> Fault {
        self.places.put(key, Fault::of(FILE, message))
    }
}

/// Reads the file's text.
///
/// # Errors
/// Everything that is wrong with it, in the order of the text.
pub fn parse(text: &str) -> Result<Manifest, Vec<Fault>> {
    let mut document = Document::new(FILE, text);
    let entries = document.toml();
    // Of a text that can't be read the rest says little.
    let mut manifest = if document.is_broken() { Manifest::default() } else { read(&mut document, &entries) };
    document.finish(|places| {
        manifest.places = places;
        manifest
    })
}

/// The whole names of all keys that the file may have; `env.NAME` is any name.
pub fn keys() -> Vec<String> {
    let mut document = Document::new(FILE, "");
    read(&mut document, &[]);
    document.keys()
}

fn read(document: &mut Document<'_>, entries: &[(Key, Node)]) -> Manifest {
    let mut top = Fields::top(entries);
    let mut secrets = BTreeMap::new();
    let manifest = Manifest {
        project: project(&mut top, document),
        harness: harness(top.table("harness", document), document),
        build: build(top.table("build", document), document),
        policy: policy(top.table("policy", document), document),
        env: env(top.table("env", document), &mut secrets, document),
        secrets,
        places: Places::default(),
    };
    top.refuse("entry_point", "a harness is found by its own files; see `harness.type`", document);
    top.refuse("buildpack", "a folder runs as it is; what must be done before is `build.setup`", document);
    top.finish(document);
    manifest
}

/// Whether a text can be a project's readable name: 1 to 63 of `a-z`, `0-9` and `-`, not beginning with `-` nor like an id.
pub fn is_slug(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !text.starts_with('-')
        && !text.starts_with("proj_")
}

fn project(top: &mut Fields<'_>, document: &mut Document<'_>) -> Option<String> {
    let (text, at) = top.text("project", document)?;
    if !is_slug(text) {
        let message = "`project` must be 1 to 63 of a-z, 0-9 and -, not beginning with -";
        document.fault(at, message, None);
    }
    Some(text.to_owned())
}

fn harness(mut table: Fields<'_>, document: &mut Document<'_>) -> Declared {
    let known: Vec<_> = registry::ALL.iter().map(|harness| (harness.id(), harness.id())).collect();
    let kind = table.choice("type", &known, document).map(str::to_owned);
    let version = table.text("version", document).map(|(text, at)| {
        if Wanted::parse(text).is_none() {
            let bare = text.trim().trim_start_matches('v');
            let help = Wanted::parse(bare).map(|_| format!("did you mean `{bare}`?"));
            let message =
                format!("`{text}` is neither a version nor a constraint such as `2.1` or `>=2.1, <3`");
            document.fault(at, message, help);
        }
        text.to_owned()
    });
    table.finish(document);
    Declared { kind, version }
}

fn build(mut table: Fields<'_>, document: &mut Document<'_>) -> Build {
    let setup = table.text("setup", document).map(|(text, at)| {
        if text.trim().is_empty() {
            document.fault(at, "`build.setup` is empty; leave it out if there is nothing to do", None);
        } else if text.len() > MAX_SETUP || text.contains('\0') {
            document.fault(at, format!("`build.setup` must be a text of at most {MAX_SETUP} bytes"), None);
        }
        text.to_owned()
    });
    let built = Build {
        setup,
        inputs: table.texts("inputs", pattern, document),
        egress: table.texts("egress", rule, document),
    };
    table.finish(document);
    built
}

fn policy(mut table: Fields<'_>, document: &mut Document<'_>) -> Policy {
    let levels = [Isolation::None, Isolation::Process, Isolation::Namespace, Isolation::Microvm]
        .map(|level| (level.as_str(), level));
    let hooks = table.flag("hooks", document).unwrap_or(true);
    let mcp = table.flag("mcp", document).unwrap_or(true);
    let isolation = table.choice("isolation", &levels, document);
    let egress = table.texts("egress", rule, document);
    let mut tools = table.table("tools", document);
    let deny = tools.texts("deny", tool, document);
    tools.finish(document);
    let mut caps = table.table("caps", document);
    let most = i64::MAX.unsigned_abs();
    let cost = caps.number("session_cost_micros", most, document);
    let own = Caps {
        turn_seconds: caps.number("turn_seconds", MAX_SECONDS, document),
        session_cost_micros: cost.and_then(|cost| i64::try_from(cost).ok()).map(Micros::new),
        session_total_tokens: caps.number("session_total_tokens", most, document),
    };
    caps.finish(document);
    table.finish(document);
    Policy { hooks, mcp, tools: Tools { deny }, isolation, egress, caps: own }
}

fn env(
    mut table: Fields<'_>,
    secrets: &mut BTreeMap<String, Vec<String>>,
    document: &mut Document<'_>,
) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    for (key, node) in table.all(document) {
        let name = &key.name;
        if let Err(reason) = variable(name) {
            document.fault(key.at, format!("`env.{name}`: {reason}"), None);
        }
        match &node.value {
            Value::Text(value) if value.len() > MAX_VALUE || value.contains('\0') => {
                let message = format!("`env.{name}` must be a text of at most {MAX_VALUE} bytes without NUL");
                document.fault(node.at, message, None);
            }
            Value::Text(value) => {
                env.insert(name.clone(), value.clone());
            }
            Value::Table(entries) => {
                let hosts = secret(Fields::below(format!("env.{name}."), entries), name, node.at, document);
                secrets.insert(name.clone(), hosts);
            }
            other => {
                let message = format!("`env.{name}` must be a text, not {}", other.name());
                let help =
                    matches!(other, Value::Whole(_) | Value::Flag(_)).then(|| "put it in quotes".to_owned());
                document.fault(node.at, message, help);
            }
        }
    }
    env
}

/// `{ secret = true, hosts = ["api.example.com"] }`: the value is set on the server, and never enters the sandbox.
fn secret(mut table: Fields<'_>, name: &str, at: usize, document: &mut Document<'_>) -> Vec<String> {
    let secret = table.flag("secret", document);
    let hosts = table.texts("hosts", |text| Hosts::parse(text).map(drop), document);
    if secret != Some(true) {
        let help = Some(format!("write it as `{name} = {{ secret = true, hosts = [\"api.example.com\"] }}`"));
        document.fault(at, format!("`env.{name}` must be a text, or a secret"), help);
    } else if hosts.is_empty() {
        let message = format!("`env.{name}.hosts` must name the hosts that the secret may go to");
        document.fault(at, message, None);
    }
    table.finish(document);
    hosts
}

/// Names that say where programs, libraries and the platform's own places are, or that make a program run something first.
const MOVING: [&str; 33] = [
    "AWS_CA_BUNDLE",
    "BASH_ENV",
    "CARGO_HTTP_CAINFO",
    "CURL_CA_BUNDLE",
    "DENO_CERT",
    "ENV",
    "GCONV_PATH",
    "HOME",
    "HOSTALIASES",
    "IFS",
    "IS_SANDBOX",
    "JAVA_TOOL_OPTIONS",
    "LANG",
    "LOCPATH",
    "MALLOC_TRACE",
    "MAX_THINKING_TOKENS",
    "NLSPATH",
    "NODE_EXTRA_CA_CERTS",
    "NODE_OPTIONS",
    "NODE_PATH",
    "NODE_TLS_REJECT_UNAUTHORIZED",
    "NODE_USE_ENV_PROXY",
    "PATH",
    "PERL5OPT",
    "PROMPT_COMMAND",
    "PWD",
    "REQUESTS_CA_BUNDLE",
    "RUBYOPT",
    "SHELL",
    "SHELLOPTS",
    "TERM",
    "TMPDIR",
    "TZDIR",
];
/// Beginnings of names that are the harness's, the platform's or the loader's, or that say how models are reached.
const TAKEN: [&str; 14] = [
    "ANTHROPIC_",
    "BUN_",
    "CLAUDE_",
    "CLAUDECODE",
    "DISABLE_",
    "DYLD_",
    "GIT_",
    "KARTA_",
    "LD_",
    "NPM_CONFIG_",
    "OPENAI_",
    "OPENCODE_",
    "SSL_CERT_",
    "XDG_",
];
/// Ends of names that send connections another way.
const DIVERTING: &str = "_PROXY";

/// Whether a folder may set this variable, and a project have a secret of this name.
///
/// # Errors
/// Why not.
pub fn variable(name: &str) -> Result<(), String> {
    let mut letters = name.bytes();
    let first = letters.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    if !first || !letters.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') || name.len() > 255 {
        return Err("a name is made of letters, digits and `_`, and does not begin with a digit".to_owned());
    }
    let upper = name.to_ascii_uppercase();
    if MOVING.contains(&upper.as_str())
        || TAKEN.iter().any(|taken| upper.starts_with(taken))
        || upper.ends_with(DIVERTING)
    {
        return Err(
            "this name is set by the platform or its harness, or changes what they run or reach".to_owned()
        );
    }
    Ok(())
}

/// A pattern of `.gitignore`.
fn pattern(text: &str) -> Result<(), String> {
    folder::matcher("build.inputs", std::iter::once(text)).map(drop).map_err(|error| error.to_string())
}

/// What may be reached.
fn rule(text: &str) -> Result<(), String> {
    Rule::parse(text).map(drop)
}

/// A tool, in the harness's own name.
fn tool(text: &str) -> Result<(), String> {
    if text.trim().is_empty() || text.len() > 255 || text.chars().any(char::is_control) {
        return Err("a tool is named by the harness's own word for it".to_owned());
    }
    // Names go to the harness in one list with commas.
    if text.contains(',') || text.matches('(').count() != text.matches(')').count() {
        return Err(
            "a tool's name has no comma, and as many `(` as `)`: write one name for each tool".to_owned()
        );
    }
    Ok(())
}
