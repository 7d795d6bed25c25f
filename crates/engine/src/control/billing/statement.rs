//! What an organisation used in a month, to be paid: as JSON and as CSV.

use std::fmt::Write as _;

use karta_store::UsageKey;
use karta_types::billing::{Statement, StatementLine};
use karta_types::{Micros, Timestamp};

use crate::control::usage::{Query, quoted};
use crate::{Engine, Error, Principal, Result};

/// Micro-dollars in a cent.
const CENT: i64 = 10_000;

/// A month's first moment and that of the next.
fn span(month: &str) -> Option<(Timestamp, Timestamp)> {
    let (year, number) =
        month.split_once('-').filter(|(year, number)| year.len() == 4 && number.len() == 2)?;
    let (year, number): (u16, u8) = (year.parse().ok()?, number.parse().ok()?);
    let (next_year, next) = if number == 12 { (year + 1, 1) } else { (year, number + 1) };
    let first = |year: u16, month: u8| {
        serde_json::from_value(serde_json::Value::from(format!("{year:04}-{month:02}-01T00:00:00Z"))).ok()
    };
    Some((first(year, number)?, first(next_year, next)?))
}

/// A sum in whole cents, rounded half up, and what that added.
fn rounded(sum: Micros) -> (i64, i64) {
    let cents = (sum.get() + CENT / 2).div_euclid(CENT);
    (cents, cents * CENT - sum.get())
}

impl Engine {
    /// The organisation's statement of a month like `2026-11`, in UTC.
    ///
    /// # Errors
    /// `not_found` for what is no month, or one that has not begun.
    pub async fn statement(&self, who: &Principal, month: &str) -> Result<Statement> {
        let now = self.clock().now();
        let (from, to) = span(month)
            .filter(|(from, _)| *from <= now)
            .ok_or_else(|| Error::not_found("month, like `2026-11`"))?;
        let query = Query {
            from: Some(from),
            to: Some(to),
            project: None,
            group_by: vec![UsageKey::Project, UsageKey::Model],
        };
        let mut lines = Vec::new();
        let mut sum = Micros::ZERO;
        for row in self.usage(who, query).await? {
            let of = |key: &str| row.keys.get(key).cloned().unwrap_or_default();
            sum = sum.saturating_add(row.metered.cost_micros);
            lines.push(StatementLine {
                project: of("project"),
                model: of("model"),
                turns: row.turns,
                calls: row.calls,
                unpriced_calls: row.unpriced_calls,
                input_tokens: row.metered.input_tokens,
                output_tokens: row.metered.output_tokens,
                cache_read_tokens: row.metered.cache_read_tokens,
                cache_write_tokens: row.metered.cache_write_tokens,
                cost_micros: row.metered.cost_micros,
            });
        }
        let (total_cents, rounding_micros) = rounded(sum);
        let unpriced_calls = lines.iter().map(|line| line.unpriced_calls).sum();
        Ok(Statement {
            org: self.org(who).await?.name,
            month: month.to_owned(),
            closed: to <= now,
            lines,
            cost_micros: sum,
            total_cents,
            rounding_micros,
            unpriced_calls,
        })
    }
}

/// A statement as CSV (RFC 4180): its lines, then the sum, the rounding and the total, each with its name in the first column.
pub fn csv(statement: &Statement) -> String {
    let mut text = String::from(
        "project,model,turns,calls,unpriced_calls,input_tokens,output_tokens,cache_read_tokens,cache_write_tokens,cost_micros\r\n",
    );
    for line in &statement.lines {
        // Writing to a string can't fail.
        let _ = write!(
            text,
            "{},{},{},{},{},{},{},{},{},{}\r\n",
            quoted(&line.project),
            quoted(&line.model),
            line.turns,
            line.calls,
            line.unpriced_calls,
            line.input_tokens,
            line.output_tokens,
            line.cache_read_tokens,
            line.cache_write_tokens,
            line.cost_micros.get()
        );
    }
    let total = statement.total_cents * CENT;
    for (name, micros) in
        [("sum", statement.cost_micros.get()), ("rounding", statement.rounding_micros), ("total", total)]
    {
        let _ = write!(text, "{name},,,,,,,,,{micros}\r\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rounding_is_at_most_half_a_cent_and_adds_up(micros in 0..i64::MAX / 2) {
            let (cents, rounding) = rounded(Micros::new(micros));
            prop_assert!(rounding.abs() <= CENT / 2);
            prop_assert_eq!(cents * CENT, micros + rounding);
        }
    }

    #[test]
    fn months_follow_each_other() {
        for (month, next) in [("2026-11", "2026-12"), ("2026-12", "2027-01"), ("2024-02", "2024-03")] {
            assert_eq!(span(month).unwrap().1, span(next).unwrap().0);
        }
        for none in ["2026", "2026-13", "2026-00", "26-11", "2026-1", "", "2026-11-01", "abcd-ef"] {
            assert!(span(none).is_none(), "{none}");
        }
    }
}
