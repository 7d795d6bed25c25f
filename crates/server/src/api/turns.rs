//! Turn records: what ran, what it used. No message text.

use axum::Json;
use axum::extract::State;
use karta_engine::Engine;
use karta_types::page::Page;
use karta_types::permission::may::ReadSessions;
use karta_types::session::Turn;
use karta_types::{SessionId, TurnId};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::target::Target;
use crate::auth::May;
use crate::extract::{Paging, Query};
use crate::problem::Answer;

/// Routes that are the same in both families.
pub fn routes() -> OpenApiRouter<Engine> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(read))
}

/// The session's turns, newest first.
#[utoipa::path(get, path = "/{session}/turns", tag = "sessions",
    params(("session" = SessionId, Path), ("limit" = Option<u32>, Query), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Page<Turn>), (status = "4XX", body = karta_types::Problem)))]
async fn list(
    State(engine): State<Engine>,
    May(who, _): May<ReadSessions>,
    target: Target,
    Query(paging): Query<Paging>,
) -> Answer<Json<Page<Turn>>> {
    let session = target.check(&engine, &who).await?;
    Ok(Json(engine.turns(&who, session, paging.cursor()?, paging.limit()?).await?))
}

/// One turn.
#[utoipa::path(get, path = "/{session}/turns/{turn}", tag = "sessions",
    params(("session" = SessionId, Path), ("turn" = TurnId, Path)),
    responses((status = 200, body = Turn), (status = "4XX", body = karta_types::Problem)))]
async fn read(
    State(engine): State<Engine>,
    May(who, _): May<ReadSessions>,
    target: Target,
) -> Answer<Json<Turn>> {
    let session = target.check(&engine, &who).await?;
    Ok(Json(engine.turn(&who, session, target.id("turn")?).await?))
}
