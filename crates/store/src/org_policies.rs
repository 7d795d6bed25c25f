//! What organisations demand of all their sessions.

use karta_types::org_policy::OrgPolicy;
use karta_types::{OrgId, Timestamp};

use crate::row::Reader;
use crate::sql::query;
use crate::{AuditEntry, Error, Result, Store};

impl Store {
    /// The organisation's policy; the default if none was set.
    ///
    /// # Errors
    /// The database failed.
    pub async fn org_policy_get(&self, org: OrgId) -> Result<OrgPolicy> {
        let row = query("SELECT body FROM org_policy WHERE org = $1")
            .bind(org.to_string())
            .fetch_optional(self.readers())
            .await
            .map_err(Error::database("reading an organisation's policy"))?;
        let Some(row) = row else { return Ok(OrgPolicy::default()) };
        serde_json::from_str(&Reader::new(&row).text("body")?).map_err(|_| Error::Corrupt("body"))
    }

    /// Sets the organisation's policy, all of it.
    ///
    /// # Errors
    /// The database failed.
    pub async fn org_policy_set(
        &self,
        org: OrgId,
        policy: &OrgPolicy,
        at: Timestamp,
        told: AuditEntry,
    ) -> Result<()> {
        let body = crate::row::json(policy);
        self.write_told(
            told,
            |()| true,
            move |db| {
                let body = body.clone();
                Box::pin(async move {
                    query(
                        "INSERT INTO org_policy (org, body, updated_at) VALUES ($1, $2, $3) \
                         ON CONFLICT (org) DO UPDATE SET body = excluded.body, updated_at = excluded.updated_at",
                    )
                    .bind(org.to_string())
                    .bind(body)
                    .bind(at.as_micros())
                    .execute(db)
                    .await
                    .map_err(Error::database("setting an organisation's policy"))?;
                    Ok(())
                })
            },
        )
        .await
    }
}
