//! What was used: sums over model calls.

use karta_store::{UsageKey, UsageQuery};
use karta_types::usage::Metered;
use karta_types::{ProjectId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{Engine, Principal};

/// Which usage to sum.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// From this moment on.
    pub from: Option<Timestamp>,
    /// Before this moment.
    pub to: Option<Timestamp>,
    /// Of this project.
    pub project: Option<ProjectId>,
    /// Apart by these; empty is one sum.
    pub group_by: Vec<UsageKey>,
}

/// One row of usage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// What the row is of: one member for each of `group_by`.
    #[serde(flatten)]
    pub keys: std::collections::BTreeMap<String, String>,
    /// Turns.
    pub turns: u64,
    /// Tokens and cost.
    #[serde(flatten)]
    pub metered: Metered,
}

impl Engine {
    /// Sums what the organisation used.
    ///
    /// # Errors
    /// The store can't read.
    pub async fn usage(&self, who: &Principal, query: Query) -> crate::Result<Vec<Row>> {
        let project = who.project.or(query.project);
        let query = UsageQuery { from: query.from, to: query.to, project, group_by: query.group_by };
        let groups = self.store().usage_group(who.org, &query).await?;
        let names = |key: &UsageKey| match key {
            UsageKey::Day => "day",
            UsageKey::Project => "project",
            UsageKey::Model => "model",
            UsageKey::Key => "key",
            UsageKey::EndUser => "end_user",
        };
        Ok(groups
            .into_iter()
            .map(|group| Row {
                keys: query.group_by.iter().map(names).map(str::to_owned).zip(group.keys).collect(),
                turns: group.turns,
                metered: group.metered,
            })
            .collect())
    }
}

/// Reads `day,project,model`.
///
/// # Errors
/// A word that is none of them.
pub fn parse_group(text: &str) -> Result<Vec<UsageKey>, String> {
    text.split(',')
        .filter(|word| !word.is_empty())
        .map(|word| match word {
            "day" => Ok(UsageKey::Day),
            "project" => Ok(UsageKey::Project),
            "model" => Ok(UsageKey::Model),
            "key" => Ok(UsageKey::Key),
            "end_user" => Ok(UsageKey::EndUser),
            other => Err(format!("`{other}` is none of day, project, model, key, end_user")),
        })
        .collect()
}
