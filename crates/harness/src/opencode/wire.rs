//! The lines of OpenCode's event stream that the codec understands.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Ids longer than this are not OpenCode's.
const MAX_ID: usize = 200;
/// Words for people are cut here, in bytes.
const MAX_WORDS: usize = 2000;

/// One event.
#[derive(Debug)]
pub(super) enum Event {
    /// A message was made or changed.
    Message(Box<Info>),
    /// A part of a message was made or changed.
    Part(Box<Part>),
    /// A piece of a part.
    Delta(Delta),
    /// A part was taken back.
    PartRemoved { session: String, part: String },
    /// A session was made.
    Session { id: String, parent: Option<String> },
    /// What a session does.
    Status { session: String, status: Status },
    /// A session does nothing.
    Idle { session: String },
    /// Something went wrong in a session.
    Error { session: Option<String>, fault: Fault },
    /// May this be done?
    Permission(Box<Permission>),
    /// Questions with choices.
    Question(Box<Question>),
    /// A permission or question is answered.
    Answered { request: String },
    /// The server lives; it says so every ten seconds.
    Heartbeat,
    /// Nothing anybody wants to know.
    Quiet,
    /// Anything else.
    Other { kind: String, properties: Value },
}

/// A message, without its parts.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Info {
    pub(super) id: String,
    #[serde(rename = "sessionID")]
    pub(super) session: String,
    pub(super) role: String,
    #[serde(rename = "parentID", default)]
    pub(super) parent: Option<String>,
    #[serde(default)]
    pub(super) agent: Option<String>,
    #[serde(rename = "modelID", default)]
    pub(super) model: Option<String>,
    #[serde(default)]
    pub(super) error: Option<Fault>,
    #[serde(default)]
    pub(super) finish: Option<String>,
    /// True for a message that puts the conversation so far together for the model.
    #[serde(default)]
    summary: Value,
    #[serde(default)]
    pub(super) time: Times,
}

impl Info {
    /// Whether this is the model's digest of the conversation so far, and no answer.
    pub(super) fn is_digest(&self) -> bool {
        self.summary == Value::Bool(true)
    }
}

/// Milliseconds since 1970.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Times {
    #[serde(default)]
    pub(super) created: Option<i64>,
    #[serde(default)]
    pub(super) completed: Option<i64>,
}

/// An error by name.
#[derive(Debug, Deserialize)]
pub(super) struct Fault {
    pub(super) name: String,
    #[serde(default)]
    pub(super) data: FaultData,
}

/// What an error says.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FaultData {
    #[serde(default)]
    pub(super) message: Option<String>,
    #[serde(default)]
    pub(super) status_code: Option<u16>,
}

impl Fault {
    /// Whether it only says that the run was stopped.
    pub(super) fn is_abort(&self) -> bool {
        self.name == "MessageAbortedError"
    }
}

/// A part of a message.
#[derive(Debug, Deserialize)]
pub(super) struct Part {
    pub(super) id: String,
    #[serde(rename = "sessionID")]
    pub(super) session: String,
    #[serde(rename = "messageID")]
    pub(super) message: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) text: Option<String>,
    #[serde(default)]
    pub(super) synthetic: bool,
    #[serde(default)]
    pub(super) tool: Option<String>,
    #[serde(rename = "callID", default)]
    pub(super) call: Option<String>,
    #[serde(default)]
    pub(super) state: Option<ToolState>,
    #[serde(default)]
    pub(super) tokens: Option<Tokens>,
}

/// How a tool call stands.
#[derive(Debug, Deserialize)]
pub(super) struct ToolState {
    pub(super) status: String,
    #[serde(default)]
    pub(super) input: Value,
    #[serde(default)]
    pub(super) output: Value,
    #[serde(default)]
    pub(super) error: Option<String>,
    #[serde(default)]
    pub(super) metadata: Value,
}

/// Tokens of one model call.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Tokens {
    pub(super) input: u64,
    pub(super) output: u64,
    pub(super) reasoning: u64,
    pub(super) cache: Cache,
}

/// Tokens of the provider's cache.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Cache {
    pub(super) read: u64,
    pub(super) write: u64,
}

/// A piece of a part.
#[derive(Debug, Deserialize)]
pub(super) struct Delta {
    #[serde(rename = "messageID")]
    pub(super) message: String,
    #[serde(rename = "partID")]
    pub(super) part: String,
    pub(super) field: String,
    #[serde(rename = "delta")]
    pub(super) piece: String,
}

/// What a session does.
#[derive(Debug, Deserialize)]
pub(super) struct Status {
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) attempt: Option<u32>,
    #[serde(default)]
    pub(super) message: Option<String>,
    #[serde(default)]
    pub(super) next: Option<u64>,
    /// The time of the event itself, in milliseconds since 1970, as far as its id tells.
    #[serde(skip)]
    pub(super) wait_ms: u64,
}

/// A request for permission.
#[derive(Debug, Deserialize)]
pub(super) struct Permission {
    pub(super) id: String,
    #[serde(rename = "sessionID")]
    pub(super) session: String,
    #[serde(rename = "permission")]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) patterns: Vec<String>,
    #[serde(default)]
    pub(super) metadata: Value,
    #[serde(default)]
    pub(super) tool: Option<ToolRef>,
}

/// The call that asks.
#[derive(Debug, Deserialize)]
pub(super) struct ToolRef {
    #[serde(rename = "callID")]
    pub(super) call: String,
    /// The message with the call.
    #[serde(rename = "messageID", default)]
    pub(super) message: String,
}

/// Questions with choices.
#[derive(Debug, Deserialize)]
pub(super) struct Question {
    pub(super) id: String,
    #[serde(rename = "sessionID")]
    pub(super) session: String,
    #[serde(default)]
    pub(super) questions: Value,
    #[serde(default)]
    pub(super) tool: Option<ToolRef>,
}

/// Events that come often and say nothing about the turn.
const QUIET: &[&str] = &[
    "server.connected",
    "server.instance.disposed",
    "plugin.added",
    "catalog.updated",
    "integration.updated",
    "models-dev.refreshed",
    "reference.updated",
    "project.updated",
    "project.directories.updated",
    "session.updated",
    "session.diff",
    "file.watcher.updated",
    "message.removed",
    "lsp.updated",
    "mcp.tools.changed",
];

/// Reads an event. What does not look as expected becomes [`Event::Other`], so a newer server is not a broken one.
pub(super) fn read(event: Value) -> Event {
    let Value::Object(mut fields) = event else { return Event::Quiet };
    let kind = text(fields.get("type"));
    let id = text(fields.get("id"));
    let properties = fields.remove("properties").unwrap_or_default();
    if QUIET.contains(&kind.as_str()) || kind.is_empty() {
        return Event::Quiet;
    }
    known(&kind, &id, &properties).unwrap_or_else(|| Event::Other { kind: shortened(&kind), properties })
}

fn known(kind: &str, event_id: &str, properties: &Value) -> Option<Event> {
    let field = |name: &str| text(properties.get(name));
    let session = field("sessionID");
    match kind {
        "message.updated" => message(properties.get("info")).map(|info| Event::Message(Box::new(info))),
        "message.part.updated" => part(properties.get("part")).map(|part| Event::Part(Box::new(part))),
        "message.part.delta" => typed(Some(properties)).map(Event::Delta),
        "message.part.removed" => Some(Event::PartRemoved { session, part: field("partID") }),
        "session.created" => {
            let info = properties.get("info")?;
            let (id, parent) = (text(info.get("id")), text(info.get("parentID")));
            ids(&[&id])
                .then(|| Event::Session { id, parent: Some(parent).filter(|parent| !parent.is_empty()) })
        }
        "session.status" => typed::<Status>(properties.get("status")).map(|mut status| {
            status.wait_ms = status.next.map_or(0, |next| until(next, event_id));
            Event::Status { session, status }
        }),
        "session.idle" => Some(Event::Idle { session }),
        "session.error" => typed(properties.get("error")).map(|fault| Event::Error {
            session: Some(session).filter(|session| !session.is_empty()),
            fault,
        }),
        "permission.asked" => permission(properties).map(|asked| Event::Permission(Box::new(asked))),
        "question.asked" => question(properties).map(|asked| Event::Question(Box::new(asked))),
        "permission.replied" | "question.replied" | "question.rejected" => {
            Some(Event::Answered { request: field("requestID") })
        }
        "server.heartbeat" => Some(Event::Heartbeat),
        _ => None,
    }
}

/// A message without its parts.
pub(super) fn message(value: Option<&Value>) -> Option<Info> {
    typed::<Info>(value).filter(|info| ids(&[&info.id, &info.session]))
}

/// A part of a message.
pub(super) fn part(value: Option<&Value>) -> Option<Part> {
    typed::<Part>(value).filter(|part| {
        ids(&[&part.id, &part.session, &part.message]) && part.call.as_ref().is_none_or(|call| ids(&[call]))
    })
}

/// A request for permission.
pub(super) fn permission(value: &Value) -> Option<Permission> {
    typed::<Permission>(Some(value)).filter(|asked| ids(&[&asked.id, &asked.session]))
}

/// Questions with choices.
pub(super) fn question(value: &Value) -> Option<Question> {
    typed::<Question>(Some(value)).filter(|asked| ids(&[&asked.id, &asked.session]))
}

fn ids(all: &[&String]) -> bool {
    all.iter().all(|id| !id.is_empty() && id.len() <= MAX_ID)
}

fn typed<T: DeserializeOwned>(value: Option<&Value>) -> Option<T> {
    T::deserialize(value?).ok()
}

/// A text field, empty if it is none.
pub(super) fn text(value: Option<&Value>) -> String {
    value.and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Words for people, cut at a length.
pub(super) fn shortened(words: &str) -> String {
    if words.len() <= MAX_WORDS {
        return words.to_owned();
    }
    let mut end = MAX_WORDS;
    while !words.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &words[..end])
}

/// How long after the event the moment `next` is, in milliseconds. An event's id carries its time: the low 36 bits of its
/// milliseconds, in hexadecimal; a moment more than an hour off is not believed.
fn until(next: u64, event_id: &str) -> u64 {
    const LOW: u64 = (1 << 36) - 1;
    let at = event_id
        .split_once('_')
        .and_then(|(_, id)| id.get(..9))
        .and_then(|id| u64::from_str_radix(id, 16).ok());
    at.map(|at| (next & LOW).wrapping_sub(at) & LOW).filter(|&wait| wait <= 3_600_000).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_of_a_retry_is_told_by_the_events_id() {
        assert_eq!(until(1_795_478_730_716, "evt_20adf2fb0001ATWvsvCgQXAnyn"), 2092);
        assert_eq!(until(1_795_478_730_716, "evt_zz"), 0);
        assert_eq!(until(0, "evt_20adf2fb0001ATWvsvCgQXAnyn"), 0);
    }
}
