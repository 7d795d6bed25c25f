//! What of a session is kept: the protocol, and nothing that differs from run to run.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use karta_harness::transcript::{Do, Step};
use karta_harness::{Codec, Out};
use serde_json::{Value, json};

/// Fields that say nothing to the adapter, or hold prose that is the vendor's, or times.
const DROPPED: &[&str] = &[
    "tools",
    "slash_commands",
    "terminal_slash_commands",
    "agents",
    "skills",
    "plugins",
    "commands",
    "models",
    "account",
    "capabilities",
    "output_style",
    "available_output_styles",
    "modelUsage",
    "model_usage_since_last_result",
    "subagent_stats",
    "tool_use_result",
    "tool_result_meta",
    "server_tool_use",
    "output_tokens_details",
    "cache_creation",
    "diagnostics",
    "context_management",
    "memory_paths",
    "fast_mode_state",
    "fast_mode_disabled_reason",
    "local_command_source",
    "request_sent_wall_ms",
    "begun_message_ids",
    "ttft_ms",
    "ttft_stream_ms",
    "time_to_request_ms",
    "first_content_frame_ms",
    "first_request_input_tokens",
    "first_request_cache_read_input_tokens",
    "duration_ms",
    "duration_api_ms",
    "timestamp",
    "thinking_duration_ms",
    "total_cost_usd",
    "safety_stops",
    "iterations",
    "service_tier",
    "inference_geo",
    "speed",
    "fallback_credit",
    "stop_details",
    "container",
    "pid",
    "prompt",
    "end_time",
    "thinking_display",
    "costUSD",
    "total_duration_ms",
    "owed_rows",
    "api_message_id",
    "sdk_host_only",
    "run_id",
    "output_file",
    "abandoned_blocks",
];
/// What is kept of the two lines that describe the whole process.
const KEPT: &[&str] = &[
    "type",
    "subtype",
    "session_id",
    "model",
    "permissionMode",
    "mcp_servers",
    "request_id",
    "response",
    "claude_code_version",
    "current_permission_mode",
    "session_state",
    "cwd",
];
/// Words longer than this are cut: they are the vendor's to the model, or to people.
const MAX_WORDS: usize = 80;

fn trim_line(value: &mut Value) {
    let kind = value["type"].as_str().unwrap_or_default().to_owned();
    let described =
        kind == "control_response" && value["response"]["response"]["claude_code_version"].is_string();
    if described || value["subtype"] == "init" {
        keep(value);
    }
    trim(value, false);
    if let Some(fields) = value.as_object_mut() {
        fields.remove("uuid");
        fields.remove("user_message_uuid");
        if !matches!(kind.as_str(), "result" | "system") {
            fields.remove("session_id");
        }
        if kind != "result" {
            fields.remove("user_message_uuids");
        }
    }
}

fn keep(value: &mut Value) {
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|key, _| KEPT.contains(&key.as_str()));
        fields.values_mut().for_each(keep);
    }
}

/// Trims a value; what is `ours` (a tool's input, a suggested rule) stays as it is.
fn trim(value: &mut Value, ours: bool) {
    match value {
        Value::Object(fields) => {
            if !ours {
                fields.retain(|key, _| !DROPPED.contains(&key.as_str()));
            }
            for (key, field) in fields.iter_mut() {
                if key == "retry_delay_ms" {
                    *field = json!(500);
                } else {
                    trim(field, ours || key == "input" || key == "permission_suggestions");
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| trim(item, ours)),
        Value::String(words) if !ours && words.chars().count() > MAX_WORDS => {
            *words = words.chars().take(MAX_WORDS).chain("…".chars()).collect();
        }
        _ => {}
    }
}

/// Trims every step, with these paths shortened and random ids counted.
pub(crate) fn trimmed(steps: Vec<Step>, short: &[(&str, &str)]) -> Vec<Step> {
    let mut ids = BTreeMap::new();
    let mut text = |text: &str| {
        let mut text = text.to_owned();
        for (path, name) in short {
            text = text.replace(path, name);
        }
        stable(&text, &mut ids)
    };
    let mut trimmed = Vec::with_capacity(steps.len());
    for step in steps {
        trimmed.push(match step {
            Step::Out { line } => {
                let line = match serde_json::from_str::<Value>(&line) {
                    Ok(mut value) => {
                        trim_line(&mut value);
                        value.to_string()
                    }
                    Err(_) => line,
                };
                Step::Out { line: text(&line) }
            }
            Step::Do(Do::Answer { request, answer }) => {
                Step::Do(Do::Answer { request: text(&request), answer })
            }
            Step::Exit { status, stderr } => Step::Exit { status, stderr: text(&stderr) },
            other => other,
        });
    }
    trimmed
}

/// Which kind of random id a word is, if it is one.
fn random(word: &str) -> Option<&'static str> {
    if word.len() == 36 && word.matches('-').count() == 4 && !word.starts_with("00000000-") {
        return Some("uuid");
    }
    (word.len() == 17 && word.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some("agent")
}

/// Puts a counted name in the place of every random id, so that a new recording differs only where the protocol does.
fn stable(text: &str, ids: &mut BTreeMap<String, usize>) -> String {
    let mut out = String::with_capacity(text.len());
    let is_word = |letter: char| letter.is_ascii_alphanumeric() || letter == '-' || letter == '_';
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let end = rest.find(|letter| !is_word(letter)).unwrap_or(rest.len()).max(first.len_utf8());
        let (word, after) = rest.split_at(if is_word(first) { end } else { first.len_utf8() });
        if let Some(kind) = random(word) {
            let next = ids.len() + 1;
            let number = *ids.entry(word.to_owned()).or_insert(next);
            // Writing to a string can't fail.
            let _ = write!(out, "{kind}_{number}");
        } else {
            out.push_str(word);
        }
        rest = after;
    }
    out
}

/// Adds what a codec writes when it is played the transcript.
pub(crate) fn annotated(codec: &mut dyn Codec, steps: Vec<Step>) -> Vec<Step> {
    fn wrote(out: &mut Out, all: &mut Vec<Step>) {
        for line in out.writes.drain(..) {
            all.push(Step::In { line: String::from_utf8_lossy(&line).trim_end().to_owned() });
        }
    }
    let (mut out, mut all) = (Out::default(), Vec::new());
    codec.start(&mut out);
    wrote(&mut out, &mut all);
    for step in steps {
        match &step {
            Step::Do(input) => codec.input(input.clone().into(), &mut out),
            Step::Out { line } => codec.output(format!("{line}\n").as_bytes(), &mut out),
            Step::Exit { status, stderr } => codec.exited(*status, stderr, &mut out),
            Step::In { .. } => {}
        }
        all.push(step);
        wrote(&mut out, &mut all);
    }
    all
}
