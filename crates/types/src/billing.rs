//! What an organisation pays, as callers see it.

use serde::{Deserialize, Serialize};

use crate::id::CreditId;
use crate::money::Micros;
use crate::time::Timestamp;

/// How a subscription stands. Only the first two may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum SubscriptionStatus {
    /// Nothing is due yet.
    Trialing,
    /// Paid.
    Active,
    /// Something is due.
    PastDue,
    /// Over.
    Canceled,
}

impl SubscriptionStatus {
    /// Whether turns may run.
    pub const fn may_run(self) -> bool {
        matches!(self, Self::Trialing | Self::Active)
    }

    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Trialing => "trialing",
            Self::Active => "active",
            Self::PastDue => "past_due",
            Self::Canceled => "canceled",
        }
    }
}

impl std::str::FromStr for SubscriptionStatus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Trialing, Self::Active, Self::PastDue, Self::Canceled]
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| format!("`{text}` is none of trialing, active, past_due, canceled"))
    }
}

/// What an organisation is subscribed to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Subscription {
    /// The plan's name.
    pub plan: String,
    /// How it stands.
    pub status: SubscriptionStatus,
    /// When what is paid for began.
    pub period_start: Option<Timestamp>,
    /// When it ends.
    pub period_end: Option<Timestamp>,
}

/// What an organisation pays, in all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Billing {
    /// Whether payments are configured on this server.
    pub configured: bool,
    /// Plans that can be subscribed to.
    pub plans: Vec<String>,
    /// The subscription; null where there is none, and then nothing depends on one.
    pub subscription: Option<Subscription>,
    /// Prepaid credit that is left, in micro-dollars; null where none was ever granted, and then nothing depends on it.
    pub credit_micros: Option<i64>,
}

/// Credit that was granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Credit {
    /// Its id.
    pub id: CreditId,
    /// How much, in micro-dollars.
    pub amount_micros: i64,
    /// How much of it was used. The credit that expires first is used first.
    pub used_micros: i64,
    /// What for.
    pub note: String,
    /// Who granted it.
    pub created_by: String,
    /// When.
    pub created_at: Timestamp,
    /// When what is left of it is gone.
    pub expires_at: Option<Timestamp>,
    /// When that happened.
    pub expired_at: Option<Timestamp>,
}

/// One line of a statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct StatementLine {
    /// The project's id.
    pub project: String,
    /// The model.
    pub model: String,
    /// Turns.
    pub turns: u64,
    /// Model calls.
    pub calls: u64,
    /// Those of them whose model had no price: they are not in the cost.
    pub unpriced_calls: u64,
    /// Fresh input.
    pub input_tokens: u64,
    /// Output.
    pub output_tokens: u64,
    /// Input read from the provider's cache.
    pub cache_read_tokens: u64,
    /// Input written to it.
    pub cache_write_tokens: u64,
    /// The cost.
    pub cost_micros: Micros,
}

/// What an organisation used in a month.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Statement {
    /// The organisation's name.
    pub org: String,
    /// The month, like `2026-11`, in UTC.
    pub month: String,
    /// Whether the month is over: until then the numbers grow.
    pub closed: bool,
    /// By project and model.
    pub lines: Vec<StatementLine>,
    /// The exact sum of the lines.
    pub cost_micros: Micros,
    /// The sum in whole cents, rounded half up.
    pub total_cents: i64,
    /// What rounding added (or, if negative, took), in micro-dollars.
    pub rounding_micros: i64,
    /// Calls that are not in the sum because their model had no price.
    pub unpriced_calls: u64,
}
