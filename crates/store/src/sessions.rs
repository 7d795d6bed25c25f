//! Sessions: the handle, and who owns it.

use std::collections::{BTreeMap, HashSet};

use karta_types::session::{Isolation, Participant, PermissionMode, ReleasePin, SessionStatus};
use karta_types::usage::Metered;
use karta_types::{KeyId, OrgId, ProjectId, Seq, SessionId, Timestamp};
use serde_json::Value;

use crate::row::{Reader, big, json};
use crate::sql::{Builder, Connection, Row, query};
use crate::webhooks::outbox;
use crate::{AuditEntry, Error, Result, Store};

/// A session.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionRow {
    /// Its id.
    pub id: SessionId,
    /// Whose it is.
    pub org: OrgId,
    /// Its project.
    pub project: ProjectId,
    /// The key that made it.
    pub key: Option<KeyId>,
    /// What it is doing.
    pub status: SessionStatus,
    /// A name people gave it.
    pub title: Option<String>,
    /// The caller's labels.
    pub metadata: BTreeMap<String, Value>,
    /// The agent that takes the next message.
    pub current_agent: Option<String>,
    /// Who takes part.
    pub participants: Vec<Participant>,
    /// When tools ask.
    pub permission_mode: PermissionMode,
    /// Which release its turns run on.
    pub release_pin: ReleasePin,
    /// The release a session-pinned session began on.
    pub pinned_version: Option<u64>,
    /// The release of its last turn.
    pub last_version: Option<u64>,
    /// How it is kept apart.
    pub isolation: Isolation,
    /// The caller's user it is for.
    pub end_user_id: Option<String>,
    /// The session it came from.
    pub parent_id: Option<SessionId>,
    /// The harness's own id of it.
    pub native: Option<String>,
    /// The harness.
    pub harness: Option<String>,
    /// Its last event.
    pub head: Seq,
    /// How often its owner changed: an older owner can't write.
    pub generation: i64,
    /// All its turns together.
    pub usage: Metered,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// When it ends by itself.
    pub expires_at: Option<Timestamp>,
}

/// Which sessions to list.
#[derive(Debug, Clone, Default)]
pub struct SessionFilter {
    /// Of this project.
    pub project: Option<ProjectId>,
    /// With this status.
    pub status: Option<SessionStatus>,
    /// For this end user.
    pub end_user_id: Option<String>,
    /// With all of these labels.
    pub metadata: Vec<(String, String)>,
}

/// What to change of a session; absent stays.
#[derive(Debug, Clone, Default)]
pub struct SessionPatch {
    /// The name.
    pub title: Option<Option<String>>,
    /// The labels, all of them.
    pub metadata: Option<BTreeMap<String, Value>>,
    /// The agent.
    pub current_agent: Option<Option<String>>,
    /// When tools ask.
    pub permission_mode: Option<PermissionMode>,
    /// Who takes part.
    pub participants: Option<Vec<Participant>>,
}

/// The columns of a session, in the order that [`read`] reads them. A macro, because statements must be literals.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, org, project, key, status, title, metadata, current_agent, participants, permission_mode, ",
            "release_pin, pinned_version, last_version, isolation, end_user_id, parent_id, native, harness, head, ",
            "generation, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, cost_micros, ",
            "created_at, updated_at, expires_at FROM session ",
            $rest
        )
    };
}

fn read(row: &Row) -> Result<SessionRow> {
    let mut row = Reader::new(row);
    Ok(SessionRow {
        id: row.parsed("id")?,
        org: row.parsed("org")?,
        project: row.parsed("project")?,
        key: row.maybe_parsed("key")?,
        status: row.parsed("status")?,
        title: row.maybe_text("title")?,
        metadata: row.json("metadata")?,
        current_agent: row.maybe_text("current_agent")?,
        participants: row.json("participants")?,
        permission_mode: row.json("permission_mode")?,
        release_pin: row.json("release_pin")?,
        pinned_version: row.maybe_count("pinned_version")?,
        last_version: row.maybe_count("last_version")?,
        isolation: row.json("isolation")?,
        end_user_id: row.maybe_text("end_user_id")?,
        parent_id: row.maybe_parsed("parent_id")?,
        native: row.maybe_text("native")?,
        harness: row.maybe_text("harness")?,
        head: Seq(row.count("head")?),
        generation: row.int("generation")?,
        usage: row.metered()?,
        created_at: row.time("created_at")?,
        updated_at: row.time("updated_at")?,
        expires_at: row.maybe_time("expires_at")?,
    })
}

impl Store {
    /// Adds a session.
    ///
    /// # Errors
    /// The database failed.
    pub async fn session_insert(&self, session: &SessionRow) -> Result<()> {
        let session = std::sync::Arc::new(session.clone());
        self.write(move |db| Box::pin(insert(db, session.clone()))).await
    }

    /// A session.
    ///
    /// # Errors
    /// The database failed.
    pub async fn session_get(&self, org: OrgId, id: SessionId) -> Result<Option<SessionRow>> {
        let row = query(select!("WHERE org = $1 AND id = $2"))
            .bind(org.to_string())
            .bind(id.to_string())
            .fetch_optional(self.readers())
            .await
            .map_err(Error::database("reading a session"))?;
        row.as_ref().map(read).transpose()
    }

    /// The organisation's sessions, newest first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn session_list(
        &self,
        org: OrgId,
        filter: &SessionFilter,
        before: Option<SessionId>,
        limit: u32,
    ) -> Result<Vec<SessionRow>> {
        // Only the number of conditions varies; every value is bound.
        let mut query = Builder::new(select!("WHERE org = "));
        query.push_bind(org.to_string());
        if let Some(before) = before {
            query.push(" AND id < ").push_bind(before.to_string());
        }
        if let Some(project) = filter.project {
            query.push(" AND project = ").push_bind(project.to_string());
        }
        if let Some(status) = filter.status {
            query.push(" AND status = ").push_bind(status.as_str().to_owned());
        }
        if let Some(user) = &filter.end_user_id {
            query.push(" AND end_user_id = ").push_bind(user.clone());
        }
        for (name, value) in &filter.metadata {
            query
                .push(" AND id IN (SELECT session FROM session_label WHERE org = ")
                .push_bind(org.to_string())
                .push(" AND name = ")
                .push_bind(name.clone())
                .push(" AND value = ")
                .push_bind(value.clone())
                .push(")");
        }
        query.push(" ORDER BY id DESC LIMIT ").push_bind(i64::from(limit));
        let rows =
            query.build().fetch_all(self.readers()).await.map_err(Error::database("listing sessions"))?;
        rows.iter().map(read).collect()
    }

    /// Every session there is, of all organisations: what a driver may keep at start.
    ///
    /// # Errors
    /// The database failed.
    pub async fn session_ids(&self) -> Result<HashSet<SessionId>> {
        let rows = query("SELECT id FROM session")
            .fetch_all(self.readers())
            .await
            .map_err(Error::database("listing sessions"))?;
        rows.iter().map(|row| Reader::new(row).parsed("id")).collect()
    }

    /// Changes a session.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn session_patch(
        &self,
        org: OrgId,
        id: SessionId,
        patch: SessionPatch,
        at: Timestamp,
    ) -> Result<SessionRow> {
        self.write(move |db| {
            let patch = patch.clone();
            Box::pin(change(db, org, id, patch, at))
        })
        .await
    }

    /// Takes the session over: from now on older owners are refused.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn session_own(&self, org: OrgId, id: SessionId, at: Timestamp) -> Result<SessionRow> {
        self.write(move |db| {
            Box::pin(async move {
                let fail = || Error::database("taking a session over");
                query("UPDATE session SET generation = generation + 1, updated_at = $1 WHERE org = $2 AND id = $3")
                    .bind(at.as_micros())
                    .bind(org.to_string())
                    .bind(id.to_string())
                    .execute(&mut *db)
                    .await
                    .map_err(fail())?;
                get(db, org, id).await
            })
        })
        .await
    }

    /// Erases a session: its record, labels, turns' records, journal, inputs, kept replies and checkpoints. Usage stays. Answers whether it was
    /// there.
    ///
    /// # Errors
    /// The database failed.
    pub async fn session_erase(&self, org: OrgId, id: SessionId, told: AuditEntry) -> Result<bool> {
        self.write_told(
            told,
            |erased| *erased,
            move |db| {
                Box::pin(async move {
                    let fail = || Error::database("erasing a session");
                    let (org, id) = (org.to_string(), id.to_string());
                    for statement in [
                        "DELETE FROM journal WHERE org = $1 AND session = $2",
                        "DELETE FROM input WHERE org = $1 AND session = $2",
                        "DELETE FROM reply WHERE org = $1 AND session = $2",
                        "DELETE FROM turn WHERE org = $1 AND session = $2",
                        "DELETE FROM session_label WHERE org = $1 AND session = $2",
                        "DELETE FROM checkpoint WHERE org = $1 AND session = $2",
                    ] {
                        query(statement)
                            .bind(org.clone())
                            .bind(id.clone())
                            .execute(&mut *db)
                            .await
                            .map_err(fail())?;
                    }
                    let gone = query("DELETE FROM session WHERE org = $1 AND id = $2")
                        .bind(org)
                        .bind(id)
                        .execute(&mut *db)
                        .await
                        .map_err(fail())?;
                    Ok(gone.rows_affected() > 0)
                })
            },
        )
        .await
    }
}

async fn get(db: &mut Connection, org: OrgId, id: SessionId) -> Result<SessionRow> {
    let row = query(select!("WHERE org = $1 AND id = $2"))
        .bind(org.to_string())
        .bind(id.to_string())
        .fetch_optional(db)
        .await
        .map_err(Error::database("reading a session"))?;
    read(&row.ok_or(Error::NotFound)?)
}

async fn insert(db: &mut Connection, session: std::sync::Arc<SessionRow>) -> Result<()> {
    let usage = session.usage;
    query(
        "INSERT INTO session (id, org, project, key, status, title, metadata, current_agent, participants, \
         permission_mode, release_pin, pinned_version, last_version, isolation, end_user_id, parent_id, native, harness, \
         head, generation, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, cost_micros, created_at, \
         updated_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, \
         $19, $20, $21, $22, $23, $24, $25, $26, $27, $28)",
    )
    .bind(session.id.to_string())
    .bind(session.org.to_string())
    .bind(session.project.to_string())
    .bind(session.key.map(|id| id.to_string()))
    .bind(session.status.as_str())
    .bind(session.title.clone())
    .bind(json(&session.metadata))
    .bind(session.current_agent.clone())
    .bind(json(&session.participants))
    .bind(json(&session.permission_mode))
    .bind(json(&session.release_pin))
    .bind(session.pinned_version.map(big))
    .bind(session.last_version.map(big))
    .bind(json(&session.isolation))
    .bind(session.end_user_id.clone())
    .bind(session.parent_id.map(|id| id.to_string()))
    .bind(session.native.clone())
    .bind(session.harness.clone())
    .bind(big(session.head.0))
    .bind(session.generation)
    .bind(big(usage.input_tokens))
    .bind(big(usage.output_tokens))
    .bind(big(usage.cache_read_tokens))
    .bind(big(usage.cache_write_tokens))
    .bind(usage.cost_micros.get())
    .bind(session.created_at.as_micros())
    .bind(session.updated_at.as_micros())
    .bind(session.expires_at.map(Timestamp::as_micros))
    .execute(&mut *db)
    .await
    .map_err(Error::unique("adding a session", "the session"))?;
    label(db, session.org, session.id, &session.metadata).await?;
    let end_user = session.end_user_id.as_deref();
    let made =
        outbox::session_created(session.org, session.id, &session.project, end_user, session.created_at);
    outbox::note(db, made).await
}

/// Labels stand apart, so that sessions can be found by them on every database.
async fn label(
    db: &mut Connection,
    org: OrgId,
    id: SessionId,
    labels: &BTreeMap<String, Value>,
) -> Result<()> {
    for (name, value) in labels {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        query("INSERT INTO session_label (session, name, value, org) VALUES ($1, $2, $3, $4)")
            .bind(id.to_string())
            .bind(name.clone())
            .bind(value)
            .bind(org.to_string())
            .execute(&mut *db)
            .await
            .map_err(Error::database("labelling a session"))?;
    }
    Ok(())
}

async fn change(
    db: &mut Connection,
    org: OrgId,
    id: SessionId,
    patch: SessionPatch,
    at: Timestamp,
) -> Result<SessionRow> {
    let mut row = get(db, org, id).await?;
    row.title = patch.title.unwrap_or(row.title);
    row.current_agent = patch.current_agent.unwrap_or(row.current_agent);
    row.permission_mode = patch.permission_mode.unwrap_or(row.permission_mode);
    row.participants = patch.participants.unwrap_or(row.participants);
    row.updated_at = at;
    if let Some(labels) = patch.metadata {
        query("DELETE FROM session_label WHERE org = $1 AND session = $2")
            .bind(org.to_string())
            .bind(id.to_string())
            .execute(&mut *db)
            .await
            .map_err(Error::database("labelling a session"))?;
        label(db, org, id, &labels).await?;
        row.metadata = labels;
    }
    query(
        "UPDATE session SET title = $1, current_agent = $2, permission_mode = $3, participants = $4, metadata = $5, \
         updated_at = $6 WHERE org = $7 AND id = $8",
    )
    .bind(row.title.clone())
    .bind(row.current_agent.clone())
    .bind(json(&row.permission_mode))
    .bind(json(&row.participants))
    .bind(json(&row.metadata))
    .bind(at.as_micros())
    .bind(org.to_string())
    .bind(id.to_string())
    .execute(&mut *db)
    .await
    .map_err(Error::database("changing a session"))?;
    Ok(row)
}
