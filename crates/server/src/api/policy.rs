//! What the organisation demands of all its sessions.

use axum::Json;
use axum::extract::State;
use karta_engine::Engine;
use karta_types::org_policy::OrgPolicy;
use karta_types::permission::may::{ReadPolicy, SetPolicy};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::May;
use crate::extract::Body;
use crate::problem::Answer;

/// The routes.
pub fn routes() -> OpenApiRouter<Engine> {
    OpenApiRouter::new().routes(routes!(read, set))
}

/// What the organisation demands of all its sessions, whatever their releases say.
#[utoipa::path(get, path = "", tag = "account",
    responses((status = 200, body = OrgPolicy), (status = "4XX", body = karta_types::Problem)))]
async fn read(State(engine): State<Engine>, May(who, _): May<ReadPolicy>) -> Answer<Json<OrgPolicy>> {
    Ok(Json(engine.org_policy(&who).await?))
}

/// Sets the policy, all of it. It holds for sessions made from then on.
#[utoipa::path(put, path = "", tag = "account", request_body = OrgPolicy,
    responses((status = 200, body = OrgPolicy), (status = "4XX", body = karta_types::Problem)))]
async fn set(
    State(engine): State<Engine>,
    May(who, _): May<SetPolicy>,
    body: Body<OrgPolicy>,
) -> Answer<Json<OrgPolicy>> {
    Ok(Json(engine.set_org_policy(&who, body.value).await?))
}
