//! What organisations pay: subscriptions, and what was exchanged with Stripe.

use karta_types::billing::SubscriptionStatus;
use karta_types::{OrgId, Timestamp};

use crate::row::Reader;
use crate::sql::{Row, query};
use crate::{AuditEntry, Error, Result, Store};

/// What an organisation is subscribed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionRow {
    /// Whose.
    pub org: OrgId,
    /// The plan's name.
    pub plan: String,
    /// How it stands.
    pub status: SubscriptionStatus,
    /// When what is paid for began.
    pub period_start: Option<Timestamp>,
    /// When it ends.
    pub period_end: Option<Timestamp>,
    /// The subscription at Stripe.
    pub subscription: Option<String>,
    /// When it was last looked at there: an older look never takes the place of a newer one.
    pub synced_at: Timestamp,
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT org, plan, status, period_start, period_end, subscription, synced_at FROM subscription ",
            $rest
        )
    };
}

fn read(row: &Row) -> Result<SubscriptionRow> {
    let mut row = Reader::new(row);
    Ok(SubscriptionRow {
        org: row.parsed("org")?,
        plan: row.text("plan")?,
        status: row.parsed("status")?,
        period_start: row.maybe_time("period_start")?,
        period_end: row.maybe_time("period_end")?,
        subscription: row.maybe_text("subscription")?,
        synced_at: row.time("synced_at")?,
    })
}

impl Store {
    /// What the organisation is subscribed to.
    ///
    /// # Errors
    /// The database failed.
    pub async fn subscription_get(&self, org: OrgId) -> Result<Option<SubscriptionRow>> {
        let row = query(select!("WHERE org = $1"))
            .bind(org.to_string())
            .fetch_optional(self.readers())
            .await
            .map_err(Error::database("reading a subscription"))?;
        row.as_ref().map(read).transpose()
    }

    /// Who the organisation is at Stripe.
    ///
    /// # Errors
    /// The database failed.
    pub async fn customer_get(&self, org: OrgId) -> Result<Option<String>> {
        let row = query("SELECT customer FROM stripe_customer WHERE org = $1")
            .bind(org.to_string())
            .fetch_optional(self.readers())
            .await
            .map_err(Error::database("reading a customer"))?;
        row.map(|row| Reader::new(&row).text("customer")).transpose()
    }

    /// Whose customer at Stripe this is.
    ///
    /// # Errors
    /// The database failed.
    pub async fn customer_org(&self, customer: &str) -> Result<Option<OrgId>> {
        let row = query("SELECT org FROM stripe_customer WHERE customer = $1")
            .bind(customer)
            .fetch_optional(self.readers())
            .await
            .map_err(Error::database("reading a customer"))?;
        row.map(|row| Reader::new(&row).parsed("org")).transpose()
    }

    /// Every customer, of all organisations.
    ///
    /// # Errors
    /// The database failed.
    pub async fn customers(&self) -> Result<Vec<(OrgId, String)>> {
        let rows = query("SELECT org, customer FROM stripe_customer ORDER BY org")
            .fetch_all(self.readers())
            .await
            .map_err(Error::database("listing customers"))?;
        rows.iter()
            .map(|row| {
                let mut row = Reader::new(row);
                Ok((row.parsed("org")?, row.text("customer")?))
            })
            .collect()
    }

    /// Notes who the organisation is at Stripe. The first note stays.
    ///
    /// # Errors
    /// `Conflict` when the customer is another organisation's.
    pub async fn customer_set(&self, org: OrgId, customer: String) -> Result<()> {
        self.write(move |db| {
            let customer = customer.clone();
            Box::pin(async move {
                query("INSERT INTO stripe_customer (org, customer) VALUES ($1, $2) ON CONFLICT (org) DO NOTHING")
                    .bind(org.to_string())
                    .bind(customer)
                    .execute(db)
                    .await
                    .map_err(Error::unique("noting a customer", "the customer"))?;
                Ok(())
            })
        })
        .await
    }

    /// Sets what the organisation is subscribed to, unless a newer look is known. Answers whether it was.
    ///
    /// # Errors
    /// The database failed.
    pub async fn subscription_set(&self, row: SubscriptionRow, told: AuditEntry) -> Result<bool> {
        self.write_told(
            told,
            |set| *set,
            move |db| {
                let row = row.clone();
                Box::pin(async move {
                    let done = query(
                        "INSERT INTO subscription (org, plan, status, period_start, period_end, subscription, \
                         synced_at) VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (org) DO UPDATE SET \
                         plan = EXCLUDED.plan, status = EXCLUDED.status, period_start = EXCLUDED.period_start, \
                         period_end = EXCLUDED.period_end, \
                         subscription = COALESCE(EXCLUDED.subscription, subscription.subscription), \
                         synced_at = EXCLUDED.synced_at WHERE subscription.synced_at <= EXCLUDED.synced_at",
                    )
                    .bind(row.org.to_string())
                    .bind(row.plan)
                    .bind(row.status.as_str())
                    .bind(row.period_start.map(Timestamp::as_micros))
                    .bind(row.period_end.map(Timestamp::as_micros))
                    .bind(row.subscription)
                    .bind(row.synced_at.as_micros())
                    .execute(db)
                    .await
                    .map_err(Error::database("setting a subscription"))?;
                    Ok(done.rows_affected() > 0)
                })
            },
        )
        .await
    }

    /// Whether Stripe told this before.
    ///
    /// # Errors
    /// The database failed.
    pub async fn stripe_event_known(&self, id: &str) -> Result<bool> {
        let row = query("SELECT id FROM stripe_event WHERE id = $1")
            .bind(id)
            .fetch_optional(self.readers())
            .await
            .map_err(Error::database("reading what Stripe told"))?;
        Ok(row.is_some())
    }

    /// Notes that what Stripe told was done.
    ///
    /// # Errors
    /// The database failed.
    pub async fn stripe_event_done(&self, id: String, kind: String, at: Timestamp) -> Result<()> {
        self.write(move |db| {
            let (id, kind) = (id.clone(), kind.clone());
            Box::pin(async move {
                query(
                    "INSERT INTO stripe_event (id, kind, at) VALUES ($1, $2, $3) ON CONFLICT (id) DO NOTHING",
                )
                .bind(id)
                .bind(kind)
                .bind(at.as_micros())
                .execute(db)
                .await
                .map_err(Error::database("noting what Stripe told"))?;
                Ok(())
            })
        })
        .await
    }

    /// How much of a day's cost Stripe was told, in micro-dollars.
    ///
    /// # Errors
    /// The database failed.
    pub async fn metered_get(&self, org: OrgId, day: &str) -> Result<i64> {
        let row = query("SELECT reported FROM metered WHERE org = $1 AND day = $2")
            .bind(org.to_string())
            .bind(day)
            .fetch_optional(self.readers())
            .await
            .map_err(Error::database("reading what was metered"))?;
        row.map_or(Ok(0), |row| Reader::new(&row).int("reported"))
    }

    /// Notes how much of a day's cost Stripe was told, if that was what it was told before.
    ///
    /// # Errors
    /// The database failed.
    pub async fn metered_set(&self, org: OrgId, day: String, before: i64, now: i64) -> Result<()> {
        self.write(move |db| {
            let day = day.clone();
            Box::pin(async move {
                query(
                    "INSERT INTO metered (org, day, reported) VALUES ($1, $2, $3) ON CONFLICT (org, day) \
                     DO UPDATE SET reported = EXCLUDED.reported WHERE metered.reported = $4",
                )
                .bind(org.to_string())
                .bind(day)
                .bind(now)
                .bind(before)
                .execute(db)
                .await
                .map_err(Error::database("noting what was metered"))?;
                Ok(())
            })
        })
        .await
    }
}
