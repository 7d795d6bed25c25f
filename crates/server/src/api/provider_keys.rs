//! Model providers' keys of the organisation.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use karta_engine::{Engine, Error};
use karta_types::Secret;
use karta_types::page::Page;
use karta_types::permission::may::{ManageProviderKeys, ReadProviderKeys};
use karta_types::provider_key::{KeyProvider, ProviderKey};
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::May;
use crate::extract::{Body, Path};
use crate::problem::Answer;

/// The routes.
pub fn routes() -> OpenApiRouter<Engine> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(set, erase))
}

/// A key to be set.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SetProviderKey {
    /// Its text. It is never shown again.
    #[schema(value_type = String)]
    key: Secret,
    /// The cloud's region, for `bedrock` and `vertex` alone: `us-east-1`, `global`.
    region: Option<String>,
}

fn provider(name: &str) -> Answer<KeyProvider> {
    Ok(name
        .parse()
        .map_err(|_| Error::not_found("provider: use anthropic, openai, openrouter, bedrock or vertex"))?)
}

/// The organisation's keys, without their texts.
#[utoipa::path(get, path = "", tag = "account",
    responses((status = 200, body = Object), (status = "4XX", body = karta_types::Problem)))]
async fn list(
    State(engine): State<Engine>,
    May(who, _): May<ReadProviderKeys>,
) -> Answer<Json<Page<ProviderKey>>> {
    Ok(Json(Page { data: engine.provider_keys(&who).await?, next_cursor: None }))
}

/// Sets the key for a provider. The one before it is erased.
#[utoipa::path(put, path = "/{provider}", tag = "account", params(("provider" = String, Path)), request_body = SetProviderKey,
    responses((status = 200, body = ProviderKey), (status = "4XX", body = karta_types::Problem)))]
async fn set(
    State(engine): State<Engine>,
    May(who, _): May<ManageProviderKeys>,
    Path(name): Path<String>,
    body: Body<SetProviderKey>,
) -> Answer<Json<ProviderKey>> {
    Ok(Json(
        engine
            .set_provider_key(&who, provider(&name)?, &body.value.key, body.value.region.as_deref())
            .await?,
    ))
}

/// Erases the key for a provider: the next call goes without it.
#[utoipa::path(delete, path = "/{provider}", tag = "account", params(("provider" = String, Path)),
    responses((status = 204), (status = "4XX", body = karta_types::Problem)))]
async fn erase(
    State(engine): State<Engine>,
    May(who, _): May<ManageProviderKeys>,
    Path(name): Path<String>,
) -> Answer<StatusCode> {
    engine.erase_provider_key(&who, provider(&name)?).await?;
    Ok(StatusCode::NO_CONTENT)
}
