//! Between the player's lines and the platform's words.

use std::collections::HashSet;

use karta_types::message::Content;
use karta_types::{ErrorCode, Micros};

use super::wire::{End as WireEnd, Line as Wire, Order, is_json, parse};
use crate::codec::{Ask, Codec, End, Input, Out, Said};
use crate::frame::lines::{Line, Lines};

/// Lines that are no JSON in one turn before it is given up.
const MAX_BROKEN: u32 = 100;
/// Calls remembered, so that a result comes once.
const MAX_CALLS: usize = 4096;

/// The codec of one player.
#[derive(Debug, Default)]
pub(super) struct ScriptedCodec {
    lines: Lines,
    state: State,
}

#[derive(Debug, Default)]
struct State {
    ready: bool,
    open: bool,
    broken: u32,
    calls: HashSet<String>,
    answered: HashSet<String>,
}

impl Codec for ScriptedCodec {
    fn start(&mut self, _out: &mut Out) {}

    fn input(&mut self, input: Input, out: &mut Out) {
        match input {
            Input::Message { content, .. } => {
                self.state.open = true;
                self.state.broken = 0;
                write(&Order::Message(words(content)), out);
            }
            Input::Answer { request, answer } => write(&Order::Answer { request, answer }, out),
            Input::Interrupt => write(&Order::Interrupt, out),
            Input::Mode(_) | Input::Close => {}
            Input::History => out.say(Said::History(Vec::new())),
        }
    }

    fn output(&mut self, bytes: &[u8], out: &mut Out) {
        let Self { lines, state } = self;
        lines.feed(bytes, |line| state.line(&line, out));
    }

    fn exited(&mut self, status: Option<i32>, stderr_tail: &str, out: &mut Out) {
        if let Some(line) = self.lines.finish() {
            self.state.line(&line, out);
        }
        let how =
            status.map_or_else(|| "was killed".to_owned(), |status| format!("ended with status {status}"));
        let tail = if stderr_tail.is_empty() { String::new() } else { format!("; it wrote: {stderr_tail}") };
        let message = format!("the harness {how} during the turn{tail}");
        self.state.end(End::Failed { code: ErrorCode::HarnessFailed, message }, out);
    }
}

impl State {
    fn line(&mut self, line: &Line, out: &mut Out) {
        let bytes = match line {
            Line::Whole(bytes) if bytes.is_empty() => return,
            Line::Whole(bytes) => bytes,
            Line::TooLong(length) => {
                let message = format!("a line of {length} bytes is too long");
                return self.end(End::Failed { code: ErrorCode::HarnessOutputInvalid, message }, out);
            }
        };
        match parse(bytes) {
            Some(line) => self.said(line, out),
            None if is_json(bytes) => {
                let detail = serde_json::from_slice(bytes).unwrap_or_default();
                out.say_raw(Said::Notice { subtype: "unknown".to_owned(), detail }, bytes);
            }
            None => {
                self.broken += 1;
                if self.broken == 1 {
                    let detail = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
                    out.say(Said::Notice { subtype: "malformed_line".to_owned(), detail: detail.into() });
                } else if self.broken == MAX_BROKEN {
                    let message = format!("{MAX_BROKEN} lines that are not JSON");
                    self.end(End::Failed { code: ErrorCode::HarnessOutputInvalid, message }, out);
                }
            }
        }
    }

    fn said(&mut self, line: Wire<'_>, out: &mut Out) {
        let said = match line {
            Wire::Ready(_) if self.ready => return,
            Wire::Ready(native) => {
                self.ready = true;
                out.native_session = Some(native.into_owned());
                Said::Ready
            }
            Wire::Text(piece) => {
                Said::Text { part: piece.part.into_owned(), text: piece.text.into_owned(), parent: None }
            }
            Wire::Think(piece) => {
                Said::Reasoning { part: piece.part.into_owned(), text: piece.text.into_owned(), parent: None }
            }
            Wire::ToolUse { call, tool, input } => {
                if self.calls.len() >= MAX_CALLS || !self.calls.insert(call.to_string()) {
                    return;
                }
                Said::ToolUse { call: call.into_owned(), tool: tool.into_owned(), input, parent: None }
            }
            Wire::ToolResult { call, output, is_error } => {
                if !self.calls.remove(call.as_ref()) {
                    return;
                }
                Said::ToolResult { call: call.into_owned(), output, is_error }
            }
            Wire::Ask { request, kind, tool, input, message } => {
                if self.answered.len() >= MAX_CALLS || !self.answered.insert(request.to_string()) {
                    return;
                }
                let (tool, message) = (tool.into_owned(), message.into_owned());
                Said::Asked {
                    request: request.into_owned(),
                    ask: Ask { kind, tool, tool_input: input, message },
                }
            }
            Wire::Use { model, usage, cost_micros } => {
                Said::Used { model: model.into_owned(), usage, cost: Micros::new(cost_micros.max(0)) }
            }
            Wire::Step(index) => Said::StepStart { description: format!("step {index}") },
            Wire::Notice(text) => {
                Said::Notice { subtype: "scripted".to_owned(), detail: text.into_owned().into() }
            }
            Wire::End(WireEnd::Completed) => {
                return self.end(End::Completed { stop_reason: Some("end_turn".to_owned()) }, out);
            }
            Wire::End(WireEnd::Interrupted) => return self.end(End::Interrupted, out),
            Wire::End(WireEnd::Failed { code, message }) => {
                return self.end(End::Failed { code, message: message.into_owned() }, out);
            }
        };
        out.say(said);
    }

    /// Ends the open turn; a second end of the same turn is nothing.
    fn end(&mut self, end: End, out: &mut Out) {
        if std::mem::replace(&mut self.open, false) {
            self.calls.clear();
            self.answered.clear();
            out.say(Said::Ended(end));
        }
    }
}

fn write(order: &Order, out: &mut Out) {
    if let Ok(mut line) = serde_json::to_vec(order) {
        line.push(b'\n');
        out.writes.push(line.into());
    }
}

/// The words of a message; pictures and files by their name.
fn words(content: Vec<Content>) -> String {
    let word = |part| match part {
        Content::Text { text } => text,
        Content::Image { media_type, .. } => format!("[{media_type}]"),
        Content::File { name, .. } => format!("[{name}]"),
    };
    content.into_iter().map(word).collect::<Vec<_>>().join("\n")
}
