//! The one way to the terminal: data to standard output, the rest to standard error, colour only as a help.

use std::io::{IsTerminal as _, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anstream::AutoStream;
use clap::builder::styling::{AnsiColor, Style};

use karta_types::{ErrorCode, Timestamp};

use crate::args::Color;

/// Faint, for what may be overlooked.
pub(crate) const DIM: Style = Style::new().dimmed();
/// For what went wrong.
pub(crate) const RED: Style = AnsiColor::Red.on_default().bold();
/// For what wants an answer.
pub(crate) const YELLOW: Style = AnsiColor::Yellow.on_default().bold();
/// For names and hints.
pub(crate) const CYAN: Style = AnsiColor::Cyan.on_default();

/// The frames of the sign of life.
pub(crate) const FRAMES: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];
/// How often it moves.
pub(crate) const FRAME: Duration = Duration::from_millis(100);
/// Back to the start of the line, and the line emptied.
pub(crate) const CLEAR: &str = "\r\x1b[2K";

/// Where output goes, decided once.
#[derive(Debug)]
pub(crate) struct Printer {
    quiet: bool,
    color: anstream::ColorChoice,
    /// What the sign of life says now.
    doing: Mutex<String>,
    /// Whether a sign of life stands on the line.
    lively: AtomicBool,
}

impl Printer {
    pub(crate) fn new(quiet: bool, color: Color) -> Self {
        let color = match color {
            Color::Auto => anstream::ColorChoice::Auto,
            Color::Always => anstream::ColorChoice::Always,
            Color::Never => anstream::ColorChoice::Never,
        };
        color.write_global();
        Self { quiet, color, doing: Mutex::default(), lively: AtomicBool::new(false) }
    }

    /// Standard output, for results.
    pub(crate) fn out(&self) -> AutoStream<std::io::Stdout> {
        AutoStream::new(std::io::stdout(), self.choice(std::io::stdout().is_terminal()))
    }

    /// Standard error, for everything else.
    pub(crate) fn err(&self) -> AutoStream<std::io::Stderr> {
        AutoStream::new(std::io::stderr(), self.choice(std::io::stderr().is_terminal()))
    }

    fn choice(&self, terminal: bool) -> anstream::ColorChoice {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        match self.color {
            anstream::ColorChoice::Auto if !terminal || unwanted => anstream::ColorChoice::Never,
            anstream::ColorChoice::Auto => anstream::ColorChoice::AlwaysAnsi,
            other => other,
        }
    }

    /// Whether only results and errors are wanted.
    pub(crate) const fn quiet(&self) -> bool {
        self.quiet
    }

    /// Prints a result.
    pub(crate) fn data(&self, text: &str) -> std::io::Result<()> {
        writeln!(self.out(), "{text}")
    }

    /// Prints a result for machines, on one line.
    pub(crate) fn json(&self, value: &impl serde::Serialize) -> std::io::Result<()> {
        let text = serde_json::to_string(value)?;
        self.data(&text)
    }

    /// Says something that is no result.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet {
            // Where nobody can be told, there is nobody to tell that either.
            let clear = if self.lively.swap(false, Ordering::Relaxed) { CLEAR } else { "" };
            let _ = writeln!(self.err(), "{clear}{text}");
        }
    }

    /// Puts a question to the person at the terminal; the answer is typed behind it.
    pub(crate) fn ask(&self, text: &str) {
        let mut err = self.err();
        let _ = write!(err, "{text}").and_then(|()| err.flush());
    }

    /// Prints rows under a head, columns as wide as they need.
    pub(crate) fn table(&self, head: &[&str], rows: &[Vec<String>]) -> std::io::Result<()> {
        write!(self.out(), "{}", table(head, rows))
    }

    /// Tells an error with its causes and what to do, and gives the exit code that goes with it.
    pub(crate) fn failed(&self, error: &anyhow::Error) -> ExitCode {
        let broken = |cause: &(dyn std::error::Error + 'static)| {
            cause
                .downcast_ref::<std::io::Error>()
                .is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
        };
        if error.chain().any(broken) {
            // The reader has had enough (`| head`): nothing went wrong.
            return ExitCode::SUCCESS;
        }
        let mut err = self.err();
        if self.lively.swap(false, Ordering::Relaxed) {
            // What was being done when it failed is of no more interest.
            let _ = write!(err, "{CLEAR}");
        }
        let text = error.to_string().replace('\n', "\n  ");
        let _ = writeln!(err, "{RED}error{RED:#}: {text}");
        for cause in error.chain().skip(1) {
            let _ = writeln!(err, "  {DIM}because{DIM:#}: {cause}");
        }
        if let Some(hint) = error.chain().find_map(hint) {
            let _ = writeln!(err, "  {CYAN}hint{CYAN:#}: {hint}");
        }
        ExitCode::FAILURE
    }

    /// Shows a sign of life while `work` goes on, and takes it away after. Without a terminal each [`Printer::doing`] is a line.
    pub(crate) async fn working<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        if self.quiet || !std::io::stderr().is_terminal() {
            return work.await;
        }
        let mut tick = tokio::time::interval(FRAME);
        for frame in FRAMES.iter().cycle() {
            tokio::select! {
                biased;
                done = &mut work => {
                    if self.lively.swap(false, Ordering::Relaxed) {
                        let _ = write!(self.err(), "{CLEAR}");
                    }
                    return done;
                }
                _ = tick.tick() => {
                    let doing = self.doing.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    let _ = write!(self.err(), "{CLEAR}{CYAN}{frame}{CYAN:#} {doing}");
                    self.lively.store(true, Ordering::Relaxed);
                }
            }
        }
        work.await
    }

    /// What [`Printer::working`] shows from now on.
    pub(crate) fn doing(&self, text: String) {
        if !std::io::stderr().is_terminal() {
            self.note(&text);
        }
        self.progress(text);
    }

    /// How far it is: only the line that moves shows it.
    pub(crate) fn progress(&self, text: String) {
        *self.doing.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }
}

/// What went wrong, with what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub(crate) struct Advised {
    /// What went wrong.
    pub(crate) what: String,
    /// What to do.
    pub(crate) advice: Option<String>,
}

/// What to do about an error, if its kind tells.
fn hint(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    if let Some(advised) = error.downcast_ref::<Advised>() {
        return advised.advice.clone();
    }
    match error.downcast_ref::<karta_client::Error>()? {
        // What is wrong is in its detail, which stands there already; the rest of the help is for programs.
        karta_client::Error::Problem(problem)
            if matches!(problem.error, ErrorCode::InvalidRequest | ErrorCode::InvalidRelease) =>
        {
            None
        }
        karta_client::Error::Problem(problem) => Some(problem.error.help().to_owned()),
        error if error.unreachable() => Some("is the server running? `karta dev` starts one".to_owned()),
        _ => None,
    }
}

fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..head.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<_> = cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    let mut text = format!("{DIM}{}{DIM:#}\n", line(&mut head.iter().copied()));
    for row in rows {
        text += &line(&mut row.iter().map(String::as_str));
        text.push('\n');
    }
    text
}

/// A number of bytes, for people: `512 bytes`, `34 kB`, `1.2 MB`.
pub(crate) fn size(bytes: u64) -> String {
    let mut unit = 1_u64;
    for name in ["kB", "MB", "GB"] {
        unit *= 1000;
        // What would be shown as a thousand of this unit is one of the next.
        if bytes.saturating_add(unit / 2) < unit * 1000 || name == "GB" {
            if bytes < 1000 {
                break;
            }
            let tenths = bytes.saturating_add(unit / 20) / (unit / 10);
            return if tenths < 100 {
                format!("{}.{} {name}", tenths / 10, tenths % 10)
            } else {
                format!("{} {name}", bytes.saturating_add(unit / 2) / unit)
            };
        }
    }
    count(bytes, "byte")
}

/// A moment to the minute, in UTC, as a table has room for it: `2026-11-24 12:30`.
pub(crate) fn minute(at: Timestamp) -> String {
    at.to_string().chars().take(16).collect::<String>().replace('T', " ")
}

/// So many of something: `1 file`, `2 files`.
pub(crate) fn count(number: u64, what: &str) -> String {
    let end = if number == 1 { "" } else { "s" };
    format!("{number} {what}{end}")
}

/// Text of somebody else's made fit for a terminal: no control characters but line feed and tab, so that nothing in it can move
/// the cursor, recolour or answer for the person.
pub(crate) fn tame(text: &str) -> String {
    text.chars().filter(|&letter| !letter.is_control() || matches!(letter, '\n' | '\t')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_have_no_tail() {
        let rows =
            vec![vec!["a".into(), "bb".into(), "c".into()], vec!["aaaa".into(), "b".into(), String::new()]];
        let text = anstream::adapter::strip_str(&table(&["X", "YY", "Z"], &rows)).to_string();
        assert_eq!(text, "X     YY  Z\na     bb  c\naaaa  b\n");
    }

    #[test]
    fn bytes_read_as_people_say_them() {
        let sizes = [0, 1, 999, 1000, 1049, 9949, 9950, 34_499, 999_499, 999_500, 1_234_567, 5_000_000_000];
        let shown: Vec<_> = sizes.into_iter().map(size).collect();
        let wanted = [
            "0 bytes",
            "1 byte",
            "999 bytes",
            "1.0 kB",
            "1.0 kB",
            "9.9 kB",
            "10 kB",
            "34 kB",
            "999 kB",
            "1.0 MB",
            "1.2 MB",
            "5.0 GB",
        ];
        assert_eq!(shown, wanted);
    }

    #[test]
    fn a_terminal_can_not_be_played_by_what_is_shown() {
        assert_eq!(tame("a\x1b[2Jb\r\nc\u{9b}d\te\u{7}"), "a[2Jb\ncd\te");
    }
}
