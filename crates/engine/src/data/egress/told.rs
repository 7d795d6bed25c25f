//! What was decided, told: a loop that asks a thousand times makes one line, and what can't be held is counted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use karta_store::AuditEntry;
use karta_types::egress::Decision;
use karta_types::{Body, OrgId, SessionId};
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::Engine;
use crate::control::audit::by_platform;

/// Different decisions that wait at once; more are counted.
const WAITING: usize = 32;
/// What is waited at least between two tellings; doubled as long as there is always something to tell.
const PAUSE: Duration = Duration::from_secs(2);
/// The most that is waited.
const LONGEST: Duration = Duration::from_mins(1);
/// The longest reason in the audit log.
const REASON: usize = 1000;

/// What makes two decisions the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Same {
    allowed: bool,
    host: String,
    port: u16,
    method: Option<String>,
    path: Option<String>,
    why: Option<String>,
}

#[derive(Debug, Default)]
struct Pending {
    /// With the rule and how often.
    known: BTreeMap<Same, (Option<String>, u64)>,
    /// Allowed and refused ones that there was no room for.
    more: [u64; 2],
    closed: bool,
}

#[derive(Debug, Default)]
struct Shared {
    pending: Mutex<Pending>,
    woken: Notify,
}

/// Where decisions are noted. Noting never waits.
#[derive(Debug, Clone)]
pub(super) struct Told(Arc<Shared>);

/// Hears what was decided.
#[derive(Debug)]
pub(crate) struct Decisions {
    shared: Arc<Shared>,
    /// When the next may be told, and the pause before it.
    next: Option<(Instant, Duration)>,
}

/// Both ends.
pub(super) fn channel() -> (Told, Decisions) {
    let shared = Arc::<Shared>::default();
    (Told(shared.clone()), Decisions { shared, next: None })
}

impl Told {
    pub(super) fn note(&self, decision: Decision) {
        let mut pending = self.0.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let Decision { allowed, method, host, port, path, rule, why, count } = decision;
        let same = Same { allowed, host, port, method, path, why };
        let full = pending.known.len() >= WAITING;
        match pending.known.get_mut(&same) {
            Some((_, known)) => *known += count,
            None if full => pending.more[usize::from(allowed)] += count,
            None => drop(pending.known.insert(same, (rule, count))),
        }
        drop(pending);
        self.0.woken.notify_one();
    }

    /// Nothing will be noted any more.
    pub(super) fn close(&self) {
        self.0.pending.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.0.woken.notify_one();
    }
}

impl Decisions {
    /// What was decided since the last time, at once or after a pause; none when nothing will be any more. May be cancelled.
    pub(crate) async fn next(&mut self) -> Option<Vec<Decision>> {
        loop {
            if let Some((at, _)) = self.next
                && !self.is_closed()
            {
                // What comes after the end is told at once: there is nothing to gather any more.
                tokio::select! {
                    () = tokio::time::sleep_until(at) => {}
                    () = self.closed() => {}
                }
            }
            let closed = self.is_closed();
            let taken = self.take();
            if !taken.is_empty() {
                let now = Instant::now();
                let pause = match self.next {
                    Some((at, pause)) if now < at + pause => (pause * 2).min(LONGEST),
                    _ => PAUSE,
                };
                self.next = Some((now + pause, pause));
                return Some(taken);
            }
            if closed {
                return None;
            }
            self.shared.woken.notified().await;
        }
    }

    async fn closed(&self) {
        while !self.is_closed() {
            self.shared.woken.notified().await;
        }
        // Kept for the next look.
        self.shared.woken.notify_one();
    }

    fn is_closed(&self) -> bool {
        self.shared.pending.lock().unwrap_or_else(PoisonError::into_inner).closed
    }

    /// What waits, without waiting.
    pub(crate) fn take(&self) -> Vec<Decision> {
        let (known, more) = {
            let mut pending = self.shared.pending.lock().unwrap_or_else(PoisonError::into_inner);
            (std::mem::take(&mut pending.known), std::mem::take(&mut pending.more))
        };
        let mut decisions: Vec<_> = known
            .into_iter()
            .map(|(same, (rule, count))| {
                let Same { allowed, host, port, method, path, why } = same;
                Decision { allowed, method, host, port, path, rule, why, count }
            })
            .collect();
        for (allowed, count) in [false, true].into_iter().zip(more).filter(|(_, count)| *count > 0) {
            decisions.push(Decision {
                allowed,
                method: None,
                host: "…".to_owned(),
                port: 0,
                path: None,
                rule: None,
                why: Some("more than can be told one by one".to_owned()),
                count,
            });
        }
        decisions
    }
}

/// The event that tells of decisions.
pub(crate) fn event(decisions: &[Decision]) -> Body {
    Body::System { subtype: "egress".to_owned(), detail: json!({ "decisions": decisions }) }
}

/// What is refused, in words.
pub(crate) fn refusal(decision: &Decision) -> String {
    let Decision { host, port, why, .. } = decision;
    format!("{host}:{port} is refused: {}", why.as_deref().unwrap_or("no rule allows it"))
}

/// The entry of the audit log that tells of refusals; none if there were none.
pub(crate) fn entry(
    engine: &Engine,
    org: OrgId,
    session: SessionId,
    decisions: &[Decision],
) -> Option<AuditEntry> {
    let refused: Vec<_> = decisions.iter().filter(|one| !one.allowed).collect();
    if refused.is_empty() {
        return None;
    }
    let lines: Vec<_> = refused.iter().map(|one| format!("{} ({} times)", refusal(one), one.count)).collect();
    let mut reason = lines.join("; ");
    if reason.len() > REASON {
        reason = reason.chars().take(REASON).chain(['…']).collect();
    }
    Some(by_platform((engine.clock(), engine.rng()), org, "egress.refused", session, Some(reason)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decision(allowed: bool, host: &str) -> Decision {
        let why = (!allowed).then(|| "no".to_owned());
        Decision {
            allowed,
            method: None,
            host: host.to_owned(),
            port: 443,
            path: None,
            rule: None,
            why,
            count: 1,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_makes_few_tellings() {
        let (told, mut decisions) = channel();
        let noting = async {
            for _ in 0..10_000 {
                told.note(decision(false, "a.example"));
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            told.close();
        };
        let hearing = async {
            let (mut tellings, mut count) = (0, 0);
            while let Some(some) = decisions.next().await {
                assert_eq!(some.len(), 1);
                tellings += 1;
                count += some[0].count;
            }
            (tellings, count)
        };
        let ((), (tellings, count)) = tokio::join!(noting, hearing);
        assert_eq!(count, 10_000, "none is lost");
        assert!(tellings <= 8, "100 seconds of refusals made {tellings} tellings");
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_no_room_is_counted() {
        let (told, mut decisions) = channel();
        for index in 0..1000 {
            told.note(decision(index % 2 == 0, &format!("h{index}.example")));
        }
        let some = decisions.next().await.unwrap();
        assert_eq!(some.len(), WAITING + 2);
        assert_eq!(some.iter().map(|one| one.count).sum::<u64>(), 1000);
        assert_eq!(some.iter().filter(|one| one.allowed).map(|one| one.count).sum::<u64>(), 500);
        told.close();
        assert_eq!(decisions.next().await, None);
    }
}
