//! What was used counts, and endpoints are told when much of a cap is gone.

use karta_types::Micros;
use karta_types::budget::{Amount, Level, Unit};

use crate::ledger::Spender;
use crate::ledger::budgets::{BudgetRow, matching};
use crate::ledger::holds::begin_span;
use crate::row::{Reader, big};
use crate::sql::{Connection, query};
use crate::usage::UsageRow;
use crate::webhooks::outbox;
use crate::{Error, Result};

/// Percents of a cap that are told.
const THRESHOLDS: [i64; 3] = [50, 80, 100];

/// What was used counts, in the budgets that count its day.
pub(super) async fn count(db: &mut Connection, used: &UsageRow) -> Result<()> {
    let spender = Spender {
        org: used.org,
        project: used.project,
        key: used.key,
        token: used.token,
        end_user: used.end_user.clone(),
        session: used.session,
    };
    let usage = used.usage;
    let input = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens;
    for row in matching(&mut *db, &spender).await? {
        begin_span(db, &row, used.at).await?;
        let counted = query(
            "UPDATE budget SET settled_input = settled_input + $1, settled_output = settled_output + $2, \
             settled_cost = settled_cost + $3 WHERE org = $4 AND level = $5 AND subject = $6 AND period = $7 AND span = $8 \
             RETURNING settled_input, settled_output, settled_cost",
        )
        .bind(big(input))
        .bind(big(usage.output_tokens))
        .bind(used.cost.get())
        .bind(row.org.to_string())
        .bind(row.level.as_str())
        .bind(row.subject.clone())
        .bind(row.period.as_str())
        .bind(row.period.span(used.at))
        .fetch_optional(&mut *db)
        .await
        .map_err(Error::database("counting what was used"))?;
        if let Some(counted) = counted {
            let mut counted = Reader::new(&counted);
            let (input, output) = (counted.count("settled_input")?, counted.count("settled_output")?);
            let after = Amount::new(input, output, Micros::new(counted.int("settled_cost")?));
            if row.level == Level::Credit {
                crate::credit::draw(db, used.org, used.cost).await?;
            }
            tell_thresholds(db, &row, used, after).await?;
        }
    }
    Ok(())
}

/// Tells endpoints when this call was the one that passed half, four fifths or all of a cap.
async fn tell_thresholds(db: &mut Connection, row: &BudgetRow, used: &UsageRow, after: Amount) -> Result<()> {
    let usage = used.usage;
    let input = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens;
    let more = Amount::new(input, usage.output_tokens, used.cost);
    for unit in Unit::ALL {
        let Some(cap) = row.caps.of(*unit) else { continue };
        let (before, settled) = (after.of(*unit) - more.of(*unit), after.of(*unit));
        for percent in THRESHOLDS {
            let line = i128::from(cap) * i128::from(percent);
            if i128::from(before) * 100 < line && i128::from(settled) * 100 >= line {
                let threshold = outbox::Threshold {
                    level: row.level,
                    subject: row.subject.clone(),
                    period: row.period,
                    unit: *unit,
                    percent,
                    cap,
                    settled,
                };
                outbox::note(db, threshold.happening(used.org, used.id.as_u128(), used.at)).await?;
            }
        }
    }
    Ok(())
}
