//! What a project did: what builds printed and how turns ended, in the order of time.

use std::time::Duration;

use karta_store::{BuildLine, Since};
use karta_types::page::Page;
use karta_types::release::{Line, LogLine};
use karta_types::{OrgId, ProjectId, Timestamp};

use crate::{Engine, Error, Principal, Result};

/// How often a reader that follows looks for more.
const LOOK: Duration = Duration::from_millis(500);
/// A line is told so long after it was written: what came before it and was committed after it is not passed over so.
const SETTLED: Duration = Duration::from_secs(1);
/// Lines that a reader takes at once.
const STEP: u32 = 200;

/// Which lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogKind {
    /// What builds printed.
    Build,
    /// How turns ended.
    Turn,
}

/// A place in a project's log: moment, then what kind and which.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogCursor(i64, String);

impl std::str::FromStr for LogCursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (at, rest) = text.split_once('-').ok_or(())?;
        Ok(Self(at.parse().map_err(|_| ())?, rest.to_owned()))
    }
}

impl std::fmt::Display for LogCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.0, self.1)
    }
}

/// The place of a line that a build printed.
pub(super) fn build_cursor(line: &BuildLine) -> String {
    place_of(line).to_string()
}

fn place_of(line: &BuildLine) -> LogCursor {
    LogCursor(line.at.as_micros(), format!("b{:010}{:010}", line.version, line.seq))
}

/// Reads a project's log on, for as long as it is asked.
#[derive(Debug)]
pub struct LogReader {
    engine: Engine,
    org: OrgId,
    project: ProjectId,
    home: ProjectId,
    kind: Option<LogKind>,
    version: Option<u64>,
    cursor: LogCursor,
}

impl Engine {
    /// A part of the project's log, oldest first: after a cursor, or the newest.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn logs(
        &self,
        who: &Principal,
        reference: &str,
        kind: Option<LogKind>,
        version: Option<u64>,
        after: Option<LogCursor>,
        limit: u32,
    ) -> Result<Page<LogLine>> {
        let mut reader = self.log_reader(who, reference, kind, version, after.clone()).await?;
        let data = match after {
            Some(_) => reader.some(limit).await?,
            None => reader.newest(limit).await?,
        };
        let next_cursor = data.last().map(|line| line.cursor.clone());
        Ok(Page { data, next_cursor })
    }

    /// Follows the project's log after a cursor, or from now on.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn log_reader(
        &self,
        who: &Principal,
        reference: &str,
        kind: Option<LogKind>,
        version: Option<u64>,
        after: Option<LogCursor>,
    ) -> Result<LogReader> {
        let project = self.project_row(who, reference).await?;
        if who.restriction.is_some() {
            return Err(Error::not_found("project"));
        }
        // What has not settled yet is still to come.
        let now = || LogCursor(self.clock().now().minus(SETTLED).as_micros(), String::new());
        let cursor = after.unwrap_or_else(now);
        let (org, home, id) = (who.org, project.home(), project.id);
        // Of its parent's builds a preview has that of the release that it shows.
        let version = if project.parent.is_some() { project.active_version } else { version };
        Ok(LogReader { engine: self.clone(), org, project: id, home, kind, version, cursor })
    }
}

impl LogReader {
    /// The next lines. Waits for them.
    ///
    /// # Errors
    /// The store can't read.
    pub async fn next(&mut self) -> Result<Vec<LogLine>> {
        loop {
            let lines = self.some(STEP).await?;
            if !lines.is_empty() {
                return Ok(lines);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The newest lines, oldest first; the reader goes on behind them.
    ///
    /// # Errors
    /// The store can't read.
    pub async fn newest(&mut self, limit: u32) -> Result<Vec<LogLine>> {
        let mut lines = self.read(Since::Newest, limit).await?;
        lines.sort_by(|one, other| one.0.cmp(&other.0));
        let lines = lines.split_off(lines.len().saturating_sub(limit as usize));
        Ok(self.pass(lines))
    }

    /// The next lines that are there.
    async fn some(&mut self, limit: u32) -> Result<Vec<LogLine>> {
        // Lines of the very moment of the cursor may be behind it: they are read again, and those that were told are left out. So
        // many of one moment there never are.
        let mut lines = self.read(Since::At(Timestamp::from_micros(self.cursor.0)), limit + STEP).await?;
        lines.retain(|(place, _)| *place > self.cursor);
        lines.sort_by(|one, other| one.0.cmp(&other.0));
        lines.truncate(limit as usize);
        Ok(self.pass(lines))
    }

    fn pass(&mut self, lines: Vec<(LogCursor, LogLine)>) -> Vec<LogLine> {
        if let Some((place, _)) = lines.last() {
            self.cursor = place.clone();
        }
        lines.into_iter().map(|(_, line)| line).collect()
    }

    async fn read(&self, since: Since, limit: u32) -> Result<Vec<(LogCursor, LogLine)>> {
        let store = self.engine.store();
        let before = self.engine.clock().now().minus(SETTLED);
        let mut lines = Vec::new();
        if self.kind != Some(LogKind::Turn) {
            for line in store.build_lines(self.org, self.home, self.version, since, before, limit).await? {
                let place = place_of(&line);
                let told = LogLine {
                    cursor: place.to_string(),
                    at: line.at,
                    version: Some(line.version),
                    line: Line::Build { text: line.text },
                };
                lines.push((place, told));
            }
        }
        if self.kind != Some(LogKind::Build) {
            for row in store.turns_ended(self.org, self.project, self.version, since, before, limit).await? {
                let at = row.turn.ended_at.unwrap_or(row.turn.created_at);
                let place = LogCursor(at.as_micros(), format!("t{}", row.turn.id));
                let told = LogLine {
                    cursor: place.to_string(),
                    at,
                    version: row.turn.release.map(|release| release.version),
                    line: Line::Turn { turn: Box::new(row.turn) },
                };
                lines.push((place, told));
            }
        }
        Ok(lines)
    }
}
