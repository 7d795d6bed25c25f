//! What differs between providers: their routes, where the key goes, how usage reads, how an error looks.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;
use karta_types::{Secret, Usage};
use serde_json::Value;

use super::bound::Bound;
use super::{anthropic, openai};

/// A model provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Provider {
    /// Anthropic.
    Anthropic,
    /// `OpenAI`.
    OpenAi,
    /// `OpenRouter`, in `OpenAI`'s dialect: reached only with an organisation's own key.
    OpenRouter,
    /// Amazon Bedrock, in Anthropic's dialect: reached only with an organisation's own key.
    Bedrock,
    /// Google Vertex AI, in Anthropic's dialect: reached only with an organisation's own key.
    Vertex,
}

/// Every provider that has routes of its own.
pub(super) const ALL: &[Provider] = &[Provider::Anthropic, Provider::OpenAi];

/// What one provider's dialect is.
pub(super) trait Dialect: Sync {
    /// The first part of the gateway's routes for it.
    fn prefix(&self) -> &'static str;
    /// The routes that may leave, after the prefix and `/v1`.
    fn routes(&self) -> &'static [Route];
    /// Puts the key in.
    fn authorize(
        &self,
        headers: &mut HeaderMap,
        key: &Secret,
    ) -> Result<(), axum::http::header::InvalidHeaderValue>;
    /// Request headers that are passed on beside the common ones.
    fn passed(&self) -> &'static [&'static str];
    /// Changes a request's body where the answer would not say what was used otherwise. `None` leaves it byte for byte.
    fn prepare(&self, path: &str, body: &Value) -> Option<Bytes>;
    /// The most that a request can use, of this many bytes.
    fn bound(&self, path: &str, body: &Value, bytes: usize) -> Bound;
    /// Limits each answer to so many tokens.
    fn limit(&self, path: &str, body: &mut Value, tokens: u64);
    /// Where the provider counts a request's input without billing it, and what it is asked there. `None`: it doesn't.
    fn count(&self, path: &str, body: &Value) -> Option<(&'static str, Value)>;
    /// What one JSON value of the answer (the whole of it, or one event's data) says was used.
    fn observe(&self, seen: &mut Seen, value: &Value);
    /// An error in the provider's own shape.
    fn error(&self, status: u16, kind: &str, message: &str) -> Value;
}

/// A route that may leave.
#[derive(Debug, Clone, Copy)]
pub(super) struct Route {
    /// After the prefix: `/v1/messages`.
    pub(super) path: &'static str,
    /// Whether it uses tokens that are billed.
    pub(super) metered: bool,
}

/// What was seen of an answer so far.
#[derive(Debug, Default, Clone)]
pub(super) struct Seen {
    pub(super) model: Option<String>,
    pub(super) usage: Usage,
    /// Those of the cache writes that are kept for an hour, which are dearer.
    pub(super) long_writes: u64,
    /// Whether the provider has said what was used in the end.
    pub(super) complete: bool,
    /// Characters of output that came.
    pub(super) characters: u64,
}

impl Seen {
    /// What was used, with the output estimated from what came if the provider has not said: four characters to a token,
    /// rounded up.
    pub(super) fn settled(&self) -> Usage {
        let mut usage = self.usage;
        if !self.complete {
            usage.output_tokens = usage.output_tokens.max(self.characters.div_ceil(4));
        }
        usage
    }
}

impl Provider {
    /// Its name in records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Anthropic => "anthropic",
            Self::OpenAi => "openai",
            Self::OpenRouter => "openrouter",
            Self::Bedrock => "bedrock",
            Self::Vertex => "vertex",
        }
    }

    /// Its own address.
    pub const fn default_base(self) -> &'static str {
        match self {
            Self::Anthropic => anthropic::BASE,
            Self::OpenAi => openai::BASE,
            Self::OpenRouter => openai::OPENROUTER,
            Self::Bedrock => "https://bedrock-mantle.{region}.api.aws/anthropic",
            Self::Vertex => "https://{region}-aiplatform.googleapis.com",
        }
    }

    pub(super) fn dialect(self) -> &'static dyn Dialect {
        match self {
            Self::Anthropic | Self::Bedrock | Self::Vertex => &anthropic::Anthropic,
            Self::OpenAi | Self::OpenRouter => &openai::OpenAi,
        }
    }
}

/// A token count in a JSON object; absent, null or nonsense is none.
pub(super) fn count(value: &Value, name: &str) -> Option<u64> {
    value.get(name)?.as_u64()
}

/// A header's value that must not show in debug output.
pub(super) fn hidden(text: &str) -> Result<HeaderValue, axum::http::header::InvalidHeaderValue> {
    let mut value = HeaderValue::from_str(text)?;
    value.set_sensitive(true);
    Ok(value)
}

/// A header name that is a literal of ours.
pub(super) const fn name(text: &'static str) -> HeaderName {
    HeaderName::from_static(text)
}
