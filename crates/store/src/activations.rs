//! Which release of a project is active, and the history of that: one transaction a flip.
//!
//! The history is a list that only grows. Each entry knows the one that a rollback from it leads back to, so going back twice goes
//! back two steps, and what was rolled away from is not come back to.

use karta_types::release::{Activation, ActivationKind};
use karta_types::{AuditId, OrgId, ProjectId, Timestamp};

use crate::releases::lock;
use crate::row::{Reader, big};
use crate::sql::{Connection, Row, query};
use crate::{AuditEntry, Error, Result, Store};

/// What became of a wish to make a release active.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flip {
    /// It is active now, and was not before.
    Made(Activation),
    /// The canary began, was changed or is over: nothing else is active than before.
    Canary,
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
    /// This one, for so many of a hundred new sessions.
    Canary {
        /// The release.
        version: u64,
        /// How many, 1 to 99.
        percent: u8,
    },
    /// The canary, for all.
    Promote,
    /// No canary any more.
    Abort,
}

fn read(row: &Row) -> Result<(Activation, Option<u64>)> {
    let mut row = Reader::new(row);
    let (seq, version) = (row.count("seq")?, row.count("version")?);
    let kind = match row.text("kind")?.as_str() {
        "activate" => ActivationKind::Activate,
        "rollback" => ActivationKind::Rollback,
        "promote" => ActivationKind::Promote,
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
    // The row is locked from here on: of two flips at once, the second sees what the first did.
    if !lock(db, org, project).await? {
        return Ok(Flip::Missing);
    }
    let canary = canary(db, org, project).await?;
    let now = entry(db, org, project, Entry::Newest).await?;
    let top = now.as_ref().map(|(now, _)| now.seq);
    let (version, kind, below) = match wanted {
        Wanted::Version(version) => (version, ActivationKind::Activate, top),
        Wanted::Promote => match canary {
            Some(version) => (version, ActivationKind::Promote, top),
            None => return Ok(Flip::Nothing),
        },
        Wanted::Back(version) => match entry(db, org, project, Entry::NewestOf(version)).await? {
            Some((target, below)) => (target.version, ActivationKind::Rollback, below),
            None => return Ok(Flip::Nothing),
        },
        Wanted::Previous => match previous(db, org, project, now.as_ref()).await? {
            Some((target, below)) => (target.version, ActivationKind::Rollback, below),
            None => return Ok(Flip::Nothing),
        },
        Wanted::Abort => {
            let Some(version) = canary else { return Ok(Flip::Nothing) };
            set_canary(db, org, project, None, told.at).await?;
            told.resource = format!("{project}/{version}");
            crate::audit::append(db, &told).await?;
            return Ok(Flip::Canary);
        }
        Wanted::Canary { version, percent } => {
            if now.as_ref().is_none_or(|(now, _)| now.version == version) {
                return Ok(Flip::Nothing);
            }
            match fitness(db, org, project, version).await? {
                Some(true) => {}
                Some(false) => return Ok(Flip::Unfit),
                None => return Ok(Flip::Missing),
            }
            set_canary(db, org, project, Some((version, percent, canary == Some(version))), told.at).await?;
            told.resource = format!("{project}/{version}");
            crate::audit::append(db, &told).await?;
            return Ok(Flip::Canary);
        }
    };
    if let Some((now, _)) = now.as_ref().filter(|(now, _)| now.version == version) {
        return Ok(Flip::Already(now.clone()));
    }
    match fitness(db, org, project, version).await? {
        Some(true) => {}
        Some(false) => return Ok(Flip::Unfit),
        None => return Ok(Flip::Missing),
    }
    let activation = Activation {
        seq: top.unwrap_or(0) + 1,
        version,
        kind,
        by: told.actor.clone(),
        reason: told.reason.clone(),
        at: told.at,
    };
    make(db, org, project, &activation, below).await?;
    if let Some(ended) = canary.filter(|canary| *canary != version) {
        // Another release took all sessions: what was tried on a part of them is over.
        let at = AuditId::from_u128(told.id.as_u128() ^ 1);
        let ended = AuditEntry {
            id: at,
            action: "canary.abort".to_owned(),
            resource: format!("{project}/{ended}"),
            ..told.clone()
        };
        crate::audit::append(db, &ended).await?;
    }
    told.resource = format!("{project}/{version}");
    crate::audit::append(db, &told).await?;
    Ok(Flip::Made(activation))
}

/// The canary's version.
async fn canary(db: &mut Connection, org: OrgId, project: ProjectId) -> Result<Option<u64>> {
    let row = query("SELECT canary_version FROM project WHERE org = $1 AND id = $2")
        .bind(org.to_string())
        .bind(project.to_string())
        .fetch_optional(db)
        .await
        .map_err(Error::database("reading the canary"))?;
    row.as_ref().map_or(Ok(None), |row| Reader::new(row).maybe_count("canary_version"))
}

/// Sets the canary: version, percent, and whether it was the canary before, so that its sessions stay its own.
async fn set_canary(
    db: &mut Connection,
    org: OrgId,
    project: ProjectId,
    canary: Option<(u64, u8, bool)>,
    at: Timestamp,
) -> Result<()> {
    let since = canary.map(|_| at.as_micros());
    let again = canary.is_some_and(|(_, _, again)| again);
    query(
        "UPDATE project SET canary_version = $1, canary_percent = $2, \
         canary_since = CASE WHEN $3 = 1 THEN canary_since ELSE $4 END WHERE org = $5 AND id = $6",
    )
    .bind(canary.map(|(version, _, _)| big(version)))
    .bind(canary.map(|(_, percent, _)| i64::from(percent)))
    .bind(i64::from(again))
    .bind(since)
    .bind(org.to_string())
    .bind(project.to_string())
    .execute(db)
    .await
    .map_err(Error::database("setting the canary"))?;
    Ok(())
}

/// Whether turns can run on a release; none if there is no such release.
pub(crate) async fn fitness(
    db: &mut Connection,
    org: OrgId,
    project: ProjectId,
    version: u64,
) -> Result<Option<bool>> {
    let row = query("SELECT state FROM project_release WHERE org = $1 AND project = $2 AND version = $3")
        .bind(org.to_string())
        .bind(project.to_string())
        .bind(big(version))
        .fetch_optional(db)
        .await
        .map_err(Error::database("reading a release"))?;
    let state = row.as_ref().map(|row| Reader::new(row).text("state")).transpose()?;
    Ok(state.map(|state| matches!(state.as_str(), "ready" | "active" | "superseded" | "preview")))
}

/// The activation that a rollback leads back to: the next one below whose release can still run.
async fn previous(
    db: &mut Connection,
    org: OrgId,
    project: ProjectId,
    now: Option<&(Activation, Option<u64>)>,
) -> Result<Option<(Activation, Option<u64>)>> {
    let Some((active, mut below)) = now.map(|(now, below)| (now.version, *below)) else { return Ok(None) };
    // Places only get smaller on the way down.
    while let Some(place) = below {
        let Some(found) = entry(db, org, project, Entry::At(place)).await? else { return Ok(None) };
        below = found.1;
        let version = found.0.version;
        if version != active && fitness(db, org, project, version).await? == Some(true) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Writes a flip: the releases' states, the project's pointer, the history.
async fn make(
    db: &mut Connection,
    org: OrgId,
    project: ProjectId,
    activation: &Activation,
    below: Option<u64>,
) -> Result<()> {
    let fail = || Error::database("activating a release");
    for sql in [
        "UPDATE project_release SET state = 'superseded' WHERE org = $1 AND project = $2 AND version <> $3 AND state = 'active'",
        "UPDATE project_release SET state = 'active' WHERE org = $1 AND project = $2 AND version = $3",
        "UPDATE project SET active_version = $3, canary_version = NULL, canary_percent = NULL, canary_since = NULL \
         WHERE org = $1 AND id = $2",
    ] {
        query(sql)
            .bind(org.to_string())
            .bind(project.to_string())
            .bind(big(activation.version))
            .execute(&mut *db)
            .await
            .map_err(fail())?;
    }
    let kind = match activation.kind {
        ActivationKind::Activate => "activate",
        ActivationKind::Rollback => "rollback",
        ActivationKind::Promote => "promote",
    };
    query(
        "INSERT INTO release_activation (project, seq, org, version, kind, below, actor, reason, at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(project.to_string())
    .bind(big(activation.seq))
    .bind(org.to_string())
    .bind(big(activation.version))
    .bind(kind)
    .bind(below.map(big))
    .bind(activation.by.clone())
    .bind(activation.reason.clone())
    .bind(activation.at.as_micros())
    .execute(db)
    .await
    .map_err(fail())?;
    Ok(())
}
