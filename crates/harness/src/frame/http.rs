//! HTTP as lines of JSON, for harnesses that serve HTTP instead of speaking on standard input and output.
//!
//! The platform holds the connections; the codec sees and writes lines only, so it stays as testable as the others:
//!
//! ```text
//! to the codec     {"ready":true}                                     the server announced itself and the event stream is open; said
//!                                                                     again without `closed`, both went on after their sandbox was
//!                                                                     saved, and what was said between is lost
//!                  {"event":{…}}                                      one event of the stream
//!                  {"id":7,"status":200,"body":{…}}                   the answer to request 7 (body null when empty or not JSON)
//!                  {"id":7,"error":"connection refused"}              request 7 could not be made
//!                  {"closed":"…"}                                     the event stream ended
//!                  {"log":"…"}                                        another line of standard output
//! from the codec   {"id":7,"method":"POST","path":"/session","body":{…}}
//!                  {"id":8,"method":"GET","path":"/status","delay_ms":100}    the platform has a clock, the codec has none
//!                  {"id":9,"method":"POST","path":"/run","long":true}         the answer comes when all is over, and may be lost
//! ```

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A line to the codec.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ToCodec {
    /// The answer to a request.
    Answer {
        /// The request.
        id: u64,
        /// The HTTP status.
        status: u16,
        /// The body, null when empty or not JSON.
        #[serde(default)]
        body: Value,
    },
    /// A request could not be made.
    Failed {
        /// The request.
        id: u64,
        /// Why.
        error: String,
    },
    /// One event of the stream.
    Event {
        /// The event.
        event: Value,
    },
    /// The server announced itself and the event stream is open. Said again without [`ToCodec::Closed`], the sandbox was saved in between
    /// and goes on: what the server said meanwhile is lost.
    Ready {
        /// Always true.
        ready: bool,
    },
    /// The event stream ended.
    Closed {
        /// Why.
        closed: String,
    },
    /// Another line of standard output.
    Log {
        /// The line.
        log: String,
    },
}

/// A line from the codec: a request to make.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The number its answer carries.
    pub id: u64,
    /// `GET`, `POST`, …
    pub method: String,
    /// Path and query.
    pub path: String,
    /// The JSON body, if any.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub body: Value,
    /// How long to wait before it is made, in milliseconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub delay_ms: u64,
    /// Whether the answer only comes when all that it began is over, and can be done without. A sandbox is saved although it has not
    /// come; it never does then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub long: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference over")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}
