//! What of a session of OpenCode is kept: the protocol, and nothing that differs from run to run.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use karta_harness::launch::Native;
use karta_harness::transcript::{Do, Step};
use serde_json::{Value, json};

/// Fields that say nothing to the adapter, or hold prose that is the vendor's.
const DROPPED: &[&str] = &[
    "slug",
    "version",
    "projectID",
    "snapshot",
    "summary",
    "diff",
    "diffs",
    "stack",
    "responseHeaders",
    "responseBody",
    "system",
    "providerMetadata",
    "filediff",
    "truncated",
    "always",
];
/// Events that are about sessions.
const KEPT: &[&str] = &[
    "session.",
    "message.",
    "permission.",
    "question.",
    "server.heartbeat",
    "file.edited",
    "command.executed",
];
/// ... and those of them that repeat what others say.
const REPEATED: &[&str] = &["session.updated", "session.diff"];
/// Words longer than this that are not ours are cut.
const MAX_WORDS: usize = 80;
/// Milliseconds since 1970 of the year 2001: what is more is a time.
const TIMES: i64 = 1_000_000_000_000;
/// The time of every recording.
const TIME: i64 = 1_795_500_000_000;

/// Whether a line is of the protocol.
pub(super) fn wanted(line: &str) -> bool {
    let Ok(value) = serde_json::from_str::<Value>(line) else { return true };
    if value.get("log").is_some() {
        return false;
    }
    let Some(kind) = value.pointer("/event/type").and_then(Value::as_str) else { return true };
    KEPT.iter().any(|start| kind.starts_with(start)) && !REPEATED.contains(&kind)
}

fn trim(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|key, _| !DROPPED.contains(&key.as_str()));
            // The vendor's words to the model, put beside the person's.
            if fields.get("synthetic") == Some(&json!(true))
                && let Some(Value::String(text)) = fields.get_mut("text")
            {
                *text = text.chars().take(MAX_WORDS).chain("…".chars()).collect();
            }
            fields.values_mut().for_each(trim);
            // When a call is tried again: two seconds on.
            if let Some(next) = fields.get_mut("next").filter(|next| **next == json!(TIME)) {
                *next = json!(TIME + 2_000);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(trim),
        // Where in the vendor's code it happened.
        Value::String(words) => {
            if let Some(at) = words.find("\n    at ") {
                words.truncate(at);
            }
        }
        Value::Number(number) if number.as_i64().is_some_and(|number| number > TIMES) => *value = json!(TIME),
        _ => {}
    }
}

/// Trims every step, with these paths shortened and random ids counted.
pub(super) fn trimmed(steps: Vec<Step>, short: &[(&str, &str)]) -> Vec<Step> {
    let mut ids = BTreeMap::new();
    let mut text = |text: &str| {
        let text = short.iter().fold(text.to_owned(), |text, (path, name)| text.replace(path, name));
        stable(&text, &mut ids)
    };
    let mut trimmed = Vec::with_capacity(steps.len());
    for step in steps {
        trimmed.push(match step {
            Step::Out { line } => {
                let line = match serde_json::from_str::<Value>(&line) {
                    Ok(mut value) => {
                        trim(&mut value);
                        value.to_string()
                    }
                    Err(_) => line,
                };
                Step::Out { line: text(&line) }
            }
            Step::Do(Do::Answer { request, answer }) => {
                Step::Do(Do::Answer { request: text(&request), answer })
            }
            Step::Do(Do::Message { id, mut content, agent, thinking }) => {
                for part in &mut content {
                    if let karta_types::message::Content::Text { text: words } = part {
                        *words = text(words);
                    }
                }
                Step::Do(Do::Message { id, content, agent, thinking })
            }
            other => other,
        });
    }
    trimmed
}

/// The session to resume, by the name it has in the trimmed steps: the first that is named there.
pub(super) fn resumed(steps: &[Step], native: &Native) -> Native {
    match native {
        Native::New(id) => Native::New(id.clone()),
        Native::Resume(id) => {
            let named = steps.iter().find_map(|step| {
                let Step::Out { line } = step else { return None };
                let at = line.find("ses_")?;
                let end = line[at + 4..].find(|letter: char| !letter.is_ascii_alphanumeric())?;
                Some(line[at..at + 4 + end].to_owned())
            });
            Native::Resume(named.unwrap_or_else(|| id.clone()))
        }
    }
}

const KINDS: &[&str] = &["ses", "msg", "prt", "evt", "per", "que", "tool", "toolu", "call"];

/// Puts a counted name in the place of every random id. Names of one kind sort as they came.
fn stable(text: &str, ids: &mut BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let is_word = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let end = if is_word(first) {
            rest.find(|letter| !is_word(letter)).unwrap_or(rest.len())
        } else {
            first.len_utf8()
        };
        let (word, after) = rest.split_at(end);
        match word.split_once('_').filter(|(kind, id)| {
            KINDS.contains(kind) && id.len() >= 20 && id.bytes().any(|byte| byte != b'0')
        }) {
            Some((kind, _)) => {
                let number = ids.keys().filter(|known| known.starts_with(&format!("{kind}_"))).count() + 1;
                let name = ids.entry(word.to_owned()).or_insert_with(|| match kind {
                    // An event's id begins with its time: the low 36 bits of its milliseconds.
                    "evt" => format!("evt_{:09x}{number:04}", TIME & ((1 << 36) - 1)),
                    _ => format!("{kind}_{number:04}"),
                });
                // Writing to a string can't fail.
                let _ = write!(out, "{name}");
            }
            None => out.push_str(word),
        }
        rest = after;
    }
    out
}
