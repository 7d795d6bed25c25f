//! Holds: set aside, noted, settled, swept.

use std::sync::Arc;

use karta_types::budget::Unit;
use karta_types::{Micros, ModelCallId, Timestamp, Usage};

use crate::ledger::budgets::{BudgetRow, matching};
use crate::ledger::count::count;
use crate::ledger::{Reserved, Short, Spender, Want};
use crate::row::{Reader, big};
use crate::sql::{Connection, Row, query};
use crate::usage::{UsageRow, insert_event};
use crate::{Error, Result, Store};

/// How often a reservation is tried again when another node changed a budget meanwhile.
const TRIES: usize = 8;
/// The most holds that are swept in one step.
const SWEEP: i64 = 200;

impl Store {
    /// Sets the bound of a call aside in every budget it belongs to, or in none. When there is room for the input but not for all the
    /// output, less output is held.
    ///
    /// # Errors
    /// The database failed.
    pub async fn hold(&self, want: Want) -> Result<Reserved> {
        let want = Arc::new(want);
        for _ in 0..TRIES {
            let this = want.clone();
            let held = self.write(move |db| Box::pin(reserve(db, this.clone()))).await;
            match held {
                // Another node spent from it between our look and our update: look again.
                Err(Error::Raced) => {}
                held => return held,
            }
        }
        Err(Error::Raced)
    }

    /// Keeps what the provider has said so far of a call: if it is never settled, that is what it is settled to.
    ///
    /// # Errors
    /// The database failed.
    pub async fn hold_note(&self, id: ModelCallId, usage: Usage, cost: Micros, priced: bool) -> Result<()> {
        self.write(move |db| {
            Box::pin(async move {
                query(
                    "UPDATE hold SET noted = 1, noted_input = $1, noted_output = $2, noted_cache_read = $3, \
                     noted_cache_write = $4, noted_cost = $5, noted_priced = $6 WHERE id = $7",
                )
                .bind(big(usage.input_tokens))
                .bind(big(usage.output_tokens))
                .bind(big(usage.cache_read_tokens))
                .bind(big(usage.cache_write_tokens))
                .bind(cost.get())
                .bind(i64::from(priced))
                .bind(id.to_string())
                .execute(db)
                .await
                .map_err(Error::database("noting what a call used"))?;
                Ok(())
            })
        })
        .await
    }

    /// Puts what was used in the place of what was set aside, with the record of usage. The same call again is a no-op; answers
    /// whether it was the first time. Works without a hold too, for what nobody could bound.
    ///
    /// # Errors
    /// The database failed.
    pub async fn hold_settle(&self, used: UsageRow) -> Result<bool> {
        let used = Arc::new(used);
        self.write(move |db| Box::pin(settle(db, used.clone()))).await
    }

    /// Gives back what was set aside for a call that used nothing.
    ///
    /// # Errors
    /// The database failed.
    pub async fn hold_release(&self, id: ModelCallId) -> Result<()> {
        self.write(move |db| {
            Box::pin(async move {
                if let Some(held) = take(db, id).await? {
                    give_back(db, &held).await?;
                }
                Ok(())
            })
        })
        .await
    }

    /// Calls that still run keep their holds until `until`.
    ///
    /// # Errors
    /// The database failed.
    pub async fn hold_renew(&self, ids: Vec<ModelCallId>, until: Timestamp) -> Result<()> {
        self.write(move |db| {
            let ids = ids.clone();
            Box::pin(async move {
                for id in ids {
                    query("UPDATE hold SET expires_at = $1 WHERE id = $2")
                        .bind(until.as_micros())
                        .bind(id.to_string())
                        .execute(&mut *db)
                        .await
                        .map_err(Error::database("renewing a hold"))?;
                }
                Ok(())
            })
        })
        .await
    }

    /// Settles holds that ended at or before `at`, of all organisations: to what the provider had said, or to nothing. Answers how
    /// many.
    ///
    /// # Errors
    /// The database failed.
    pub async fn hold_sweep(&self, at: Timestamp) -> Result<u64> {
        let mut swept = 0;
        loop {
            let some = self.write(move |db| Box::pin(sweep(db, at))).await?;
            swept += some;
            if some == 0 {
                return Ok(swept);
            }
        }
    }

    /// Holds there are, of all organisations.
    ///
    /// # Errors
    /// The database failed.
    pub async fn hold_count(&self) -> Result<u64> {
        let row = query("SELECT COUNT(*) FROM hold")
            .fetch_one(self.readers())
            .await
            .map_err(Error::database("counting holds"))?;
        Reader::new(&row).count("count")
    }
}

/// How much of the output there is room for in one budget.
fn room(row: &BudgetRow, want: &Want) -> Result<u64, Box<Short>> {
    let mut output = want.output;
    let input = big(want.input);
    for unit in Unit::ALL {
        let Some(left) = row.left(*unit) else { continue };
        let fits = match unit {
            Unit::InputTokens => (left >= input).then_some(u64::MAX),
            Unit::OutputTokens => u64::try_from(left).ok(),
            Unit::TotalTokens => u64::try_from(left.saturating_sub(input)).ok(),
            Unit::CostMicros => match want.price {
                Some(price) => price.affords(left, want.input),
                // Nothing can be said of the cost, so nothing may be spent where cost is capped.
                None => return Err(Box::new(Short { unpriced: true, ..row.short(*unit, 0) })),
            },
        };
        match fits {
            Some(fits) if fits >= want.least => output = output.min(fits),
            _ => {
                let needed = match unit {
                    Unit::InputTokens => input,
                    Unit::OutputTokens => big(want.least),
                    Unit::TotalTokens => input.saturating_add(big(want.least)),
                    Unit::CostMicros => {
                        want.price.map_or(0, |price| price.cost(want.input, want.least).get())
                    }
                };
                return Err(Box::new(row.short(*unit, needed)));
            }
        }
    }
    Ok(output)
}

async fn reserve(db: &mut Connection, want: Arc<Want>) -> Result<Reserved> {
    let rows: Vec<_> = matching(&mut *db, &want.spender).await?;
    let mut output = want.output;
    for row in &rows {
        match room(&row.clone().now(want.at), &want) {
            Ok(fits) => output = output.min(fits),
            Err(short) => return Ok(Reserved::Short(short)),
        }
    }
    let cost = want.price.map_or(Micros::ZERO, |price| price.cost(want.input, output));
    for row in &rows {
        begin_span(db, row, want.at).await?;
        let done = query(
            "UPDATE budget SET reserved_input = reserved_input + $1, reserved_output = reserved_output + $2, \
             reserved_cost = reserved_cost + $3 WHERE org = $4 AND level = $5 AND subject = $6 AND period = $7 AND span = $8 \
             AND (cap_input IS NULL OR settled_input + reserved_input + $1 <= cap_input) \
             AND (cap_output IS NULL OR settled_output + reserved_output + $2 <= cap_output) \
             AND (cap_total IS NULL OR settled_input + settled_output + reserved_input + reserved_output + $1 + $2 <= cap_total) \
             AND (cap_cost IS NULL OR settled_cost + reserved_cost + $3 <= cap_cost)",
        )
        .bind(big(want.input))
        .bind(big(output))
        .bind(cost.get())
        .bind(row.org.to_string())
        .bind(row.level.as_str())
        .bind(row.subject.clone())
        .bind(row.period.as_str())
        .bind(row.period.span(want.at))
        .execute(&mut *db)
        .await
        .map_err(Error::database("reserving"))?;
        if done.rows_affected() == 0 {
            return Err(Error::Raced);
        }
    }
    let spender = &want.spender;
    query(
        "INSERT INTO hold (id, org, project, key, end_user, session, turn, release_version, provider, model, day, input, output, \
         cost, noted, noted_input, noted_output, noted_cache_read, noted_cache_write, noted_cost, noted_priced, at, expires_at, token) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, 0, 0, 0, 0, 0, 0, 1, $15, $16, $17)",
    )
    .bind(want.id.to_string())
    .bind(spender.org.to_string())
    .bind(spender.project.to_string())
    .bind(spender.key.map(|id| id.to_string()))
    .bind(spender.end_user.clone())
    .bind(spender.session.to_string())
    .bind(want.turn.map(|id| id.to_string()))
    .bind(want.release.map(big))
    .bind(want.provider.clone())
    .bind(want.model.clone())
    .bind(want.at.day())
    .bind(big(want.input))
    .bind(big(output))
    .bind(cost.get())
    .bind(want.at.as_micros())
    .bind(want.expires_at.as_micros())
    .bind(spender.token.map(|id| id.to_string()))
    .execute(db)
    .await
    .map_err(Error::database("reserving"))?;
    Ok(Reserved::Held { output })
}

/// A new day or month: its sums begin at nothing. Whoever is first does it.
pub(super) async fn begin_span(db: &mut Connection, row: &BudgetRow, at: Timestamp) -> Result<()> {
    let span = row.period.span(at);
    // Never back: a call of yesterday that is settled today does not turn the day back.
    if row.span >= span {
        return Ok(());
    }
    query(
        "UPDATE budget SET span = $1, settled_input = 0, settled_output = 0, settled_cost = 0, reserved_input = 0, \
         reserved_output = 0, reserved_cost = 0 WHERE org = $2 AND level = $3 AND subject = $4 AND period = $5 AND span < $1",
    )
    .bind(span)
    .bind(row.org.to_string())
    .bind(row.level.as_str())
    .bind(row.subject.clone())
    .bind(row.period.as_str())
    .execute(db)
    .await
    .map_err(Error::database("beginning a budget's day"))?;
    Ok(())
}

/// A hold that was taken out of the table.
struct Held {
    spender: Spender,
    day: String,
    input: u64,
    output: u64,
    cost: Micros,
    noted: Option<UsageRow>,
}

fn read(row: &Row) -> Result<Held> {
    let mut row = Reader::new(row);
    let (id, org, project) = (row.parsed("id")?, row.parsed("org")?, row.parsed("project")?);
    let (key, end_user, session) =
        (row.maybe_parsed("key")?, row.maybe_text("end_user")?, row.parsed("session")?);
    let (turn, release) = (row.maybe_parsed("turn")?, row.maybe_count("release_version")?);
    let (provider, model, day) = (row.text("provider")?, row.text("model")?, row.text("day")?);
    let (input, output, cost) = (row.count("input")?, row.count("output")?, Micros::new(row.int("cost")?));
    let noted = row.int("noted")? != 0;
    let usage = Usage {
        input_tokens: row.count("noted_input")?,
        output_tokens: row.count("noted_output")?,
        cache_read_tokens: row.count("noted_cache_read")?,
        cache_write_tokens: row.count("noted_cache_write")?,
    };
    let (noted_cost, priced) = (Micros::new(row.int("noted_cost")?), row.int("noted_priced")? != 0);
    let at = row.time("at")?;
    let token = row.maybe_parsed("token")?;
    let spender = Spender { org, project, key, token, end_user, session };
    let used = UsageRow {
        id,
        org,
        project,
        session,
        turn,
        key,
        token,
        end_user: spender.end_user.clone(),
        release,
        provider,
        model,
        usage,
        cost: noted_cost,
        priced,
        at,
    };
    Ok(Held { spender, day, input, output, cost, noted: noted.then_some(used) })
}

/// Takes a hold out of the table: whoever gets it settles it.
async fn take(db: &mut Connection, id: ModelCallId) -> Result<Option<Held>> {
    let row = query(
        "DELETE FROM hold WHERE id = $1 RETURNING id, org, project, key, end_user, session, turn, release_version, provider, \
         model, day, input, output, cost, noted, noted_input, noted_output, noted_cache_read, noted_cache_write, noted_cost, \
         noted_priced, at, token",
    )
    .bind(id.to_string())
    .fetch_optional(db)
    .await
    .map_err(Error::database("settling a hold"))?;
    row.as_ref().map(read).transpose()
}

/// What was set aside is free again, in the budgets that still count its day.
async fn give_back(db: &mut Connection, held: &Held) -> Result<()> {
    for row in matching(&mut *db, &held.spender).await? {
        query(
            "UPDATE budget SET reserved_input = reserved_input - $1, reserved_output = reserved_output - $2, \
             reserved_cost = reserved_cost - $3 WHERE org = $4 AND level = $5 AND subject = $6 AND period = $7 AND span = $8",
        )
        .bind(big(held.input))
        .bind(big(held.output))
        .bind(held.cost.get())
        .bind(row.org.to_string())
        .bind(row.level.as_str())
        .bind(row.subject.clone())
        .bind(row.period.as_str())
        .bind(row.period.span_of(&held.day))
        .execute(&mut *db)
        .await
        .map_err(Error::database("giving a hold back"))?;
    }
    Ok(())
}

pub(crate) async fn settle(db: &mut Connection, used: Arc<UsageRow>) -> Result<bool> {
    if !insert_event(db, &used).await? {
        return Ok(false);
    }
    if let Some(held) = take(db, used.id).await? {
        give_back(db, &held).await?;
    }
    count(db, &used).await?;
    Ok(true)
}

async fn sweep(db: &mut Connection, at: Timestamp) -> Result<u64> {
    let rows = query("SELECT id FROM hold WHERE expires_at <= $1 ORDER BY id LIMIT $2")
        .bind(at.as_micros())
        .bind(SWEEP)
        .fetch_all(&mut *db)
        .await
        .map_err(Error::database("looking for holds that expired"))?;
    let mut swept = 0;
    for row in &rows {
        let id: ModelCallId = Reader::new(row).parsed("id")?;
        let Some(held) = take(db, id).await? else { continue };
        give_back(db, &held).await?;
        if let Some(used) = &held.noted
            && insert_event(db, used).await?
        {
            count(db, used).await?;
        }
        swept += 1;
    }
    Ok(swept)
}
