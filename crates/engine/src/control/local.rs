//! The gate, answered in the same process.

use std::sync::Arc;

use async_trait::async_trait;
use karta_store::{Keyring, Spender, Store, UsageRow, Want};
use karta_types::org_policy::OrgPolicy;
use karta_types::provider_key::KeyProvider;
use karta_types::{Clock, Micros, OrgId, Problem, ProjectId, Rng, Secret, TurnId, Usage};

use crate::Result;
use crate::control::audit::by_platform;
use crate::control::budgets::Budgets;
use crate::control::encryption::{self, KeyEncryption};
use crate::control::keys::Cache;
use crate::control::provider_keys;
use crate::control::rates::Rates;
use crate::control::session_tokens::{self, Tokens};
use crate::control::tool_secrets;
use crate::gate::{Credential, Gate, Hold, Principal};

/// The control plane in this process.
pub struct Local {
    store: Store,
    keyring: Keyring,
    clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
    keys: Cache,
    budgets: Budgets,
    tokens: Tokens,
    rates: Rates,
    encryption: Arc<dyn KeyEncryption>,
}

impl std::fmt::Debug for Local {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Local").finish_non_exhaustive()
    }
}

impl Local {
    /// Over this store.
    pub fn new(
        store: Store,
        keyring: Keyring,
        clock: Arc<dyn Clock>,
        rng: Arc<dyn Rng>,
        encryption: Arc<dyn KeyEncryption>,
    ) -> Self {
        let budgets = Budgets::new(store.clone());
        Self {
            store,
            keyring,
            clock,
            rng,
            keys: Cache::default(),
            budgets,
            tokens: Tokens::default(),
            rates: Rates::default(),
            encryption,
        }
    }

    /// Whether the organisation's subscription lets it run. One that never subscribed depends on none.
    async fn check_subscription(&self, org: OrgId) -> Result<(), Box<Problem>> {
        let found = self.store.subscription_get(org).await.map_err(|error| {
            let error = crate::Error::from(error);
            tracing::error!(error = error.chain(), "looking at a subscription");
            Box::new(error.problem())
        })?;
        match found {
            Some(row) if !row.status.may_run() => {
                let detail = format!("the subscription to `{}` is {}", row.plan, row.status.as_str());
                Err(Box::new(Problem::new(karta_types::ErrorCode::SubscriptionInactive, detail)))
            }
            _ => Ok(()),
        }
    }

    /// Session tokens.
    pub const fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Who asked how often.
    pub const fn rates(&self) -> &Rates {
        &self.rates
    }

    /// What wraps data keys.
    pub fn encryption(&self) -> &dyn KeyEncryption {
        &*self.encryption
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
        if session_tokens::looks_like(token) {
            return self.tokens.authenticate(&*self.clock, token);
        }
        self.keys.authenticate(&self.store, &self.keyring, &*self.clock, token).await
    }

    async fn admit(&self, spender: &Spender) -> Result<(), Box<Problem>> {
        self.check_subscription(spender.org).await?;
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

    async fn credential(&self, org: OrgId, providers: &[KeyProvider]) -> Result<Option<Credential>> {
        for provider in providers {
            // Read for each request: a key that was erased or replaced is not used once more.
            if let Some(row) = self.store.provider_key_get(org, *provider).await? {
                let context = provider_keys::context(row.org, row.id);
                let key = encryption::open(&*self.encryption, &context, &provider_keys::sealed(&row)).await?;
                return Ok(Some(Credential { id: row.id, provider: row.provider, key }));
            }
        }
        Ok(None)
    }

    async fn secrets(
        &self,
        org: OrgId,
        project: ProjectId,
        names: &[String],
    ) -> Result<Vec<(String, Secret)>> {
        let mut found = Vec::new();
        for row in self.store.tool_secret_list(org, project).await? {
            if names.contains(&row.name) {
                let value = tool_secrets::open(&*self.encryption, &row).await?;
                found.push((row.name, value));
            }
        }
        Ok(found)
    }

    async fn policy(&self, org: OrgId) -> Result<OrgPolicy> {
        Ok(self.store.org_policy_get(org).await?)
    }

    async fn told(&self, org: OrgId, action: &str, resource: String, turn: Option<TurnId>) -> Result<()> {
        let world = (&*self.clock, &*self.rng);
        let entry = by_platform(world, org, action, resource, turn.map(|turn| turn.to_string()));
        Ok(self.store.audit_append(entry).await?)
    }

    async fn used_in(&self, org: OrgId, turn: TurnId) -> Result<(Usage, Micros, Vec<String>)> {
        Ok(self.store.usage_of_turn(org, turn).await?)
    }

    fn allows_origin(&self, origin: &str) -> bool {
        self.tokens.allows_origin(origin)
    }

    async fn ready(&self) -> Result<()> {
        Ok(())
    }

    async fn record(&self, used: UsageRow) -> Result<()> {
        self.store.hold_settle(used).await?;
        Ok(())
    }
}
