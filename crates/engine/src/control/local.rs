//! The gate, answered in the same process.

use std::sync::Arc;

use async_trait::async_trait;
use karta_store::{Keyring, Spender, Store, UsageRow, Want};
use karta_types::{Clock, Micros, Problem, Usage};

use crate::Result;
use crate::control::budgets::Budgets;
use crate::control::keys::Cache;
use crate::gate::{Gate, Hold, Principal};

/// The control plane in this process.
pub struct Local {
    store: Store,
    keyring: Keyring,
    clock: Arc<dyn Clock>,
    keys: Cache,
    budgets: Budgets,
}

impl std::fmt::Debug for Local {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Local").finish_non_exhaustive()
    }
}

impl Local {
    /// Over this store.
    pub fn new(store: Store, keyring: Keyring, clock: Arc<dyn Clock>) -> Self {
        let budgets = Budgets::new(store.clone());
        Self { store, keyring, clock, keys: Cache::default(), budgets }
    }

    /// What is set aside.
    pub const fn budgets(&self) -> &Budgets {
        &self.budgets
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

    async fn admit(&self, spender: &Spender) -> Result<(), Box<Problem>> {
        self.budgets.admit(spender, self.clock.now()).await
    }

    async fn reserve(&self, want: Want) -> Result<(Hold, u64), (Box<Problem>, bool)> {
        self.budgets.reserve(want).await
    }

    async fn note(&self, hold: &Hold, usage: Usage, cost: Micros, priced: bool) -> Result<()> {
        Ok(self.store.hold_note(hold.call(), usage, cost, priced).await?)
    }

    async fn settle(&self, hold: Hold, used: UsageRow) -> Result<()> {
        self.budgets.settle(hold, used).await
    }

    async fn release(&self, hold: Hold) -> Result<()> {
        self.budgets.release(hold).await
    }

    async fn record(&self, used: UsageRow) -> Result<()> {
        self.store.hold_settle(used).await?;
        Ok(())
    }
}
