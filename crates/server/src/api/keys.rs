//! API keys.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use karta_engine::control::keys::{Environment, NewKey};
use karta_engine::{Engine, Error};
use karta_types::key::{ApiKey, NewApiKey};
use karta_types::page::Page;
use karta_types::permission::may::{ManageKeys, ReadKeys};
use karta_types::scope::{Scope, Scopes};
use karta_types::{KeyId, Timestamp};
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::May;
use crate::extract::{Body, Paging, Path, Query};
use crate::problem::Answer;

/// The routes.
pub fn routes() -> OpenApiRouter<Engine> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(read, revoke)).routes(routes!(rotate))
}

/// A key to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CreateKey {
    /// For people.
    name: String,
    /// What it may do.
    scopes: Vec<Scope>,
    /// The one project it is for: an id or a slug. Absent is all of them.
    project: Option<String>,
    /// When it ends by itself. Absent is never.
    expires_at: Option<Timestamp>,
    /// Whether it is a test key (`kt_test_…`) rather than a live one.
    #[serde(default)]
    test: bool,
}

/// How a key is replaced.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct RotateKey {
    /// Seconds for which the old key stays valid: a day if absent, 30 days at most.
    overlap_seconds: Option<u64>,
}

const NAME: usize = 200;
const OVERLAP: u64 = 24 * 60 * 60;

/// The organisation's keys, oldest first.
#[utoipa::path(get, path = "", tag = "account",
    params(("limit" = Option<u32>, Query), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Object), (status = "4XX", body = karta_types::Problem)))]
async fn list(
    State(engine): State<Engine>,
    May(who, _): May<ReadKeys>,
    Query(paging): Query<Paging>,
) -> Answer<Json<Page<ApiKey>>> {
    Ok(Json(engine.keys(&who, paging.cursor()?, paging.limit()?).await?))
}

/// Makes a key. Its text is in this answer and nowhere else.
#[utoipa::path(post, path = "", tag = "account", request_body = CreateKey,
    responses((status = 201, body = NewApiKey), (status = "4XX", body = karta_types::Problem)))]
async fn create(
    State(engine): State<Engine>,
    May(who, _): May<ManageKeys>,
    body: Body<CreateKey>,
) -> Answer<(StatusCode, Json<NewApiKey>)> {
    let wanted = body.value;
    if wanted.name.trim().is_empty() || wanted.name.chars().count() > NAME {
        return Err(Error::invalid("/name", format!("a name has 1 to {NAME} characters")).into());
    }
    if wanted.scopes.is_empty() {
        return Err(Error::invalid("/scopes", "a key needs at least one of read, write, admin").into());
    }
    let project = match &wanted.project {
        Some(reference) => Some(engine.project_row(&who, reference).await?.id),
        None => None,
    };
    let new = NewKey {
        name: wanted.name,
        environment: if wanted.test { Environment::Test } else { Environment::Live },
        scopes: wanted.scopes.into_iter().collect::<Scopes>(),
        project,
        expires_at: wanted.expires_at,
    };
    Ok((StatusCode::CREATED, Json(engine.create_key(&who, new).await?)))
}

/// A key, without its text.
#[utoipa::path(get, path = "/{key}", tag = "account", params(("key" = String, Path)),
    responses((status = 200, body = ApiKey), (status = "4XX", body = karta_types::Problem)))]
async fn read(
    State(engine): State<Engine>,
    May(who, _): May<ReadKeys>,
    Path(key): Path<KeyId>,
) -> Answer<Json<ApiKey>> {
    Ok(Json(engine.key(&who, key).await?))
}

/// Ends a key at once.
#[utoipa::path(delete, path = "/{key}", tag = "account", params(("key" = String, Path)),
    responses((status = 204), (status = "4XX", body = karta_types::Problem)))]
async fn revoke(
    State(engine): State<Engine>,
    May(who, _): May<ManageKeys>,
    Path(key): Path<KeyId>,
) -> Answer<StatusCode> {
    engine.revoke_key(&who, key).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes a key with the same rights; the old one ends after an overlap.
#[utoipa::path(post, path = "/{key}/rotate", tag = "account", params(("key" = String, Path)), request_body = RotateKey,
    responses((status = 201, body = NewApiKey), (status = "4XX", body = karta_types::Problem)))]
async fn rotate(
    State(engine): State<Engine>,
    May(who, _): May<ManageKeys>,
    Path(key): Path<KeyId>,
    body: Body<RotateKey>,
) -> Answer<(StatusCode, Json<NewApiKey>)> {
    let overlap = Duration::from_secs(body.value.overlap_seconds.unwrap_or(OVERLAP));
    Ok((StatusCode::CREATED, Json(engine.rotate_key(&who, key, overlap).await?)))
}
