//! API keys: made, listed, replaced, revoked.

use std::time::Duration;

use karta_store::KeyRow;
use karta_types::key::{ApiKey, NewApiKey};
use karta_types::page::Page;
use karta_types::{ErrorCode, KeyId, ProjectId};

use crate::control::audit::digest;
use crate::control::keys::{Environment, NewKey, mint};
use crate::{Engine, Error, Principal, Result};

/// The longest that an old key and its replacement are both valid.
pub const MAX_OVERLAP: Duration = Duration::from_hours(24 * 30);
/// How far back a node looks for keys that another one changed: clocks differ, and a look may be late.
const LOOK_BACK: Duration = Duration::from_secs(30);

impl Engine {
    /// Makes a key. Nobody gives more than they have.
    ///
    /// # Errors
    /// `forbidden` for scopes or projects beyond the caller's; `invalid_request` for a time that is past.
    pub async fn create_key(&self, who: &Principal, new: NewKey) -> Result<NewApiKey> {
        self.check_new(who, &new)?;
        let by = Some(who.actor.to_string());
        let (row, text) = mint(self.keyring(), self.clock(), self.rng(), who.org, by, new);
        let record = show(row.clone());
        let mut told = self.told(who, "key.create", row.id);
        told.after = Some(digest(&record)?);
        self.store().key_insert(&row, told).await?;
        Ok(NewApiKey { record, key: text.expose().clone() })
    }

    fn check_new(&self, who: &Principal, new: &NewKey) -> Result<()> {
        if let Some(beyond) = new.scopes.iter().find(|scope| !who.scopes.has(*scope)) {
            return Err(Error::told(
                ErrorCode::Forbidden,
                format!("you don't have the scope `{beyond}` that the key is to have"),
            ));
        }
        if who.project.is_some() && new.project != who.project {
            return Err(Error::told(
                ErrorCode::Forbidden,
                "your key is for one project; a key it makes is for the same one: name it in `project`",
            ));
        }
        if new.expires_at.is_some_and(|at| at <= self.clock().now()) {
            return Err(Error::invalid("/expires_at", "the time is past"));
        }
        Ok(())
    }

    /// The organisation's keys, oldest first; those of its own project for a key that is for one.
    ///
    /// # Errors
    /// The store can't read.
    pub async fn keys(&self, who: &Principal, after: Option<KeyId>, limit: u32) -> Result<Page<ApiKey>> {
        let rows = self.store().key_list(who.org, after, limit + 1).await?;
        let more = rows.len() > limit as usize;
        let rows: Vec<_> = rows.into_iter().take(limit as usize).collect();
        let next_cursor = rows.last().filter(|_| more).map(|last| last.id.to_string());
        let data = rows.into_iter().filter(|row| visible(who, row.project)).map(show).collect();
        Ok(Page { data, next_cursor })
    }

    /// A key.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn key(&self, who: &Principal, id: KeyId) -> Result<ApiKey> {
        Ok(show(self.key_row(who, id).await?))
    }

    async fn key_row(&self, who: &Principal, id: KeyId) -> Result<KeyRow> {
        let row = self.store().key_get(who.org, id).await?;
        row.filter(|row| visible(who, row.project)).ok_or_else(|| Error::not_found("key"))
    }

    /// Makes a key with the same rights and lets the old one end after `overlap`.
    ///
    /// # Errors
    /// `not_found` when it is not there or no longer valid; `forbidden` for rights beyond the caller's.
    pub async fn rotate_key(&self, who: &Principal, id: KeyId, overlap: Duration) -> Result<NewApiKey> {
        let old = self.key_row(who, id).await?;
        if overlap > MAX_OVERLAP {
            return Err(Error::invalid("/overlap_seconds", "at most 30 days"));
        }
        let environment =
            if old.prefix.starts_with("kt_test_") { Environment::Test } else { Environment::Live };
        let new = NewKey {
            name: old.name.clone(),
            environment,
            scopes: old.scopes,
            project: old.project,
            expires_at: None,
        };
        self.check_new(who, &new)?;
        let by = Some(who.actor.to_string());
        let (mut row, text) = mint(self.keyring(), self.clock(), self.rng(), who.org, by, new);
        row.replaces = Some(id);
        let record = show(row.clone());
        let mut told = self.told(who, "key.rotate", row.id);
        told.before = Some(digest(&show(old.clone()))?);
        told.after = Some(digest(&record)?);
        let until = self.clock().now().plus(overlap);
        match self.store().key_replace(&row, until, told).await {
            Err(karta_store::Error::NotFound) => return Err(Error::not_found("valid key")),
            done => done?,
        }
        self.control().keys().forget(&[old.digest]);
        Ok(NewApiKey { record, key: text.expose().clone() })
    }

    /// Ends a key at once.
    ///
    /// # Errors
    /// `not_found`. A key that was revoked before stays so.
    pub async fn revoke_key(&self, who: &Principal, id: KeyId) -> Result<()> {
        let row = self.key_row(who, id).await?;
        let told = self.told(who, "key.revoke", id);
        self.store().key_revoke(who.org, id, self.clock().now(), told).await?;
        self.control().keys().forget(&[row.digest]);
        // The tokens it minted end with it.
        self.control().tokens().refresh(self.store(), self.clock()).await?;
        Ok(())
    }

    /// Notes which keys were used, and forgets those that another node changed.
    pub(crate) async fn keep_keys(&self) {
        let used = self.control().keys().take_used();
        if !used.is_empty()
            && let Err(error) = self.store().keys_used(used).await
        {
            tracing::warn!(error = Error::from(error).chain(), "noting the use of keys");
        }
        if let Err(error) = self.control().tokens().refresh(self.store(), self.clock()).await {
            tracing::warn!(error = error.chain(), "looking for revoked session tokens");
        }
        match self.store().keys_changed(self.clock().now().minus(LOOK_BACK)).await {
            Ok(changed) => self.control().keys().forget(&changed),
            Err(error) => {
                // Rather ask the store for every key than trust one that was revoked.
                self.control().keys().clear();
                tracing::warn!(error = Error::from(error).chain(), "looking for changed keys");
            }
        }
    }
}

fn visible(who: &Principal, project: Option<ProjectId>) -> bool {
    who.project.is_none_or(|only| project == Some(only))
}

fn show(row: KeyRow) -> ApiKey {
    ApiKey {
        id: row.id,
        name: row.name,
        prefix: row.prefix,
        last4: row.last4,
        scopes: row.scopes.iter().collect(),
        project: row.project,
        created_by: row.created_by,
        created_at: row.created_at,
        expires_at: row.expires_at,
        revoked_at: row.revoked_at,
        last_used_at: row.last_used_at,
        replaces: row.replaces,
    }
}
