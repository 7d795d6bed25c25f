//! Model providers' keys as callers see them: never their text.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::ProviderKeyId;
use crate::time::Timestamp;

/// A model provider that an organisation may have a key of its own for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum KeyProvider {
    /// Anthropic.
    Anthropic,
    /// `OpenAI`.
    Openai,
    /// `OpenRouter`, which speaks `OpenAI`'s Chat Completions.
    Openrouter,
    /// Amazon Bedrock.
    Bedrock,
    /// Google Vertex AI.
    Vertex,
}

impl KeyProvider {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Anthropic, Self::Openai, Self::Openrouter, Self::Bedrock, Self::Vertex];

    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Anthropic => "anthropic",
            Self::Openai => "openai",
            Self::Openrouter => "openrouter",
            Self::Bedrock => "bedrock",
            Self::Vertex => "vertex",
        }
    }
}

impl fmt::Display for KeyProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for KeyProvider {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|each| each.as_str() == text)
            .ok_or_else(|| format!("`{text}` is none of anthropic, openai, openrouter, bedrock, vertex"))
    }
}

/// A provider's key, without its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ProviderKey {
    /// Its id.
    pub id: ProviderKeyId,
    /// The provider.
    pub provider: KeyProvider,
    /// Its last four characters.
    pub last4: String,
    /// Who set it.
    pub created_by: String,
    /// When.
    pub created_at: Timestamp,
}
