//! Webhooks: where they go and what became of them.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use karta_engine::control::webhooks::{EndpointPatch, NewWebhook};
use karta_engine::{Engine, Error};
use karta_types::page::Page;
use karta_types::permission::may::{ManageWebhooks, ReadWebhooks};
use karta_types::webhook::{Delivery, DeliveryState, Endpoint, Happened, NewEndpoint};
use karta_types::{DeliveryId, EndpointId, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::May;
use crate::extract::{Body, Path, Query, cursor, limit};
use crate::problem::Answer;

/// The routes.
pub fn routes() -> OpenApiRouter<Engine> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(read, change, remove))
        .routes(routes!(rotate))
        .routes(routes!(deliveries))
        .routes(routes!(redeliver))
        .routes(routes!(redeliver_since))
}

/// An endpoint to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CreateEndpoint {
    /// Its address: a public one, by https.
    url: String,
    /// What it is told; absent or empty is everything.
    #[serde(default)]
    events: Vec<Happened>,
    /// For people.
    #[serde(default)]
    description: String,
}

/// What changes of an endpoint.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct ChangeEndpoint {
    /// Its address.
    url: Option<String>,
    /// What it is told; empty is everything.
    events: Option<Vec<Happened>>,
    /// For people.
    description: Option<String>,
    /// Whether anything is sent there.
    enabled: Option<bool>,
}

/// How a signing secret is replaced.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct RotateSecret {
    /// Seconds for which both secrets sign: a day if absent, 7 days at most.
    overlap_seconds: Option<u64>,
}

/// What is delivered again.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Redeliver {
    /// What was given up and happened at or after this.
    since: Timestamp,
}

/// How much is delivered again.
#[derive(Debug, Serialize, ToSchema)]
struct Redelivered {
    /// Deliveries.
    count: u64,
}

/// Which deliveries.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Which {
    state: Option<DeliveryState>,
    limit: Option<u32>,
    cursor: Option<String>,
}

const OVERLAP: u64 = 24 * 60 * 60;

/// The organisation's endpoints.
#[utoipa::path(get, path = "", tag = "webhooks",
    responses((status = 200, body = Object), (status = "4XX", body = karta_types::Problem)))]
async fn list(State(engine): State<Engine>, May(who, _): May<ReadWebhooks>) -> Answer<Json<Page<Endpoint>>> {
    Ok(Json(Page { data: engine.webhooks(&who).await?, next_cursor: None }))
}

/// Makes an endpoint. The signing secret is in this answer and nowhere else.
#[utoipa::path(post, path = "", tag = "webhooks", request_body = CreateEndpoint,
    responses((status = 201, body = NewEndpoint), (status = "4XX", body = karta_types::Problem)))]
async fn create(
    State(engine): State<Engine>,
    May(who, _): May<ManageWebhooks>,
    body: Body<CreateEndpoint>,
) -> Answer<(StatusCode, Json<NewEndpoint>)> {
    let CreateEndpoint { url, events, description } = body.value;
    let made = engine.create_webhook(&who, NewWebhook { url, events, description }).await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// An endpoint.
#[utoipa::path(get, path = "/{endpoint}", tag = "webhooks", params(("endpoint" = String, Path)),
    responses((status = 200, body = Endpoint), (status = "4XX", body = karta_types::Problem)))]
async fn read(
    State(engine): State<Engine>,
    May(who, _): May<ReadWebhooks>,
    Path(endpoint): Path<EndpointId>,
) -> Answer<Json<Endpoint>> {
    Ok(Json(engine.webhook(&who, endpoint).await?))
}

/// Changes an endpoint. `enabled: true` takes up one that was disabled.
#[utoipa::path(patch, path = "/{endpoint}", tag = "webhooks", params(("endpoint" = String, Path)), request_body = ChangeEndpoint,
    responses((status = 200, body = Endpoint), (status = "4XX", body = karta_types::Problem)))]
async fn change(
    State(engine): State<Engine>,
    May(who, _): May<ManageWebhooks>,
    Path(endpoint): Path<EndpointId>,
    body: Body<ChangeEndpoint>,
) -> Answer<Json<Endpoint>> {
    let ChangeEndpoint { url, events, description, enabled } = body.value;
    let patch = EndpointPatch { url, events, description, enabled };
    Ok(Json(engine.change_webhook(&who, endpoint, patch).await?))
}

/// Removes an endpoint; what it was not told yet, it never is.
#[utoipa::path(delete, path = "/{endpoint}", tag = "webhooks", params(("endpoint" = String, Path)),
    responses((status = 204), (status = "4XX", body = karta_types::Problem)))]
async fn remove(
    State(engine): State<Engine>,
    May(who, _): May<ManageWebhooks>,
    Path(endpoint): Path<EndpointId>,
) -> Answer<StatusCode> {
    engine.remove_webhook(&who, endpoint).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes a new signing secret; for an overlap both sign.
#[utoipa::path(post, path = "/{endpoint}/rotate-secret", tag = "webhooks", params(("endpoint" = String, Path)),
    request_body = RotateSecret,
    responses((status = 201, body = NewEndpoint), (status = "4XX", body = karta_types::Problem)))]
async fn rotate(
    State(engine): State<Engine>,
    May(who, _): May<ManageWebhooks>,
    Path(endpoint): Path<EndpointId>,
    body: Body<RotateSecret>,
) -> Answer<(StatusCode, Json<NewEndpoint>)> {
    let overlap = Duration::from_secs(body.value.overlap_seconds.unwrap_or(OVERLAP));
    Ok((StatusCode::CREATED, Json(engine.rotate_webhook_secret(&who, endpoint, overlap).await?)))
}

/// The endpoint's deliveries of the last 30 days, newest first.
#[utoipa::path(get, path = "/{endpoint}/deliveries", tag = "webhooks",
    params(("endpoint" = String, Path), ("state" = Option<DeliveryState>, Query), ("limit" = Option<u32>, Query),
        ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Object), (status = "4XX", body = karta_types::Problem)))]
async fn deliveries(
    State(engine): State<Engine>,
    May(who, _): May<ReadWebhooks>,
    Path(endpoint): Path<EndpointId>,
    Query(which): Query<Which>,
) -> Answer<Json<Page<Delivery>>> {
    let before = cursor(which.cursor.as_deref())?;
    Ok(Json(engine.deliveries(&who, endpoint, which.state, before, limit(which.limit)?).await?))
}

/// Delivers one again, from the beginning of its schedule.
#[utoipa::path(post, path = "/{endpoint}/deliveries/{delivery}/redeliver", tag = "webhooks",
    params(("endpoint" = String, Path), ("delivery" = String, Path)),
    responses((status = 200, body = Delivery), (status = "4XX", body = karta_types::Problem)))]
async fn redeliver(
    State(engine): State<Engine>,
    May(who, _): May<ManageWebhooks>,
    Path((endpoint, delivery)): Path<(EndpointId, DeliveryId)>,
) -> Answer<Json<Delivery>> {
    Ok(Json(engine.redeliver(&who, endpoint, delivery).await?))
}

/// Delivers again everything that was given up and happened since a time.
#[utoipa::path(post, path = "/{endpoint}/redeliver", tag = "webhooks", params(("endpoint" = String, Path)),
    request_body = Redeliver,
    responses((status = 200, body = Redelivered), (status = "4XX", body = karta_types::Problem)))]
async fn redeliver_since(
    State(engine): State<Engine>,
    May(who, _): May<ManageWebhooks>,
    Path(endpoint): Path<EndpointId>,
    body: Body<Redeliver>,
) -> Answer<Json<Redelivered>> {
    if body.value.since > engine.clock().now() {
        return Err(Error::invalid("/since", "the time is not past").into());
    }
    let count = engine.redeliver_since(&who, endpoint, body.value.since).await?;
    Ok(Json(Redelivered { count }))
}
