//! The codec: `stream-json` lines and the control protocol on standard input and output.

mod speech;

use std::collections::HashMap;

use bytes::Bytes;
use karta_types::ErrorCode;
use karta_types::session::PermissionMode;
use serde_json::{Value, json};

use super::asks::Asks;
use super::stream::{At, Streams};
use super::turn::{Shown, Turn};
use super::wire;
use super::wire::{id, list, number, text};
use crate::codec::{Codec, End, Input, Out, Said};
use crate::frame::lines::{Line, Lines};
use crate::recent::Recent;

/// Thinking that is asked for without a number, in tokens.
const DEFAULT_THINKING: u32 = 8000;
/// So many malformed lines in one turn, and the turn fails.
const MAX_MALFORMED: u32 = 20;
/// So many calls are remembered.
const MAX_CALLS: usize = 8192;
/// So many plans and sub-agents are remembered.
const MAX_REMEMBERED: usize = 64;
/// Plans in lines of more bytes than this are not remembered.
const MAX_PLAN: usize = 256 << 10;
/// Notices hold lines up to this many bytes; of longer ones only the length.
const MAX_NOTICE: usize = 16 << 10;

/// One process of Claude Code.
#[derive(Debug)]
pub(super) struct ClaudeCodec {
    lines: Lines,
    shown: Shown,
    turn: Option<Turn>,
    streams: Streams,
    asks: Asks,
    uses: Recent,
    results: Recent,
    /// Tool calls that sub-agents run in, by the sub-agent.
    agents: HashMap<String, String>,
    /// Inputs of calls that leave plan mode: the question about them does not repeat the plan.
    plans: HashMap<String, Value>,
    ready: bool,
    native: Option<String>,
    /// The last `init` that was shown; it comes again with every turn.
    init: Value,
    requests: u64,
    malformed: u32,
    /// The thinking budget that was given at the start.
    thinking_budget: Option<u32>,
    thinking: bool,
}

impl ClaudeCodec {
    pub(super) fn new(thinking_budget: Option<u32>, mode: PermissionMode) -> Self {
        Self {
            lines: Lines::default(),
            shown: Shown::default(),
            turn: None,
            streams: Streams::default(),
            asks: Asks::new(mode),
            uses: Recent::new(MAX_CALLS),
            results: Recent::new(MAX_CALLS),
            agents: HashMap::new(),
            plans: HashMap::new(),
            ready: false,
            native: None,
            init: Value::Null,
            requests: 0,
            malformed: 0,
            thinking_budget,
            thinking: false,
        }
    }

    fn request(&mut self, request: &Value, out: &mut Out) {
        self.requests += 1;
        out.write_json(&wire::control_request(&format!("karta_{}", self.requests), request));
    }

    fn line(&mut self, line: Line, out: &mut Out) {
        let raw = match line {
            Line::Whole(raw) => raw,
            Line::TooLong(bytes) => {
                let message = format!(
                    "Claude Code sent a line of {bytes} bytes; the limit is {}",
                    crate::frame::lines::MAX_LINE
                );
                self.unreadable(message, out);
                return;
            }
        };
        if raw.first() != Some(&b'{') {
            return;
        }
        if let Ok(value) = serde_json::from_slice::<Value>(&raw) {
            self.value(&value, &raw, out);
            return;
        }
        self.malformed += 1;
        if self.malformed == 1 {
            out.say_raw(
                Said::Notice { subtype: "malformed_line".to_owned(), detail: json!({"bytes": raw.len()}) },
                &raw,
            );
        } else if self.malformed > MAX_MALFORMED {
            self.unreadable(format!("Claude Code sent {} malformed lines", self.malformed), out);
        }
    }

    /// The turn can't go on with such output.
    fn unreadable(&mut self, message: String, out: &mut Out) {
        if self.turn.is_some() {
            self.request(&json!({"subtype": "interrupt"}), out);
            self.end(End::Failed { code: ErrorCode::HarnessOutputInvalid, message }, None, out);
        } else {
            out.say(Said::Notice { subtype: "unreadable".to_owned(), detail: Value::String(message) });
        }
    }

    fn value(&mut self, value: &Value, raw: &Bytes, out: &mut Out) {
        let parent = id(value, "parent_tool_use_id");
        let at = At { parent, raw };
        match text(value, "type").unwrap_or_default() {
            "control_response" => self.control_response(value, raw, out),
            "control_request" => self.control_request(value, raw, out),
            "control_cancel_request" => {
                if let Some(request) = id(value, "request_id").filter(|request| self.asks.withdraw(request)) {
                    out.say_raw(Said::Withdrawn { request: request.to_owned() }, raw);
                }
            }
            "system" => self.system(value, raw, out),
            "command_lifecycle" => {
                self.shown.lifecycle = true;
                if let (Some(turn), Some(uuid)) = (&mut self.turn, id(value, "command_uuid")) {
                    turn.lifecycle(uuid, text(value, "state").unwrap_or_default());
                }
            }
            "result" => self.result(value, raw, out),
            // What is said while no turn runs belongs to nobody: the rest of a turn that was given up.
            "stream_event" | "assistant" | "user" if self.turn.is_none() => {}
            "stream_event" => {
                let event = value.get("event").unwrap_or(&Value::Null);
                let before = out.said.len();
                self.streams.event(event, at, out);
                self.heard(before, out);
            }
            "assistant" => {
                let before = out.said.len();
                self.assistant(value, at, out);
                self.heard(before, out);
            }
            "user" => self.user(value, raw, out),
            "keep_alive" | "transcript_mirror" => {}
            other => notice(other, value, raw, out),
        }
    }

    /// Notes whether any text of the main speaker is among what was just said.
    fn heard(&mut self, before: usize, out: &Out) {
        let fresh = out.said.get(before..).unwrap_or_default();
        if let Some(turn) = &mut self.turn {
            turn.spoke |= fresh.iter().any(|(said, _)| matches!(said, Said::Text { parent: None, .. }));
        }
    }

    fn system(&mut self, value: &Value, raw: &Bytes, out: &mut Out) {
        match text(value, "subtype").unwrap_or_default() {
            "init" => self.init(value, out),
            "session_state_changed" => {
                self.shown.states = true;
                match text(value, "state") {
                    Some("running" | "requires_action") => {
                        if let Some(turn) = &mut self.turn {
                            turn.running();
                        }
                    }
                    Some("idle") => {
                        if let Some(end) = self.turn.as_ref().and_then(|turn| turn.idle(&self.shown)) {
                            self.end(end, Some(raw), out);
                        }
                    }
                    _ => {}
                }
            }
            "status" => {
                if let Some(status) = text(value, "status").filter(|&status| status != "requesting") {
                    notice(status, value, raw, out);
                }
            }
            "thinking_tokens" => {}
            "api_retry" if self.turn.is_some() => {
                self.streams.failed(id(value, "parent_tool_use_id"), out);
                out.say_raw(
                    Said::Retrying {
                        attempt: number(value, "attempt")
                            .and_then(|attempt| u32::try_from(attempt).ok())
                            .unwrap_or(1),
                        status: wire::status(value, "error_status"),
                        message: wire::shortened(text(value, "error").unwrap_or_default()),
                        wait_ms: number(value, "retry_delay_ms").unwrap_or(0),
                    },
                    raw,
                );
            }
            "background_tasks_changed" => self.shown.background = list(value, "tasks").len(),
            other => {
                if let ("task_started", Some(agent), Some(call)) =
                    (other, id(value, "task_id"), id(value, "tool_use_id"))
                    && self.agents.len() < MAX_REMEMBERED
                {
                    self.agents.insert(agent.to_owned(), call.to_owned());
                }
                notice(other, value, raw, out);
            }
        }
    }

    fn init(&mut self, value: &Value, out: &mut Out) {
        if let Some(native) = id(value, "session_id")
            && self.native.as_deref() != Some(native)
        {
            self.native = Some(native.to_owned());
            out.native_session = Some(native.to_owned());
        }
        let shown = |key: &str| value.get(key).cloned().unwrap_or(Value::Null);
        let init = json!({"model": shown("model"), "permission_mode": shown("permissionMode"), "mcp_servers": shown("mcp_servers")});
        if init != self.init {
            out.say(Said::Notice { subtype: "init".to_owned(), detail: init.clone() });
            self.init = init;
        }
    }

    fn result(&mut self, value: &Value, raw: &Bytes, out: &mut Out) {
        if let Some(end) = self.turn.as_mut().and_then(|turn| turn.result(value.clone(), &self.shown)) {
            self.end(end, Some(raw), out);
        }
    }

    fn end(&mut self, end: End, raw: Option<&Bytes>, out: &mut Out) {
        let Some(turn) = self.turn.take() else { return };
        for request in self.asks.close() {
            out.say(Said::Withdrawn { request });
        }
        if let (End::Completed { .. }, Some(words)) = (&end, turn.unsaid()) {
            let part = format!("result.{}", self.requests);
            self.requests += 1;
            out.say(Said::Text { part, text: words.to_owned(), parent: None });
        }
        self.streams.clear();
        self.agents.clear();
        self.plans.clear();
        self.malformed = 0;
        out.said.push((Said::Ended(end), raw.cloned()));
    }

    fn message(
        &mut self,
        uuid: &str,
        content: &[karta_types::message::Content],
        thinking: bool,
        out: &mut Out,
    ) {
        if thinking != self.thinking {
            self.thinking = thinking;
            // Null puts back what the folder and the start said.
            let budget = thinking.then(|| self.thinking_budget.unwrap_or(DEFAULT_THINKING));
            self.request(&json!({"subtype": "set_max_thinking_tokens", "max_thinking_tokens": budget}), out);
        }
        self.turn.get_or_insert_default().message(uuid);
        out.write_json(&wire::user_message(uuid, content));
    }
}

fn notice(subtype: &str, value: &Value, raw: &Bytes, out: &mut Out) {
    let subtype = if subtype.is_empty() || subtype.len() > 64 { "unknown" } else { subtype };
    let detail = if raw.len() > MAX_NOTICE {
        json!({"bytes": raw.len()})
    } else {
        let mut detail = value.clone();
        if let Some(fields) = detail.as_object_mut() {
            for key in ["type", "subtype", "uuid", "session_id"] {
                fields.remove(key);
            }
        }
        detail
    };
    out.say_raw(Said::Notice { subtype: subtype.to_owned(), detail }, raw);
}

impl Codec for ClaudeCodec {
    fn start(&mut self, out: &mut Out) {
        self.request(&json!({"subtype": "initialize", "hooks": null}), out);
    }

    fn input(&mut self, input: Input, out: &mut Out) {
        match input {
            Input::Message { id, content, thinking, agent: _ } => self.message(&id, &content, thinking, out),
            Input::Answer { request, answer } => {
                if let Some(response) = self.asks.answer(&request, &answer) {
                    out.write_json(&wire::control_success(&request, &response));
                }
            }
            Input::Interrupt => {
                let Some(turn) = &mut self.turn else { return };
                for uuid in turn.interrupt() {
                    self.request(&json!({"subtype": "cancel_async_message", "message_uuid": uuid}), out);
                }
                self.request(&json!({"subtype": "interrupt"}), out);
            }
            Input::Mode(mode) => {
                let word = self.asks.mode(mode);
                self.request(&json!({"subtype": "set_permission_mode", "mode": word}), out);
            }
            // History lies in a file, and the process ends when its input does.
            Input::History | Input::Close => {}
        }
    }

    fn output(&mut self, bytes: &[u8], out: &mut Out) {
        let mut lines = std::mem::take(&mut self.lines);
        lines.feed(bytes, |line| self.line(line, out));
        self.lines = lines;
    }

    fn exited(&mut self, status: Option<i32>, stderr_tail: &str, out: &mut Out) {
        if let Some(line) = self.lines.finish() {
            self.line(line, out);
        }
        if let Some(end) = self.turn.as_ref().map(|turn| turn.exited(status, stderr_tail)) {
            self.end(end, None, out);
        }
    }
}
