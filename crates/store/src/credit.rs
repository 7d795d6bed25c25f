//! Prepaid credit.
//!
//! Credit is a budget of its own level: grants raise its cap, use counts against it like against any other, and what expires lowers
//! it. So it can't be overspent for the same reason that no budget can.

use karta_types::budget::{Level, Period};
use karta_types::{CreditId, Micros, OrgId, Timestamp};

use crate::row::Reader;
use crate::sql::{Connection, Row, query};
use crate::{AuditEntry, Error, Result, Store};

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
            "SELECT id, org, amount, used, note, created_by, created_at, expires_at, expired_at FROM credit_grant ",
            $rest
        )
    };
}

fn read(row: &Row) -> Result<CreditRow> {
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
    let rows = query(select!(
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
        let row = read(row)?;
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
        let rows = query(select!("WHERE org = $1 ORDER BY id"))
            .bind(org.to_string())
            .fetch_all(self.readers())
            .await
            .map_err(Error::database("listing credit"))?;
        rows.iter().map(read).collect()
    }

    /// Grants whose time is over and that are not yet expired, of all organisations.
    ///
    /// # Errors
    /// The database failed.
    pub async fn credit_due(&self, at: Timestamp) -> Result<Vec<CreditRow>> {
        let rows = query(select!("WHERE expired_at IS NULL AND expires_at <= $1 ORDER BY id LIMIT 200"))
            .bind(at.as_micros())
            .fetch_all(self.readers())
            .await
            .map_err(Error::database("looking for credit that expires"))?;
        rows.iter().map(read).collect()
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
}
