//! The vocabulary of Karta: ids, money, time, events, scopes, error codes.
//!
//! Everything here is plain data: no IO, no runtime, no clock of its own. What two crates must agree on lives here; what only
//! one crate needs lives there.

pub mod audit;
pub mod billing;
pub mod budget;
pub mod code;
pub mod egress;
pub mod event;
pub mod id;
pub mod key;
pub mod message;
pub mod money;
pub mod org_policy;
pub mod page;
pub mod permission;
pub mod person;
pub mod policy;
pub mod provider_key;
pub mod release;
pub mod rng;
pub mod scope;
pub mod secret;
pub mod session;
pub mod session_token;
pub mod time;
pub mod tool_secret;
pub mod usage;
pub mod webhook;

pub use code::{ErrorCode, Problem};
pub use event::{Body, Event, Seq};
pub use id::{
    AuditId, CreditId, DeliveryId, EndpointId, HappeningId, HoldId, Id, InvitationId, KeyId, ModelCallId,
    OrgId, PersonalAccessId, ProjectId, ProviderKeyId, ReleaseId, RequestId, SandboxId, SessionId,
    SessionTokenId, TurnId, UserId,
};
pub use money::Micros;
pub use permission::{Permission, Role};
pub use rng::Rng;
pub use secret::Secret;
pub use time::{Clock, Timestamp};
pub use usage::Usage;
