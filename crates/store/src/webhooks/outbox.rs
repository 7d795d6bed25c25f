//! What happened, written in the transaction of what it tells.
//!
//! An id is made of the time and of what it tells, so that an operation that runs twice tells once.

use karta_types::budget::{Level, Period, Unit};
use karta_types::event::{Answerer, InputRequired};
use karta_types::message::Decision;
use karta_types::session::TurnState;
use karta_types::webhook::Happened;
use karta_types::{HappeningId, OrgId, RequestId, SessionId, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::handover::{self, Kind};
use crate::sql::{Connection, query};
use crate::turns::TurnEnd;
use crate::{AuditEntry, Error, Result};

/// Something that happened.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Happening {
    pub(crate) id: HappeningId,
    pub(crate) org: OrgId,
    pub(crate) kind: Happened,
    /// What it is about: told in order to each endpoint.
    pub(crate) subject: String,
    pub(crate) body: Value,
    pub(crate) at: Timestamp,
}

/// An id that sorts by time and is always the same for the same thing.
fn id(at: Timestamp, source: u128, tag: u128) -> HappeningId {
    let millis = u128::from(at.as_millis().unsigned_abs()) & ((1 << 48) - 1);
    let micros = u128::from(at.as_micros().unsigned_abs() % 1000);
    // Spread by the golden ratio, so that neighbouring tags don't meet.
    let mixed = source ^ tag.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    HappeningId::from_u128((millis << 80) | (micros << 70) | (mixed & ((1 << 70) - 1)))
}

/// Notes that something happened, if the organisation has anybody to tell.
pub(crate) async fn note(db: &mut Connection, happening: Happening) -> Result<()> {
    if db.hands_over() {
        let (id, org, at) = (happening.id.to_string(), happening.org, happening.at);
        return handover::hand(db, Kind::Happening, &id, org, at, &happening).await;
    }
    // Without an endpoint nothing is kept: most organisations have none, and every turn passes here.
    query(
        "INSERT INTO happening (id, org, kind, subject, body, at, spread) \
         SELECT CAST($1 AS TEXT), CAST($2 AS TEXT), CAST($3 AS TEXT), CAST($4 AS TEXT), CAST($5 AS TEXT), CAST($6 AS BIGINT), 0 \
         WHERE EXISTS (SELECT 1 FROM endpoint WHERE org = $2 AND disabled_at IS NULL) ON CONFLICT (id) DO NOTHING",
    )
    .bind(happening.id.to_string())
    .bind(happening.org.to_string())
    .bind(happening.kind.as_str())
    .bind(happening.subject)
    .bind(happening.body.to_string())
    .bind(happening.at.as_micros())
    .execute(db)
    .await
    .map_err(Error::database("noting what happened"))?;
    Ok(())
}

/// What an entry of the audit log tells endpoints, if anything.
pub(crate) fn of_entry(entry: &AuditEntry) -> Option<Happening> {
    let kind = match entry.action.as_str() {
        "session.erase" => Happened::SessionErased,
        "release.publish" => Happened::ReleasePublished,
        "release.activate" | "release.rollback" | "release.promote" => Happened::ReleaseActivated,
        "release.fail" => Happened::ReleaseFailed,
        "release.delete" => Happened::ReleaseDeleted,
        "canary.start" => Happened::CanaryStarted,
        "canary.abort" => Happened::CanaryAborted,
        "preview.publish" => Happened::PreviewPublished,
        "preview.remove" => Happened::PreviewRemoved,
        "budget.set" | "budget.remove" => Happened::BudgetChanged,
        "key.create" => Happened::KeyCreated,
        "key.rotate" => Happened::KeyRotated,
        "key.revoke" => Happened::KeyRevoked,
        "provider_key.set" | "provider_key.erase" => Happened::ProviderKeyChanged,
        "member.join" => Happened::MemberJoined,
        "member.change" => Happened::MemberChanged,
        "member.leave" | "member.remove" => Happened::MemberRemoved,
        "webhook.disable" => Happened::EndpointDisabled,
        action if action.starts_with("billing.") => Happened::BillingChanged,
        _ => return None,
    };
    Some(Happening {
        id: id(entry.at, entry.id.as_u128(), 1),
        org: entry.org,
        kind,
        subject: entry.resource.clone(),
        body: json!({
            "resource": entry.resource, "action": entry.action, "actor": entry.actor, "audit_id": entry.id,
            "reason": entry.reason,
        }),
        at: entry.at,
    })
}

/// A session was made.
pub(crate) fn session_created(
    org: OrgId,
    session: SessionId,
    project: &impl std::fmt::Display,
    end_user: Option<&str>,
    at: Timestamp,
) -> Happening {
    Happening {
        id: id(at, session.as_u128(), 2),
        org,
        kind: Happened::SessionCreated,
        subject: session.to_string(),
        body: json!({ "session_id": session, "project_id": project.to_string(), "end_user_id": end_user }),
        at,
    }
}

/// A turn ended.
pub(crate) fn turn_ended(org: OrgId, session: SessionId, end: &TurnEnd) -> Option<Happening> {
    let kind = match end.state {
        TurnState::Completed => Happened::TurnCompleted,
        TurnState::Interrupted => Happened::TurnInterrupted,
        TurnState::Failed => Happened::TurnFailed,
        TurnState::BudgetExhausted => Happened::TurnBudgetExhausted,
        TurnState::Queued | TurnState::Running => return None,
    };
    Some(Happening {
        id: id(end.ended_at, end.id.as_u128(), 3),
        org,
        kind,
        subject: session.to_string(),
        body: json!({
            "session_id": session, "turn_id": end.id, "status": end.state, "stop_reason": end.stop_reason,
            "error": end.error, "usage": end.usage,
        }),
        at: end.ended_at,
    })
}

/// A turn waits for a person. What the tool would do stays out: it may hold anything.
pub(crate) fn input_required(
    org: OrgId,
    session: SessionId,
    input: &InputRequired,
    at: Timestamp,
) -> Happening {
    Happening {
        id: id(at, input.request_id.as_u128(), 4),
        org,
        kind: Happened::InputRequired,
        subject: session.to_string(),
        body: json!({
            "session_id": session, "request_id": input.request_id, "kind": input.kind, "tool": input.tool,
            "expires_at": input.expires_at,
        }),
        at,
    }
}

/// A person answered.
pub(crate) fn input_resolved(
    org: OrgId,
    session: SessionId,
    (request, decision, by): &(RequestId, Decision, Answerer),
    at: Timestamp,
) -> Happening {
    Happening {
        id: id(at, request.as_u128(), 5),
        org,
        kind: Happened::InputResolved,
        subject: session.to_string(),
        body: json!({ "session_id": session, "request_id": request, "decision": decision, "by": by }),
        at,
    }
}

/// A part of a budget is used.
pub(crate) struct Threshold {
    pub(crate) level: Level,
    pub(crate) subject: String,
    pub(crate) period: Period,
    pub(crate) unit: Unit,
    pub(crate) percent: i64,
    pub(crate) cap: i64,
    pub(crate) settled: i64,
}

impl Threshold {
    /// `source` is the call that did it.
    pub(crate) fn happening(self, org: OrgId, source: u128, at: Timestamp) -> Happening {
        let place = (self.level as u128) << 16 | (self.period as u128) << 12 | (self.unit as u128) << 8;
        Happening {
            id: id(at, source, 6 << 32 | place | u128::from(self.percent.unsigned_abs())),
            org,
            kind: Happened::BudgetThreshold,
            subject: format!("{}:{}", self.level, self.subject),
            body: json!({
                "level": self.level, "id": self.subject, "period": self.period, "unit": self.unit,
                "percent": self.percent, "cap": self.cap, "settled": self.settled,
            }),
            at,
        }
    }
}
