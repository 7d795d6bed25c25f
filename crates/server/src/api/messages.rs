//! Messages: run a turn.

use axum::Json;
use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use karta_engine::control::replies::Replay;
use karta_engine::data::sessions::check_name;
use karta_engine::data::turn::{Accepted, Answer as Folded, Fold, OnBusy, SendMessage};
use karta_engine::{Engine, Error, Principal};
use karta_types::message::Content;
use karta_types::permission::may::UseSessions;
use karta_types::session::{Participant, ParticipantKind};
use karta_types::{Body as EventBody, ErrorCode, Problem, SessionId, TurnId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::sessions::CreateSession;
use crate::api::target::Target;
use crate::auth::May;
use crate::extract::{Body, Path};
use crate::idempotency;
use crate::problem::{Answer, Failure};
use crate::sse::Include;

/// Routes that are the same in both families.
pub fn routes() -> OpenApiRouter<Engine> {
    OpenApiRouter::new().routes(routes!(send))
}

/// The request path in one call.
pub fn of_project() -> OpenApiRouter<Engine> {
    OpenApiRouter::new().routes(routes!(send_to_project))
}

/// What to say, and how to get the answer.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MessageBody {
    /// The words; or `content`.
    pub text: Option<String>,
    /// The parts; or `text`.
    pub content: Vec<Content>,
    /// The agent to take it.
    pub agent: Option<String>,
    /// Who speaks.
    pub participant: Option<Participant>,
    /// Who speaks, in short.
    pub participant_name: Option<String>,
    /// Whether that is a person or a program.
    pub participant_type: Option<ParticipantKind>,
    /// Whether the model should show its thinking.
    pub thinking: bool,
    /// Whether to answer with the turn's events as they come.
    pub stream: bool,
    /// What to do when a turn runs already.
    #[schema(value_type = String)]
    pub on_busy: OnBusy,
}

/// A message to a project: the session is made when none is named.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProjectMessage {
    /// The session to go on with.
    pub session_id: Option<SessionId>,
    /// What the new session is.
    pub session: Option<CreateSession>,
    /// The words; or `content`.
    pub text: Option<String>,
    /// The parts; or `text`.
    pub content: Vec<Content>,
    /// The agent to take it.
    pub agent: Option<String>,
    /// Your own user the new session is for.
    pub end_user_id: Option<String>,
    /// Labels of the new session.
    #[schema(value_type = std::collections::HashMap<String, Object>)]
    pub metadata: std::collections::BTreeMap<String, serde_json::Value>,
    /// Who speaks.
    pub participant: Option<Participant>,
    /// Who speaks, in short.
    pub participant_name: Option<String>,
    /// Whether that is a person or a program.
    pub participant_type: Option<ParticipantKind>,
    /// Whether the model should show its thinking.
    pub thinking: bool,
    /// Whether to answer with the turn's events as they come.
    pub stream: bool,
    /// What to do when a turn runs already.
    #[schema(value_type = String)]
    pub on_busy: OnBusy,
}

/// The turn was taken and runs on by itself.
#[derive(Debug, Serialize, ToSchema)]
pub struct Taken {
    /// The session.
    pub session_id: SessionId,
    /// The turn.
    pub turn_id: TurnId,
    /// `running`, or `queued` behind another turn.
    pub status: &'static str,
}

/// How the caller wants the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wants {
    Json,
    Stream,
    Async,
}

fn wants(headers: &HeaderMap, stream: bool) -> Wants {
    let prefers = headers
        .get_all("prefer")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|word| word.trim().eq_ignore_ascii_case("respond-async"));
    match (prefers, stream) {
        (true, _) => Wants::Async,
        (false, true) => Wants::Stream,
        (false, false) => Wants::Json,
    }
}

/// Run a turn: the answer is JSON, a stream of events (`stream: true`), or 202 at once (`Prefer: respond-async`).
#[utoipa::path(post, path = "/{session}/messages", tag = "sessions", params(("session" = SessionId, Path),
        ("Idempotency-Key" = Option<String>, Header), ("Prefer" = Option<String>, Header)),
    request_body = MessageBody,
    responses((status = 200, description = "The folded turn, or its event stream", body = Unary),
        (status = 202, body = Taken), (status = "4XX", body = karta_types::Problem)))]
async fn send(
    State(engine): State<Engine>,
    May(who, _): May<UseSessions>,
    target: Target,
    method: Method,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: Body<MessageBody>,
) -> Answer<Response> {
    let session = target.check(&engine, &who).await?;
    let key = idempotency::key(&headers, &method, &uri, &body.bytes)?;
    let wants = wants(&headers, body.value.stream);
    let message = body.value.into_message()?;
    run(&engine, &who, key, wants, message, async || Ok(session)).await
}

/// Run a turn of the project; makes the session when none is named.
#[utoipa::path(post, path = "/{project}/messages", tag = "projects", params(("project" = String, Path),
        ("Idempotency-Key" = Option<String>, Header), ("Prefer" = Option<String>, Header)),
    request_body = ProjectMessage,
    responses((status = 200, description = "The folded turn, or its event stream", body = Unary),
        (status = 202, body = Taken), (status = "4XX", body = karta_types::Problem)))]
async fn send_to_project(
    State(engine): State<Engine>,
    May(who, _): May<UseSessions>,
    Path(project): Path<String>,
    method: Method,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: Body<ProjectMessage>,
) -> Answer<Response> {
    let key = idempotency::key(&headers, &method, &uri, &body.bytes)?;
    let body = body.value;
    let wants = wants(&headers, body.stream);
    let message = MessageBody {
        text: body.text,
        content: body.content,
        agent: body.agent,
        participant: body.participant,
        participant_name: body.participant_name,
        participant_type: body.participant_type,
        thinking: body.thinking,
        stream: body.stream,
        on_busy: body.on_busy,
    };
    let message = message.into_message()?;
    let mut new = body.session.unwrap_or_default().into_new();
    new.session_id = new.session_id.or(body.session_id);
    new.end_user_id = new.end_user_id.or(body.end_user_id);
    new.metadata.extend(body.metadata);
    let (maker, asker) = (engine.clone(), who.clone());
    run(&engine, &who, key, wants, message, async move || {
        maker.admit_new(&asker, &project, new.end_user_id.as_deref()).await?;
        Ok(maker.create_session(&asker, &project, new).await?.id)
    })
    .await
}

impl MessageBody {
    fn into_message(self) -> Answer<SendMessage> {
        let content = match (self.text, self.content) {
            (Some(text), content) if content.is_empty() => vec![Content::Text { text }],
            (None, content) if !content.is_empty() => content,
            (Some(_), _) => {
                return Err(Error::invalid("/content", "send `text` or `content`, not both").into());
            }
            (None, _) => return Err(Error::invalid("/text", "a message needs `text` or `content`").into()),
        };
        let says_nothing =
            content.iter().all(|part| matches!(part, Content::Text { text } if text.trim().is_empty()));
        if says_nothing {
            return Err(Error::invalid("/text", "must not be empty").into());
        }
        let participant = match (self.participant, self.participant_name) {
            (Some(_), Some(_)) => {
                return Err(Error::invalid("/participant_name", "`participant` names it already").into());
            }
            (Some(participant), None) => Some(participant),
            (None, Some(name)) => Some(Participant { name, kind: self.participant_type.unwrap_or_default() }),
            (None, None) => None,
        };
        check_name("/participant/name", participant.as_ref().map(|who| who.name.as_str()))?;
        check_name("/agent", self.agent.as_deref())?;
        Ok(SendMessage {
            turn: None,
            content,
            agent: self.agent,
            participant,
            thinking: self.thinking,
            on_busy: self.on_busy,
        })
    }
}

/// Takes the message, once, and answers as wanted.
async fn run(
    engine: &Engine,
    who: &Principal,
    key: Option<idempotency::Key>,
    wants: Wants,
    mut message: SendMessage,
    session: impl AsyncFnOnce() -> Answer<SessionId>,
) -> Answer<Response> {
    let Some(key) = key else {
        let session = session().await?;
        let accepted = engine.send(who, session, message).await?;
        return show(engine, session, accepted, wants).await;
    };
    match engine.reply_begin(who, &key.name, key.fingerprint, idempotency::KEPT).await? {
        Replay::Known(reply) => {
            let (session, turn) = reply
                .stream
                .ok_or_else(|| Problem::new(ErrorCode::IdempotencyMismatch, "another kind of request"))?;
            message.turn = Some(turn);
            let accepted = engine.send_again(who, session, message).await?;
            let mut response = show(engine, session, accepted, wants).await?;
            response.headers_mut().insert("idempotent-replayed", HeaderValue::from_static("true"));
            Ok(response)
        }
        Replay::New => {
            let turn = TurnId::new(engine.clock(), engine.rng());
            message.turn = Some(turn);
            let taken = async {
                let session = session().await?;
                engine.reply_is_turn(who, &key.name, session, turn).await?;
                let accepted = engine.send(who, session, message).await?;
                Ok::<_, Failure>((session, accepted))
            };
            match taken.await {
                Ok((session, accepted)) => show(engine, session, accepted, wants).await,
                Err(failure) => {
                    engine.reply_abandon(who, &key.name).await?;
                    Err(failure)
                }
            }
        }
    }
}

async fn show(engine: &Engine, session: SessionId, accepted: Accepted, wants: Wants) -> Answer<Response> {
    match wants {
        Wants::Stream => {
            Ok(crate::sse::stream(engine, session, accepted.reader, Some(accepted.turn), Include::default()))
        }
        Wants::Json => fold(accepted).await.map(IntoResponse::into_response),
        Wants::Async => {
            let status = if accepted.queued { "queued" } else { "running" };
            let taken = Taken { session_id: session, turn_id: accepted.turn, status };
            let place = format!("/v1/sessions/{session}/turns/{}", accepted.turn);
            let applied = HeaderValue::from_static("respond-async");
            let mut response = (StatusCode::ACCEPTED, Json(taken)).into_response();
            response.headers_mut().insert("preference-applied", applied);
            if let Ok(place) = HeaderValue::from_str(&place) {
                response.headers_mut().insert(header::LOCATION, place);
            }
            Ok(response)
        }
    }
}

/// The plain answer: the fold of the turn's events, up to its end or to the first question that waits for a person.
#[derive(Debug, Serialize, ToSchema)]
pub struct Unary {
    /// The fold.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    pub answer: Folded,
}

async fn fold(mut accepted: Accepted) -> Answer<Json<Unary>> {
    let mut fold = Fold::new();
    loop {
        let item = accepted.reader.next().await?;
        for event in item.visible().filter(|event| event.turn_id == Some(accepted.turn)) {
            let last = fold.push(event);
            if last || matches!(event.body, EventBody::InputRequired(_)) {
                return match fold.finish() {
                    Ok(answer) => Ok(Json(Unary { answer })),
                    Err(Some(problem)) => Err(Failure(problem)),
                    Err(None) => Err(Problem::new(ErrorCode::Internal, "").into()),
                };
            }
        }
    }
}
