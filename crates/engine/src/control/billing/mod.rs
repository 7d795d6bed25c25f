//! What organisations pay: their subscription, their credit, their statements.

pub mod statement;
pub mod stripe;

use karta_store::{AuditEntry, CreditRow, Keyring, Store, SubscriptionRow};
use karta_types::billing::{Billing, Credit, Subscription, SubscriptionStatus};
use karta_types::budget::{Level, Period, Unit};
use karta_types::{Clock as _, CreditId, Micros, OrgId, Timestamp};

use crate::control::audit::{by_platform, digest};
use crate::settings::Settings;
use crate::{Actor, Engine, Error, Principal, Result};

/// What `karta admin billing` does.
#[derive(Debug, Clone)]
pub enum Change {
    /// Grants credit.
    Grant {
        /// How much, in micro-dollars.
        amount: i64,
        /// When what is left of it is gone.
        expires_at: Option<Timestamp>,
        /// What for.
        note: String,
    },
    /// Sets the subscription, where no Stripe does.
    Subscribe {
        /// The plan's name.
        plan: String,
        /// How it stands.
        status: SubscriptionStatus,
    },
}

/// Changes what an organisation pays, on the store, whether a server runs or not: credit is granted by whoever runs the server.
///
/// # Errors
/// `not_found` for the organisation; `invalid_request` for an amount that is none; the store can't be opened.
pub async fn change(settings: &Settings, slug: &str, change: Change) -> Result<()> {
    let (clock, rng) = (karta_types::time::System, karta_types::rng::System);
    let keyring = Keyring::load_or_create(&settings.data.join("keys"), &rng)?;
    let store = Store::open(settings.store_options(keyring)).await?;
    let done = async {
        let org = store.org_by_slug(slug).await?.ok_or_else(|| Error::not_found("organisation"))?.id;
        let now = clock.now();
        let told = |action: &str, resource: String, reason: String| {
            by_platform((&clock, &rng), org, action, resource, Some(reason))
        };
        match change {
            Change::Grant { amount, expires_at, note } => {
                if amount <= 0 || expires_at.is_some_and(|at| at <= now) {
                    return Err(Error::invalid(
                        "",
                        "credit is more than nothing, and expires later than now",
                    ));
                }
                let row = CreditRow {
                    id: CreditId::new(&clock, &rng),
                    org,
                    amount: Micros::new(amount),
                    used: Micros::ZERO,
                    note,
                    created_by: Actor::System.to_string(),
                    created_at: now,
                    expires_at,
                    expired_at: None,
                };
                let told =
                    told("billing.credit_granted", row.id.to_string(), format!("{amount} micro-dollars"));
                store.credit_grant(row, told).await?;
            }
            Change::Subscribe { plan, status } => {
                let told = told("billing.subscribed", org.to_string(), format!("{plan} {}", status.as_str()));
                let row = SubscriptionRow {
                    org,
                    plan,
                    status,
                    period_start: None,
                    period_end: None,
                    subscription: None,
                    synced_at: now,
                };
                store.subscription_set(row, told).await?;
            }
        }
        Ok(())
    };
    let done = done.await;
    store.close().await;
    done
}

impl Engine {
    /// What the organisation pays, in all.
    ///
    /// # Errors
    /// The store can't read.
    pub async fn billing(&self, who: &Principal) -> Result<Billing> {
        let subscription = self.store().subscription_get(who.org).await?.map(|row| Subscription {
            plan: row.plan,
            status: row.status,
            period_start: row.period_start,
            period_end: row.period_end,
        });
        let rows = self.store().budget_get(who.org, Level::Credit, &who.org.to_string()).await?;
        let credit = rows.into_iter().find(|row| row.period == Period::Total);
        let plans = self.settings().billing.stripe.as_ref();
        Ok(Billing {
            configured: plans.is_some(),
            plans: plans.map(|stripe| stripe.plans.keys().cloned().collect()).unwrap_or_default(),
            subscription,
            credit_micros: credit.and_then(|row| row.left(Unit::CostMicros)),
        })
    }

    /// Credit that the organisation was granted, oldest first.
    ///
    /// # Errors
    /// The store can't read.
    pub async fn credits(&self, who: &Principal) -> Result<Vec<Credit>> {
        Ok(self.store().credit_list(who.org).await?.into_iter().map(show).collect())
    }

    /// What is left of credit whose time is over is gone. Runs by itself every minute.
    ///
    /// # Errors
    /// The store failed.
    pub async fn expire_credit(&self) -> Result<()> {
        let now = self.clock().now();
        for row in self.store().credit_due(now).await? {
            let mut told = self.told(&Principal::system(row.org), "billing.credit_expired", row.id);
            told.before = Some(digest(&show(row.clone()))?);
            self.store().credit_expire(row, now, told).await?;
        }
        Ok(())
    }
}

fn show(row: CreditRow) -> Credit {
    Credit {
        id: row.id,
        amount_micros: row.amount.get(),
        used_micros: row.used.get(),
        note: row.note,
        created_by: row.created_by,
        created_at: row.created_at,
        expires_at: row.expires_at,
        expired_at: row.expired_at,
    }
}

/// An organisation's entry about what it pays.
fn told_of(engine: &Engine, org: OrgId, action: &str, reason: String) -> AuditEntry {
    let mut told = engine.told(&Principal::system(org), action, org);
    told.reason = Some(reason);
    told
}
