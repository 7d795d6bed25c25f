//! Budgets: caps at the levels that spending belongs to.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::money::Micros;
use crate::time::Timestamp;

/// Whose spending a budget caps, widest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Level {
    /// The organisation's prepaid credit. It is granted, not set.
    Credit,
    /// The organisation.
    Org,
    /// One project.
    Project,
    /// One API key, with the session tokens it minted.
    Key,
    /// One session token. It is capped when it is minted.
    Token,
    /// One end user, in all projects.
    EndUser,
    /// One session.
    Session,
}

/// How long a cap holds before counting begins anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Period {
    /// A day, in UTC.
    Day,
    /// A calendar month, in UTC.
    Month,
    /// For ever.
    #[default]
    Total,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Unit {
    /// Fresh input and both cache classes.
    InputTokens,
    /// Output.
    OutputTokens,
    /// Both.
    TotalTokens,
    /// Micro-dollars.
    CostMicros,
}

macro_rules! words {
    ($($type:ident: $($variant:ident $word:literal),*;)*) => {$(
        impl $type {
            /// All, in order.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The name on the wire.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),*
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                Self::ALL.iter().copied().find(|each| each.as_str() == text).ok_or_else(|| {
                    let words: Vec<_> = Self::ALL.iter().map(|each| each.as_str()).collect();
                    format!("`{text}` is none of {}", words.join(", "))
                })
            }
        }
    )*};
}

words! {
    Level: Credit "credit", Org "org", Project "project", Key "key", Token "token", EndUser "end_user", Session "session";
    Period: Day "day", Month "month", Total "total";
    Unit: InputTokens "input_tokens", OutputTokens "output_tokens", TotalTokens "total_tokens", CostMicros "cost_micros";
}

impl Period {
    /// The day or month that `at` is in; empty for ever.
    pub fn span(self, at: Timestamp) -> String {
        self.span_of(&at.day())
    }

    /// The day or month that a day (`2026-11-24`) is in; empty for ever.
    pub fn span_of(self, day: &str) -> String {
        match self {
            Self::Day => day.to_owned(),
            Self::Month => day.chars().take(7).collect(),
            Self::Total => String::new(),
        }
    }
}

/// Caps. Absent is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Caps {
    /// Fresh input and both cache classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_tokens: Option<u64>,
    /// Output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_tokens: Option<u64>,
    /// All classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_tokens: Option<u64>,
    /// Cost in micro-dollars.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_micros: Option<i64>,
}

/// Tokens and cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Amount {
    /// Fresh input and both cache classes.
    pub input_tokens: u64,
    /// Output.
    pub output_tokens: u64,
    /// Both.
    pub total_tokens: u64,
    /// Micro-dollars.
    pub cost_micros: Micros,
}

impl Amount {
    /// Of this input, output and cost.
    pub const fn new(input: u64, output: u64, cost: Micros) -> Self {
        Self {
            input_tokens: input,
            output_tokens: output,
            total_tokens: input.saturating_add(output),
            cost_micros: cost,
        }
    }

    /// How much of this unit.
    pub fn of(&self, unit: Unit) -> i64 {
        let tokens = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        match unit {
            Unit::InputTokens => tokens(self.input_tokens),
            Unit::OutputTokens => tokens(self.output_tokens),
            Unit::TotalTokens => tokens(self.total_tokens),
            Unit::CostMicros => self.cost_micros.get(),
        }
    }
}

impl Caps {
    /// The cap of this unit.
    pub fn of(&self, unit: Unit) -> Option<i64> {
        let tokens = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        match unit {
            Unit::InputTokens => self.input_tokens.map(tokens),
            Unit::OutputTokens => self.output_tokens.map(tokens),
            Unit::TotalTokens => self.total_tokens.map(tokens),
            Unit::CostMicros => self.cost_micros,
        }
    }

    /// Whether nothing is capped.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A budget as callers see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Budget {
    /// Whose spending.
    pub level: Level,
    /// The id of whom: an organisation's, a project's, a key's, an end user's, a session's.
    pub id: String,
    /// How long it holds.
    pub period: Period,
    /// The day or month it counts now; empty for ever.
    pub span: String,
    /// The caps.
    #[serde(flatten)]
    pub caps: Caps,
    /// What was used.
    pub settled: Amount,
    /// What is set aside for calls that run.
    pub reserved: Amount,
    /// What may still be used, for each unit that has a cap.
    pub left: Caps,
    /// `api`, or `config` for the one in the server's settings, which the API can't change.
    pub source: String,
    /// When it was last set.
    pub updated_at: Timestamp,
}
