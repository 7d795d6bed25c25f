//! Which release of a project is active, and the history of that: one transaction a flip.
//!
//! The history is a list that only grows. Each entry knows the one that a rollback from it leads back to, so going back twice goes
//! back two steps, and what was rolled away from is not come back to.

use karta_types::release::{Activation, ActivationKind};
use karta_types::{OrgId, ProjectId};

use crate::row::{Reader, big};
use crate::sql::{Connection, Row, query};
use crate::{AuditEntry, Error, Result, Store};

/// What became of a wish to make a release active.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flip {
    /// It is active now, and was not before.
    Made(Activation),
    /// It was active already; nothing changed.
    Already(Activation),
    /// There is no such release.
    Missing,
    /// There is one that can't run.
    Unfit,
    /// There is nothing to go back to.
    Nothing,
}

/// Which release is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// This one.
    Version(u64),
    /// The one that was active before.
    Previous,
    /// This one, which must have been active before.
    Back(u64),
}

fn read(row: &Row) -> Result<(Activation, Option<u64>)> {
    let mut row = Reader::new(row);
    let (seq, version) = (row.count("seq")?, row.count("version")?);
    let kind = match row.text("kind")?.as_str() {
        "activate" => ActivationKind::Activate,
        "rollback" => ActivationKind::Rollback,
        _ => return Err(Error::Corrupt("kind")),
    };
    let below = row.maybe_count("below")?;
    let (by, reason, at) = (row.text("actor")?, row.maybe_text("reason")?, row.time("at")?);
    Ok((Activation { seq, version, kind, by, reason, at }, below))
}

impl Store {
    /// Makes a release the active one, in one flip, and tells the audit log if that changed something. The entry's resource is set
    /// here, as project and version.
    ///
    /// # Errors
    /// The database failed.
    pub async fn project_activate(
        &self,
        org: OrgId,
        project: ProjectId,
        wanted: Wanted,
        told: AuditEntry,
    ) -> Result<Flip> {
        self.write(move |db| {
            let told = told.clone();
            Box::pin(async move { flip(db, org, project, wanted, told).await })
        })
        .await
    }

    /// The project's activations, newest first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn activation_list(
        &self,
        org: OrgId,
        project: ProjectId,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Vec<Activation>> {
        let rows = query(
            "SELECT seq, version, kind, below, actor, reason, at FROM release_activation \
             WHERE org = $1 AND project = $2 AND seq < $3 ORDER BY seq DESC LIMIT $4",
        )
        .bind(org.to_string())
        .bind(project.to_string())
        .bind(before.map_or(i64::MAX, big))
        .bind(i64::from(limit))
        .fetch_all(self.readers())
        .await
        .map_err(Error::database("listing activations"))?;
        rows.iter().map(|row| read(row).map(|(activation, _)| activation)).collect()
    }

    /// The release that `actor` made active last, if it ever did.
    ///
    /// # Errors
    /// The database failed.
    pub async fn activation_last_by(
        &self,
        org: OrgId,
        project: ProjectId,
        actor: &str,
    ) -> Result<Option<u64>> {
        let row = query(
            "SELECT version FROM release_activation WHERE org = $1 AND project = $2 AND actor = $3 \
             ORDER BY seq DESC LIMIT 1",
        )
        .bind(org.to_string())
        .bind(project.to_string())
        .bind(actor.to_owned())
        .fetch_optional(self.readers())
        .await
        .map_err(Error::database("reading activations"))?;
        row.as_ref().map(|row| Reader::new(row).count("version")).transpose()
    }
}

/// One entry of a project's history.
#[derive(Clone, Copy)]
enum Entry {
    Newest,
    NewestOf(u64),
    At(u64),
}

/// The entry, with the place of the one below it.
async fn entry(
    db: &mut Connection,
    org: OrgId,
    project: ProjectId,
    which: Entry,
) -> Result<Option<(Activation, Option<u64>)>> {
    // Places have no gaps: the last one up to a place is the one at it.
    const UP_TO: &str = "SELECT seq, version, kind, below, actor, reason, at FROM release_activation \
         WHERE org = $1 AND project = $2 AND seq <= $3 ORDER BY seq DESC LIMIT 1";
    const OF: &str = "SELECT seq, version, kind, below, actor, reason, at FROM release_activation \
         WHERE org = $1 AND project = $2 AND version = $3 ORDER BY seq DESC LIMIT 1";
    let (sql, value) = match which {
        Entry::Newest => (UP_TO, i64::MAX),
        Entry::At(seq) => (UP_TO, big(seq)),
        Entry::NewestOf(version) => (OF, big(version)),
    };
    let row = query(sql)
        .bind(org.to_string())
        .bind(project.to_string())
        .bind(value)
        .fetch_optional(db)
        .await
        .map_err(Error::database("reading activations"))?;
    row.as_ref().map(read).transpose()
}

/// The flip itself: everything it reads and writes is one transaction, the audit entry included.
async fn flip(
    db: &mut Connection,
    org: OrgId,
    project: ProjectId,
    wanted: Wanted,
    mut told: AuditEntry,
) -> Result<Flip> {
    let fail = || Error::database("activating a release");
    // The row is locked from here on: of two flips at once, the second sees what the first did.
    let locked = query("UPDATE project SET active_version = active_version WHERE org = $1 AND id = $2")
        .bind(org.to_string())
        .bind(project.to_string())
        .execute(&mut *db)
        .await
        .map_err(fail())?;
    if locked.rows_affected() == 0 {
        return Ok(Flip::Missing);
    }
    let now = entry(db, org, project, Entry::Newest).await?;
    let back = match (wanted, &now) {
        (Wanted::Back(version), _) => entry(db, org, project, Entry::NewestOf(version)).await?,
        (Wanted::Previous, Some((_, Some(below)))) => entry(db, org, project, Entry::At(*below)).await?,
        (Wanted::Version(_) | Wanted::Previous, _) => None,
    };
    let (version, kind, below) = match (wanted, back) {
        (Wanted::Version(version), _) => {
            (version, ActivationKind::Activate, now.as_ref().map(|(now, _)| now.seq))
        }
        (_, Some((target, below))) => (target.version, ActivationKind::Rollback, below),
        (_, None) => return Ok(Flip::Nothing),
    };
    if let Some((now, _)) = now.as_ref().filter(|(now, _)| now.version == version) {
        return Ok(Flip::Already(now.clone()));
    }
    let made = query(
        "UPDATE project_release SET state = 'active' WHERE org = $1 AND project = $2 AND version = $3 \
         AND state IN ('ready', 'active', 'superseded')",
    )
    .bind(org.to_string())
    .bind(project.to_string())
    .bind(big(version))
    .execute(&mut *db)
    .await
    .map_err(fail())?;
    if made.rows_affected() == 0 {
        let known =
            query("SELECT version FROM project_release WHERE org = $1 AND project = $2 AND version = $3")
                .bind(org.to_string())
                .bind(project.to_string())
                .bind(big(version))
                .fetch_optional(&mut *db)
                .await
                .map_err(fail())?;
        return Ok(if known.is_some() { Flip::Unfit } else { Flip::Missing });
    }
    query(
        "UPDATE project_release SET state = 'superseded' WHERE org = $1 AND project = $2 \
         AND version <> $3 AND state = 'active'",
    )
    .bind(org.to_string())
    .bind(project.to_string())
    .bind(big(version))
    .execute(&mut *db)
    .await
    .map_err(fail())?;
    query("UPDATE project SET active_version = $1 WHERE org = $2 AND id = $3")
        .bind(big(version))
        .bind(org.to_string())
        .bind(project.to_string())
        .execute(&mut *db)
        .await
        .map_err(fail())?;
    let seq = now.map_or(0, |(now, _)| now.seq) + 1;
    let activation =
        Activation { seq, version, kind, by: told.actor.clone(), reason: told.reason.clone(), at: told.at };
    query(
        "INSERT INTO release_activation (project, seq, org, version, kind, below, actor, reason, at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(project.to_string())
    .bind(big(seq))
    .bind(org.to_string())
    .bind(big(version))
    .bind(if kind == ActivationKind::Rollback { "rollback" } else { "activate" })
    .bind(below.map(big))
    .bind(activation.by.clone())
    .bind(activation.reason.clone())
    .bind(activation.at.as_micros())
    .execute(&mut *db)
    .await
    .map_err(fail())?;
    told.resource = format!("{project}/{version}");
    crate::audit::append(db, &told).await?;
    Ok(Flip::Made(activation))
}
