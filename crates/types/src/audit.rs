//! The audit log as callers see it.

use serde::{Deserialize, Serialize};

use crate::id::AuditId;
use crate::time::Timestamp;

/// An entry as callers see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Entry {
    /// Its place in the organisation's chain, from 1.
    pub seq: u64,
    /// Its id.
    pub id: AuditId,
    /// When.
    pub at: Timestamp,
    /// Who, as `kind:id`.
    pub actor: String,
    /// What, as `noun.verb`.
    pub action: String,
    /// To what.
    pub resource: String,
    /// The request it came with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The address it came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The digest (SHA-256, hexadecimal) of what was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// The digest of what is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The hash over the row before it and itself, hexadecimal.
    pub hash: String,
}

/// What a check of the chain found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Verdict {
    /// Whether every row and every signature fits.
    pub intact: bool,
    /// Rows that were checked.
    pub rows: u64,
    /// Signed ends that were checked.
    pub seals: u64,
    /// What is wrong, with the row's place.
    pub faults: Vec<Fault>,
}

/// One thing that is wrong with a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Fault {
    /// The place.
    pub seq: u64,
    /// What.
    pub what: String,
}
