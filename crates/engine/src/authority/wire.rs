//! What the planes say to each other.

use karta_store::{Spender, UsageRow, Want};
use karta_types::provider_key::KeyProvider;
use karta_types::{Micros, ModelCallId, OrgId, Problem, ProjectId, ProviderKeyId, TurnId, Usage};
use serde::{Deserialize, Serialize};

/// Where the questions are asked.
pub(super) const PATH: &str = "/authority/v1";

#[derive(Serialize, Deserialize)]
pub(super) struct Authenticate {
    pub(super) token: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Admit {
    pub(super) spender: Spender,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Reserve {
    pub(super) want: Want,
}

/// A reservation is refused as an answer: it carries more than a problem.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reserved {
    Held { output: u64 },
    Refused { problem: Box<Problem>, inexact: bool },
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Note {
    pub(super) call: ModelCallId,
    pub(super) usage: Usage,
    pub(super) cost: Micros,
    pub(super) priced: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Settle {
    pub(super) used: UsageRow,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Calls {
    pub(super) calls: Vec<ModelCallId>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct AskCredential {
    pub(super) org: OrgId,
    pub(super) providers: Vec<KeyProvider>,
}

/// The only place where a provider's key travels between the planes.
#[derive(Serialize, Deserialize)]
pub(super) struct Credential {
    pub(super) id: ProviderKeyId,
    pub(super) provider: KeyProvider,
    pub(super) key: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct AskSecrets {
    pub(super) org: OrgId,
    pub(super) project: ProjectId,
    pub(super) names: Vec<String>,
}

/// The only place where a tool's secret travels between the planes.
#[derive(Serialize, Deserialize)]
pub(super) struct SecretValue {
    pub(super) name: String,
    pub(super) value: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct AskPolicy {
    pub(super) org: OrgId,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct UsedIn {
    pub(super) org: OrgId,
    pub(super) turn: TurnId,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Used {
    pub(super) usage: Usage,
    pub(super) cost: Micros,
    pub(super) models: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Org {
    pub(super) slug: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct OrgFound {
    pub(super) id: OrgId,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Origins {
    pub(super) origins: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Nothing {}
