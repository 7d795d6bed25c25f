//! Secrets for the tools of projects, as sealed bytes. What is in them is not this crate's to know.

use karta_types::{OrgId, ProjectId, Timestamp};

use crate::row::Reader;
use crate::sql::{Row, query};
use crate::{AuditEntry, Error, Result, Store};

/// A secret of a project, sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolSecretRow {
    /// Whose it is.
    pub org: OrgId,
    /// Of which project.
    pub project: ProjectId,
    /// The variable that stands for it.
    pub name: String,
    /// The key-encryption key that its data key is wrapped by.
    pub kek: String,
    /// The wrapped data key.
    pub wrapped: Vec<u8>,
    /// The value, sealed with the data key.
    pub sealed: Vec<u8>,
    /// Who set it.
    pub created_by: String,
    /// When.
    pub created_at: Timestamp,
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT org, project, name, kek, wrapped, sealed, created_by, created_at FROM tool_secret ",
            $rest
        )
    };
}

fn read(row: &Row) -> Result<ToolSecretRow> {
    let mut row = Reader::new(row);
    Ok(ToolSecretRow {
        org: row.parsed("org")?,
        project: row.parsed("project")?,
        name: row.text("name")?,
        kek: row.text("kek")?,
        wrapped: row.bytes("wrapped")?.to_vec(),
        sealed: row.bytes("sealed")?.to_vec(),
        created_by: row.text("created_by")?,
        created_at: row.time("created_at")?,
    })
}

impl Store {
    /// Sets a secret of a project, in the place of the one before. Answers no when the project has `most` others already.
    ///
    /// # Errors
    /// The database failed.
    pub async fn tool_secret_set(&self, row: ToolSecretRow, most: u32, told: AuditEntry) -> Result<bool> {
        self.write_told(
            told,
            |set| *set,
            move |db| {
                let row = row.clone();
                Box::pin(async move {
                    let fail = || Error::database("setting a secret");
                    let counted = query(
                        "SELECT COUNT(*) FROM tool_secret WHERE org = $1 AND project = $2 AND name <> $3",
                    )
                    .bind(row.org.to_string())
                    .bind(row.project.to_string())
                    .bind(row.name.clone())
                    .fetch_one(&mut *db)
                    .await
                    .map_err(fail())?;
                    if Reader::new(&counted).int("count")? >= i64::from(most) {
                        return Ok(false);
                    }
                    query("DELETE FROM tool_secret WHERE org = $1 AND project = $2 AND name = $3")
                        .bind(row.org.to_string())
                        .bind(row.project.to_string())
                        .bind(row.name.clone())
                        .execute(&mut *db)
                        .await
                        .map_err(fail())?;
                    query(
                        "INSERT INTO tool_secret (org, project, name, kek, wrapped, sealed, created_by, created_at) \
                         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
                    )
                    .bind(row.org.to_string())
                    .bind(row.project.to_string())
                    .bind(row.name)
                    .bind(row.kek)
                    .bind(row.wrapped)
                    .bind(row.sealed)
                    .bind(row.created_by)
                    .bind(row.created_at.as_micros())
                    .execute(db)
                    .await
                    .map_err(Error::unique("setting a secret", "the secret"))?;
                    Ok(true)
                })
            },
        )
        .await
    }

    /// The project's secrets, by name.
    ///
    /// # Errors
    /// The database failed.
    pub async fn tool_secret_list(&self, org: OrgId, project: ProjectId) -> Result<Vec<ToolSecretRow>> {
        let rows = query(select!("WHERE org = $1 AND project = $2 ORDER BY name"))
            .bind(org.to_string())
            .bind(project.to_string())
            .fetch_all(self.readers())
            .await
            .map_err(Error::database("listing secrets"))?;
        rows.iter().map(read).collect()
    }

    /// Removes a secret of a project. Answers whether there was one.
    ///
    /// # Errors
    /// The database failed.
    pub async fn tool_secret_remove(
        &self,
        org: OrgId,
        project: ProjectId,
        name: String,
        told: AuditEntry,
    ) -> Result<bool> {
        self.write_told(
            told,
            |removed| *removed,
            move |db| {
                let name = name.clone();
                Box::pin(async move {
                    let gone = query("DELETE FROM tool_secret WHERE org = $1 AND project = $2 AND name = $3")
                        .bind(org.to_string())
                        .bind(project.to_string())
                        .bind(name)
                        .execute(db)
                        .await
                        .map_err(Error::database("removing a secret"))?;
                    Ok(gone.rows_affected() > 0)
                })
            },
        )
        .await
    }

    /// Removes the secrets of projects that are gone, of all organisations: a data plane of its own can't when it removes a project.
    /// Answers how many.
    ///
    /// # Errors
    /// The database failed.
    pub async fn tool_secrets_sweep(&self) -> Result<u64> {
        self.write(|db| {
            Box::pin(async move {
                let gone = query("DELETE FROM tool_secret WHERE project NOT IN (SELECT id FROM project)")
                    .execute(db)
                    .await
                    .map_err(Error::database("removing secrets of projects that are gone"))?;
                Ok(gone.rows_affected())
            })
        })
        .await
    }

    /// Secrets of all organisations that are wrapped by another key-encryption key than this one.
    ///
    /// # Errors
    /// The database failed.
    pub async fn tool_secrets_not_under(&self, kek: &str, limit: u32) -> Result<Vec<ToolSecretRow>> {
        let rows = query(select!("WHERE kek <> $1 ORDER BY project, name LIMIT $2"))
            .bind(kek)
            .bind(i64::from(limit))
            .fetch_all(self.readers())
            .await
            .map_err(Error::database("listing secrets to be wrapped anew"))?;
        rows.iter().map(read).collect()
    }

    /// Puts a data key that was wrapped anew in the place of the old wrapping, if that is still the one.
    ///
    /// # Errors
    /// The database failed.
    pub async fn tool_secret_rewrap(&self, row: &ToolSecretRow, kek: String, wrapped: Vec<u8>) -> Result<()> {
        let row = row.clone();
        self.write(move |db| {
            let (row, kek, wrapped) = (row.clone(), kek.clone(), wrapped.clone());
            Box::pin(async move {
                query(
                    "UPDATE tool_secret SET kek = $1, wrapped = $2 WHERE org = $3 AND project = $4 AND name = $5 AND kek = $6 \
                     AND wrapped = $7",
                )
                .bind(kek)
                .bind(wrapped)
                .bind(row.org.to_string())
                .bind(row.project.to_string())
                .bind(row.name)
                .bind(row.kek)
                .bind(row.wrapped)
                .execute(db)
                .await
                .map_err(Error::database("wrapping a data key anew"))?;
                Ok(())
            })
        })
        .await
    }
}
