//! The plain answer is the fold of the event stream, and of nothing else.

use karta_types::event::{Chunk, InputRequired};
use karta_types::message::{Message, Part, Role};
use karta_types::session::TurnState;
use karta_types::usage::Metered;
use karta_types::{Body, Event, Problem, SessionId, TurnId};
use serde::{Deserialize, Serialize};

/// What a caller gets who doesn't stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The text of the turn.
    pub text: String,
    /// The session.
    pub session_id: SessionId,
    /// The turn.
    pub turn_id: TurnId,
    /// How it ended.
    pub status: TurnState,
    /// The agent that was asked for.
    pub agent: Option<String>,
    /// The agent's messages, one for each model call that said or did something.
    pub messages: Vec<Message>,
    /// Tokens and cost.
    pub usage: Metered,
    /// Why it ended, in the harness's words; `input_required` while it waits for a person.
    pub stop_reason: Option<String>,
    /// The questions it waits for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending_inputs: Vec<InputRequired>,
}

/// Folds the events of one turn.
#[derive(Debug, Default)]
pub struct Fold {
    agent: Option<String>,
    messages: Vec<Message>,
    /// Parts of text by their id: where they are in `messages`.
    ids: Vec<(String, usize, usize)>,
    fresh: bool,
    error: Option<Problem>,
    pending: Vec<InputRequired>,
    at: Option<(SessionId, TurnId)>,
    done: Option<(SessionId, TurnId, TurnState, Metered, Option<String>)>,
}

impl Fold {
    /// Nothing yet.
    pub fn new() -> Self {
        Self { fresh: true, ..Self::default() }
    }

    /// Takes the next event in. Answers whether it was the last.
    pub fn push(&mut self, event: &Event) -> bool {
        if let Some(turn) = event.turn_id {
            self.at = Some((event.session_id, turn));
        }
        match &event.body {
            Body::InputRequired(input) => self.pending.push(input.clone()),
            Body::InputResolved { request_id, .. } => {
                self.pending.retain(|input| input.request_id != *request_id);
            }
            Body::TurnStart { agent, .. } => self.agent.clone_from(agent),
            Body::StepStart { .. } => self.fresh = true,
            Body::Text { part, parent_tool_use_id: None } => {
                self.chunk(part, |text| Part::Text { text });
            }
            Body::Reasoning { part, parent_tool_use_id: None } => {
                self.chunk(part, |text| Part::Reasoning { text });
            }
            Body::ToolUse { tool_use_id, tool_name, tool_input, parent_tool_use_id: None } => {
                self.part(Part::ToolUse {
                    tool_use_id: tool_use_id.clone(),
                    tool_name: tool_name.clone(),
                    tool_input: tool_input.clone(),
                });
            }
            Body::ToolResult { tool_use_id, output, is_error, .. } => {
                let known =
                    self.messages.iter().flat_map(|message| &message.parts).any(
                        |part| matches!(part, Part::ToolUse { tool_use_id: id, .. } if id == tool_use_id),
                    );
                if known {
                    self.part(Part::ToolResult {
                        tool_use_id: tool_use_id.clone(),
                        output: output.clone(),
                        is_error: *is_error,
                    });
                }
            }
            Body::Error(problem) => self.error = Some(problem.clone()),
            Body::Done { status, usage, stop_reason, .. } => {
                if let Some(turn) = event.turn_id {
                    self.done = Some((event.session_id, turn, *status, *usage, stop_reason.clone()));
                }
                return true;
            }
            _ => {}
        }
        false
    }

    fn part(&mut self, part: Part) -> (usize, usize) {
        if self.fresh || self.messages.is_empty() {
            self.fresh = false;
            self.messages.push(Message {
                id: format!("msg_{}", self.messages.len() + 1),
                role: Role::Assistant,
                text: String::new(),
                parts: Vec::new(),
                created_at: None,
            });
        }
        let at = self.messages.len() - 1;
        self.messages[at].parts.push(part);
        (at, self.messages[at].parts.len() - 1)
    }

    fn chunk(&mut self, chunk: &Chunk, make: impl Fn(String) -> Part) {
        let known = self.ids.iter().rev().find(|(id, _, _)| *id == chunk.id).map(|(_, m, p)| (*m, *p));
        let (message, part) = known.unwrap_or_else(|| {
            let place = self.part(make(String::new()));
            self.ids.push((chunk.id.clone(), place.0, place.1));
            place
        });
        if let Part::Text { text } | Part::Reasoning { text } = &mut self.messages[message].parts[part] {
            if chunk.discarded {
                text.clear();
            } else {
                text.push_str(&chunk.text);
            }
        }
    }

    /// The answer, once the last event was pushed or while the turn waits for a person.
    ///
    /// # Errors
    /// The problem of a turn that failed before it said anything; `None` if the last event has not come.
    pub fn finish(self) -> Result<Answer, Option<Box<Problem>>> {
        let waiting = self.at.filter(|_| !self.pending.is_empty()).map(|(session, turn)| {
            (session, turn, TurnState::Running, Metered::default(), Some("input_required".to_owned()))
        });
        let Some((session_id, turn_id, status, usage, stop_reason)) = self.done.or(waiting) else {
            return Err(None);
        };
        if matches!(status, TurnState::Failed | TurnState::BudgetExhausted)
            && let Some(problem) = self.error
        {
            return Err(Some(Box::new(problem)));
        }
        let mut messages = self.messages;
        for message in &mut messages {
            message.parts.retain(
                |part| !matches!(part, Part::Text { text } | Part::Reasoning { text } if text.is_empty()),
            );
            message.text = message
                .parts
                .iter()
                .filter_map(|part| if let Part::Text { text } = part { Some(text.as_str()) } else { None })
                .collect();
        }
        messages.retain(|message| !message.parts.is_empty());
        let text = messages.iter().map(|message| message.text.as_str()).collect();
        let agent = self.agent;
        let pending_inputs = self.pending;
        Ok(Answer { text, session_id, turn_id, status, agent, messages, usage, stop_reason, pending_inputs })
    }
}
