//! The organisation's people.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use karta_engine::Engine;
use karta_types::page::Page;
use karta_types::permission::may::{ManageMembers, ReadMembers};
use karta_types::person::Member;
use karta_types::{Role, UserId};
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::May;
use crate::extract::{Body, Paging, Path, Query};
use crate::problem::Answer;

/// The routes.
pub fn routes() -> OpenApiRouter<Engine> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(read, change, remove)).routes(routes!(leave))
}

/// What changes of a member.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ChangeMember {
    /// What they are from now on.
    role: Role,
}

/// The organisation's people.
#[utoipa::path(get, path = "", tag = "members",
    params(("limit" = Option<u32>, Query), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Object), (status = "4XX", body = karta_types::Problem)))]
async fn list(
    State(engine): State<Engine>,
    May(who, _): May<ReadMembers>,
    Query(paging): Query<Paging>,
) -> Answer<Json<Page<Member>>> {
    Ok(Json(engine.members(&who, paging.cursor()?, paging.limit()?).await?))
}

/// One of them.
#[utoipa::path(get, path = "/{member}", tag = "members", params(("member" = String, Path)),
    responses((status = 200, body = Member), (status = "4XX", body = karta_types::Problem)))]
async fn read(
    State(engine): State<Engine>,
    May(who, _): May<ReadMembers>,
    Path(member): Path<UserId>,
) -> Answer<Json<Member>> {
    Ok(Json(engine.member(&who, member).await?))
}

/// Gives somebody another role, up to one's own.
#[utoipa::path(patch, path = "/{member}", tag = "members", params(("member" = String, Path)), request_body = ChangeMember,
    responses((status = 200, body = Member), (status = "4XX", body = karta_types::Problem)))]
async fn change(
    State(engine): State<Engine>,
    May(who, _): May<ManageMembers>,
    Path(member): Path<UserId>,
    body: Body<ChangeMember>,
) -> Answer<Json<Member>> {
    Ok(Json(engine.change_member(&who, member, body.value.role).await?))
}

/// Removes somebody. Their sign-ins to the organisation end at once; the last owner can't be removed.
#[utoipa::path(delete, path = "/{member}", tag = "members", params(("member" = String, Path)),
    responses((status = 204), (status = "4XX", body = karta_types::Problem)))]
async fn remove(
    State(engine): State<Engine>,
    May(who, _): May<ManageMembers>,
    Path(member): Path<UserId>,
) -> Answer<StatusCode> {
    engine.remove_member(&who, member).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Leaves the organisation. The last owner can't.
#[utoipa::path(post, path = "/leave", tag = "members",
    responses((status = 204), (status = "4XX", body = karta_types::Problem)))]
async fn leave(State(engine): State<Engine>, May(who, _): May<ReadMembers>) -> Answer<StatusCode> {
    engine.leave(&who).await?;
    Ok(StatusCode::NO_CONTENT)
}
