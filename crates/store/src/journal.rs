//! The journal: chunks of events in order, sealed; and the one operation that a step of a turn is.

use std::sync::Arc;

use bytes::Bytes;
use karta_types::event::{Answerer, InputRequired};
use karta_types::message::Decision;
use karta_types::session::SessionStatus;
use karta_types::usage::Metered;
use karta_types::{OrgId, RequestId, Seq, SessionId, Timestamp, TurnId};

use crate::row::{Reader, big};
use crate::sql::{Connection, Row, query};
use crate::turns::{self, TurnChange};
use crate::webhooks::outbox;
use crate::{AuditEntry, Error, Keyring, Result, Store, inputs};

/// The most chunks that one read brings.
const MAX_CHUNKS: i64 = 256;

/// Consecutive events of one session. What is in them is the writer's affair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The turn they belong to.
    pub turn: Option<TurnId>,
    /// The first.
    pub first: Seq,
    /// The last.
    pub last: Seq,
    /// The events.
    pub frames: Bytes,
    /// What is kept beside them.
    pub raw: Option<Bytes>,
    /// The writer's own marks.
    pub flags: u32,
}

/// One step of a session: everything in it happens, or nothing.
#[derive(Debug, Clone)]
pub struct Commit {
    /// Whose session.
    pub org: OrgId,
    /// Which.
    pub session: SessionId,
    /// The owner that writes.
    pub generation: i64,
    /// The last event before it.
    pub head: Seq,
    /// When.
    pub at: Timestamp,
    /// Its events.
    pub chunk: Option<Chunk>,
    /// What the session does now.
    pub status: Option<SessionStatus>,
    /// The harness's own id.
    pub native: Option<String>,
    /// The agent that takes the next message.
    pub agent: Option<Option<String>>,
    /// The release of its last turn.
    pub last_version: Option<u64>,
    /// The release it is pinned to from now on.
    pub pinned_version: Option<u64>,
    /// What becomes of the turn.
    pub turn: Option<TurnChange>,
    /// Questions that were asked.
    pub asked: Vec<InputRequired>,
    /// Questions that were answered.
    pub resolved: Vec<(RequestId, Decision, Answerer)>,
    /// What the audit log is told of it.
    pub told: Vec<AuditEntry>,
}

impl Store {
    /// Commits a step.
    ///
    /// # Errors
    /// `Fenced` when another owner has the session, or it is gone; `Full`.
    pub async fn commit(&self, commit: Commit) -> Result<()> {
        // Sealed here, on the caller's thread: the writer only writes.
        let sealed = match &commit.chunk {
            Some(chunk) => Some(seal(self.keys(), commit.org, commit.session, chunk)?),
            None => None,
        };
        let asked = commit
            .asked
            .iter()
            .map(|input| inputs::seal(self.keys(), commit.org, input))
            .collect::<Result<Vec<_>>>()?;
        let step = Arc::new((commit, sealed, asked));
        self.write(move |db| {
            let step = step.clone();
            Box::pin(async move { apply(db, &step.0, step.1.as_ref(), &step.2).await })
        })
        .await
    }

    /// Chunks with events after `after`, in order: about `max_bytes` of them, at least one if there is one.
    ///
    /// # Errors
    /// `Sealed` when the journal was written with another key.
    pub async fn journal_read(
        &self,
        org: OrgId,
        session: SessionId,
        after: Seq,
        max_bytes: usize,
    ) -> Result<Vec<Chunk>> {
        let rows = query(
            "SELECT first, last, turn, flags, frames, raw FROM journal \
             WHERE org = $1 AND session = $2 AND last > $3 ORDER BY last LIMIT $4",
        )
        .bind(org.to_string())
        .bind(session.to_string())
        .bind(big(after.0))
        .bind(MAX_CHUNKS)
        .fetch_all(self.readers())
        .await
        .map_err(Error::database("reading the journal"))?;
        let mut chunks = Vec::with_capacity(rows.len());
        let mut bytes = 0;
        for row in &rows {
            let chunk = open(self.keys(), org, session, row)?;
            bytes += chunk.frames.len();
            chunks.push(chunk);
            if bytes >= max_bytes {
                break;
            }
        }
        Ok(chunks)
    }

    /// The first event of the session that is still kept.
    ///
    /// # Errors
    /// The database failed.
    pub async fn journal_floor(&self, org: OrgId, session: SessionId) -> Result<Option<Seq>> {
        let row = query("SELECT first FROM journal WHERE org = $1 AND session = $2 ORDER BY last LIMIT 1")
            .bind(org.to_string())
            .bind(session.to_string())
            .fetch_optional(self.readers())
            .await
            .map_err(Error::database("reading the journal"))?;
        row.map(|row| Reader::new(&row).count("first").map(Seq)).transpose()
    }

    /// Erases chunks that are older than `before` and belong to no turn that runs; of all organisations, at most `limit`. Answers
    /// how many.
    ///
    /// # Errors
    /// The database failed.
    pub async fn journal_expire(&self, before: Timestamp, limit: u32) -> Result<u64> {
        self.write(move |db| {
            Box::pin(async move {
                let gone = query(
                    "DELETE FROM journal WHERE (session, last) IN (SELECT session, last FROM journal WHERE at < $1 \
                     AND (turn IS NULL OR turn NOT IN (SELECT id FROM turn WHERE ended = 0)) ORDER BY at LIMIT $2)",
                )
                .bind(before.as_micros())
                .bind(i64::from(limit))
                .execute(db)
                .await
                .map_err(Error::database("expiring the journal"))?;
                Ok(gone.rows_affected())
            })
        })
        .await
    }
}

/// What a chunk is sealed for: moved to another session or place, it does not open.
fn context(org: OrgId, session: SessionId, first: Seq, what: &str) -> Vec<u8> {
    let mut context = Vec::with_capacity(48);
    context.extend_from_slice(what.as_bytes());
    context.extend_from_slice(&org.as_u128().to_le_bytes());
    context.extend_from_slice(&session.as_u128().to_le_bytes());
    context.extend_from_slice(&first.0.to_le_bytes());
    context
}

type Sealed = (Bytes, Option<Bytes>);

fn seal(keys: &Keyring, org: OrgId, session: SessionId, chunk: &Chunk) -> Result<Sealed> {
    let frames = keys.seal(&context(org, session, chunk.first, "frames"), &chunk.frames)?.into();
    let raw = match &chunk.raw {
        Some(raw) => Some(keys.seal(&context(org, session, chunk.first, "raw"), raw)?.into()),
        None => None,
    };
    Ok((frames, raw))
}

fn open(keys: &Keyring, org: OrgId, session: SessionId, row: &Row) -> Result<Chunk> {
    let mut row = Reader::new(row);
    let (first, last) = (Seq(row.count("first")?), Seq(row.count("last")?));
    let turn = row.maybe_parsed("turn")?;
    let flags = u32::try_from(row.int("flags")?).map_err(|_| Error::Corrupt("flags"))?;
    let frames = keys.open(&context(org, session, first, "frames"), &row.bytes("frames")?)?;
    let raw = match row.maybe_bytes("raw")? {
        Some(raw) => Some(keys.open(&context(org, session, first, "raw"), &raw)?.into()),
        None => None,
    };
    Ok(Chunk { turn, first, last, frames: frames.into(), raw, flags })
}

async fn apply(
    db: &mut Connection,
    commit: &Commit,
    sealed: Option<&Sealed>,
    asked: &[Vec<u8>],
) -> Result<()> {
    move_head(db, commit).await?;
    if let (Some(chunk), Some((frames, raw))) = (&commit.chunk, sealed) {
        query(
            "INSERT INTO journal (session, last, first, org, turn, flags, frames, raw, at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(commit.session.to_string())
        .bind(big(chunk.last.0))
        .bind(big(chunk.first.0))
        .bind(commit.org.to_string())
        .bind(chunk.turn.map(|id| id.to_string()))
        .bind(i64::from(chunk.flags))
        .bind(frames.clone())
        .bind(raw.clone())
        .bind(commit.at.as_micros())
        .execute(&mut *db)
        .await
        .map_err(Error::database("writing the journal"))?;
    }
    if let Some(change) = &commit.turn {
        turns::apply(db, commit.org, commit.session, change).await?;
        if let TurnChange::End(end) = change
            && let Some(ended) = outbox::turn_ended(commit.org, commit.session, end)
        {
            outbox::note(db, ended).await?;
        }
    }
    let turn = commit.chunk.as_ref().and_then(|chunk| chunk.turn);
    for (input, body) in commit.asked.iter().zip(asked) {
        inputs::ask(db, commit, turn, input.request_id, body.clone()).await?;
        outbox::note(db, outbox::input_required(commit.org, commit.session, input, commit.at)).await?;
    }
    for resolved in &commit.resolved {
        let (request, decision, by) = resolved;
        inputs::resolve(db, commit, *request, *decision, by).await?;
        outbox::note(db, outbox::input_resolved(commit.org, commit.session, resolved, commit.at)).await?;
    }
    for entry in &commit.told {
        crate::audit::append(db, entry).await?;
    }
    Ok(())
}

/// The guard of every step: only the owner, and only onto the end.
async fn move_head(db: &mut Connection, commit: &Commit) -> Result<()> {
    let head = commit.chunk.as_ref().map_or(commit.head, |chunk| chunk.last);
    let used = match &commit.turn {
        Some(TurnChange::End(end)) => end.usage,
        _ => Metered::default(),
    };
    let done = query(
        "UPDATE session SET head = $1, updated_at = $2, status = COALESCE($3, status), native = COALESCE($4, native), \
         last_version = COALESCE($5, last_version), pinned_version = COALESCE($6, pinned_version), \
         input_tokens = input_tokens + $7, output_tokens = output_tokens + $8, \
         cache_read_tokens = cache_read_tokens + $9, cache_write_tokens = cache_write_tokens + $10, \
         cost_micros = cost_micros + $11 WHERE id = $12 AND org = $13 AND generation = $14 AND head = $15",
    )
    .bind(big(head.0))
    .bind(commit.at.as_micros())
    .bind(commit.status.map(SessionStatus::as_str))
    .bind(commit.native.clone())
    .bind(commit.last_version.map(big))
    .bind(commit.pinned_version.map(big))
    .bind(big(used.input_tokens))
    .bind(big(used.output_tokens))
    .bind(big(used.cache_read_tokens))
    .bind(big(used.cache_write_tokens))
    .bind(used.cost_micros.get())
    .bind(commit.session.to_string())
    .bind(commit.org.to_string())
    .bind(commit.generation)
    .bind(big(commit.head.0))
    .execute(&mut *db)
    .await
    .map_err(Error::database("moving a session on"))?;
    if done.rows_affected() == 0 {
        return Err(Error::Fenced);
    }
    if let Some(agent) = &commit.agent {
        query("UPDATE session SET current_agent = $1 WHERE id = $2 AND org = $3")
            .bind(agent.clone())
            .bind(commit.session.to_string())
            .bind(commit.org.to_string())
            .execute(&mut *db)
            .await
            .map_err(Error::database("handing a session to another agent"))?;
    }
    Ok(())
}
