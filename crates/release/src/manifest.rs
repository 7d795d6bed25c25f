//! `karta.toml`: what a folder says to the platform. Everything else in the folder belongs to its harness.

use std::collections::BTreeMap;

use karta_harness::Fault;
use karta_harness::registry::{self, Declared};
use karta_types::Micros;
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
    let manifest = Manifest {
        project: project(&mut top, document),
        harness: harness(top.table("harness", document), document),
        build: build(top.table("build", document), document),
        policy: policy(top.table("policy", document), document),
        env: env(top.table("env", document), document),
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
        egress: table.texts("egress", host, document),
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
    let egress = table.texts("egress", host, document);
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

fn env(mut table: Fields<'_>, document: &mut Document<'_>) -> BTreeMap<String, String> {
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
            Value::Table(_) => {
                let message = format!(
                    "`env.{name}` must be a text: a secret has no place here, since whatever runs in the sandbox could read it"
                );
                document.fault(node.at, message, None);
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

/// Names that say where programs, libraries and the platform's own places are, or that make a program run something first.
const MOVING: [&str; 27] = [
    "BASH_ENV",
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
    "PATH",
    "PERL5OPT",
    "PROMPT_COMMAND",
    "PWD",
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

/// Whether a folder may set this variable.
fn variable(name: &str) -> Result<(), String> {
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

/// A host, or a host with its port.
fn host(text: &str) -> Result<(), String> {
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let fine = host.len() <= 253 && host.split('.').all(label);
    if !fine
        || port.is_some_and(|port| !port.parse::<u16>().is_ok_and(|port| port > 0) || port.starts_with('+'))
    {
        return Err(format!(
            "`{text}` must be `host` or `host:port`, in lower case, without scheme, path or pattern"
        ));
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_hosts() {
        for good in ["example.com", "a.b-c.de:443", "localhost:1", "10.0.0.1"] {
            assert_eq!(host(good), Ok(()), "{good}");
        }
        for bad in
            ["", "https://a", "a/b", "*.a", "A.com", "a:", "a:0", "a:+1", "a:70000", "a..b", "-a", "a-"]
        {
            assert!(host(bad).is_err(), "{bad}");
        }
    }
}
