//! Checkpoints of what sessions have made: where they lie in the blob store, and the wrapped keys that open them.

use karta_types::{OrgId, SessionId, Timestamp, TurnId};

use crate::row::{Reader, big, json};
use crate::sql::{Connection, Row, query};
use crate::{AuditEntry, Error, Result, Store};

/// A checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointRow {
    /// Whose it is.
    pub org: OrgId,
    /// Of which session.
    pub session: SessionId,
    /// Its number in the session.
    pub seq: u64,
    /// The turn at whose end it was taken.
    pub turn: Option<TurnId>,
    /// The data key that it is sealed with.
    pub key: String,
    /// The pack that holds its root.
    pub pack: String,
    /// Where in that pack the root begins.
    pub place: u64,
    /// How many bytes the root has.
    pub length: u64,
    /// Every pack that it needs.
    pub packs: Vec<String>,
    /// How many things are in it.
    pub files: u64,
    /// How many bytes they have.
    pub bytes: u64,
    /// When it was taken.
    pub at: Timestamp,
}

/// A data key of checkpoints, wrapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateKeyRow {
    /// Its id.
    pub id: String,
    /// Whose it is.
    pub org: OrgId,
    /// The part of the organisation that it is for; empty for all of it.
    pub part: String,
    /// The key-encryption key that wraps it.
    pub kek: String,
    /// The wrapped key.
    pub wrapped: Vec<u8>,
    /// When it was made.
    pub created_at: Timestamp,
}

macro_rules! checkpoints {
    ($rest:literal) => {
        concat!(
            "SELECT org, session, seq, turn, state_key, pack, place, length, packs, files, bytes, at FROM checkpoint ",
            $rest
        )
    };
}

macro_rules! keys {
    ($rest:literal) => {
        concat!("SELECT id, org, part, kek, wrapped, created_at FROM state_key ", $rest)
    };
}

fn read(row: &Row) -> Result<CheckpointRow> {
    let mut row = Reader::new(row);
    Ok(CheckpointRow {
        org: row.parsed("org")?,
        session: row.parsed("session")?,
        seq: row.count("seq")?,
        turn: row.maybe_parsed("turn")?,
        key: row.text("state_key")?,
        pack: row.text("pack")?,
        place: row.count("place")?,
        length: row.count("length")?,
        packs: row.json("packs")?,
        files: row.count("files")?,
        bytes: row.count("bytes")?,
        at: row.time("at")?,
    })
}

fn read_key(row: &Row) -> Result<StateKeyRow> {
    let mut row = Reader::new(row);
    Ok(StateKeyRow {
        id: row.text("id")?,
        org: row.parsed("org")?,
        part: row.text("part")?,
        kek: row.text("kek")?,
        wrapped: row.bytes("wrapped")?.to_vec(),
        created_at: row.time("created_at")?,
    })
}

async fn list(db: &mut Connection, org: OrgId, session: SessionId) -> Result<Vec<CheckpointRow>> {
    let rows = query(checkpoints!("WHERE org = $1 AND session = $2 ORDER BY seq DESC"))
        .bind(org.to_string())
        .bind(session.to_string())
        .fetch_all(db)
        .await
        .map_err(Error::database("listing checkpoints"))?;
    rows.iter().map(read).collect()
}

/// Adds a checkpoint if the session still has this owner and the key is still there, then forgets what is beyond the newest `keep`, and
/// older ones of the same turn.
async fn add(db: &mut Connection, new: &CheckpointRow, generation: u64, keep: u32) -> Result<()> {
    let fail = || Error::database("adding a checkpoint");
    let added = query(
        "INSERT INTO checkpoint (session, seq, org, turn, state_key, pack, place, length, packs, files, bytes, at) \
         SELECT s.id, $1, s.org, $2, k.id, $3, $4, $5, $6, $7, $8, $9 FROM session s JOIN state_key k ON k.org = s.org \
         WHERE s.org = $10 AND s.id = $11 AND s.generation = $12 AND k.id = $13",
    )
    .bind(big(new.seq))
    .bind(new.turn.map(|id| id.to_string()))
    .bind(new.pack.clone())
    .bind(big(new.place))
    .bind(big(new.length))
    .bind(json(&new.packs))
    .bind(big(new.files))
    .bind(big(new.bytes))
    .bind(new.at.as_micros())
    .bind(new.org.to_string())
    .bind(new.session.to_string())
    .bind(big(generation))
    .bind(new.key.clone())
    .execute(&mut *db)
    .await
    .map_err(fail())?;
    if added.rows_affected() == 0 {
        return Err(Error::Fenced);
    }
    let oldest = new.seq.saturating_sub(u64::from(keep.max(1)) - 1);
    query("DELETE FROM checkpoint WHERE org = $1 AND session = $2 AND seq < $3")
        .bind(new.org.to_string())
        .bind(new.session.to_string())
        .bind(big(oldest))
        .execute(&mut *db)
        .await
        .map_err(fail())?;
    Ok(())
}

impl Store {
    /// The session's checkpoints, newest first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn checkpoint_list(&self, org: OrgId, session: SessionId) -> Result<Vec<CheckpointRow>> {
        let rows = query(checkpoints!("WHERE org = $1 AND session = $2 ORDER BY seq DESC"))
            .bind(org.to_string())
            .bind(session.to_string())
            .quick()
            .fetch_all(self.readers())
            .await
            .map_err(Error::database("listing checkpoints"))?;
        rows.iter().map(read).collect()
    }

    /// Adds a checkpoint for the owner with this generation, and forgets those beyond the newest `keep`. Answers which are left, newest
    /// first: packs that none of them names are nobody's any more.
    ///
    /// # Errors
    /// [`Error::Fenced`] if another owner has the session, it is gone, or the key is; the database failed.
    pub async fn checkpoint_add(
        &self,
        row: CheckpointRow,
        generation: u64,
        keep: u32,
    ) -> Result<Vec<CheckpointRow>> {
        self.write(move |db| {
            let row = row.clone();
            Box::pin(async move {
                add(db, &row, generation, keep).await?;
                list(db, row.org, row.session).await
            })
        })
        .await
    }

    /// Forgets the session's checkpoints.
    ///
    /// # Errors
    /// The database failed.
    pub async fn checkpoint_forget(&self, org: OrgId, session: SessionId) -> Result<()> {
        self.write(move |db| {
            Box::pin(async move {
                query("DELETE FROM checkpoint WHERE org = $1 AND session = $2")
                    .bind(org.to_string())
                    .bind(session.to_string())
                    .execute(db)
                    .await
                    .map_err(Error::database("forgetting checkpoints"))?;
                Ok(())
            })
        })
        .await
    }

    /// The data key of a part of the organisation.
    ///
    /// # Errors
    /// The database failed.
    pub async fn state_key_get(&self, org: OrgId, part: &str) -> Result<Option<StateKeyRow>> {
        let row = query(keys!("WHERE org = $1 AND part = $2"))
            .bind(org.to_string())
            .bind(part)
            .fetch_optional(self.readers())
            .await
            .map_err(Error::database("reading a data key"))?;
        row.as_ref().map(read_key).transpose()
    }

    /// Keeps a data key, unless another was kept first. Answers the one that is kept.
    ///
    /// # Errors
    /// The database failed.
    pub async fn state_key_add(&self, row: StateKeyRow) -> Result<StateKeyRow> {
        self.write(move |db| {
            let row = row.clone();
            Box::pin(async move {
                query(
                    "INSERT INTO state_key (id, org, part, kek, wrapped, created_at) VALUES ($1, $2, $3, $4, $5, $6) \
                     ON CONFLICT (org, part) DO NOTHING",
                )
                .bind(row.id)
                .bind(row.org.to_string())
                .bind(row.part.clone())
                .bind(row.kek)
                .bind(row.wrapped)
                .bind(row.created_at.as_micros())
                .execute(&mut *db)
                .await
                .map_err(Error::database("keeping a data key"))?;
                let kept = query(keys!("WHERE org = $1 AND part = $2"))
                    .bind(row.org.to_string())
                    .bind(row.part)
                    .fetch_one(db)
                    .await
                    .map_err(Error::database("keeping a data key"))?;
                read_key(&kept)
            })
        })
        .await
    }

    /// Data keys of all organisations that are wrapped by another key-encryption key than this one.
    ///
    /// # Errors
    /// The database failed.
    pub async fn state_keys_not_under(&self, kek: &str, limit: u32) -> Result<Vec<StateKeyRow>> {
        let rows = query(keys!("WHERE kek <> $1 ORDER BY id LIMIT $2"))
            .bind(kek)
            .bind(i64::from(limit))
            .fetch_all(self.readers())
            .await
            .map_err(Error::database("listing data keys to be wrapped anew"))?;
        rows.iter().map(read_key).collect()
    }

    /// Puts a data key that was wrapped anew in the place of the old wrapping, if that is still the one.
    ///
    /// # Errors
    /// The database failed.
    pub async fn state_key_rewrap(&self, row: &StateKeyRow, kek: String, wrapped: Vec<u8>) -> Result<()> {
        let (org, id, old) = (row.org, row.id.clone(), row.kek.clone());
        self.write(move |db| {
            let (id, kek, wrapped, old) = (id.clone(), kek.clone(), wrapped.clone(), old.clone());
            Box::pin(async move {
                query("UPDATE state_key SET kek = $1, wrapped = $2 WHERE org = $3 AND id = $4 AND kek = $5")
                    .bind(kek)
                    .bind(wrapped)
                    .bind(org.to_string())
                    .bind(id)
                    .bind(old)
                    .execute(db)
                    .await
                    .map_err(Error::database("wrapping a data key anew"))?;
                Ok(())
            })
        })
        .await
    }

    /// Destroys the organisation's data keys and forgets every checkpoint that they open; its sessions begin anew. Answers how many
    /// checkpoints there were.
    ///
    /// # Errors
    /// The database failed.
    pub async fn state_keys_destroy(&self, org: OrgId, told: AuditEntry) -> Result<u64> {
        self.write_told(
            told,
            |_| true,
            move |db| {
                Box::pin(async move {
                    let fail = || Error::database("destroying data keys");
                    let org = org.to_string();
                    // Overwritten where they are before the row goes: what a deleted row held may stay in the file.
                    query("UPDATE state_key SET kek = '', wrapped = $1 WHERE org = $2")
                        .bind(vec![0; 64])
                        .bind(org.clone())
                        .execute(&mut *db)
                        .await
                        .map_err(fail())?;
                    for statement in [
                        "DELETE FROM state_key WHERE org = $1",
                        "UPDATE session SET native = NULL WHERE org = $1",
                    ] {
                        query(statement).bind(org.clone()).execute(&mut *db).await.map_err(fail())?;
                    }
                    let gone = query("DELETE FROM checkpoint WHERE org = $1").bind(org).execute(db).await;
                    Ok(gone.map_err(fail())?.rows_affected())
                })
            },
        )
        .await
    }
}
