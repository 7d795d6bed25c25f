//! The audit log: who changed what, in the transaction of the change, each row chained to the one before it in its organisation.
//!
//! A row's hash covers the hash before it and every field. Ends of chains are signed now and then. What that finds: a row that was
//! edited, dropped or moved, and a chain that was cut short of a signed end. What it can't find: rows after the last signed end that
//! somebody with the database and the signing key wrote anew.

use aws_lc_rs::digest::{Context, SHA256};
use karta_types::{AuditId, OrgId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::handover::{self, Kind};
use crate::row::{Reader, big};
use crate::sql::{Connection, Row, query};
use crate::webhooks::outbox;
use crate::{Error, Result, Store};

/// A hash of the chain.
pub type Hash = [u8; 32];

/// What happened. Never a secret, never a message's text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// Its id.
    pub id: AuditId,
    /// The organisation it happened in.
    pub org: OrgId,
    /// When.
    pub at: Timestamp,
    /// Who: `key:key_…`, `user:usr_…`, `token:…`, `system`.
    pub actor: String,
    /// What, as `noun.verb`.
    pub action: String,
    /// To what: an id, or a level and its subject.
    pub resource: String,
    /// The request it came with.
    pub request: Option<String>,
    /// The address it came from.
    pub address: Option<String>,
    /// The digest of what was.
    pub before: Option<Hash>,
    /// The digest of what is.
    pub after: Option<Hash>,
    /// Why, in the actor's or the platform's words.
    pub reason: Option<String>,
}

/// An entry in its chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    /// Its place, from 1.
    pub seq: u64,
    /// The entry.
    pub entry: AuditEntry,
    /// The hash over the row before it and itself.
    pub hash: Hash,
}

/// A signed end of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditSeal {
    /// The place of the row it is the end at.
    pub seq: u64,
    /// That row's hash.
    pub hash: Hash,
    /// When it was signed.
    pub at: Timestamp,
    /// The signature (Ed25519).
    pub signature: Vec<u8>,
}

/// Which entries.
#[derive(Debug, Clone, Default)]
pub struct AuditFilter {
    /// Of this actor.
    pub actor: Option<String>,
    /// Of this action.
    pub action: Option<String>,
    /// About this resource.
    pub resource: Option<String>,
}

const START: Hash = [0; 32];

impl AuditRow {
    /// The hash that this row must have after one with `before`.
    pub fn hash_after(&self, before: &Hash) -> Hash {
        hash(before, self.seq, &self.entry)
    }
}

impl AuditSeal {
    /// What is signed.
    pub fn message(org: OrgId, seq: u64, hash: &Hash, at: Timestamp) -> Vec<u8> {
        let mut message = b"karta audit seal 1\0".to_vec();
        message.extend_from_slice(&org.as_u128().to_le_bytes());
        message.extend_from_slice(&seq.to_le_bytes());
        message.extend_from_slice(hash);
        message.extend_from_slice(&at.as_micros().to_le_bytes());
        message
    }
}

/// Every field with its length before it, so that no two entries read the same.
fn hash(before: &Hash, seq: u64, entry: &AuditEntry) -> Hash {
    let mut context = Context::new(&SHA256);
    let mut field = |bytes: Option<&[u8]>| {
        let length = bytes.map_or(u64::MAX, |bytes| bytes.len() as u64);
        context.update(&length.to_le_bytes());
        context.update(bytes.unwrap_or_default());
    };
    field(Some(before));
    field(Some(&seq.to_le_bytes()));
    field(Some(entry.id.to_string().as_bytes()));
    field(Some(entry.org.to_string().as_bytes()));
    field(Some(&entry.at.as_micros().to_le_bytes()));
    field(Some(entry.actor.as_bytes()));
    field(Some(entry.action.as_bytes()));
    field(Some(entry.resource.as_bytes()));
    field(entry.request.as_deref().map(str::as_bytes));
    field(entry.address.as_deref().map(str::as_bytes));
    field(entry.before.as_ref().map(<[u8; 32]>::as_slice));
    field(entry.after.as_ref().map(<[u8; 32]>::as_slice));
    field(entry.reason.as_deref().map(str::as_bytes));
    let mut hash = START;
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

fn read_hash(row: &mut Reader<'_>, name: &'static str) -> Result<Hash> {
    row.bytes(name)?.as_ref().try_into().map_err(|_| Error::Corrupt(name))
}

fn maybe_hash(row: &mut Reader<'_>, name: &'static str) -> Result<Option<Hash>> {
    let bytes = row.maybe_bytes(name)?;
    bytes.map(|bytes| bytes.as_ref().try_into().map_err(|_| Error::Corrupt(name))).transpose()
}

fn read(row: &Row) -> Result<AuditRow> {
    let mut row = Reader::new(row);
    Ok(AuditRow {
        seq: row.count("seq")?,
        entry: AuditEntry {
            org: row.parsed("org")?,
            id: row.parsed("id")?,
            at: row.time("at")?,
            actor: row.text("actor")?,
            action: row.text("action")?,
            resource: row.text("resource")?,
            request: row.maybe_text("request")?,
            address: row.maybe_text("address")?,
            before: maybe_hash(&mut row, "before")?,
            after: maybe_hash(&mut row, "after")?,
            reason: row.maybe_text("reason")?,
        },
        hash: read_hash(&mut row, "hash")?,
    })
}

/// Appends an entry within an open transaction.
pub(crate) async fn append(db: &mut Connection, entry: &AuditEntry) -> Result<()> {
    if db.hands_over() {
        return handover::hand(db, Kind::Audit, &entry.id.to_string(), entry.org, entry.at, entry).await;
    }
    let fail = || Error::database("writing the audit log");
    let org = entry.org.to_string();
    query("INSERT INTO audit_head (org, seq, hash) VALUES ($1, 0, $2) ON CONFLICT (org) DO NOTHING")
        .bind(org.clone())
        .bind(START.to_vec())
        .execute(&mut *db)
        .await
        .map_err(fail())?;
    // The guarded update is the lock: the next writer of this chain waits here until this transaction is over.
    let head = query("UPDATE audit_head SET seq = seq + 1 WHERE org = $1 RETURNING seq, hash")
        .bind(org.clone())
        .fetch_one(&mut *db)
        .await
        .map_err(fail())?;
    let mut head = Reader::new(&head);
    let seq = head.count("seq")?;
    let before = read_hash(&mut head, "hash")?;
    let hash = hash(&before, seq, entry);
    query(
        "INSERT INTO audit (org, seq, id, at, actor, action, resource, request, address, before, after, reason, hash) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
    )
    .bind(org.clone())
    .bind(big(seq))
    .bind(entry.id.to_string())
    .bind(entry.at.as_micros())
    .bind(entry.actor.clone())
    .bind(entry.action.clone())
    .bind(entry.resource.clone())
    .bind(entry.request.clone())
    .bind(entry.address.clone())
    .bind(entry.before.map(|digest| digest.to_vec()))
    .bind(entry.after.map(|digest| digest.to_vec()))
    .bind(entry.reason.clone())
    .bind(hash.to_vec())
    .execute(&mut *db)
    .await
    .map_err(fail())?;
    query("UPDATE audit_head SET hash = $1 WHERE org = $2 AND seq = $3")
        .bind(hash.to_vec())
        .bind(org)
        .bind(big(seq))
        .execute(&mut *db)
        .await
        .map_err(fail())?;
    match outbox::of_entry(entry) {
        Some(happening) => outbox::note(db, happening).await,
        None => Ok(()),
    }
}

impl Store {
    /// Writes an entry about something that is no change of the store: a sign-in, a refusal.
    ///
    /// # Errors
    /// The database failed.
    pub async fn audit_append(&self, entry: AuditEntry) -> Result<()> {
        self.write(move |db| {
            let entry = entry.clone();
            Box::pin(async move { append(db, &entry).await })
        })
        .await
    }

    /// Entries after `after`, in order, up to `limit`.
    ///
    /// # Errors
    /// The database failed.
    pub async fn audit_read(&self, org: OrgId, after: u64, limit: u32) -> Result<Vec<AuditRow>> {
        let rows = query(
            "SELECT seq, org, id, at, actor, action, resource, request, address, before, after, reason, hash FROM audit \
             WHERE org = $1 AND seq > $2 ORDER BY seq LIMIT $3",
        )
        .bind(org.to_string())
        .bind(big(after))
        .bind(i64::from(limit))
        .fetch_all(self.readers())
        .await
        .map_err(Error::database("reading the audit log"))?;
        rows.iter().map(read).collect()
    }

    /// Entries before `before`, newest first, up to `limit`.
    ///
    /// # Errors
    /// The database failed.
    pub async fn audit_list(
        &self,
        org: OrgId,
        filter: &AuditFilter,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Vec<AuditRow>> {
        let mut sql = crate::sql::Builder::new(
            "SELECT seq, org, id, at, actor, action, resource, request, address, before, after, reason, hash FROM audit \
             WHERE org = ",
        );
        sql.push_bind(org.to_string()).push(" AND seq < ").push_bind(before.map_or(i64::MAX, big));
        let conditions = [
            (" AND actor = ", &filter.actor),
            (" AND action = ", &filter.action),
            (" AND resource = ", &filter.resource),
        ];
        for (condition, value) in conditions {
            if let Some(value) = value {
                sql.push(condition).push_bind(value.clone());
            }
        }
        sql.push(" ORDER BY seq DESC LIMIT ").push_bind(i64::from(limit));
        let rows =
            sql.build().fetch_all(self.readers()).await.map_err(Error::database("listing the audit log"))?;
        rows.iter().map(read).collect()
    }

    /// The end of the organisation's chain: its place and hash. None while there is no entry.
    ///
    /// # Errors
    /// The database failed.
    pub async fn audit_head(&self, org: OrgId) -> Result<Option<(u64, Hash)>> {
        let row = query("SELECT seq, hash FROM audit_head WHERE org = $1")
            .bind(org.to_string())
            .fetch_optional(self.readers())
            .await
            .map_err(Error::database("reading the audit log"))?;
        row.map(|row| {
            let mut row = Reader::new(&row);
            Ok((row.count("seq")?, read_hash(&mut row, "hash")?))
        })
        .transpose()
    }

    /// Organisations whose chain went on since its last signed end.
    ///
    /// # Errors
    /// The database failed.
    pub async fn audit_unsealed(&self) -> Result<Vec<OrgId>> {
        let rows = query(
            "SELECT org FROM audit_head h WHERE seq > COALESCE((SELECT MAX(s.seq) FROM audit_seal s WHERE s.org = h.org), 0)",
        )
        .fetch_all(self.readers())
        .await
        .map_err(Error::database("listing chains of the audit log"))?;
        rows.iter().map(|row| Reader::new(row).parsed("org")).collect()
    }

    /// Keeps a signed end. Another one at the same place stands.
    ///
    /// # Errors
    /// The database failed.
    pub async fn audit_seal(&self, org: OrgId, seal: AuditSeal) -> Result<()> {
        self.write(move |db| {
            let seal = seal.clone();
            Box::pin(async move {
                query(
                    "INSERT INTO audit_seal (org, seq, hash, at, signature) VALUES ($1, $2, $3, $4, $5) \
                     ON CONFLICT (org, seq) DO NOTHING",
                )
                .bind(org.to_string())
                .bind(big(seal.seq))
                .bind(seal.hash.to_vec())
                .bind(seal.at.as_micros())
                .bind(seal.signature)
                .execute(db)
                .await
                .map_err(Error::database("signing the audit log"))?;
                Ok(())
            })
        })
        .await
    }

    /// The signed ends of a chain, in order.
    ///
    /// # Errors
    /// The database failed.
    pub async fn audit_seals(&self, org: OrgId) -> Result<Vec<AuditSeal>> {
        let rows = query("SELECT seq, hash, at, signature FROM audit_seal WHERE org = $1 ORDER BY seq")
            .bind(org.to_string())
            .fetch_all(self.readers())
            .await
            .map_err(Error::database("reading the audit log's signatures"))?;
        rows.iter()
            .map(|row| {
                let mut row = Reader::new(row);
                Ok(AuditSeal {
                    seq: row.count("seq")?,
                    hash: read_hash(&mut row, "hash")?,
                    at: row.time("at")?,
                    signature: row.bytes("signature")?.to_vec(),
                })
            })
            .collect()
    }
}
