//! Budgets: set and shown, and what the gate answers from them.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use karta_store::{BudgetRow, Reserved, Short, Spender, Store, UsageRow, Want};
use karta_types::budget::{Amount, Budget, Caps, Level, Period, Unit};
use karta_types::{ErrorCode, KeyId, ModelCallId, OrgId, Problem, SessionId, Timestamp};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::control::audit::digest;
use crate::gate::Hold;
use crate::{Engine, Error, Principal, Result};

/// How long a hold is good for without being renewed.
pub(crate) const HOLD: Duration = Duration::from_mins(10);
/// How often holds of calls that run are renewed, and those that nobody renews swept.
pub(crate) const RENEWAL: Duration = Duration::from_mins(1);
/// How long a call waits for others to settle when it is only what they have set aside that leaves it no room.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often it looks by itself: another node may have settled.
const LOOK: Duration = Duration::from_millis(250);
/// Less output than this is not worth taking while others may give more back.
const USEFUL: u64 = 1_024;

/// What is set aside for calls of this node.
#[derive(Debug)]
pub struct Budgets {
    store: Store,
    live: Mutex<HashSet<ModelCallId>>,
    settled: Notify,
}

impl Budgets {
    pub(crate) fn new(store: Store) -> Self {
        Self { store, live: Mutex::default(), settled: Notify::new() }
    }

    pub(crate) async fn admit(&self, spender: &Spender, now: Timestamp) -> Result<(), Box<Problem>> {
        match self.store.budget_short(spender, now).await {
            Ok(None) => Ok(()),
            Ok(Some(short)) => Err(exhausted(&short)),
            Err(error) => Err(failed(error)),
        }
    }

    /// Reserves. Waits a while when others hold what this call needs: their bounds are mostly more than what they use.
    pub(crate) async fn reserve(&self, want: Want) -> Result<(Hold, u64), (Box<Problem>, bool)> {
        let until = Instant::now() + PATIENCE;
        let mut least = want.least.max(want.output.min(USEFUL));
        loop {
            // Asked for before the look: what is settled in between wakes us.
            let settled = self.settled.notified();
            match self.store.hold(Want { least, ..want.clone() }).await {
                Ok(Reserved::Held { output }) => {
                    self.live.lock().unwrap_or_else(PoisonError::into_inner).insert(want.id);
                    return Ok((Hold::of(want.id), output));
                }
                Ok(Reserved::Short(short)) if may_fit_later(&short) && Instant::now() < until => {
                    // Woken or not, the record is looked at again: another node may have settled.
                    let _ = tokio::time::timeout(LOOK, settled).await;
                }
                // Nobody holds anything that would help, or they hold it too long: what there is has to do.
                Ok(Reserved::Short(_)) if least > want.least => least = want.least,
                Ok(Reserved::Short(short)) => return Err(refused(&short)),
                Err(error) => return Err((failed(error), false)),
            }
        }
    }

    pub(crate) async fn settle(&self, hold: Hold, used: UsageRow) -> Result<()> {
        let done = self.store.hold_settle(used).await;
        self.over(&hold);
        done?;
        Ok(())
    }

    pub(crate) async fn release(&self, hold: Hold) -> Result<()> {
        let done = self.store.hold_release(hold.call()).await;
        self.over(&hold);
        Ok(done?)
    }

    /// Somebody else renews this hold, or nobody does.
    pub(crate) fn leave_to_another(&self, hold: &Hold) {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).remove(&hold.call());
    }

    fn over(&self, hold: &Hold) {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).remove(&hold.call());
        self.settled.notify_waiters();
    }

    /// Renews holds of calls that run here, and settles those that nobody renews.
    pub(crate) async fn keep(&self, now: Timestamp) -> Result<()> {
        let live: Vec<_> = {
            let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
            live.iter().copied().collect()
        };
        if !live.is_empty() {
            self.store.hold_renew(live, now.plus(HOLD)).await?;
        }
        let swept = self.store.hold_sweep(now).await?;
        if swept > 0 {
            tracing::warn!(swept, "holds that nobody settled were settled to what the provider had said");
            self.settled.notify_waiters();
        }
        Ok(())
    }
}

/// Whether there would be room if nobody held anything.
fn may_fit_later(short: &Short) -> bool {
    !short.unpriced && short.reserved > 0 && short.short <= short.reserved
}

fn refused(short: &Short) -> (Box<Problem>, bool) {
    let inexact = !short.unpriced && short.unit != Unit::OutputTokens;
    (exhausted(short), inexact)
}

fn failed(error: karta_store::Error) -> Box<Problem> {
    let error = Error::from(error);
    tracing::error!(error = error.chain(), "looking at budgets");
    Box::new(error.problem())
}

/// The refusal, for people and for programs.
fn exhausted(short: &Short) -> Box<Problem> {
    let whose = match short.level {
        Level::Credit => "the organisation's prepaid credit: its".to_owned(),
        Level::Org => "the organisation's".to_owned(),
        level => format!("the {} `{}`'s", level.as_str().replace('_', " "), short.subject),
    };
    let detail = if short.unpriced {
        format!(
            "{whose} cost is capped and this model has no price: set one in `[prices]` of the server's settings"
        )
    } else {
        format!(
            "{whose} cap of {} {} has no room: {} used, {} set aside, {} short",
            short.cap, short.unit, short.settled, short.reserved, short.short
        )
    };
    Box::new(
        Problem::new(ErrorCode::BudgetExhausted, detail)
            .with("level", short.level.as_str())
            .with("id", short.subject.clone())
            .with("unit", short.unit.as_str())
            .with("cap", short.cap)
            .with("settled", short.settled)
            .with("reserved", short.reserved)
            .with("left", (short.cap - short.settled - short.reserved).max(0))
            .with("short", short.short),
    )
}

impl Engine {
    /// The organisation's budgets.
    ///
    /// # Errors
    /// The store can't read.
    pub async fn budgets(&self, who: &Principal) -> Result<Vec<Budget>> {
        let now = self.clock().now();
        let rows = self.store().budget_list(who.org).await?;
        let mine = |row: &BudgetRow| {
            let project = who.project.map(|project| project.to_string());
            project.is_none_or(|project| row.level == Level::Project && row.subject == project)
        };
        Ok(rows.into_iter().filter(mine).map(|row| show(row.now(now))).collect())
    }

    /// Sets a budget. What was used in its period before counts.
    ///
    /// # Errors
    /// `not_found` for a subject that is not the organisation's; `invalid_request` without a cap, or for one that is negative;
    /// `forbidden` for what the server's settings cap, and for levels beyond a key's project.
    pub async fn set_budget(
        &self,
        who: &Principal,
        level: Level,
        subject: &str,
        period: Period,
        caps: Caps,
    ) -> Result<Budget> {
        if caps.is_empty() {
            return Err(Error::invalid(
                "",
                "a budget caps at least one of input_tokens, output_tokens, total_tokens, cost_micros",
            ));
        }
        for unit in Unit::ALL {
            if caps.of(*unit).is_some_and(|cap| cap < 0) {
                return Err(Error::invalid(&format!("/{unit}"), "a cap is not negative"));
            }
        }
        let subject = self.budget_subject(who, level, subject).await?;
        let before = self.budget_row(who.org, level, &subject, period).await?;
        if before.as_ref().is_some_and(|row| row.source == CONFIG) {
            return Err(Error::told(
                ErrorCode::Forbidden,
                "this cap is set in the server's settings; change it there, or cap another period",
            ));
        }
        let mut told = self.told(who, "budget.set", format!("{level}/{subject}/{period}"));
        told.before = before.map(|row| digest(&row.caps)).transpose()?;
        told.after = Some(digest(&caps)?);
        let row = new_row(who.org, level, subject, period, caps, "api", self.clock().now());
        let row = self.store().budget_set(row, told).await?;
        Ok(show(row))
    }

    /// Removes a budget.
    ///
    /// # Errors
    /// `not_found`; `forbidden` for what the server's settings cap.
    pub async fn remove_budget(
        &self,
        who: &Principal,
        level: Level,
        subject: &str,
        period: Period,
    ) -> Result<()> {
        let subject = self.budget_subject(who, level, subject).await?;
        let Some(before) = self.budget_row(who.org, level, &subject, period).await? else {
            return Err(Error::not_found("budget"));
        };
        if before.source == CONFIG {
            return Err(Error::told(ErrorCode::Forbidden, "this cap is set in the server's settings"));
        }
        let mut told = self.told(who, "budget.remove", format!("{level}/{subject}/{period}"));
        told.before = Some(digest(&before.caps)?);
        if !self.store().budget_remove(who.org, level, &subject, period, told).await? {
            return Err(Error::not_found("budget"));
        }
        Ok(())
    }

    async fn budget_row(
        &self,
        org: OrgId,
        level: Level,
        subject: &str,
        period: Period,
    ) -> Result<Option<BudgetRow>> {
        let rows = self.store().budget_get(org, level, subject).await?;
        Ok(rows.into_iter().find(|row| row.period == period))
    }

    /// The id a budget is kept under. What does not exist, or is another organisation's, is not found.
    async fn budget_subject(&self, who: &Principal, level: Level, subject: &str) -> Result<String> {
        if who.project.is_some() && level != Level::Project {
            return Err(Error::told(
                ErrorCode::Forbidden,
                "your key is for one project; it can set that project's budget only",
            ));
        }
        let missing = || Error::not_found(level.as_str());
        match level {
            Level::Token => Err(Error::told(
                ErrorCode::Forbidden,
                "a session token is capped when it is minted: `max_cost_micros`",
            )),
            Level::Credit => Err(Error::told(
                ErrorCode::Forbidden,
                "credit is granted by whoever runs the server, not set as a budget",
            )),
            Level::Org if subject == who.org.to_string() => Ok(subject.to_owned()),
            Level::Org => {
                let org = self.org(who).await?;
                if org.slug == subject { Ok(org.id.to_string()) } else { Err(missing()) }
            }
            Level::Project => Ok(self.project_row(who, subject).await?.id.to_string()),
            Level::Key => {
                let id: KeyId = subject.parse().map_err(|_| missing())?;
                Ok(self.key(who, id).await?.id.to_string())
            }
            Level::Session => {
                let id: SessionId = subject.parse().map_err(|_| missing())?;
                Ok(self.session_row(who, id).await?.id.to_string())
            }
            // An end user is whoever the organisation says: there is no list of them.
            Level::EndUser if !subject.is_empty() && subject.len() <= 256 => Ok(subject.to_owned()),
            Level::EndUser => Err(Error::invalid("/id", "an end user's id has 1 to 256 bytes")),
        }
    }

    /// The cap of the server's settings, for an organisation that it serves.
    pub(crate) async fn keep_configured_cap(&self, org: OrgId) -> Result<()> {
        let caps = self.settings().budget;
        let before = self.budget_row(org, Level::Org, &org.to_string(), Period::Total).await?;
        let who = Principal::system(org);
        let resource = format!("{}/{org}/{}", Level::Org, Period::Total);
        match before {
            Some(row) if row.source == CONFIG && caps.is_empty() => {
                let told = self.told(&who, "budget.remove", resource);
                self.store().budget_remove(org, Level::Org, &org.to_string(), Period::Total, told).await?;
            }
            Some(row) if row.source == CONFIG && row.caps == caps => {}
            _ if caps.is_empty() => {}
            before => {
                let mut told = self.told(&who, "budget.set", resource);
                told.before = before.map(|row| digest(&row.caps)).transpose()?;
                told.after = Some(digest(&caps)?);
                let now = self.clock().now();
                let row = new_row(org, Level::Org, org.to_string(), Period::Total, caps, CONFIG, now);
                self.store().budget_set(row, told).await?;
            }
        }
        Ok(())
    }
}

const CONFIG: &str = "config";

fn new_row(
    org: OrgId,
    level: Level,
    subject: String,
    period: Period,
    caps: Caps,
    source: &str,
    at: Timestamp,
) -> BudgetRow {
    BudgetRow {
        org,
        level,
        subject,
        period,
        span: period.span(at),
        caps,
        settled: Amount::default(),
        reserved: Amount::default(),
        source: source.to_owned(),
        updated_at: at,
    }
}

fn show(row: BudgetRow) -> Budget {
    let tokens = |unit| row.left(unit).map(|left| u64::try_from(left).unwrap_or(0));
    let left = Caps {
        input_tokens: tokens(Unit::InputTokens),
        output_tokens: tokens(Unit::OutputTokens),
        total_tokens: tokens(Unit::TotalTokens),
        cost_micros: row.left(Unit::CostMicros).map(|left| left.max(0)),
    };
    Budget {
        level: row.level,
        id: row.subject,
        period: row.period,
        span: row.span,
        caps: row.caps,
        settled: row.settled,
        reserved: row.reserved,
        left,
        source: row.source,
        updated_at: row.updated_at,
    }
}
