//! Which content of a project's releases is kept, and in which pack of the blob store; what setups made.

use std::collections::BTreeMap;

use karta_types::{OrgId, ProjectId};

use crate::row::{Reader, big};
use crate::sql::{Builder, Connection, query};
use crate::{Error, Result, Store};

/// Values in one statement: far below what either database takes.
const STEP: usize = 400;

/// Contents that lie in one pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackRow {
    /// The pack's name in the blob store.
    pub pack: String,
    /// The hashes of the contents that it holds first.
    pub contents: Vec<String>,
}

impl Store {
    /// In which packs these contents of the project lie, by hash; those that are not kept are not in the answer.
    ///
    /// # Errors
    /// The database failed.
    pub async fn contents_find(
        &self,
        org: OrgId,
        project: ProjectId,
        hashes: &[String],
    ) -> Result<BTreeMap<String, String>> {
        let mut found = BTreeMap::new();
        for some in hashes.chunks(STEP) {
            let mut query = Builder::new("SELECT hash, pack FROM content WHERE org = ");
            query.push_bind(org.to_string()).push(" AND project = ").push_bind(project.to_string());
            query.push(" AND hash IN (");
            list(&mut query, some);
            query.push(")");
            let rows = query.build().fetch_all(self.readers()).await;
            for row in &rows.map_err(Error::database("looking for contents"))? {
                let mut row = Reader::new(row);
                found.insert(row.text("hash")?, row.text("pack")?);
            }
        }
        Ok(found)
    }

    /// The packs that hold contents of the project.
    ///
    /// # Errors
    /// The database failed.
    pub async fn packs(&self, org: OrgId, project: ProjectId) -> Result<Vec<String>> {
        let rows = query("SELECT DISTINCT pack FROM content WHERE org = $1 AND project = $2 ORDER BY pack")
            .bind(org.to_string())
            .bind(project.to_string())
            .fetch_all(self.readers())
            .await
            .map_err(Error::database("listing packs"))?;
        rows.iter().map(|row| Reader::new(row).text("pack")).collect()
    }

    /// Forgets a pack that nothing needs any more: from now on its contents are not kept.
    ///
    /// # Errors
    /// The database failed.
    pub async fn pack_forget(&self, org: OrgId, project: ProjectId, pack: &str) -> Result<()> {
        let pack = pack.to_owned();
        self.write(move |db| {
            let pack = pack.clone();
            Box::pin(async move {
                query("DELETE FROM content WHERE org = $1 AND project = $2 AND pack = $3")
                    .bind(org.to_string())
                    .bind(project.to_string())
                    .bind(pack)
                    .execute(db)
                    .await
                    .map_err(Error::database("forgetting a pack"))?;
                Ok(())
            })
        })
        .await
    }

    /// The release whose setup ran on these inputs, if one did.
    ///
    /// # Errors
    /// The database failed.
    pub async fn layer_find(&self, org: OrgId, project: ProjectId, key: &str) -> Result<Option<u64>> {
        let row = query("SELECT version FROM layer WHERE org = $1 AND project = $2 AND key = $3")
            .bind(org.to_string())
            .bind(project.to_string())
            .bind(key.to_owned())
            .fetch_optional(self.readers())
            .await
            .map_err(Error::database("looking for a layer"))?;
        row.as_ref().map(|row| Reader::new(row).count("version")).transpose()
    }
}

fn list(query: &mut Builder, values: &[String]) {
    for (index, value) in values.iter().enumerate() {
        if index > 0 {
            query.push(", ");
        }
        query.push_bind(value.clone());
    }
}

/// Notes what a pack holds. What another pack holds already stays there.
pub(crate) async fn add(db: &mut Connection, org: OrgId, project: ProjectId, pack: &PackRow) -> Result<()> {
    for some in pack.contents.chunks(STEP / 4) {
        let mut query = Builder::new("INSERT INTO content (project, hash, org, pack) VALUES ");
        for (index, hash) in some.iter().enumerate() {
            query.push(if index > 0 { ", (" } else { "(" });
            query.push_bind(project.to_string()).push(", ").push_bind(hash.clone()).push(", ");
            query.push_bind(org.to_string()).push(", ").push_bind(pack.pack.clone()).push(")");
        }
        query.push(" ON CONFLICT (project, hash) DO NOTHING");
        query.build().execute(&mut *db).await.map_err(Error::database("noting contents"))?;
    }
    Ok(())
}

/// Notes which release's setup ran on these inputs.
pub(crate) async fn set_layer(
    db: &mut Connection,
    org: OrgId,
    project: ProjectId,
    key: &str,
    version: u64,
) -> Result<()> {
    query(
        "INSERT INTO layer (project, key, org, version) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (project, key) DO UPDATE SET version = EXCLUDED.version",
    )
    .bind(project.to_string())
    .bind(key.to_owned())
    .bind(org.to_string())
    .bind(big(version))
    .execute(db)
    .await
    .map_err(Error::database("noting a layer"))?;
    Ok(())
}
