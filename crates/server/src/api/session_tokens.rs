//! Session tokens for end users' browsers.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use karta_engine::Engine;
use karta_engine::control::session_tokens::{NewToken, TTL};
use karta_types::permission::may::MintTokens;
use karta_types::session_token::NewSessionToken;
use karta_types::{SessionId, SessionTokenId};
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::May;
use crate::extract::{Body, Path};
use crate::problem::Answer;

/// The routes.
pub fn routes() -> OpenApiRouter<Engine> {
    OpenApiRouter::new().routes(routes!(mint)).routes(routes!(revoke))
}

/// A token to be minted.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct MintToken {
    /// The project it is for: an id or a slug.
    project: String,
    /// The end user: every session the token touches is theirs.
    end_user_id: String,
    /// The one session it is for. Absent is all of the end user's in the project.
    session_id: Option<SessionId>,
    /// Where pages that use it come from, like `https://app.example.com`. None: it is not for browsers.
    #[serde(default)]
    origins: Vec<String>,
    /// Seconds that it is good: 900 if absent, 3600 at most.
    ttl_seconds: Option<u64>,
    /// The most that what it does may cost, in micro-dollars. Absent is as much as the budgets allow.
    max_cost_micros: Option<i64>,
}

/// Mints a token. It is in this answer and nowhere else.
#[utoipa::path(post, path = "", tag = "account", request_body = MintToken,
    responses((status = 201, body = NewSessionToken), (status = "4XX", body = karta_types::Problem)))]
async fn mint(
    State(engine): State<Engine>,
    May(who, _): May<MintTokens>,
    body: Body<MintToken>,
) -> Answer<(StatusCode, Json<NewSessionToken>)> {
    let MintToken { project, end_user_id, session_id, origins, ttl_seconds, max_cost_micros } = body.value;
    let ttl = ttl_seconds.map_or(TTL, Duration::from_secs);
    let new =
        NewToken { project, end_user: end_user_id, session: session_id, origins, ttl, cap: max_cost_micros };
    Ok((StatusCode::CREATED, Json(engine.mint_session_token(&who, new).await?)))
}

/// Ends a token before its time.
#[utoipa::path(delete, path = "/{token}", tag = "account", params(("token" = String, Path)),
    responses((status = 204), (status = "4XX", body = karta_types::Problem)))]
async fn revoke(
    State(engine): State<Engine>,
    May(who, _): May<MintTokens>,
    Path(token): Path<SessionTokenId>,
) -> Answer<StatusCode> {
    engine.revoke_session_token(&who, token).await?;
    Ok(StatusCode::NO_CONTENT)
}
