//! What a data plane of its own hands over to the control plane.
//!
//! It has rights on the tables of sessions and projects alone ([`grants`]). Entries of the audit log, what happened, and usage that the
//! control plane was not there to take are rows in `handover`, written in the transaction of what they tell; the control plane takes
//! them in the transaction of what they become. Nothing is lost when either ends at any point, and nothing counts twice.

use std::sync::Arc;

use karta_types::{OrgId, Timestamp};
use serde::Serialize;

use crate::row::Reader;
use crate::sql::{Connection, query};
use crate::usage::UsageRow;
use crate::webhooks::outbox::{self, Happening};
use crate::{AuditEntry, Error, Result, Store};

/// Rows taken in one step.
const STEP: i64 = 200;
/// The tables that are a data plane's.
const TABLES: [&str; 14] = [
    "project",
    "project_release",
    "release_activation",
    "build_line",
    "content",
    "layer",
    "session",
    "session_label",
    "turn",
    "journal",
    "input",
    "reply",
    "state_key",
    "checkpoint",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Audit,
    Happening,
    Usage,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Audit => "audit",
            Self::Happening => "happening",
            Self::Usage => "usage",
        }
    }
}

/// The statements that give a role of PostgreSQL what a data plane needs, and nothing else. The name is quoted.
pub fn grants(role: &str) -> String {
    let role = format!("\"{}\"", role.replace('"', "\"\""));
    format!(
        "GRANT SELECT, INSERT, UPDATE, DELETE ON {} TO {role};\nGRANT INSERT, SELECT (id) ON handover TO {role};\n\
         GRANT SELECT ON migration TO {role};\n",
        TABLES.join(", ")
    )
}

/// Hands something over.
pub(crate) async fn hand(
    db: &mut Connection,
    kind: Kind,
    id: &str,
    org: OrgId,
    at: Timestamp,
    body: &(impl Serialize + Sync),
) -> Result<()> {
    query(
        "INSERT INTO handover (id, org, kind, body, at) VALUES ($1, $2, $3, $4, $5) ON CONFLICT (id) DO NOTHING",
    )
    .bind(format!("{}:{id}", kind.as_str()))
    .bind(org.to_string())
    .bind(kind.as_str())
    .bind(crate::row::json(body))
    .bind(at.as_micros())
    .execute(db)
    .await
    .map_err(Error::database("handing over to the control plane"))?;
    Ok(())
}

/// What was handed over.
enum Thing {
    Audit(AuditEntry),
    Happening(Happening),
    Usage(UsageRow),
}

impl Thing {
    fn read(kind: &str, body: &str) -> Result<Self> {
        let wrong = |_| Error::Corrupt("handover");
        match kind {
            "audit" => Ok(Self::Audit(serde_json::from_str(body).map_err(wrong)?)),
            "happening" => Ok(Self::Happening(serde_json::from_str(body).map_err(wrong)?)),
            "usage" => Ok(Self::Usage(serde_json::from_str(body).map_err(wrong)?)),
            _ => Err(Error::Corrupt("handover")),
        }
    }
}

async fn take(db: &mut Connection) -> Result<u64> {
    let rows =
        query("SELECT id, kind, body FROM handover WHERE kind <> 'unreadable' ORDER BY at, id LIMIT $1")
            .bind(STEP)
            .fetch_all(&mut *db)
            .await
            .map_err(Error::database("reading what was handed over"))?;
    for row in &rows {
        let mut row = Reader::new(row);
        let (id, kind, body) = (row.text("id")?, row.text("kind")?, row.text("body")?);
        let taken = query("DELETE FROM handover WHERE id = $1")
            .bind(id.clone())
            .execute(&mut *db)
            .await
            .map_err(Error::database("taking what was handed over"))?;
        if taken.rows_affected() == 0 {
            // Another node took it.
            continue;
        }
        let Ok(thing) = Thing::read(&kind, &body) else {
            // Kept for whoever looks into it; what comes after it must not wait for that.
            query("INSERT INTO handover (id, org, kind, body, at) VALUES ($1, '', 'unreadable', $2, 0)")
                .bind(id)
                .bind(body)
                .execute(&mut *db)
                .await
                .map_err(Error::database("setting aside what can't be read"))?;
            continue;
        };
        match thing {
            Thing::Audit(entry) => crate::audit::append(db, &entry).await?,
            Thing::Happening(happening) => outbox::note(db, happening).await?,
            Thing::Usage(used) => {
                // Whether it was counted already makes no difference here.
                let _ = crate::ledger::settle(db, Arc::new(used)).await?;
            }
        }
    }
    Ok(rows.len() as u64)
}

impl Store {
    /// Hands over usage that the control plane could not be told. The same call again is a no-op.
    ///
    /// # Errors
    /// The database failed.
    pub async fn hand_over_usage(&self, used: UsageRow) -> Result<()> {
        self.write(move |db| {
            let used = used.clone();
            Box::pin(
                async move { hand(db, Kind::Usage, &used.id.to_string(), used.org, used.at, &used).await },
            )
        })
        .await
    }

    /// Takes what data planes handed over, of all organisations. Answers how much.
    ///
    /// # Errors
    /// The database failed.
    pub async fn take_over(&self) -> Result<u64> {
        let row = query(
            "SELECT COUNT(*) FROM (SELECT id FROM handover WHERE kind <> 'unreadable' LIMIT 1) AS waiting",
        )
        .fetch_one(self.readers())
        .await
        .map_err(Error::database("looking for what was handed over"))?;
        if Reader::new(&row).int("waiting")? == 0 {
            return Ok(0);
        }
        let mut all = 0;
        loop {
            let some = self.write(|db| Box::pin(take(db))).await?;
            all += some;
            if some == 0 {
                return Ok(all);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_can_not_be_more_than_a_name() {
        assert!(grants("a\"; DROP TABLE org; --").contains("TO \"a\"\"; DROP TABLE org; --\";"));
    }
}
