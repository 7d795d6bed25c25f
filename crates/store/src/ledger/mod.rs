//! Budgets that can't be overspent.
//!
//! Before a model call leaves, its upper bound is set aside in every budget it belongs to, in one transaction, widest level first, by
//! guarded updates: a cap is never passed, whoever else spends at the same time. What the provider says it used takes the place of
//! what was set aside, in one transaction with the record of usage.

mod budgets;
mod count;
mod holds;

pub use budgets::BudgetRow;
pub(crate) use holds::settle;
use karta_types::budget::{Level, Unit};
use karta_types::{
    KeyId, Micros, ModelCallId, OrgId, ProjectId, SessionId, SessionTokenId, Timestamp, TurnId,
};
use serde::{Deserialize, Serialize};

/// Whom spending belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spender {
    /// The organisation.
    pub org: OrgId,
    /// The project.
    pub project: ProjectId,
    /// The key.
    pub key: Option<KeyId>,
    /// The session token.
    pub token: Option<SessionTokenId>,
    /// The end user.
    pub end_user: Option<String>,
    /// The session.
    pub session: SessionId,
}

impl Spender {
    /// The subject at a level, if there is one.
    pub(crate) fn subject(&self, level: Level) -> Option<String> {
        match level {
            Level::Credit | Level::Org => Some(self.org.to_string()),
            Level::Project => Some(self.project.to_string()),
            Level::Key => self.key.map(|key| key.to_string()),
            Level::Token => self.token.map(|token| token.to_string()),
            Level::EndUser => self.end_user.clone(),
            Level::Session => Some(self.session.to_string()),
        }
    }
}

/// The dearest that input and output of a model can be, in micro-dollars per million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dearest {
    /// A token of input, in its dearest class.
    pub input: i64,
    /// A token of output.
    pub output: i64,
}

impl Dearest {
    /// The cost of so many, rounded up.
    pub fn cost(self, input: u64, output: u64) -> Micros {
        let sum = i128::from(input) * i128::from(self.input) + i128::from(output) * i128::from(self.output);
        Micros::new(i64::try_from((sum + 999_999) / 1_000_000).unwrap_or(i64::MAX))
    }

    /// How many tokens of output this much pays for beside the input; none if it does not pay for the input.
    pub fn affords(self, micros: i64, input: u64) -> Option<u64> {
        let left = i128::from(micros) * 1_000_000 - i128::from(input) * i128::from(self.input);
        if left < 0 {
            return None;
        }
        if self.output == 0 {
            return Some(u64::MAX);
        }
        Some(u64::try_from(left / i128::from(self.output)).unwrap_or(u64::MAX))
    }
}

/// A model call that wants to leave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// Its id; the hold's and the usage record's too.
    pub id: ModelCallId,
    /// Whom it belongs to.
    pub spender: Spender,
    /// The turn.
    pub turn: Option<TurnId>,
    /// The release.
    pub release: Option<u64>,
    /// The provider.
    pub provider: String,
    /// The model.
    pub model: String,
    /// The most input it can be counted for.
    pub input: u64,
    /// The most output it asks for.
    pub output: u64,
    /// The least output that is of use.
    pub least: u64,
    /// What the model can cost at most; none when it has no price.
    pub price: Option<Dearest>,
    /// When.
    pub at: Timestamp,
    /// When the hold is given up if nobody settles or renews it.
    pub expires_at: Timestamp,
}

/// What is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Short {
    /// The level.
    pub level: Level,
    /// Whose budget.
    pub subject: String,
    /// Of what.
    pub unit: Unit,
    /// The cap.
    pub cap: i64,
    /// What was used.
    pub settled: i64,
    /// What is set aside.
    pub reserved: i64,
    /// How much more is needed.
    pub short: i64,
    /// The cap is one of cost and the model has no price.
    pub unpriced: bool,
}

/// The answer to a [`Want`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reserved {
    /// It may leave, with at most so much output.
    Held {
        /// Tokens of output.
        output: u64,
    },
    /// It may not.
    Short(Box<Short>),
}
