//! Answers kept for requests that may be repeated.

use bytes::Bytes;
use karta_types::{OrgId, SessionId, Timestamp, TurnId};

use crate::row::Reader;
use crate::sql::query;
use crate::{Error, Result, Store};

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Its HTTP status.
    pub status: u16,
    /// Its content type.
    pub content_type: String,
    /// Its body. Sealed at rest.
    pub body: Bytes,
    /// The turn whose events are the answer, instead of a body.
    pub stream: Option<(SessionId, TurnId)>,
}

/// What is known of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Idem {
    /// It is the first.
    New,
    /// The first still runs.
    Running,
    /// Its answer.
    Done(Reply),
    /// Its key came with another request.
    Mismatch,
}

impl Store {
    /// Begins a request under a key.
    ///
    /// # Errors
    /// The database failed.
    pub async fn idem_begin(
        &self,
        org: OrgId,
        key: &str,
        fingerprint: [u8; 32],
        at: Timestamp,
        expires_at: Timestamp,
    ) -> Result<Idem> {
        let (org, key) = (org.to_string(), key.to_owned());
        let keys = self.keys().clone();
        self.write(move |db| {
            let (org, key, keys) = (org.clone(), key.clone(), keys.clone());
            Box::pin(async move {
                let fail = || Error::database("looking up a repeated request");
                query("DELETE FROM reply WHERE org = $1 AND key = $2 AND expires_at <= $3")
                    .bind(org.clone())
                    .bind(key.clone())
                    .bind(at.as_micros())
                    .execute(&mut *db)
                    .await
                    .map_err(fail())?;
                let new = query(
                    "INSERT INTO reply (org, key, fingerprint, created_at, expires_at) VALUES ($1, $2, $3, $4, $5) \
                     ON CONFLICT (org, key) DO NOTHING",
                )
                .bind(org.clone())
                .bind(key.clone())
                .bind(fingerprint.to_vec())
                .bind(at.as_micros())
                .bind(expires_at.as_micros())
                .execute(&mut *db)
                .await
                .map_err(fail())?;
                if new.rows_affected() > 0 {
                    return Ok(Idem::New);
                }
                let row = query(
                    "SELECT fingerprint, status, content_type, body, session, turn FROM reply \
                     WHERE org = $1 AND key = $2",
                )
                .bind(org.clone())
                .bind(key.clone())
                .fetch_one(&mut *db)
                .await
                .map_err(fail())?;
                let mut row = Reader::new(&row);
                if *row.bytes("fingerprint")? != fingerprint {
                    return Ok(Idem::Mismatch);
                }
                let Some(status) = row.maybe_int("status")? else { return Ok(Idem::Running) };
                let content_type = row.maybe_text("content_type")?.unwrap_or_default();
                let body = match row.maybe_bytes("body")? {
                    Some(body) => keys.open(&context(&org, &key), &body)?.into(),
                    None => Bytes::new(),
                };
                let session = row.maybe_parsed("session")?;
                let stream = session.zip(row.maybe_parsed("turn")?);
                let status = u16::try_from(status).map_err(|_| Error::Corrupt("status"))?;
                Ok(Idem::Done(Reply { status, content_type, body, stream }))
            })
        })
        .await
    }

    /// Keeps the answer of a request that was begun.
    ///
    /// # Errors
    /// The database failed.
    pub async fn idem_finish(&self, org: OrgId, key: &str, reply: &Reply) -> Result<()> {
        let (org, key, reply) = (org.to_string(), key.to_owned(), reply.clone());
        let body = match &reply.stream {
            Some(_) => None,
            None => Some(self.keys().seal(&context(&org, &key), &reply.body)?),
        };
        self.write(move |db| {
            let (org, key, reply, body) = (org.clone(), key.clone(), reply.clone(), body.clone());
            Box::pin(async move {
                query(
                    "UPDATE reply SET status = $1, content_type = $2, body = $3, session = $4, turn = $5 \
                     WHERE org = $6 AND key = $7",
                )
                .bind(i64::from(reply.status))
                .bind(reply.content_type)
                .bind(body)
                .bind(reply.stream.map(|(session, _)| session.to_string()))
                .bind(reply.stream.map(|(_, turn)| turn.to_string()))
                .bind(org)
                .bind(key)
                .execute(db)
                .await
                .map_err(Error::database("keeping an answer"))?;
                Ok(())
            })
        })
        .await
    }

    /// The request failed: its key is free again.
    ///
    /// # Errors
    /// The database failed.
    pub async fn idem_abandon(&self, org: OrgId, key: &str) -> Result<()> {
        let (org, key) = (org.to_string(), key.to_owned());
        self.write(move |db| {
            let (org, key) = (org.clone(), key.clone());
            Box::pin(async move {
                query("DELETE FROM reply WHERE org = $1 AND key = $2")
                    .bind(org)
                    .bind(key)
                    .execute(db)
                    .await
                    .map_err(Error::database("giving a key free"))?;
                Ok(())
            })
        })
        .await
    }

    /// Requests that the last process left running are free again; of all organisations, at start.
    ///
    /// # Errors
    /// The database failed.
    pub async fn idem_abandon_all_running(&self) -> Result<u64> {
        self.write(move |db| {
            Box::pin(async move {
                let gone = query("DELETE FROM reply WHERE status IS NULL")
                    .execute(db)
                    .await
                    .map_err(Error::database("giving keys free"))?;
                Ok(gone.rows_affected())
            })
        })
        .await
    }

    /// Erases answers past their time, of all organisations. Answers how many.
    ///
    /// # Errors
    /// The database failed.
    pub async fn idem_expire(&self, at: Timestamp) -> Result<u64> {
        self.write(move |db| {
            Box::pin(async move {
                let gone = query("DELETE FROM reply WHERE expires_at <= $1")
                    .bind(at.as_micros())
                    .execute(db)
                    .await
                    .map_err(Error::database("expiring kept answers"))?;
                Ok(gone.rows_affected())
            })
        })
        .await
    }
}

fn context(org: &str, key: &str) -> Vec<u8> {
    format!("reply\0{org}\0{key}").into_bytes()
}
