//! Sessions.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use karta_engine::data::sessions::{Change, Filter, NewSession};
use karta_engine::{Engine, Error, Principal};
use karta_types::SessionId;
use karta_types::message::Message;
use karta_types::page::Page;
use karta_types::permission::may::{ReadSessions, UseSessions};
use karta_types::session::{Isolation, Participant, PermissionMode, ReleasePin, Session, SessionStatus};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::target::Target;
use crate::auth::May;
use crate::extract::{Body, Path, Query, cursor, limit};
use crate::idempotency;
use crate::problem::Answer;

/// Routes that are the same in both families.
pub fn routes() -> OpenApiRouter<Engine> {
    OpenApiRouter::new()
        .routes(routes!(read, change, delete))
        .routes(routes!(events))
        .routes(routes!(interrupt))
        .routes(routes!(history))
        .routes(routes!(egress))
}

/// Creating and listing, flat: the project is in the body and the query.
pub fn flat() -> OpenApiRouter<Engine> {
    OpenApiRouter::new().routes(routes!(create, list))
}

/// Creating and listing, under a project.
pub fn of_project() -> OpenApiRouter<Engine> {
    OpenApiRouter::new().routes(routes!(create_in_project, list_in_project))
}

/// What to make.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CreateSession {
    /// The project's id or slug; only where the path does not name it.
    pub project: Option<String>,
    /// Labels: at most 50, at most 10,000 characters a value.
    #[schema(value_type = std::collections::HashMap<String, Object>)]
    pub metadata: BTreeMap<String, Value>,
    /// A session to go on with.
    pub session_id: Option<SessionId>,
    /// A name for people.
    pub title: Option<String>,
    /// The agent that takes its messages.
    pub agent: Option<String>,
    /// Your own user it is for. Opaque.
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

impl CreateSession {
    pub(crate) fn into_new(self) -> NewSession {
        NewSession {
            metadata: self.metadata,
            session_id: self.session_id,
            title: self.title,
            agent: self.agent,
            end_user_id: self.end_user_id,
            participants: self.participants,
            permission_mode: self.permission_mode,
            release_pin: self.release_pin,
            isolation: self.isolation,
        }
    }
}

/// Make a session, or go on with the one that `session_id` names.
#[utoipa::path(post, path = "", tag = "sessions", request_body = CreateSession,
    responses((status = 201, body = Session), (status = "4XX", body = karta_types::Problem)))]
async fn create(
    State(engine): State<Engine>,
    May(who, _): May<UseSessions>,
    method: Method,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: Body<CreateSession>,
) -> Answer<Response> {
    let key = idempotency::key(&headers, &method, &uri, &body.bytes)?;
    let project = body.value.project.clone();
    let project = project.ok_or_else(|| Error::invalid("/project", "name the project, by id or slug"))?;
    idempotency::once(&engine, &who, key, make(&engine, &who, project, body.value)).await
}

/// Make a session of this project, or go on with the one that `session_id` names.
#[utoipa::path(post, path = "", tag = "sessions", request_body = CreateSession,
    responses((status = 201, body = Session), (status = "4XX", body = karta_types::Problem)))]
async fn create_in_project(
    State(engine): State<Engine>,
    May(who, _): May<UseSessions>,
    Path(project): Path<String>,
    method: Method,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: Body<CreateSession>,
) -> Answer<Response> {
    let key = idempotency::key(&headers, &method, &uri, &body.bytes)?;
    if body.value.project.is_some() {
        return Err(Error::invalid("/project", "the path names the project").into());
    }
    idempotency::once(&engine, &who, key, make(&engine, &who, project, body.value)).await
}

async fn make(engine: &Engine, who: &Principal, project: String, body: CreateSession) -> Answer<Response> {
    let session = engine.create_session(who, &project, body.into_new()).await?;
    Ok((StatusCode::CREATED, Json(session)).into_response())
}

/// Query of the list.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ListQuery {
    limit: Option<u32>,
    cursor: Option<String>,
    project: Option<String>,
    status: Option<String>,
    end_user_id: Option<String>,
    /// `metadata.<key>`; anything else unknown is refused by hand, because the keys are the caller's.
    #[serde(flatten)]
    rest: BTreeMap<String, String>,
}

impl ListQuery {
    fn filter(&self, project: Option<String>) -> Answer<Filter> {
        let status = self.status.as_deref().map(str::parse::<SessionStatus>).transpose();
        let status = status.map_err(|why| Error::invalid("/status", why))?;
        let mut metadata = Vec::new();
        for (name, value) in &self.rest {
            let label = name
                .strip_prefix("metadata.")
                .ok_or_else(|| Error::invalid(&format!("/{name}"), format!("unknown parameter `{name}`")))?;
            metadata.push((label.to_owned(), value.clone()));
        }
        Ok(Filter { project, status, end_user_id: self.end_user_id.clone(), metadata })
    }
}

/// The organisation's sessions, newest first.
#[utoipa::path(get, path = "", tag = "sessions",
    params(("limit" = Option<u32>, Query), ("cursor" = Option<String>, Query), ("project" = Option<String>, Query),
        ("status" = Option<SessionStatus>, Query), ("end_user_id" = Option<String>, Query),
        ("metadata.<key>" = Option<String>, Query, description = "Sessions with this label")),
    responses((status = 200, body = Page<Session>), (status = "4XX", body = karta_types::Problem)))]
async fn list(
    State(engine): State<Engine>,
    May(who, _): May<ReadSessions>,
    Query(query): Query<ListQuery>,
) -> Answer<Json<Page<Session>>> {
    let filter = query.filter(query.project.clone())?;
    let before = cursor(query.cursor.as_deref())?;
    Ok(Json(engine.sessions(&who, filter, before, limit(query.limit)?).await?))
}

/// The project's sessions, newest first.
#[utoipa::path(get, path = "", tag = "sessions",
    params(("limit" = Option<u32>, Query), ("cursor" = Option<String>, Query),
        ("status" = Option<SessionStatus>, Query), ("end_user_id" = Option<String>, Query),
        ("metadata.<key>" = Option<String>, Query, description = "Sessions with this label")),
    responses((status = 200, body = Page<Session>), (status = "4XX", body = karta_types::Problem)))]
async fn list_in_project(
    State(engine): State<Engine>,
    May(who, _): May<ReadSessions>,
    Path(project): Path<String>,
    Query(query): Query<ListQuery>,
) -> Answer<Json<Page<Session>>> {
    let filter = query.filter(Some(project))?;
    let before = cursor(query.cursor.as_deref())?;
    Ok(Json(engine.sessions(&who, filter, before, limit(query.limit)?).await?))
}

/// One session.
#[utoipa::path(get, path = "/{session}", tag = "sessions", params(("session" = SessionId, Path)),
    responses((status = 200, body = Session), (status = "4XX", body = karta_types::Problem)))]
async fn read(
    State(engine): State<Engine>,
    May(who, _): May<ReadSessions>,
    target: Target,
) -> Answer<Json<Session>> {
    let session = target.check(&engine, &who).await?;
    Ok(Json(engine.session(&who, session).await?))
}

/// What to change; what is absent stays, null removes.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ChangeSession {
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    /// The name.
    pub title: Option<Option<String>>,
    /// The labels, all of them.
    #[schema(value_type = Option<std::collections::HashMap<String, Object>>)]
    pub metadata: Option<BTreeMap<String, Value>>,
    #[serde(deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    /// The agent that takes the next messages.
    pub current_agent: Option<Option<String>>,
    /// When tools ask.
    pub permission_mode: Option<PermissionMode>,
    /// Who takes part, all of them.
    pub participants: Option<Vec<Participant>>,
}

/// Tells null from absent.
#[expect(clippy::option_option, reason = "absent, null and a value are three things here")]
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::<String>::deserialize(deserializer).map(Some)
}

/// Change a session's name, labels, agent, permission mode or participants.
#[utoipa::path(patch, path = "/{session}", tag = "sessions", params(("session" = SessionId, Path)),
    request_body = ChangeSession, responses((status = 200, body = Session), (status = "4XX", body = karta_types::Problem)))]
async fn change(
    State(engine): State<Engine>,
    May(who, _): May<UseSessions>,
    target: Target,
    body: Body<ChangeSession>,
) -> Answer<Json<Session>> {
    let session = target.check(&engine, &who).await?;
    let change = Change {
        title: body.value.title,
        metadata: body.value.metadata,
        current_agent: body.value.current_agent,
        permission_mode: body.value.permission_mode,
        participants: body.value.participants,
    };
    Ok(Json(engine.change_session(&who, session, change).await?))
}

/// End a session and erase what the harness kept of it.
#[utoipa::path(delete, path = "/{session}", tag = "sessions", params(("session" = SessionId, Path)),
    responses((status = 204), (status = "4XX", body = karta_types::Problem)))]
async fn delete(
    State(engine): State<Engine>,
    May(who, _): May<UseSessions>,
    target: Target,
) -> Answer<StatusCode> {
    let session = target.check(&engine, &who).await?;
    engine.delete_session(&who, session).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Query of an event stream.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct EventsQuery {
    after: Option<u64>,
    include: String,
}

/// The session's events as a stream: after the cursor, then live.
#[utoipa::path(get, path = "/{session}/events", tag = "sessions",
    params(("session" = SessionId, Path), ("after" = Option<u64>, Query, description = "Events after this position"),
        ("include" = Option<String>, Query, description = "`raw`, `system`, and types that the release hides, comma-separated"),
        ("Last-Event-ID" = Option<u64>, Header, description = "As `after`; sent by browsers when they reconnect")),
    responses((status = 200, content_type = "text/event-stream", body = karta_types::Event),
        (status = "4XX", body = karta_types::Problem)))]
async fn events(
    State(engine): State<Engine>,
    May(who, _): May<ReadSessions>,
    target: Target,
    headers: HeaderMap,
    Query(query): Query<EventsQuery>,
) -> Answer<Response> {
    let session = target.check(&engine, &who).await?;
    let include =
        crate::sse::Include::parse(&query.include).map_err(|why| Error::invalid("/include", why))?;
    let after = cursor_of(&headers, query.after)?;
    let reader = engine.read(&who, session, karta_types::Seq(after)).await?;
    Ok(crate::sse::stream(&engine, session, reader, None, include))
}

/// A browser that reconnects repeats its URL, `after` and all: what it saw last is newer.
fn cursor_of(headers: &HeaderMap, after: Option<u64>) -> Answer<u64> {
    let Some(last) = headers.get(crate::sse::LAST_EVENT_ID) else { return Ok(after.unwrap_or(0)) };
    let last = last.to_str().ok().and_then(|text| text.trim().parse().ok());
    last.ok_or_else(|| Error::invalid("/Last-Event-ID", "must be the id of an event of this session").into())
}

/// What the session reached outside and what was refused, as its events tell, and the rules that it would need.
#[utoipa::path(get, path = "/{session}/egress", tag = "sessions", params(("session" = SessionId, Path)),
    responses((status = 200, body = karta_types::egress::Record), (status = "4XX", body = karta_types::Problem)))]
async fn egress(
    State(engine): State<Engine>,
    May(who, _): May<ReadSessions>,
    target: Target,
) -> Answer<Json<karta_types::egress::Record>> {
    let session = target.check(&engine, &who).await?;
    Ok(Json(engine.egress_record(&who, session).await?))
}

/// Whether a turn was stopped.
#[derive(Debug, Serialize, ToSchema)]
pub struct Interrupted {
    /// False when nothing ran.
    pub interrupted: bool,
}

/// Stop the running turn.
#[utoipa::path(post, path = "/{session}/interrupt", tag = "sessions", params(("session" = SessionId, Path)),
    responses((status = 200, body = Interrupted), (status = "4XX", body = karta_types::Problem)))]
async fn interrupt(
    State(engine): State<Engine>,
    May(who, _): May<UseSessions>,
    target: Target,
) -> Answer<Json<Interrupted>> {
    let session = target.check(&engine, &who).await?;
    let interrupted = engine.interrupt(&who, session).await?;
    Ok(Json(Interrupted { interrupted }))
}

/// The conversation, oldest first.
#[utoipa::path(get, path = "/{session}/history", tag = "sessions", params(("session" = SessionId, Path)),
    responses((status = 200, body = Page<Message>), (status = "4XX", body = karta_types::Problem)))]
async fn history(
    State(engine): State<Engine>,
    May(who, _): May<ReadSessions>,
    target: Target,
) -> Answer<Json<Page<Message>>> {
    let session = target.check(&engine, &who).await?;
    let data = engine.history(&who, session).await?;
    Ok(Json(Page { data, next_cursor: None }))
}
