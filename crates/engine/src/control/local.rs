//! The gate, answered in the same process.

use std::sync::Arc;

use async_trait::async_trait;
use karta_store::{Keyring, Store, UsageRow};
use karta_types::{Clock, ErrorCode, OrgId, Problem};

use crate::control::keys::Cache;
use crate::gate::{Gate, Principal};
use crate::settings::Caps;
use crate::{Error, Result};

/// The control plane in this process.
pub struct Local {
    store: Store,
    keyring: Keyring,
    clock: Arc<dyn Clock>,
    keys: Cache,
    caps: Caps,
}

impl std::fmt::Debug for Local {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Local").field("caps", &self.caps).finish_non_exhaustive()
    }
}

impl Local {
    /// Over this store, with these caps for its organisations.
    pub fn new(store: Store, keyring: Keyring, clock: Arc<dyn Clock>, caps: Caps) -> Self {
        Self { store, keyring, clock, keys: Cache::default(), caps }
    }

    /// The keys that were seen.
    pub const fn keys(&self) -> &Cache {
        &self.keys
    }
}

#[async_trait]
impl Gate for Local {
    async fn authenticate(&self, token: &str) -> Result<Principal> {
        self.keys.authenticate(&self.store, &self.keyring, &*self.clock, token).await
    }

    async fn admit(&self, org: OrgId) -> Result<(), Box<Problem>> {
        if self.caps == Caps::default() {
            return Ok(());
        }
        let used = self.store.usage_total(org).await.map_err(|error| {
            let error = Error::from(error);
            tracing::error!(error = error.chain(), "reading what was used");
            Box::new(error.problem())
        })?;
        let to_i64 = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let input = used.input_tokens + used.cache_read_tokens + used.cache_write_tokens;
        let caps = [
            ("cost_micros", self.caps.cost_micros, used.cost_micros.get()),
            ("input_tokens", self.caps.input_tokens.map(to_i64), to_i64(input)),
            ("output_tokens", self.caps.output_tokens.map(to_i64), to_i64(used.output_tokens)),
            ("total_tokens", self.caps.total_tokens.map(to_i64), to_i64(used.total_tokens)),
        ];
        for (what, cap, settled) in caps {
            if let Some(cap) = cap.filter(|cap| settled >= *cap) {
                let detail = format!("the organisation's cap of {cap} {what} is used up: {settled} settled");
                return Err(Box::new(
                    Problem::new(ErrorCode::BudgetExhausted, detail)
                        .with("level", "org")
                        .with("unit", what)
                        .with("cap", cap)
                        .with("settled", settled)
                        .with("left", 0),
                ));
            }
        }
        Ok(())
    }

    async fn record(&self, used: UsageRow) -> Result<()> {
        self.store.usage_record(&used).await?;
        Ok(())
    }
}
