//! What organisations pay: subscriptions, prepaid credit, and what was exchanged with Stripe.
//!
//! Credit is a budget of its own level: grants raise its cap, use counts against it like against any other, and what expires lowers
//! it. So it can't be overspent for the same reason that no budget can.

use karta_types::billing::SubscriptionStatus;
use karta_types::budget::{Level, Period};
use karta_types::{CreditId, Micros, OrgId, Timestamp};

use crate::row::Reader;
use crate::sql::{Connection, Row, query};
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

/// Credit that was granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreditRow {
    /// Its id.
    pub id: CreditId,
    /// Whose.
    pub org: OrgId,
    /// How much.
    pub amount: Micros,
    /// How much of it was used.
    pub used: Micros,
    /// What for.
    pub note: String,
    /// Who granted it.
    pub created_by: String,
    /// When.
    pub created_at: Timestamp,
    /// When what is left is gone.
    pub expires_at: Option<Timestamp>,
    /// When that happened.
    pub expired_at: Option<Timestamp>,
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT org, plan, status, period_start, period_end, subscription, synced_at FROM subscription ",
            $rest
        )
    };
}

macro_rules! select_credit {
    ($rest:literal) => {
        concat!(
            "SELECT id, org, amount, used, note, created_by, created_at, expires_at, expired_at FROM credit_grant ",
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

fn read_credit(row: &Row) -> Result<CreditRow> {
    let mut row = Reader::new(row);
    Ok(CreditRow {
        id: row.parsed("id")?,
        org: row.parsed("org")?,
        amount: Micros::new(row.int("amount")?),
        used: Micros::new(row.int("used")?),
        note: row.text("note")?,
        created_by: row.text("created_by")?,
        created_at: row.time("created_at")?,
        expires_at: row.maybe_time("expires_at")?,
        expired_at: row.maybe_time("expired_at")?,
    })
}

/// Raises, or with a negative amount lowers, the cap of an organisation's credit.
async fn move_cap(db: &mut Connection, org: OrgId, by: i64, at: Timestamp) -> Result<()> {
    query(
        "INSERT INTO budget (org, level, subject, period, span, cap_cost, settled_input, settled_output, settled_cost, \
         reserved_input, reserved_output, reserved_cost, source, updated_at) \
         VALUES ($1, $2, $1, $3, $4, $5, 0, 0, 0, 0, 0, 0, 'credit', $6) ON CONFLICT (org, level, subject, period) \
         DO UPDATE SET cap_cost = budget.cap_cost + EXCLUDED.cap_cost, updated_at = EXCLUDED.updated_at",
    )
    .bind(org.to_string())
    .bind(Level::Credit.as_str())
    .bind(Period::Total.as_str())
    .bind(Period::Total.span(at))
    .bind(by)
    .bind(at.as_micros())
    .execute(db)
    .await
    .map_err(Error::database("moving an organisation's credit"))?;
    Ok(())
}

/// What was used is taken from the credit that expires first.
pub(crate) async fn draw(db: &mut Connection, org: OrgId, cost: Micros) -> Result<()> {
    let fail = || Error::database("drawing on credit");
    let rows = query(select_credit!(
        "WHERE org = $1 AND expired_at IS NULL AND used < amount \
         ORDER BY COALESCE(expires_at, 9223372036854775807), id"
    ))
    .bind(org.to_string())
    .fetch_all(&mut *db)
    .await
    .map_err(fail())?;
    let mut left = cost.get();
    for row in &rows {
        if left <= 0 {
            break;
        }
        let row = read_credit(row)?;
        let part = left.min(row.amount.get() - row.used.get());
        query("UPDATE credit_grant SET used = used + $1 WHERE org = $2 AND id = $3")
            .bind(part)
            .bind(org.to_string())
            .bind(row.id.to_string())
            .execute(&mut *db)
            .await
            .map_err(fail())?;
        left -= part;
    }
    Ok(())
}

async fn expire(db: &mut Connection, row: &CreditRow, at: Timestamp, told: &AuditEntry) -> Result<()> {
    let fail = || Error::database("expiring credit");
    // Whoever spends at the same time changes the budget's row first, as we do: one waits for the other.
    move_cap(db, row.org, 0, at).await?;
    let now = query(
        "UPDATE credit_grant SET expired_at = $1 WHERE org = $2 AND id = $3 AND expired_at IS NULL RETURNING amount, used",
    )
    .bind(at.as_micros())
    .bind(row.org.to_string())
    .bind(row.id.to_string())
    .fetch_optional(&mut *db)
    .await
    .map_err(fail())?;
    let Some(now) = now else { return Ok(()) };
    let mut now = Reader::new(&now);
    let unused = now.int("amount")? - now.int("used")?;
    move_cap(db, row.org, -unused, at).await?;
    crate::audit::append(db, told).await
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

    /// Grants credit.
    ///
    /// # Errors
    /// The database failed.
    pub async fn credit_grant(&self, row: CreditRow, told: AuditEntry) -> Result<()> {
        self.write_told(
            told,
            |()| true,
            move |db| {
                let row = row.clone();
                Box::pin(async move {
                    move_cap(db, row.org, row.amount.get(), row.created_at).await?;
                    query(
                        "INSERT INTO credit_grant (id, org, amount, used, note, created_by, created_at, expires_at) \
                         VALUES ($1, $2, $3, 0, $4, $5, $6, $7)",
                    )
                    .bind(row.id.to_string())
                    .bind(row.org.to_string())
                    .bind(row.amount.get())
                    .bind(row.note)
                    .bind(row.created_by)
                    .bind(row.created_at.as_micros())
                    .bind(row.expires_at.map(Timestamp::as_micros))
                    .execute(db)
                    .await
                    .map_err(Error::unique("granting credit", "the grant"))?;
                    Ok(())
                })
            },
        )
        .await
    }

    /// The organisation's grants, oldest first.
    ///
    /// # Errors
    /// The database failed.
    pub async fn credit_list(&self, org: OrgId) -> Result<Vec<CreditRow>> {
        let rows = query(select_credit!("WHERE org = $1 ORDER BY id"))
            .bind(org.to_string())
            .fetch_all(self.readers())
            .await
            .map_err(Error::database("listing credit"))?;
        rows.iter().map(read_credit).collect()
    }

    /// Grants whose time is over and that are not yet expired, of all organisations.
    ///
    /// # Errors
    /// The database failed.
    pub async fn credit_due(&self, at: Timestamp) -> Result<Vec<CreditRow>> {
        let rows =
            query(select_credit!("WHERE expired_at IS NULL AND expires_at <= $1 ORDER BY id LIMIT 200"))
                .bind(at.as_micros())
                .fetch_all(self.readers())
                .await
                .map_err(Error::database("looking for credit that expires"))?;
        rows.iter().map(read_credit).collect()
    }

    /// What is left of a grant is gone.
    ///
    /// # Errors
    /// The database failed.
    pub async fn credit_expire(&self, row: CreditRow, at: Timestamp, told: AuditEntry) -> Result<()> {
        self.write(move |db| {
            let (row, told) = (row.clone(), told.clone());
            Box::pin(async move { expire(db, &row, at, &told).await })
        })
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
