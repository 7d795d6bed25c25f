//! Model providers' keys of organisations: set, listed, erased, put in by the gateway.

use karta_store::ProviderKeyRow;
use karta_types::provider_key::{KeyProvider, ProviderKey};
use karta_types::{OrgId, ProviderKeyId, Secret};

use crate::control::audit::digest;
use crate::control::encryption::{self, Sealed};
use crate::gateway::cloud::CloudKey;
use crate::{Engine, Error, Principal, Result};

/// Keys wrapped anew in one step.
const STEP: u32 = 100;

/// What a key is bound to: in another row it does not open.
pub(crate) fn context(org: OrgId, id: ProviderKeyId) -> Vec<u8> {
    format!("provider_key\0{org}\0{id}").into_bytes()
}

/// The row's sealed part.
pub(crate) fn sealed(row: &ProviderKeyRow) -> Sealed {
    Sealed { kek: row.kek.clone(), wrapped: row.wrapped.clone(), sealed: row.sealed.clone() }
}

impl Engine {
    /// Sets the organisation's key for a provider. The one before it is erased.
    ///
    /// # Errors
    /// `invalid_request` for what is no key, for a cloud without its region and for another provider with one; `forbidden` for a key
    /// that is for one project.
    pub async fn set_provider_key(
        &self,
        who: &Principal,
        provider: KeyProvider,
        text: &Secret,
        region: Option<&str>,
    ) -> Result<ProviderKey> {
        let cloud = matches!(provider, KeyProvider::Bedrock | KeyProvider::Vertex);
        if region.is_some() && !cloud {
            return Err(Error::invalid("/region", format!("{provider} has no regions")));
        }
        let plain = text.expose();
        let file = provider == KeyProvider::Vertex;
        let (most, visible) = if file {
            (8192, plain.is_ascii())
        } else {
            (512, plain.bytes().all(|byte| byte.is_ascii_graphic()))
        };
        if !(8..=most).contains(&plain.len()) || !visible {
            return Err(Error::invalid(
                "/key",
                format!("a key for {provider} has 8 to {most} visible ASCII characters"),
            ));
        }
        let kept = if cloud {
            CloudKey::check(provider, region, plain).map_err(|(at, why)| Error::invalid(at, why))?
        } else {
            plain.clone()
        };
        let kept = Secret::new(kept);
        // The end of a key file says nothing, and may be a line's end.
        let last4 = if file { "json" } else { &plain[plain.len() - 4..] };
        let id = ProviderKeyId::new(self.clock(), self.rng());
        let keys = self.control().encryption();
        let Sealed { kek, wrapped, sealed } =
            encryption::seal(keys, self.rng(), &context(who.org, id), kept.expose().as_bytes()).await?;
        let row = ProviderKeyRow {
            id,
            org: who.org,
            provider,
            last4: last4.to_owned(),
            kek,
            wrapped,
            sealed,
            created_by: who.actor.to_string(),
            created_at: self.clock().now(),
        };
        let shown = show(&row);
        let mut told = self.told(who, "provider_key.set", format!("{provider}/{id}"));
        told.after = Some(digest(&shown)?);
        self.store().provider_key_set(row, told).await?;
        Ok(shown)
    }

    /// The organisation's keys.
    ///
    /// # Errors
    /// The store can't read.
    pub async fn provider_keys(&self, who: &Principal) -> Result<Vec<ProviderKey>> {
        Ok(self.store().provider_key_list(who.org).await?.iter().map(show).collect())
    }

    /// Erases the organisation's key for a provider: the next call goes without it.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn erase_provider_key(&self, who: &Principal, provider: KeyProvider) -> Result<()> {
        let Some(row) = self.store().provider_key_get(who.org, provider).await? else {
            return Err(Error::not_found("provider key"));
        };
        let mut told = self.told(who, "provider_key.erase", format!("{provider}/{}", row.id));
        told.before = Some(digest(&show(&row))?);
        let erased = self.store().provider_key_erase(who.org, provider, self.clock().now(), told).await?;
        if erased { Ok(()) } else { Err(Error::not_found("provider key")) }
    }

    /// Makes a new key-encryption key and wraps every data key with it. Calls go on meanwhile. Answers how many were wrapped anew.
    ///
    /// # Errors
    /// A data key can't be unwrapped; those before it are done.
    pub async fn rotate_key_encryption(&self) -> Result<u64> {
        let keys = self.control().encryption();
        keys.rotate().await?;
        let current = keys.current();
        let mut done = self.rewrap_provider_keys(&current).await?;
        done += self.rewrap_webhooks(&current).await?;
        Ok(done + self.rewrap_tool_secrets(&current).await?)
    }

    /// Wraps the data keys of providers' keys with the current key-encryption key. Answers how many.
    async fn rewrap_provider_keys(&self, current: &str) -> Result<u64> {
        let keys = self.control().encryption();
        let mut done = 0;
        loop {
            let rows = self.store().provider_keys_not_under(current, STEP).await?;
            if rows.is_empty() {
                return Ok(done);
            }
            for row in rows {
                let context = context(row.org, row.id);
                let old = (row.kek.as_str(), &*row.wrapped);
                let Some(wrapped) = encryption::rewrap(keys, current, &context, old).await? else {
                    return Ok(done);
                };
                self.store().provider_key_rewrap(&row, current.to_owned(), wrapped).await?;
                done += 1;
            }
        }
    }
}

fn show(row: &ProviderKeyRow) -> ProviderKey {
    ProviderKey {
        id: row.id,
        provider: row.provider,
        last4: row.last4.clone(),
        created_by: row.created_by.clone(),
        created_at: row.created_at,
    }
}
