//! What builds print, and what of a project's turns is told beside it.

use karta_types::{OrgId, ProjectId, Timestamp};

use crate::row::{Reader, big};
use crate::sql::{Builder, Row, query};
use crate::turns::TurnRow;
use crate::{Error, Result, Store};

/// A line that a build printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildLine {
    /// The release.
    pub version: u64,
    /// Its place among the build's lines, from 1.
    pub seq: u64,
    /// What it says.
    pub text: String,
    /// When it was printed.
    pub at: Timestamp,
}

/// Which part of a project's log is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// From this moment on, oldest first.
    At(Timestamp),
    /// The newest, newest first.
    Newest,
}

fn read(row: &Row) -> Result<BuildLine> {
    let mut row = Reader::new(row);
    Ok(BuildLine {
        version: row.count("version")?,
        seq: row.count("seq")?,
        text: row.text("text")?,
        at: row.time("at")?,
    })
}

/// Asks for a part of rows that have their moment in the first of these columns; the others tell those of one moment apart.
fn part(query: &mut Builder, columns: [&'static str; 3], since: Since, before: Timestamp, limit: u32) {
    let [moment, one, other] = columns;
    query.push(" AND ").push(moment).push(" < ").push_bind(before.as_micros());
    let direction = match since {
        Since::At(at) => {
            query.push(" AND ").push(moment).push(" >= ").push_bind(at.as_micros());
            ""
        }
        Since::Newest => " DESC",
    };
    query.push(" ORDER BY ").push(moment).push(direction);
    for column in [one, other] {
        query.push(", ").push(column).push(direction);
    }
    query.push(" LIMIT ").push_bind(i64::from(limit));
}

impl Store {
    /// Adds lines to what a build printed. A line that is there already stays.
    ///
    /// # Errors
    /// The database failed.
    pub async fn build_lines_add(&self, org: OrgId, project: ProjectId, lines: Vec<BuildLine>) -> Result<()> {
        self.write(move |db| {
            let lines = lines.clone();
            Box::pin(async move {
                for line in lines {
                    query(
                        "INSERT INTO build_line (project, version, seq, org, text, at) VALUES ($1, $2, $3, $4, $5, $6) \
                         ON CONFLICT (project, version, seq) DO NOTHING",
                    )
                    .bind(project.to_string())
                    .bind(big(line.version))
                    .bind(big(line.seq))
                    .bind(org.to_string())
                    .bind(line.text)
                    .bind(line.at.as_micros())
                    .execute(&mut *db)
                    .await
                    .map_err(Error::database("keeping what a build printed"))?;
                }
                Ok(())
            })
        })
        .await
    }

    /// What builds of a project printed, before a moment.
    ///
    /// # Errors
    /// The database failed.
    pub async fn build_lines(
        &self,
        org: OrgId,
        project: ProjectId,
        version: Option<u64>,
        since: Since,
        before: Timestamp,
        limit: u32,
    ) -> Result<Vec<BuildLine>> {
        let mut query = Builder::new("SELECT version, seq, text, at FROM build_line WHERE org = ");
        query.push_bind(org.to_string()).push(" AND project = ").push_bind(project.to_string());
        if let Some(version) = version {
            query.push(" AND version = ").push_bind(big(version));
        }
        part(&mut query, ["at", "version", "seq"], since, before, limit);
        let rows = query.build().fetch_all(self.readers()).await;
        rows.map_err(Error::database("reading what builds printed"))?.iter().map(read).collect()
    }

    /// Turns of a project that ended before a moment.
    ///
    /// # Errors
    /// The database failed.
    pub async fn turns_ended(
        &self,
        org: OrgId,
        project: ProjectId,
        version: Option<u64>,
        since: Since,
        before: Timestamp,
        limit: u32,
    ) -> Result<Vec<TurnRow>> {
        let mut query = Builder::new(crate::turns::SELECT);
        query.push("WHERE ended = 1 AND org = ").push_bind(org.to_string());
        query.push(" AND session IN (SELECT id FROM session WHERE org = ").push_bind(org.to_string());
        query.push(" AND project = ").push_bind(project.to_string()).push(")");
        if let Some(version) = version {
            query.push(" AND release_version = ").push_bind(big(version));
        }
        part(&mut query, ["ended_at", "id", "session"], since, before, limit);
        let rows = query.build().fetch_all(self.readers()).await;
        rows.map_err(Error::database("listing turns"))?.iter().map(crate::turns::read).collect()
    }
}
