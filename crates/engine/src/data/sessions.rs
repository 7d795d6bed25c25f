//! Sessions: light handles on conversations that the harness keeps.

use std::collections::BTreeMap;

use karta_store::{SessionFilter, SessionPatch, SessionRow};
use karta_types::page::Page;
use karta_types::session::{
    Isolation, Participant, PermissionMode, ReleasePin, Session, SessionProject, SessionStatus, Turn,
};
use karta_types::usage::Metered;
use karta_types::{ErrorCode, Seq, SessionId, Timestamp, TurnId};
use serde_json::Value;

use crate::data::releases::Pinning;
use crate::data::turn::run::Order;
use crate::gate::Restriction;
use crate::{Engine, Error, Principal, Result};

/// The most labels of a session.
const MAX_LABELS: usize = 50;
/// The most characters of a label's value.
const MAX_LABEL: usize = 10_000;
/// The most characters of a label's name, a title, an end user, a participant's name.
const MAX_NAME: usize = 512;
/// The most participants.
const MAX_PARTICIPANTS: usize = 100;

/// What a new session is.
#[derive(Debug, Clone, Default)]
pub struct NewSession {
    /// The caller's labels.
    pub metadata: BTreeMap<String, Value>,
    /// A session of the organisation to go on with instead.
    pub session_id: Option<SessionId>,
    /// A name for people.
    pub title: Option<String>,
    /// The agent that takes its messages.
    pub agent: Option<String>,
    /// The caller's user it is for.
    pub end_user_id: Option<String>,
    /// Who takes part.
    pub participants: Vec<Participant>,
    /// When tools ask.
    pub permission_mode: Option<PermissionMode>,
    /// Which release its turns run on.
    pub release_pin: ReleasePin,
    /// The least isolation wanted.
    pub isolation: Option<Isolation>,
}

/// What to change of a session; absent stays.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// The name; null removes it.
    pub title: Option<Option<String>>,
    /// The labels, all of them.
    pub metadata: Option<BTreeMap<String, Value>>,
    /// The agent; null is the harness's default.
    pub current_agent: Option<Option<String>>,
    /// When tools ask.
    pub permission_mode: Option<PermissionMode>,
    /// Who takes part, all of them.
    pub participants: Option<Vec<Participant>>,
}

/// Which sessions to list.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Of this project, by id or slug.
    pub project: Option<String>,
    /// With this status.
    pub status: Option<SessionStatus>,
    /// For this end user.
    pub end_user_id: Option<String>,
    /// With these labels.
    pub metadata: Vec<(String, String)>,
}

impl Restriction {
    fn covers(&self, row: &SessionRow) -> bool {
        row.end_user_id.as_deref() == Some(&self.end_user) && self.session.is_none_or(|only| only == row.id)
    }
}

/// What an end user's browser may ask of a new session: it is theirs, and what it may do is not theirs to choose.
fn held_to(who: &Principal, mut new: NewSession) -> Result<NewSession> {
    let Some(held) = &who.restriction else { return Ok(new) };
    let forbidden =
        |what: &str| Error::told(ErrorCode::Forbidden, format!("a session token does not choose {what}"));
    if held.session.is_some() && new.session_id != held.session {
        return Err(forbidden("another session than its own"));
    }
    if new.end_user_id.as_ref().is_some_and(|user| *user != held.end_user) {
        return Err(forbidden("another end user"));
    }
    if new.permission_mode.is_some() || new.isolation.is_some() || new.release_pin != ReleasePin::default() {
        return Err(forbidden("a permission mode, an isolation or a release"));
    }
    new.end_user_id = Some(held.end_user.clone());
    Ok(new)
}

impl Engine {
    /// Makes a session, or goes on with the one that is named.
    ///
    /// # Errors
    /// `not_found` for the project or session, `invalid_request`, `no_active_release`, `isolation_unavailable`.
    pub async fn create_session(&self, who: &Principal, project: &str, new: NewSession) -> Result<Session> {
        let new = held_to(who, new)?;
        check_labels(&new.metadata)?;
        check_people(&new.participants)?;
        check_name("/title", new.title.as_deref())?;
        check_name("/end_user_id", new.end_user_id.as_deref())?;
        let project = self.project_row(who, project).await?;
        if let Some(id) = new.session_id {
            let row = self.session_row(who, id).await?;
            if row.project != project.id {
                return Err(Error::not_found("session"));
            }
            return self.show(row).await;
        }
        let (id, now) = (SessionId::new(self.clock(), self.rng()), self.clock().now());
        let pinning = Pinning { pin: new.release_pin, pinned: None, session: id, made: now };
        let release = self.release_for(who.org, project.id, pinning).await?;
        release.check_agent(new.agent.as_deref())?;
        let given = self.driver(release.harness.id()).isolation();
        if let Some(wanted) = new.isolation.filter(|wanted| *wanted > given) {
            return Err(Error::told(
                ErrorCode::IsolationUnavailable,
                format!("`{}` was asked for; this server gives `{}`", wanted.as_str(), given.as_str()),
            ));
        }
        self.check_isolation(who.org, given).await?;
        let row = SessionRow {
            id,
            org: who.org,
            project: project.id,
            key: who.actor.key(),
            status: SessionStatus::Idle,
            title: new.title,
            metadata: new.metadata,
            current_agent: new.agent,
            participants: new.participants,
            permission_mode: new
                .permission_mode
                .or_else(|| release.recipe().defaults.permission_mode)
                .unwrap_or_default(),
            release_pin: new.release_pin,
            pinned_version: None,
            last_version: None,
            isolation: given,
            end_user_id: new.end_user_id,
            parent_id: None,
            native: None,
            harness: Some(release.harness.id().to_owned()),
            head: Seq::START,
            generation: 0,
            usage: Metered::default(),
            created_at: now,
            updated_at: now,
            expires_at: None,
        };
        self.store().session_insert(&row).await?;
        Ok(session_of(row, &project.slug, Some(release.row.version), Vec::new()))
    }

    /// One session.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn session(&self, who: &Principal, id: SessionId) -> Result<Session> {
        let row = self.session_row(who, id).await?;
        self.show(row).await
    }

    /// The organisation's sessions, newest first.
    ///
    /// # Errors
    /// `not_found` for the project.
    pub async fn sessions(
        &self,
        who: &Principal,
        filter: Filter,
        before: Option<SessionId>,
        limit: u32,
    ) -> Result<Page<Session>> {
        let project = match &filter.project {
            Some(reference) => Some(self.project_row(who, reference).await?.id),
            None => who.project,
        };
        let end_user = who.restriction.as_ref().map(|held| held.end_user.clone());
        let filter = SessionFilter {
            project,
            status: filter.status,
            end_user_id: end_user.or(filter.end_user_id),
            metadata: filter.metadata,
        };
        let mut rows = self.store().session_list(who.org, &filter, before, limit + 1).await?;
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let next_cursor = rows.last().filter(|_| more).map(|row| row.id.to_string());
        let mut data = Vec::with_capacity(rows.len());
        for row in rows {
            data.push(self.show(row).await?);
        }
        Ok(Page { data, next_cursor })
    }

    /// Changes a session's labels and settings. Another agent is a hand-off and is told as `agent_changed`.
    ///
    /// # Errors
    /// `not_found`, `invalid_request`.
    pub async fn change_session(&self, who: &Principal, id: SessionId, change: Change) -> Result<Session> {
        let row = self.session_row(who, id).await?;
        if let Some(labels) = &change.metadata {
            check_labels(labels)?;
        }
        if let Some(people) = &change.participants {
            check_people(people)?;
        }
        check_name("/title", change.title.iter().flatten().next().map(String::as_str))?;
        if let Some(agent) = &change.current_agent {
            let release = self.release_for(row.org, row.project, &row).await?;
            release.check_agent(agent.as_deref())?;
            self.order(who, id, |reply| Order::HandOff { to: agent.clone(), reply }).await??;
        }
        let patch = SessionPatch {
            title: change.title,
            metadata: change.metadata,
            current_agent: None,
            permission_mode: change.permission_mode,
            participants: change.participants,
        };
        let row = self.store().session_patch(who.org, id, patch, self.clock().now()).await?;
        if let (Some(mode), Some(runner)) = (change.permission_mode, self.hub().running(id)) {
            // A runner that retires now reads the new mode when it starts again.
            let _ = runner.send(Order::Mode(mode)).await;
        }
        self.show(row).await
    }

    /// Ends a session and erases what the harness and the journal kept of it. Usage records stay.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn delete_session(&self, who: &Principal, id: SessionId) -> Result<()> {
        let row = self.session_row(who, id).await?;
        if self.hub().running(id).is_some() {
            self.order(who, id, |reply| Order::Close { reply }).await?;
        }
        let harness = row.harness.as_deref().unwrap_or_default();
        self.driver(harness).erase(id).await?;
        self.forget_parked(id).await;
        self.checkpoints().erase(row.org, id).await?;
        self.store().session_erase(who.org, id, self.told(who, "session.erase", id)).await?;
        Ok(())
    }

    /// The turns of a session, newest first.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn turns(
        &self,
        who: &Principal,
        session: SessionId,
        before: Option<TurnId>,
        limit: u32,
    ) -> Result<Page<Turn>> {
        self.session_row(who, session).await?;
        let mut rows = self.store().turn_list(who.org, session, before, limit + 1).await?;
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let next_cursor = rows.last().filter(|_| more).map(|row| row.turn.id.to_string());
        Ok(Page { data: rows.into_iter().map(|row| row.turn).collect(), next_cursor })
    }

    /// One turn.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn turn(&self, who: &Principal, session: SessionId, turn: TurnId) -> Result<Turn> {
        self.session_row(who, session).await?;
        let row = self.store().turn_get(who.org, session, turn).await?;
        row.map(|row| row.turn).ok_or_else(|| Error::not_found("turn"))
    }

    /// Holds a session to be of this project.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn session_in(&self, who: &Principal, id: SessionId, project: &str) -> Result<()> {
        let project = self.project_row(who, project).await?;
        let row = self.session_row(who, id).await?;
        if row.project == project.id { Ok(()) } else { Err(Error::not_found("session")) }
    }

    /// The session's record, if it is the caller's to see.
    pub(crate) async fn session_row(&self, who: &Principal, id: SessionId) -> Result<SessionRow> {
        self.store()
            .session_get(who.org, id)
            .await?
            .filter(|row| who.project.is_none_or(|only| only == row.project))
            .filter(|row| who.restriction.as_ref().is_none_or(|held| held.covers(row)))
            .ok_or_else(|| Error::not_found("session"))
    }

    async fn show(&self, row: SessionRow) -> Result<Session> {
        let project = self.project_known(row.org, row.project).await?;
        let pending = if row.status == SessionStatus::Waiting {
            let waiting = self.store().inputs_pending(row.org, Some(row.id), None, 64).await?;
            waiting.into_iter().map(|waiting| waiting.input).collect()
        } else {
            Vec::new()
        };
        let version = match row.release_pin {
            ReleasePin::Version(version) => Some(version),
            _ => row.pinned_version.or(row.last_version).or(project.active_version),
        };
        Ok(session_of(row, &project.slug, version, pending))
    }
}

fn session_of(
    row: SessionRow,
    slug: &str,
    version: Option<u64>,
    pending: Vec<karta_types::event::InputRequired>,
) -> Session {
    Session {
        id: row.id,
        project: SessionProject { id: row.project, slug: slug.to_owned(), version },
        status: row.status,
        title: row.title,
        metadata: row.metadata,
        current_agent: row.current_agent,
        participants: row.participants,
        pending_input: pending.first().cloned(),
        pending_inputs: pending,
        permission_mode: row.permission_mode,
        release_pin: row.release_pin,
        isolation: row.isolation,
        end_user_id: row.end_user_id,
        parent_id: row.parent_id,
        usage: row.usage,
        created_at: row.created_at,
        updated_at: row.updated_at,
        expires_at: row.expires_at,
    }
}

fn check_labels(labels: &BTreeMap<String, Value>) -> Result<()> {
    if labels.len() > MAX_LABELS {
        return Err(Error::invalid(
            "/metadata",
            format!("{} labels; at most {MAX_LABELS} are kept", labels.len()),
        ));
    }
    for (name, value) in labels {
        let pointer = format!("/metadata/{}", name.replace('~', "~0").replace('/', "~1"));
        if name.is_empty() || name.chars().count() > MAX_NAME {
            return Err(Error::invalid(&pointer, format!("a label's name has 1 to {MAX_NAME} characters")));
        }
        let length = match value {
            Value::String(text) => text.chars().count(),
            other => other.to_string().chars().count(),
        };
        if length > MAX_LABEL {
            return Err(Error::invalid(
                &pointer,
                format!("{length} characters; a label's value has at most {MAX_LABEL}"),
            ));
        }
    }
    Ok(())
}

fn check_people(people: &[Participant]) -> Result<()> {
    if people.len() > MAX_PARTICIPANTS {
        return Err(Error::invalid("/participants", format!("at most {MAX_PARTICIPANTS} participants")));
    }
    for (index, person) in people.iter().enumerate() {
        check_name(&format!("/participants/{index}/name"), Some(&person.name))?;
    }
    Ok(())
}

/// Checks a name that people give.
pub fn check_name(pointer: &str, name: Option<&str>) -> Result<()> {
    match name.map(|name| name.chars().count()) {
        Some(0) => Err(Error::invalid(pointer, "must not be empty")),
        Some(count) if count > MAX_NAME => {
            Err(Error::invalid(pointer, format!("{count} characters; at most {MAX_NAME}")))
        }
        _ => Ok(()),
    }
}

/// When the journal of something that ended before this moment may go.
pub(crate) fn expired_before(now: Timestamp, retention: std::time::Duration) -> Timestamp {
    now.minus(retention)
}
