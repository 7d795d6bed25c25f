//! What was used: sums over model calls.

use karta_store::{UsageKey, UsageQuery, UsageRow};
use karta_types::usage::Metered;
use karta_types::{ModelCallId, ProjectId, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

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
    /// Model calls.
    pub calls: u64,
    /// Those of them whose model had no price: their tokens count, their cost is not known.
    pub unpriced_calls: u64,
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
        Ok(groups
            .into_iter()
            .map(|group| Row {
                keys: query.group_by.iter().copied().map(name).map(str::to_owned).zip(group.keys).collect(),
                turns: group.turns,
                calls: group.calls,
                unpriced_calls: group.unpriced_calls,
                metered: group.metered,
            })
            .collect())
    }
}

/// Events read at once.
const READ: u32 = 500;

impl Engine {
    /// Model calls after one, oldest first, as `CloudEvents` 1.0 in JSON. An export reads on until it gets none.
    ///
    /// # Errors
    /// The store can't read.
    pub async fn usage_events(
        &self,
        who: &Principal,
        after: Option<ModelCallId>,
    ) -> crate::Result<Vec<(ModelCallId, Value)>> {
        let rows = self.store().usage_events(who.org, who.project, after, READ).await?;
        let event = |row: UsageRow| {
            let data = json!({
                "project_id": row.project, "session_id": row.session, "turn_id": row.turn, "key_id": row.key,
                "end_user_id": row.end_user, "release": row.release, "provider": row.provider, "model": row.model,
                "input_tokens": row.usage.input_tokens, "output_tokens": row.usage.output_tokens,
                "cache_read_tokens": row.usage.cache_read_tokens, "cache_write_tokens": row.usage.cache_write_tokens,
                "cost_micros": row.cost, "priced": row.priced,
            });
            let event = json!({
                "specversion": "1.0", "id": row.id, "source": format!("/orgs/{}", row.org), "type": "karta.model_call",
                "subject": row.session, "time": row.at, "datacontenttype": "application/json", "data": data,
            });
            (row.id, event)
        };
        Ok(rows.into_iter().map(event).collect())
    }
}

/// Rows as CSV (RFC 4180), with a head. A value that a spreadsheet would take for a formula is defused.
pub fn csv(group_by: &[UsageKey], rows: &[Row]) -> String {
    let mut text = String::new();
    let mut line = |cells: Vec<String>| {
        let cells: Vec<_> = cells.iter().map(|cell| quoted(cell)).collect();
        text.push_str(&cells.join(","));
        text.push_str("\r\n");
    };
    let names: Vec<_> = group_by.iter().copied().map(name).collect();
    let counted = [
        "turns",
        "calls",
        "unpriced_calls",
        "input_tokens",
        "output_tokens",
        "cache_read_tokens",
        "cache_write_tokens",
        "total_tokens",
        "cost_micros",
    ];
    line(names.iter().chain(&counted).map(|&name| name.to_owned()).collect());
    for row in rows {
        let mut cells: Vec<_> =
            names.iter().map(|name| row.keys.get(*name).cloned().unwrap_or_default()).collect();
        let used = row.metered;
        let numbers = [
            row.turns,
            row.calls,
            row.unpriced_calls,
            used.input_tokens,
            used.output_tokens,
            used.cache_read_tokens,
            used.cache_write_tokens,
            used.total_tokens,
        ];
        cells.extend(numbers.map(|number| number.to_string()));
        cells.push(used.cost_micros.get().to_string());
        line(cells);
    }
    text
}

pub(crate) fn quoted(cell: &str) -> String {
    let defused =
        if cell.starts_with(['=', '+', '-', '@', '\t', '\r']) { format!("'{cell}") } else { cell.to_owned() };
    if defused.contains(['"', ',', '\n', '\r']) {
        format!("\"{}\"", defused.replace('"', "\"\""))
    } else {
        defused
    }
}

const fn name(key: UsageKey) -> &'static str {
    match key {
        UsageKey::Day => "day",
        UsageKey::Project => "project",
        UsageKey::Model => "model",
        UsageKey::Key => "key",
        UsageKey::EndUser => "end_user",
        UsageKey::Release => "release",
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
            "release" => Ok(UsageKey::Release),
            other => Err(format!("`{other}` is none of day, project, model, key, end_user, release")),
        })
        .collect()
}
