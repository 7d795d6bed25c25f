//! Webhooks as callers see them: endpoints, what they can be told, and what became of it.

use serde::{Deserialize, Serialize};

use crate::id::{DeliveryId, EndpointId, HappeningId};
use crate::time::Timestamp;

macro_rules! kinds {
    ($($(#[doc = $doc:literal])* $name:ident $text:literal;)*) => {
        /// What an endpoint can be told.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
        pub enum Happened {
            $($(#[doc = $doc])* #[serde(rename = $text)] $name,)*
        }

        impl Happened {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The name on the wire.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

kinds! {
    /// A session was made.
    SessionCreated "session.created";
    /// A session was torn down and erased.
    SessionErased "session.erased";
    /// A turn ended as it should.
    TurnCompleted "turn.completed";
    /// A turn was stopped by somebody.
    TurnInterrupted "turn.interrupted";
    /// A turn failed.
    TurnFailed "turn.failed";
    /// A turn ended because a budget was used up.
    TurnBudgetExhausted "turn.budget_exhausted";
    /// A turn waits for a person.
    InputRequired "input.required";
    /// A person, or time, answered.
    InputResolved "input.resolved";
    /// A release was published.
    ReleasePublished "release.published";
    /// A release is the one that turns run on.
    ReleaseActivated "release.activated";
    /// The setup of a release failed.
    ReleaseFailed "release.failed";
    /// A release was deleted.
    ReleaseDeleted "release.deleted";
    /// A part of the new sessions run on a release.
    CanaryStarted "canary.started";
    /// A canary ended without taking all sessions.
    CanaryAborted "canary.aborted";
    /// A preview was made, or shows another release.
    PreviewPublished "preview.published";
    /// A preview was torn down.
    PreviewRemoved "preview.removed";
    /// Half, four fifths or all of a budget is used.
    BudgetThreshold "budget.threshold";
    /// A budget was set or removed.
    BudgetChanged "budget.changed";
    /// An API key was made.
    KeyCreated "key.created";
    /// An API key was replaced.
    KeyRotated "key.rotated";
    /// An API key was revoked.
    KeyRevoked "key.revoked";
    /// A model provider's key was set or erased.
    ProviderKeyChanged "provider_key.changed";
    /// Somebody joined.
    MemberJoined "member.joined";
    /// Somebody has another role.
    MemberChanged "member.changed";
    /// Somebody left or was removed.
    MemberRemoved "member.removed";
    /// Plan or subscription changed.
    BillingChanged "billing.changed";
    /// An endpoint failed for so long that nothing is sent there any more.
    EndpointDisabled "webhook_endpoint.disabled";
}

impl std::fmt::Display for Happened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Happened {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().copied().find(|kind| kind.as_str() == text);
        found.ok_or_else(|| format!("`{text}` is nothing that is told"))
    }
}

/// Where webhooks go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Endpoint {
    /// Its id.
    pub id: EndpointId,
    /// Its address.
    pub url: String,
    /// What it is told; empty is everything.
    pub events: Vec<Happened>,
    /// For people.
    pub description: String,
    /// Who made it.
    pub created_by: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// Since when nothing is sent there.
    pub disabled_at: Option<Timestamp>,
    /// Why.
    pub disabled_reason: Option<String>,
    /// Since when every delivery failed.
    pub failing_since: Option<Timestamp>,
}

/// An endpoint or a secret just made: the only time the secret is shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct NewEndpoint {
    /// The endpoint.
    #[serde(flatten)]
    pub record: Endpoint,
    /// What signs (`whsec_…`, Standard Webhooks).
    pub secret: String,
}

impl std::fmt::Debug for NewEndpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewEndpoint").field("record", &self.record).finish_non_exhaustive()
    }
}

/// How far a delivery is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum DeliveryState {
    /// It will be tried.
    Pending,
    /// The endpoint took it.
    Delivered,
    /// It was tried as often as it is.
    Failed,
}

impl DeliveryState {
    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
        }
    }
}

impl std::str::FromStr for DeliveryState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Pending, Self::Delivered, Self::Failed]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| format!("`{text}` is not pending, delivered or failed"))
    }
}

/// What became of telling an endpoint something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Delivery {
    /// Its id.
    pub id: DeliveryId,
    /// The endpoint.
    pub endpoint_id: EndpointId,
    /// What is told: the `webhook-id` that the endpoint sees.
    pub event_id: HappeningId,
    /// Of which kind.
    pub event: Happened,
    /// How far it is.
    pub state: DeliveryState,
    /// How often it was tried.
    pub attempts: u64,
    /// When it happened.
    pub happened_at: Timestamp,
    /// When it is tried next.
    pub next_attempt_at: Option<Timestamp>,
    /// When it was last tried.
    pub last_attempt_at: Option<Timestamp>,
    /// What the endpoint answered last.
    pub last_status: Option<u16>,
    /// Why it failed last.
    pub last_error: Option<String>,
}
