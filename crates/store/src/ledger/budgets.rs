//! Budgets: set, read, looked into.

use karta_types::budget::{Amount, Caps, Level, Period, Unit};
use karta_types::{Micros, OrgId, Timestamp};

use crate::ledger::{Short, Spender};
use crate::row::{Reader, big};
use crate::sql::{Connection, Executor, Row, query};
use crate::{AuditEntry, Error, Result, Store};

/// A budget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BudgetRow {
    /// The organisation.
    pub org: OrgId,
    /// Whose spending.
    pub level: Level,
    /// The id of whom.
    pub subject: String,
    /// How long it holds.
    pub period: Period,
    /// The day or month that its sums are of.
    pub span: String,
    /// The caps.
    pub caps: Caps,
    /// What was used.
    pub settled: Amount,
    /// What is set aside.
    pub reserved: Amount,
    /// `api` or `config`.
    pub source: String,
    /// When it was last set.
    pub updated_at: Timestamp,
}

impl BudgetRow {
    /// As it is at this moment: sums of a day or month that is over are none.
    #[must_use]
    pub fn now(mut self, at: Timestamp) -> Self {
        let span = self.period.span(at);
        if self.span != span {
            (self.settled, self.reserved) = (Amount::default(), Amount::default());
            self.span = span;
        }
        self
    }

    /// How much of the unit is left, if it has a cap.
    pub fn left(&self, unit: Unit) -> Option<i64> {
        let used = self.settled.of(unit).saturating_add(self.reserved.of(unit));
        self.caps.of(unit).map(|cap| cap.saturating_sub(used))
    }

    pub(super) fn short(&self, unit: Unit, needed: i64) -> Short {
        Short {
            level: self.level,
            subject: self.subject.clone(),
            unit,
            cap: self.caps.of(unit).unwrap_or_default(),
            settled: self.settled.of(unit),
            reserved: self.reserved.of(unit),
            short: needed.saturating_sub(self.left(unit).unwrap_or_default()),
            unpriced: false,
        }
    }
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT org, level, subject, period, span, cap_input, cap_output, cap_total, cap_cost, settled_input, ",
            "settled_output, settled_cost, reserved_input, reserved_output, reserved_cost, source, updated_at FROM budget ",
            $rest
        )
    };
}

fn read(row: &Row) -> Result<BudgetRow> {
    let mut row = Reader::new(row);
    let (org, level, subject) = (row.parsed("org")?, row.parsed("level")?, row.text("subject")?);
    let (period, span) = (row.parsed("period")?, row.text("span")?);
    let caps = Caps {
        input_tokens: row.maybe_count("cap_input")?,
        output_tokens: row.maybe_count("cap_output")?,
        total_tokens: row.maybe_count("cap_total")?,
        cost_micros: row.maybe_int("cap_cost")?,
    };
    let amount = |row: &mut Reader<'_>| -> Result<Amount> {
        Ok(Amount::new(row.count("input")?, row.count("output")?, Micros::new(row.int("cost")?)))
    };
    let settled = amount(&mut row)?;
    let reserved = amount(&mut row)?;
    let (source, updated_at) = (row.text("source")?, row.time("updated_at")?);
    Ok(BudgetRow { org, level, subject, period, span, caps, settled, reserved, source, updated_at })
}

/// The budgets that a spender's calls belong to, widest level first.
pub(super) async fn matching(on: impl Executor, spender: &Spender) -> Result<Vec<BudgetRow>> {
    let subject = |level| spender.subject(level).unwrap_or_default();
    let rows = query(select!(
        "WHERE org = $1 AND ((level IN ('credit', 'org') AND subject = $1) OR (level = 'project' AND subject = $2) \
         OR (level = 'key' AND subject = $3) OR (level = 'token' AND subject = $6) OR (level = 'end_user' AND subject = $4) \
         OR (level = 'session' AND subject = $5))"
    ))
    .bind(spender.org.to_string())
    .bind(subject(Level::Project))
    .bind(subject(Level::Key))
    .bind(subject(Level::EndUser))
    .bind(subject(Level::Session))
    .bind(subject(Level::Token))
    .quick()
    .fetch_all(on)
    .await
    .map_err(Error::database("reading budgets"))?;
    let mut rows: Vec<_> = rows.iter().map(read).collect::<Result<_>>()?;
    // One order for everybody, so that two that spend at once never wait for each other.
    rows.sort_by_key(|row| (row.level, row.period));
    Ok(rows)
}

impl Store {
    /// What is used up at this moment, if anything is: then nothing of this spender's may begin.
    ///
    /// # Errors
    /// The database failed.
    pub async fn budget_short(&self, spender: &Spender, at: Timestamp) -> Result<Option<Short>> {
        for row in matching(self.readers(), spender).await? {
            let row = row.now(at);
            for unit in Unit::ALL {
                if row.left(*unit).is_some_and(|left| left < 1) {
                    return Ok(Some(row.short(*unit, 1)));
                }
            }
        }
        Ok(None)
    }

    /// The organisation's budgets.
    ///
    /// # Errors
    /// The database failed.
    pub async fn budget_list(&self, org: OrgId) -> Result<Vec<BudgetRow>> {
        let rows = query(select!("WHERE org = $1 ORDER BY level, subject, period LIMIT 10000"))
            .bind(org.to_string())
            .fetch_all(self.readers())
            .await
            .map_err(Error::database("listing budgets"))?;
        rows.iter().map(read).collect()
    }

    /// The budgets of one level and subject.
    ///
    /// # Errors
    /// The database failed.
    pub async fn budget_get(&self, org: OrgId, level: Level, subject: &str) -> Result<Vec<BudgetRow>> {
        let rows = query(select!("WHERE org = $1 AND level = $2 AND subject = $3 ORDER BY period"))
            .bind(org.to_string())
            .bind(level.as_str())
            .bind(subject)
            .fetch_all(self.readers())
            .await
            .map_err(Error::database("reading a budget"))?;
        rows.iter().map(read).collect()
    }

    /// Sets a budget. What was used in its span before counts, and so does what runs.
    ///
    /// # Errors
    /// The database failed.
    pub async fn budget_set(&self, row: BudgetRow, told: AuditEntry) -> Result<BudgetRow> {
        self.write_told(
            told,
            |_| true,
            move |db| {
                let row = row.clone();
                Box::pin(set(db, row))
            },
        )
        .await
    }

    /// Removes a budget. Answers whether it was there.
    ///
    /// # Errors
    /// The database failed.
    pub async fn budget_remove(
        &self,
        org: OrgId,
        level: Level,
        subject: &str,
        period: Period,
        told: AuditEntry,
    ) -> Result<bool> {
        let subject = subject.to_owned();
        self.write_told(
            told,
            |removed| *removed,
            move |db| {
                let subject = subject.clone();
                Box::pin(async move {
                    let gone = query(
                        "DELETE FROM budget WHERE org = $1 AND level = $2 AND subject = $3 AND period = $4",
                    )
                    .bind(org.to_string())
                    .bind(level.as_str())
                    .bind(subject)
                    .bind(period.as_str())
                    .execute(db)
                    .await
                    .map_err(Error::database("removing a budget"))?;
                    Ok(gone.rows_affected() > 0)
                })
            },
        )
        .await
    }
}

async fn set(db: &mut Connection, mut row: BudgetRow) -> Result<BudgetRow> {
    let fail = || Error::database("setting a budget");
    row.span = row.period.span(row.updated_at);
    // The row first: whoever spends at the same time waits for it, and is in the sums or comes after them.
    query(
        "INSERT INTO budget (org, level, subject, period, span, cap_input, cap_output, cap_total, cap_cost, settled_input, \
         settled_output, settled_cost, reserved_input, reserved_output, reserved_cost, source, updated_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0, 0, 0, 0, 0, 0, $10, $11) \
         ON CONFLICT (org, level, subject, period) DO UPDATE SET cap_input = EXCLUDED.cap_input, \
         cap_output = EXCLUDED.cap_output, cap_total = EXCLUDED.cap_total, cap_cost = EXCLUDED.cap_cost, \
         source = EXCLUDED.source, span = EXCLUDED.span, updated_at = EXCLUDED.updated_at",
    )
    .bind(row.org.to_string())
    .bind(row.level.as_str())
    .bind(row.subject.clone())
    .bind(row.period.as_str())
    .bind(row.span.clone())
    .bind(row.caps.input_tokens.map(big))
    .bind(row.caps.output_tokens.map(big))
    .bind(row.caps.total_tokens.map(big))
    .bind(row.caps.cost_micros)
    .bind(row.source.clone())
    .bind(row.updated_at.as_micros())
    .execute(&mut *db)
    .await
    .map_err(fail())?;
    let (used, held) = sums(row.level);
    row.settled = sum(db, used, &row).await?;
    row.reserved = sum(db, held, &row).await?;
    query(
        "UPDATE budget SET settled_input = $1, settled_output = $2, settled_cost = $3, reserved_input = $4, \
         reserved_output = $5, reserved_cost = $6 WHERE org = $7 AND level = $8 AND subject = $9 AND period = $10",
    )
    .bind(big(row.settled.input_tokens))
    .bind(big(row.settled.output_tokens))
    .bind(row.settled.cost_micros.get())
    .bind(big(row.reserved.input_tokens))
    .bind(big(row.reserved.output_tokens))
    .bind(row.reserved.cost_micros.get())
    .bind(row.org.to_string())
    .bind(row.level.as_str())
    .bind(row.subject.clone())
    .bind(row.period.as_str())
    .execute(db)
    .await
    .map_err(fail())?;
    Ok(row)
}

async fn sum(db: &mut Connection, sql: &'static str, row: &BudgetRow) -> Result<Amount> {
    let sums = query(sql)
        .bind(row.org.to_string())
        .bind(row.subject.clone())
        .bind(row.span.clone())
        .fetch_one(db)
        .await
        .map_err(Error::database("summing what was used"))?;
    let mut sums = Reader::new(&sums);
    Ok(Amount::new(sums.count("input")?, sums.count("output")?, Micros::new(sums.int("cost")?)))
}

/// The sums of what was used and of what is held, for a level. A span is a beginning of a day's name; that of all time is empty.
const fn sums(level: Level) -> (&'static str, &'static str) {
    macro_rules! of {
        ($subject:literal) => {
            (
                concat!(
                    "SELECT CAST(COALESCE(SUM(input_tokens + cache_read_tokens + cache_write_tokens), 0) AS BIGINT), ",
                    "CAST(COALESCE(SUM(output_tokens), 0) AS BIGINT), CAST(COALESCE(SUM(cost_micros), 0) AS BIGINT) ",
                    "FROM usage_event WHERE org = $1 AND ",
                    $subject,
                    " = $2 AND substr(day, 1, length($3)) = $3"
                ),
                concat!(
                    "SELECT CAST(COALESCE(SUM(input), 0) AS BIGINT), CAST(COALESCE(SUM(output), 0) AS BIGINT), ",
                    "CAST(COALESCE(SUM(cost), 0) AS BIGINT) FROM hold WHERE org = $1 AND ",
                    $subject,
                    " = $2 AND substr(day, 1, length($3)) = $3"
                ),
            )
        };
    }
    match level {
        // Credit and tokens' caps are made with nothing used, not set over what was.
        Level::Credit | Level::Token | Level::Org => of!("org"),
        Level::Project => of!("project"),
        Level::Key => of!("key"),
        Level::EndUser => of!("end_user"),
        Level::Session => of!("session"),
    }
}
