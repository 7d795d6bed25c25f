//! `karta.jsonc`: how a release's sessions are unless they say otherwise.

use karta_harness::Fault;
use karta_types::event::HIDEABLE;
use karta_types::policy::Defaults;
use karta_types::session::PermissionMode;

use crate::read::{Document, Fields, Key, Node, did_you_mean, quoted};

/// The file's name.
pub const FILE: &str = "karta.jsonc";

/// The longest a process may be kept without a turn, in seconds: a week.
const MAX_IDLE: u64 = 7 * 24 * 3600;

/// Reads the file's text.
///
/// # Errors
/// Everything that is wrong with it, in the order of the text.
pub fn parse(text: &str) -> Result<Defaults, Vec<Fault>> {
    let mut document = Document::new(FILE, text);
    let entries = document.jsonc();
    let defaults = if document.is_broken() { Defaults::default() } else { read(&mut document, &entries) };
    document.finish(|_| defaults)
}

/// The whole names of all keys that the file may have.
pub fn keys() -> Vec<String> {
    let mut document = Document::new(FILE, "");
    read(&mut document, &[]);
    document.keys()
}

fn read(document: &mut Document<'_>, entries: &[(Key, Node)]) -> Defaults {
    let mut top = Fields::top(entries);
    let modes = [
        ("default", PermissionMode::Default),
        ("accept_edits", PermissionMode::AcceptEdits),
        ("plan", PermissionMode::Plan),
        ("deny_all", PermissionMode::DenyAll),
        ("allow_all", PermissionMode::AllowAll),
    ];
    let mut defaults = Defaults {
        permission_mode: top.choice("permission_mode", &modes, document),
        hidden_events: top.texts("hidden_events", hideable, document),
        idle_seconds: top.number("idle_timeout_seconds", MAX_IDLE, document),
        thinking_budget_tokens: tokens(&mut top, document),
    };
    other_spellings(&mut top, &mut defaults, document);
    top.finish(document);
    defaults
}

fn tokens(table: &mut Fields<'_>, document: &mut Document<'_>) -> Option<u32> {
    let number = table.number("thinking_budget_tokens", u64::from(u32::MAX), document)?;
    u32::try_from(number).ok()
}

/// The same in the words of the hosted product, where they mean the same: each is said once.
const SPELLINGS: [(&str, &str); 4] = [
    ("hidden_events", "cli.hidden_event_types"),
    ("idle_timeout_seconds", "harness.claude.idle_timeout_seconds"),
    ("permission_mode", "runtime.permission_mode"),
    ("thinking_budget_tokens", "harness.claude.thinking_budget_tokens"),
];

/// Reads the other spellings.
fn other_spellings(top: &mut Fields<'_>, defaults: &mut Defaults, document: &mut Document<'_>) {
    let mut cli = top.table("cli", document);
    let hidden = cli.texts("hidden_event_types", hideable, document);
    if defaults.hidden_events.is_empty() {
        defaults.hidden_events = hidden;
    }
    let asking = "whoever uses a session answers its questions; `permission_mode` says what is asked at all";
    cli.refuse("input_required_policy", asking, document);
    cli.refuse("input_required_hidden_policy", asking, document);
    cli.finish(document);

    let mut harness = top.table("harness", document);
    let mut claude = harness.table("claude", document);
    let idle = claude.number("idle_timeout_seconds", MAX_IDLE, document);
    let thinking = tokens(&mut claude, document);
    defaults.idle_seconds = defaults.idle_seconds.or(idle);
    defaults.thinking_budget_tokens = defaults.thinking_budget_tokens.or(thinking);
    claude.refuse("permission_intercept", "`permission_mode` says what is asked", document);
    claude.refuse("agent_command", "agents are chosen by name, with each message", document);
    claude.finish(document);
    harness.finish(document);

    let mut runtime = top.table("runtime", document);
    let modes = [("interactive", PermissionMode::Default), ("autonomous", PermissionMode::AllowAll)];
    let mode = runtime.choice("permission_mode", &modes, document);
    defaults.permission_mode = defaults.permission_mode.or(mode);
    runtime.finish(document);

    for (key, other) in SPELLINGS {
        if let (Some(_), Some(at)) = (document.find(key), document.find(other)) {
            document.fault(at, format!("`{other}` says the same as `{key}`; keep one of them"), None);
        }
    }
    top.refuse("profile", "who uses a session is known by the key or token", document);
}

/// Whether a type of events can be hidden.
fn hideable(word: &str) -> Result<(), String> {
    if HIDEABLE.contains(&word) {
        return Ok(());
    }
    let help = did_you_mean(word, &HIDEABLE).map(|help| format!("; {help}")).unwrap_or_default();
    Err(format!("`{word}` is no type of events that can be hidden; those are {}{help}", quoted(&HIDEABLE)))
}
