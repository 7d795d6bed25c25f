//! Invitations to the organisation.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use karta_engine::Engine;
use karta_types::page::Page;
use karta_types::permission::may::{ManageMembers, ReadMembers};
use karta_types::person::{Invitation, NewInvitation};
use karta_types::{InvitationId, Role};
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::May;
use crate::extract::{Base, Body, Path};
use crate::problem::Answer;

/// The routes.
pub fn routes() -> OpenApiRouter<Engine> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(revoke))
}

/// Whom to invite as what.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Invite {
    /// Their address.
    email: String,
    /// What they will be.
    role: Role,
}

/// Invitations that were not yet taken up.
#[utoipa::path(get, path = "", tag = "members",
    responses((status = 200, body = Object), (status = "4XX", body = karta_types::Problem)))]
async fn list(State(engine): State<Engine>, May(who, _): May<ReadMembers>) -> Answer<Json<Page<Invitation>>> {
    Ok(Json(Page { data: engine.invitations(&who).await?, next_cursor: None }))
}

/// Invites somebody. The link is in this answer and nowhere else: send it to them.
#[utoipa::path(post, path = "", tag = "members", request_body = Invite,
    responses((status = 201, body = NewInvitation), (status = "4XX", body = karta_types::Problem)))]
async fn create(
    State(engine): State<Engine>,
    May(who, _): May<ManageMembers>,
    Base(base): Base,
    body: Body<Invite>,
) -> Answer<(StatusCode, Json<NewInvitation>)> {
    let Invite { email, role } = body.value;
    Ok((StatusCode::CREATED, Json(engine.invite(&who, &email, role, &base).await?)))
}

/// Takes an invitation back.
#[utoipa::path(delete, path = "/{invitation}", tag = "members", params(("invitation" = String, Path)),
    responses((status = 204), (status = "4XX", body = karta_types::Problem)))]
async fn revoke(
    State(engine): State<Engine>,
    May(who, _): May<ManageMembers>,
    Path(invitation): Path<InvitationId>,
) -> Answer<StatusCode> {
    engine.revoke_invitation(&who, invitation).await?;
    Ok(StatusCode::NO_CONTENT)
}
