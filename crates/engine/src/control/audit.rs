//! The audit log: written with what it tells, read, exported, checked.

use karta_store::{AuditEntry, AuditFilter, AuditRow, AuditSeal, Hash};
use karta_types::audit::{Entry, Fault, Verdict};
use karta_types::page::Page;
use karta_types::{AuditId, Clock, OrgId, Rng};
use serde::Serialize;
use std::fmt::Display;

use crate::{Actor, Engine, Error, Principal, Result};

/// Rows read at once.
const READ: u32 = 1000;

/// Which entries.
pub type Filter = AuditFilter;

/// An entry about what the platform, or whoever runs it, does in an organisation.
pub(crate) fn by_platform(
    (clock, rng): (&dyn Clock, &dyn Rng),
    org: OrgId,
    action: &str,
    resource: impl Display,
    reason: Option<String>,
) -> AuditEntry {
    AuditEntry {
        id: AuditId::new(clock, rng),
        org,
        at: clock.now(),
        actor: Actor::System.to_string(),
        action: action.to_owned(),
        resource: resource.to_string(),
        request: None,
        address: None,
        before: None,
        after: None,
        reason,
    }
}

impl Engine {
    /// An entry about what this caller does now. It is written by the store, in the transaction of the change.
    pub(crate) fn told(&self, who: &Principal, action: &str, resource: impl Display) -> AuditEntry {
        AuditEntry {
            id: AuditId::new(self.clock(), self.rng()),
            org: who.org,
            at: self.clock().now(),
            actor: who.actor.to_string(),
            action: action.to_owned(),
            resource: resource.to_string(),
            request: who.origin.request.clone(),
            address: who.origin.address.clone(),
            before: None,
            after: None,
            reason: None,
        }
    }

    /// The organisation's entries, newest first.
    ///
    /// # Errors
    /// The store can't read.
    pub async fn audit(
        &self,
        who: &Principal,
        filter: &Filter,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Page<Entry>> {
        let rows = self.store().audit_list(who.org, filter, before, limit + 1).await?;
        let more = rows.len() > limit as usize;
        let data: Vec<_> = rows.into_iter().take(limit as usize).map(show).collect();
        let next_cursor = data.last().filter(|_| more).map(|last| last.seq.to_string());
        Ok(Page { data, next_cursor })
    }

    /// The organisation's entries after a place, oldest first: an export reads on until it gets none.
    ///
    /// # Errors
    /// The store can't read.
    pub async fn audit_after(&self, who: &Principal, after: u64) -> Result<Vec<Entry>> {
        Ok(self.store().audit_read(who.org, after, READ).await?.into_iter().map(show).collect())
    }

    /// Checks the organisation's chain from its first row to its end, and every signed end.
    ///
    /// # Errors
    /// The store can't read.
    pub async fn audit_verify(&self, who: &Principal) -> Result<Verdict> {
        // The end first: rows that come while we read are not missed, they are later.
        let head = self.store().audit_head(who.org).await?;
        let seals = self.store().audit_seals(who.org).await?;
        let mut check = Check::default();
        loop {
            let rows = self.store().audit_read(who.org, check.seq, READ).await?;
            let Some(last) = rows.last().map(|row| row.seq) else { break };
            for row in rows {
                check.row(&row, &seals);
            }
            check.seq = last;
        }
        for seal in &seals {
            let message = AuditSeal::message(who.org, seal.seq, &seal.hash, seal.at);
            if !self.keyring().signed(&message, &seal.signature) {
                check.fault(seal.seq, "the signature of this end is not this installation's");
            }
            if seal.seq > check.seq {
                check.fault(seal.seq, "rows up to this signed end are missing");
            }
        }
        if let Some((seq, hash)) = head {
            if seq > check.seq {
                check.fault(seq, "rows up to the recorded end are missing");
            } else if seq == check.seq && hash != check.hash {
                check.fault(seq, "the recorded end has another hash");
            }
        }
        Ok(Verdict {
            intact: check.faults.is_empty(),
            rows: check.rows,
            seals: seals.len() as u64,
            faults: check.faults,
        })
    }

    /// Signs the end of each chain that went on since it was last signed.
    ///
    /// # Errors
    /// The store can't be written.
    pub async fn audit_seal(&self) -> Result<u64> {
        let mut signed = 0;
        for org in self.store().audit_unsealed().await? {
            self.seal_one(org).await?;
            signed += 1;
        }
        Ok(signed)
    }

    async fn seal_one(&self, org: OrgId) -> Result<()> {
        let Some((seq, hash)) = self.store().audit_head(org).await? else { return Ok(()) };
        let at = self.clock().now();
        let signature = self.keyring().sign(&AuditSeal::message(org, seq, &hash, at));
        Ok(self.store().audit_seal(org, AuditSeal { seq, hash, at, signature }).await?)
    }
}

#[derive(Default)]
struct Check {
    seq: u64,
    hash: Hash,
    rows: u64,
    faults: Vec<Fault>,
}

impl Check {
    fn row(&mut self, row: &AuditRow, seals: &[AuditSeal]) {
        let expected = self.seq + 1;
        if row.seq != expected {
            self.fault(expected, format!("rows {expected} to {} are missing", row.seq - 1));
        } else if row.hash_after(&self.hash) != row.hash {
            self.fault(row.seq, "the row was changed, or is not where it was written");
        }
        if seals.iter().any(|seal| seal.seq == row.seq && seal.hash != row.hash) {
            self.fault(row.seq, "the row is not the one that was signed");
        }
        self.seq = row.seq;
        self.hash = row.hash;
        self.rows += 1;
    }

    fn fault(&mut self, seq: u64, what: impl Into<String>) {
        self.faults.push(Fault { seq, what: what.into() });
    }
}

fn show(row: AuditRow) -> Entry {
    let AuditRow { seq, entry, hash } = row;
    Entry {
        seq,
        id: entry.id,
        at: entry.at,
        actor: entry.actor,
        action: entry.action,
        resource: entry.resource,
        request_id: entry.request,
        address: entry.address,
        before: entry.before.as_ref().map(hex),
        after: entry.after.as_ref().map(hex),
        reason: entry.reason,
        hash: hex(&hash),
    }
}

fn hex(hash: &Hash) -> String {
    use std::fmt::Write as _;
    hash.iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a string can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The digest of something that changed, for an entry's `before` and `after`.
pub(crate) fn digest(what: &impl Serialize) -> Result<Hash> {
    let bytes = serde_json::to_vec(what).map_err(|error| Error::internal("describing a change", error))?;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes);
    let mut hash = [0; 32];
    hash.copy_from_slice(digest.as_ref());
    Ok(hash)
}
