//! Rows, and how they print.

use std::time::Duration;

use serde::Serialize;

/// One row.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) clients: usize,
    /// Requests or turns a second.
    pub(crate) per_second: f64,
    /// The same as a part of the baseline's requests with as many clients.
    pub(crate) of_baseline: f64,
    /// Events a second, where there are some.
    pub(crate) events: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p95_ms: f64,
    pub(crate) p99_ms: f64,
    /// To the first event, where there are some.
    pub(crate) first_p50_ms: f64,
    pub(crate) errors: usize,
    /// Processor seconds of the server for each second.
    pub(crate) server_cpu: f64,
}

/// A point of a sorted list.
pub(crate) fn percentile(sorted: &[Duration], part: f64) -> f64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a rank within the list"
    )]
    let rank = (sorted.len().saturating_sub(1) as f64 * part).round() as usize;
    sorted.get(rank).map_or(0.0, |time| time.as_secs_f64() * 1000.0)
}

#[expect(clippy::print_stdout, reason = "the table is the result")]
pub(crate) fn print(rows: &[Row], json: bool) -> anyhow::Result<()> {
    if json {
        for row in rows {
            println!("{}", serde_json::to_string(row)?);
        }
        return Ok(());
    }
    println!(
        "| {:<22} | {:>7} | {:>9} | {:>8} | {:>9} | {:>8} | {:>8} | {:>8} | {:>8} | {:>6} | {:>5} |",
        "what",
        "clients",
        "per s",
        "of base",
        "events/s",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "first ms",
        "errors",
        "CPU"
    );
    println!("| {} |", ["---"; 11].join(" | "));
    for row in rows {
        println!(
            "| {:<22} | {:>7} | {:>9.0} | {:>8.2} | {:>9.0} | {:>8.2} | {:>8.2} | {:>8.2} | {:>8.2} | {:>6} | {:>5.2} |",
            row.what,
            row.clients,
            row.per_second,
            row.of_baseline,
            row.events,
            row.p50_ms,
            row.p95_ms,
            row.p99_ms,
            row.first_p50_ms,
            row.errors,
            row.server_cpu
        );
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the table is the result")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}
