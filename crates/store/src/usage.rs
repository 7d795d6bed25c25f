//! What was used: one row for each model call, and each organisation's sum, in one transaction.

use karta_types::usage::Metered;
use karta_types::{
    KeyId, Micros, ModelCallId, OrgId, ProjectId, SessionId, SessionTokenId, Timestamp, TurnId, Usage,
};
use serde::{Deserialize, Serialize};

use crate::row::{Reader, big};
use crate::sql::{Builder, Connection, query};
use crate::{Error, Result, Store};

/// One model call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRow {
    /// Its id: the same again is a no-op.
    pub id: ModelCallId,
    /// Whose.
    pub org: OrgId,
    /// The project.
    pub project: ProjectId,
    /// The session.
    pub session: SessionId,
    /// The turn.
    pub turn: Option<TurnId>,
    /// The key.
    pub key: Option<KeyId>,
    /// The session token. It counts, and is not kept.
    #[serde(default)]
    pub token: Option<SessionTokenId>,
    /// The end user.
    pub end_user: Option<String>,
    /// The release.
    pub release: Option<u64>,
    /// The provider.
    pub provider: String,
    /// The model.
    pub model: String,
    /// Tokens.
    pub usage: Usage,
    /// The cost.
    pub cost: Micros,
    /// Whether the price list has the model; if not, its cost is not known.
    pub priced: bool,
    /// When.
    pub at: Timestamp,
}

/// What sums are kept apart by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UsageKey {
    /// The day, in UTC.
    Day,
    /// The project.
    Project,
    /// The model.
    Model,
    /// The key.
    Key,
    /// The end user.
    EndUser,
    /// The release's number.
    Release,
}

impl UsageKey {
    const fn column(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Project => "project",
            Self::Model => "model",
            Self::Key => "COALESCE(key, '')",
            Self::EndUser => "COALESCE(end_user, '')",
            Self::Release => "COALESCE(CAST(release_version AS TEXT), '')",
        }
    }
}

/// Which usage to sum.
#[derive(Debug, Clone, Default)]
pub struct UsageQuery {
    /// From this moment on.
    pub from: Option<Timestamp>,
    /// Before this moment.
    pub to: Option<Timestamp>,
    /// Of this project.
    pub project: Option<ProjectId>,
    /// Apart by these.
    pub group_by: Vec<UsageKey>,
}

/// One sum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageGroup {
    /// One value for each of `group_by`.
    pub keys: Vec<String>,
    /// Turns that called a model.
    pub turns: u64,
    /// Model calls.
    pub calls: u64,
    /// Those of them whose model had no price: their cost is not in the sum.
    pub unpriced_calls: u64,
    /// Tokens and cost.
    pub metered: Metered,
}

impl Store {
    /// What the organisation used in all, and in how many turns.
    ///
    /// # Errors
    /// The database failed.
    pub async fn usage_total(&self, org: OrgId) -> Result<Metered> {
        let row = query(
            "SELECT input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, cost_micros FROM usage_total \
             WHERE org = $1",
        )
        .bind(org.to_string())
        .fetch_optional(self.readers())
        .await
        .map_err(Error::database("reading what was used"))?;
        row.map_or_else(|| Ok(Metered::default()), |row| Reader::new(&row).metered())
    }

    /// Sums of usage.
    ///
    /// # Errors
    /// The database failed.
    pub async fn usage_group(&self, org: OrgId, query: &UsageQuery) -> Result<Vec<UsageGroup>> {
        let columns: Vec<_> = query.group_by.iter().map(|key| key.column()).collect();
        let mut sql = Builder::new("SELECT ");
        for column in &columns {
            sql.push(column).push(", ");
        }
        sql.push("COUNT(DISTINCT turn), COUNT(*), CAST(COALESCE(SUM(1 - priced), 0) AS BIGINT)");
        for column in
            ["input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "cost_micros"]
        {
            sql.push(", CAST(COALESCE(SUM(").push(column).push("), 0) AS BIGINT)");
        }
        sql.push(" FROM usage_event WHERE org = ").push_bind(org.to_string());
        if let Some(from) = query.from {
            sql.push(" AND at >= ").push_bind(from.as_micros());
        }
        if let Some(to) = query.to {
            sql.push(" AND at < ").push_bind(to.as_micros());
        }
        if let Some(project) = query.project {
            sql.push(" AND project = ").push_bind(project.to_string());
        }
        for (index, column) in columns.iter().enumerate() {
            sql.push(if index == 0 { " GROUP BY " } else { ", " }).push(column);
        }
        for (index, column) in columns.iter().enumerate() {
            sql.push(if index == 0 { " ORDER BY " } else { ", " }).push(column);
        }
        let rows =
            sql.build().fetch_all(self.readers()).await.map_err(Error::database("summing what was used"))?;
        rows.iter()
            .map(|row| {
                let mut row = Reader::new(row);
                let keys = columns.iter().map(|_| row.text("key")).collect::<Result<_>>()?;
                Ok(UsageGroup {
                    keys,
                    turns: row.count("turns")?,
                    calls: row.count("calls")?,
                    unpriced_calls: row.count("unpriced")?,
                    metered: row.metered()?,
                })
            })
            .collect()
    }

    /// Single model calls after one, in order, up to `limit`.
    ///
    /// # Errors
    /// The database failed.
    pub async fn usage_events(
        &self,
        org: OrgId,
        project: Option<ProjectId>,
        after: Option<ModelCallId>,
        limit: u32,
    ) -> Result<Vec<UsageRow>> {
        let mut sql = Builder::new(
            "SELECT id, project, session, turn, key, end_user, release_version, provider, model, input_tokens, output_tokens, \
             cache_read_tokens, cache_write_tokens, cost_micros, priced, at FROM usage_event WHERE org = ",
        );
        sql.push_bind(org.to_string());
        sql.push(" AND id > ").push_bind(after.map(|id| id.to_string()).unwrap_or_default());
        if let Some(project) = project {
            sql.push(" AND project = ").push_bind(project.to_string());
        }
        sql.push(" ORDER BY id LIMIT ").push_bind(i64::from(limit));
        let rows =
            sql.build().fetch_all(self.readers()).await.map_err(Error::database("reading what was used"))?;
        rows.iter()
            .map(|row| {
                let mut row = Reader::new(row);
                let (id, project, session) =
                    (row.parsed("id")?, row.parsed("project")?, row.parsed("session")?);
                let (turn, key, end_user) =
                    (row.maybe_parsed("turn")?, row.maybe_parsed("key")?, row.maybe_text("end_user")?);
                let (release, provider, model) =
                    (row.maybe_count("release_version")?, row.text("provider")?, row.text("model")?);
                let metered = row.metered()?;
                let (priced, at) = (row.int("priced")? != 0, row.time("at")?);
                let (usage, cost) = (metered.usage(), metered.cost_micros);
                Ok(UsageRow {
                    id,
                    org,
                    project,
                    session,
                    turn,
                    key,
                    token: None,
                    end_user,
                    release,
                    provider,
                    model,
                    usage,
                    cost,
                    priced,
                    at,
                })
            })
            .collect()
    }

    /// What one turn used so far, and the models it called.
    ///
    /// # Errors
    /// The database failed.
    pub async fn usage_of_turn(&self, org: OrgId, turn: TurnId) -> Result<(Usage, Micros, Vec<String>)> {
        let rows = query(
            "SELECT model, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, cost_micros \
             FROM usage_event WHERE org = $1 AND turn = $2 ORDER BY id",
        )
        .bind(org.to_string())
        .bind(turn.to_string())
        .fetch_all(self.readers())
        .await
        .map_err(Error::database("reading what a turn used"))?;
        let (mut usage, mut cost, mut models) = (Usage::default(), Micros::ZERO, Vec::new());
        for row in &rows {
            let mut row = Reader::new(row);
            let model = row.text("model")?;
            let metered = row.metered()?;
            usage.add(&metered.usage());
            cost = cost.saturating_add(metered.cost_micros);
            if !models.contains(&model) {
                models.push(model);
            }
        }
        Ok((usage, cost, models))
    }
}

/// Records a model call. Answers false when it was recorded before.
pub(crate) async fn insert_event(db: &mut Connection, row: &UsageRow) -> Result<bool> {
    let fail = || Error::database("recording what was used");
    let usage = row.usage;
    let new = query(
        "INSERT INTO usage_event (id, org, project, session, turn, key, end_user, release_version, provider, model, \
         input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, cost_micros, priced, day, at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18) \
         ON CONFLICT (id) DO NOTHING",
    )
    .bind(row.id.to_string())
    .bind(row.org.to_string())
    .bind(row.project.to_string())
    .bind(row.session.to_string())
    .bind(row.turn.map(|id| id.to_string()))
    .bind(row.key.map(|id| id.to_string()))
    .bind(row.end_user.clone())
    .bind(row.release.map(big))
    .bind(row.provider.clone())
    .bind(row.model.clone())
    .bind(big(usage.input_tokens))
    .bind(big(usage.output_tokens))
    .bind(big(usage.cache_read_tokens))
    .bind(big(usage.cache_write_tokens))
    .bind(row.cost.get())
    .bind(i64::from(row.priced))
    .bind(row.at.day())
    .bind(row.at.as_micros())
    .execute(&mut *db)
    .await
    .map_err(fail())?;
    if new.rows_affected() == 0 {
        return Ok(false);
    }
    query(
        "INSERT INTO usage_total (org, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, cost_micros) \
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (org) DO UPDATE SET \
         input_tokens = usage_total.input_tokens + EXCLUDED.input_tokens, \
         output_tokens = usage_total.output_tokens + EXCLUDED.output_tokens, \
         cache_read_tokens = usage_total.cache_read_tokens + EXCLUDED.cache_read_tokens, \
         cache_write_tokens = usage_total.cache_write_tokens + EXCLUDED.cache_write_tokens, \
         cost_micros = usage_total.cost_micros + EXCLUDED.cost_micros",
    )
    .bind(row.org.to_string())
    .bind(big(usage.input_tokens))
    .bind(big(usage.output_tokens))
    .bind(big(usage.cache_read_tokens))
    .bind(big(usage.cache_write_tokens))
    .bind(row.cost.get())
    .execute(&mut *db)
    .await
    .map_err(fail())?;
    Ok(true)
}
