//! Inputs: questions that wait for a person, and their answers.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use karta_engine::Engine;
use karta_engine::data::inputs::{Answered, Pending};
use karta_types::message::{Answer as Given, Decision};
use karta_types::page::Page;
use karta_types::permission::may::{ReadSessions, UseSessions};
use karta_types::session::Session;
use karta_types::{Body as EventBody, Event, RequestId, SessionId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::target::Target;
use crate::auth::May;
use crate::extract::{Body, Paging, Query};
use crate::problem::Answer;
use crate::sse::Include;

/// Routes that are the same in both families.
pub fn routes() -> OpenApiRouter<Engine> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(answer))
}

/// Anywhere in the organisation.
pub fn of_org() -> OpenApiRouter<Engine> {
    OpenApiRouter::new().routes(routes!(list_all))
}

/// Questions that wait in the session.
#[utoipa::path(get, path = "/{session}/inputs", tag = "inputs",
    params(("session" = SessionId, Path), ("limit" = Option<u32>, Query), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Object), (status = "4XX", body = karta_types::Problem)))]
async fn list(
    State(engine): State<Engine>,
    May(who, _): May<ReadSessions>,
    target: Target,
    Query(paging): Query<Paging>,
) -> Answer<Json<Page<Pending>>> {
    let session = target.check(&engine, &who).await?;
    Ok(Json(engine.inputs(&who, Some(session), paging.cursor()?, paging.limit()?).await?))
}

/// Questions that wait anywhere in the organisation.
#[utoipa::path(get, path = "", tag = "inputs",
    params(("limit" = Option<u32>, Query), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Object), (status = "4XX", body = karta_types::Problem)))]
async fn list_all(
    State(engine): State<Engine>,
    May(who, _): May<ReadSessions>,
    Query(paging): Query<Paging>,
) -> Answer<Json<Page<Pending>>> {
    Ok(Json(engine.inputs(&who, None, paging.cursor()?, paging.limit()?).await?))
}

/// An answer.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AnswerBody {
    /// Yes, yes for the session, or no.
    pub decision: Decision,
    /// The reason for a no; the model reads it.
    #[serde(default)]
    pub message: Option<String>,
    /// The tool's input as you changed it.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub updated_input: Option<Value>,
    /// Answers to questions: the question's text to the chosen label.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub answers: Option<Map<String, Value>>,
    /// Whether to answer with the turn's further events as they come.
    #[serde(default)]
    pub stream: bool,
}

/// How the turn went on.
#[derive(Debug, Serialize, ToSchema)]
pub struct Continuation {
    /// The events from the answer to the turn's end, or to its next question.
    pub events: Vec<Event>,
    /// The session afterwards.
    pub session: Session,
}

/// Answer a question. The first answer wins.
#[utoipa::path(put, path = "/{session}/inputs/{request}", tag = "inputs",
    params(("session" = SessionId, Path), ("request" = RequestId, Path)), request_body = AnswerBody,
    responses((status = 200, description = "The continuation, or its event stream", body = Continuation),
        (status = "4XX", body = karta_types::Problem)))]
async fn answer(
    State(engine): State<Engine>,
    May(who, _): May<UseSessions>,
    target: Target,
    body: Body<AnswerBody>,
) -> Answer<Response> {
    let session = target.check(&engine, &who).await?;
    let request = target.id("request")?;
    let body = body.value;
    let given = Given {
        decision: body.decision,
        message: body.message,
        updated_input: body.updated_input,
        answers: body.answers,
    };
    let answered = engine.answer(&who, session, request, given).await?;
    if body.stream {
        let turn = Some(answered.turn);
        return Ok(crate::sse::stream(&engine, session, answered.reader, turn, Include::default()));
    }
    let events = rest_of_turn(answered).await?;
    let session = engine.session(&who, session).await?;
    Ok(Json(Continuation { events, session }).into_response())
}

async fn rest_of_turn(mut answered: Answered) -> Answer<Vec<Event>> {
    let mut events = Vec::new();
    loop {
        let item = answered.reader.next().await?;
        let mut over = false;
        for event in item.events().filter(|event| event.turn_id == Some(answered.turn)) {
            over |= matches!(event.body, EventBody::Done { .. } | EventBody::InputRequired(_));
            if !matches!(event.body, EventBody::System { .. }) {
                events.push(event.clone());
            }
        }
        if over {
            return Ok(events);
        }
    }
}
