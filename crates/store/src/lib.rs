//! What is kept: the records, the event journal, the usage, and the keys that seal them.
//!
//! [`Store`] is a struct, not a trait: one SQL text serves SQLite and PostgreSQL through [`sql`]. Rules for its statements: `$1`
//! placeholders, TEXT/BIGINT/BYTEA, no JSON operators, no `now()`; a change of state is one guarded UPDATE, and zero rows mean that
//! somebody else was first. Every statement carries the organisation, or its function says why not.
//!
//! Writes go through one queue and are committed in groups (see [`db`]); what was answered survives the end of the process.

mod activations;
mod audit;
mod billing;
mod builds;
mod checkpoints;
mod contents;
mod credit;
pub mod db;
mod error;
mod handover;
mod idempotency;
mod inputs;
mod journal;
mod keys;
mod ledger;
mod migrations;
mod org_policies;
mod orgs;
mod people;
mod projects;
mod provider_keys;
mod releases;
mod row;
mod seal;
mod session_tokens;
mod sessions;
mod sql;
mod tool_secrets;
mod turns;
mod usage;
mod webhooks;

pub use activations::{Flip, Wanted};
pub use audit::{AuditEntry, AuditFilter, AuditRow, AuditSeal, Hash};
pub use billing::SubscriptionRow;
pub use builds::{BuildLine, Since};
pub use checkpoints::{CheckpointRow, StateKeyRow};
pub use contents::PackRow;
pub use credit::CreditRow;
pub use db::{Durability, Options, Store};
pub use error::Error;
pub use handover::grants;
pub use idempotency::{Idem, Reply};
pub use inputs::InputRow;
pub use journal::{Chunk, Commit};
pub use keys::KeyRow;
pub use ledger::{BudgetRow, Dearest, Reserved, Short, Spender, Want};
pub use orgs::OrgRow;
pub use people::{
    AccessHolder, AccessKind, AccessRow, DeviceRow, DeviceState, InvitationRow, MemberRow, PersonRow,
};
pub use projects::{CanaryRow, ProjectKey, ProjectRow};
pub use provider_keys::ProviderKeyRow;
pub use releases::{Added, Built, Deleted, NewRelease, ReleaseRow};
pub use seal::Keyring;
pub use session_tokens::{SessionTokenRow, TokenKeyRow};
pub use sessions::{SessionFilter, SessionPatch, SessionRow};
pub use sql::DatabaseError;
pub use tool_secrets::ToolSecretRow;
pub use turns::{TurnChange, TurnEnd, TurnRow};
pub use usage::{UsageGroup, UsageKey, UsageQuery, UsageRow};
pub use webhooks::{DeliveryRow, DueRow, EndpointPatch, EndpointRow, EndpointSecretRow, Outcome};

/// A result of the store.
pub type Result<T, E = Error> = std::result::Result<T, E>;
