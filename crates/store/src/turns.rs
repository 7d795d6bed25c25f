//! Turn records: what ran and what it used. No message text.

use karta_types::session::{ReleaseRef, Turn, TurnState};
use karta_types::usage::Metered;
use karta_types::{ErrorCode, KeyId, OrgId, SessionId, Timestamp, TurnId};

use crate::row::{Reader, big, json};
use crate::sql::{Connection, Row, query};
use crate::{Error, Result, Store};

/// A turn.
#[derive(Debug, Clone, PartialEq)]
pub struct TurnRow {
    /// Whose it is.
    pub org: OrgId,
    /// The key it came with.
    pub key: Option<KeyId>,
    /// The record.
    pub turn: Turn,
}

/// How a turn ended.
#[derive(Debug, Clone, PartialEq)]
pub struct TurnEnd {
    /// The turn.
    pub id: TurnId,
    /// How.
    pub state: TurnState,
    /// Why, in the harness's words.
    pub stop_reason: Option<String>,
    /// The code of its error.
    pub error: Option<ErrorCode>,
    /// What it used; added to its session's sum.
    pub usage: Metered,
    /// The models it called.
    pub models: Vec<String>,
    /// When its first text came.
    pub first_text_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Timestamp,
}

/// What a step does to a turn's record.
#[derive(Debug, Clone, PartialEq)]
pub enum TurnChange {
    /// It waits for the turn before it.
    Queue(TurnRow),
    /// It runs: a new one, or one that waited.
    Begin(TurnRow),
    /// It is over.
    End(TurnEnd),
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT org, key, id, session, release_version, release_id, agent, participant, state, stop_reason, error, ",
            "input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, cost_micros, models, created_at, ",
            "started_at, first_text_at, ended_at FROM turn ",
            $rest
        )
    };
}

/// What [`read`] reads; conditions go behind it.
pub(crate) const SELECT: &str = select!("");

pub(crate) fn read(row: &Row) -> Result<TurnRow> {
    let mut row = Reader::new(row);
    let (org, key) = (row.parsed("org")?, row.maybe_parsed("key")?);
    let (id, session_id) = (row.parsed("id")?, row.parsed("session")?);
    let version = row.maybe_count("release_version")?;
    let release = row.maybe_parsed("release_id")?;
    Ok(TurnRow {
        org,
        key,
        turn: Turn {
            id,
            session_id,
            release: version.zip(release).map(|(version, id)| ReleaseRef { version, id }),
            agent: row.maybe_text("agent")?,
            participant: row.maybe_json("participant")?,
            state: row.parsed("state")?,
            stop_reason: row.maybe_text("stop_reason")?,
            error: row.maybe_text("error")?.and_then(|code| code.parse().ok()),
            usage: row.metered()?,
            models: row.json("models")?,
            created_at: row.time("created_at")?,
            started_at: row.maybe_time("started_at")?,
            first_text_at: row.maybe_time("first_text_at")?,
            ended_at: row.maybe_time("ended_at")?,
        },
    })
}

impl Store {
    /// A turn.
    ///
    /// # Errors
    /// The database failed.
    pub async fn turn_get(&self, org: OrgId, session: SessionId, id: TurnId) -> Result<Option<TurnRow>> {
        let row = query(select!("WHERE org = $1 AND session = $2 AND id = $3"))
            .bind(org.to_string())
            .bind(session.to_string())
            .bind(id.to_string())
            .fetch_optional(self.readers())
            .await
            .map_err(Error::database("reading a turn"))?;
        row.as_ref().map(read).transpose()
    }

    /// The session's turns, newest first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn turn_list(
        &self,
        org: OrgId,
        session: SessionId,
        before: Option<TurnId>,
        limit: u32,
    ) -> Result<Vec<TurnRow>> {
        // `~` sorts after every character of an id.
        let rows = query(select!("WHERE org = $1 AND session = $2 AND id < $3 ORDER BY id DESC LIMIT $4"))
            .bind(org.to_string())
            .bind(session.to_string())
            .bind(before.map_or_else(|| "~".to_owned(), |id| id.to_string()))
            .bind(i64::from(limit))
            .fetch_all(self.readers())
            .await
            .map_err(Error::database("listing turns"))?;
        rows.iter().map(read).collect()
    }

    /// Every turn without an end, of all organisations, oldest first: what recovery has to finish.
    ///
    /// # Errors
    /// The database failed.
    pub async fn turns_unfinished(&self) -> Result<Vec<TurnRow>> {
        let rows = query(select!("WHERE ended = 0 ORDER BY id"))
            .fetch_all(self.readers())
            .await
            .map_err(Error::database("listing unfinished turns"))?;
        rows.iter().map(read).collect()
    }
}

/// Applies a change within a step's transaction.
pub(crate) async fn apply(
    db: &mut Connection,
    org: OrgId,
    session: SessionId,
    change: &TurnChange,
) -> Result<()> {
    match change {
        TurnChange::Queue(row) | TurnChange::Begin(row) => upsert(db, row).await,
        TurnChange::End(end) => finish(db, org, session, end).await,
    }
}

async fn upsert(db: &mut Connection, row: &TurnRow) -> Result<()> {
    let turn = &row.turn;
    query(
        "INSERT INTO turn (id, org, session, key, release_version, release_id, agent, participant, state, ended, \
         input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, cost_micros, models, created_at, started_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0, 0, 0, 0, 0, 0, '[]', $10, $11) \
         ON CONFLICT (id) DO UPDATE SET release_version = EXCLUDED.release_version, release_id = EXCLUDED.release_id, \
         agent = EXCLUDED.agent, state = EXCLUDED.state, started_at = EXCLUDED.started_at",
    )
    .bind(turn.id.to_string())
    .bind(row.org.to_string())
    .bind(turn.session_id.to_string())
    .bind(row.key.map(|id| id.to_string()))
    .bind(turn.release.map(|release| big(release.version)))
    .bind(turn.release.map(|release| release.id.to_string()))
    .bind(turn.agent.clone())
    .bind(turn.participant.as_ref().map(json))
    .bind(turn.state.as_str())
    .bind(turn.created_at.as_micros())
    .bind(turn.started_at.map(Timestamp::as_micros))
    .execute(db)
    .await
    .map_err(Error::database("recording a turn"))?;
    Ok(())
}

async fn finish(db: &mut Connection, org: OrgId, session: SessionId, end: &TurnEnd) -> Result<()> {
    query(
        "UPDATE turn SET state = $1, ended = 1, stop_reason = $2, error = $3, input_tokens = $4, output_tokens = $5, \
         cache_read_tokens = $6, cache_write_tokens = $7, cost_micros = $8, models = $9, first_text_at = $10, \
         ended_at = $11 WHERE org = $12 AND session = $13 AND id = $14 AND ended = 0",
    )
    .bind(end.state.as_str())
    .bind(end.stop_reason.clone())
    .bind(end.error.map(ErrorCode::as_str))
    .bind(big(end.usage.input_tokens))
    .bind(big(end.usage.output_tokens))
    .bind(big(end.usage.cache_read_tokens))
    .bind(big(end.usage.cache_write_tokens))
    .bind(end.usage.cost_micros.get())
    .bind(json(&end.models))
    .bind(end.first_text_at.map(Timestamp::as_micros))
    .bind(end.ended_at.as_micros())
    .bind(org.to_string())
    .bind(session.to_string())
    .bind(end.id.to_string())
    .execute(db)
    .await
    .map_err(Error::database("ending a turn"))?;
    Ok(())
}
