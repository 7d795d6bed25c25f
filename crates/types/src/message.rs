//! What goes into a turn and what is read back from the harness's own history.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::time::Timestamp;

/// One part of a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Content {
    /// Words.
    Text {
        /// The words.
        text: String,
    },
    /// A picture.
    Image {
        /// `image/png`, `image/jpeg`, `image/gif`, `image/webp`.
        media_type: String,
        /// Base 64.
        data: String,
    },
    /// A file, put into the session's workspace for the agent to read.
    File {
        /// Its name, without folders.
        name: String,
        /// Its media type.
        #[serde(default)]
        media_type: Option<String>,
        /// Base 64.
        data: String,
    },
}

/// How a person answers a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Decision {
    /// This once.
    ApproveOnce,
    /// This and what the harness holds to be the same, for the rest of the session.
    ApproveSession,
    /// No.
    Deny,
}

impl Decision {
    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ApproveOnce => "approve_once",
            Self::ApproveSession => "approve_session",
            Self::Deny => "deny",
        }
    }
}

/// A full answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Answer {
    /// Yes or no.
    pub decision: Decision,
    /// The reason for a no; the model reads it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The tool's input as the person changed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<Object>))]
    pub updated_input: Option<Value>,
    /// Answers to questions: question text to the chosen label (or labels).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<Object>))]
    pub answers: Option<Map<String, Value>>,
}

/// Who spoke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Role {
    /// The caller.
    User,
    /// The agent.
    Assistant,
}

/// A part of a message that was read back or folded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Part {
    /// Words.
    Text {
        /// The words.
        text: String,
    },
    /// What the model thought, if it shows it.
    Reasoning {
        /// The words.
        text: String,
    },
    /// A tool was called.
    ToolUse {
        /// The call.
        tool_use_id: String,
        /// The tool.
        tool_name: String,
        /// Its input.
        #[cfg_attr(feature = "schema", schema(value_type = Object))]
        tool_input: Value,
    },
    /// A tool answered.
    ToolResult {
        /// The call.
        tool_use_id: String,
        /// What it said.
        #[cfg_attr(feature = "schema", schema(value_type = Object))]
        output: Value,
        /// Whether it failed.
        is_error: bool,
    },
}

/// A message of the conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Message {
    /// The harness's id for it.
    pub id: String,
    /// Who spoke.
    pub role: Role,
    /// The words of it, put together.
    pub text: String,
    /// Its parts in order.
    pub parts: Vec<Part>,
    /// When, if the harness says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
}
