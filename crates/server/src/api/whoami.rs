//! Who the credential is.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use karta_engine::Engine;
use karta_types::permission::may::LookAround;
use karta_types::scope::Scope;
use karta_types::{OrgId, ProjectId, Role};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::{May, bearer};
use crate::problem::Answer;

/// The routes.
pub fn routes() -> OpenApiRouter<Engine> {
    OpenApiRouter::new().routes(routes!(read)).routes(routes!(sign_out))
}

/// Who the credential is.
#[derive(Debug, Serialize, ToSchema)]
pub struct Whoami {
    /// Who.
    pub principal: WhoamiPrincipal,
    /// The organisation.
    pub org: WhoamiOrg,
    /// The role of a person; null for a key, which has scopes.
    pub role: Option<Role>,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// The one project it is for, if it is restricted.
    pub project: Option<ProjectId>,
}

/// Who.
#[derive(Debug, Serialize, ToSchema)]
pub struct WhoamiPrincipal {
    /// `key`, `user`, `session_token`.
    pub kind: &'static str,
    /// Its id.
    pub id: String,
}

/// The organisation.
#[derive(Debug, Serialize, ToSchema)]
pub struct WhoamiOrg {
    /// Its id.
    pub id: OrgId,
    /// Its readable name.
    pub slug: String,
    /// Its name for people.
    pub name: String,
}

/// Who the credential is.
#[utoipa::path(get, path = "", tag = "account",
    responses((status = 200, body = Whoami), (status = "4XX", body = karta_types::Problem)))]
async fn read(State(engine): State<Engine>, May(who, _): May<LookAround>) -> Answer<Json<Whoami>> {
    let org = engine.org(&who).await?;
    Ok(Json(Whoami {
        principal: WhoamiPrincipal { kind: who.actor.kind(), id: who.actor.id() },
        org: WhoamiOrg { id: org.id, slug: org.slug, name: org.name },
        role: who.role,
        scopes: who.scopes.list(),
        project: who.project,
    }))
}

/// Ends the personal access token that this is called with.
#[utoipa::path(post, path = "/sign-out", tag = "account",
    responses((status = 204), (status = "4XX", body = karta_types::Problem)))]
async fn sign_out(
    State(engine): State<Engine>,
    May(who, _): May<LookAround>,
    headers: HeaderMap,
) -> Answer<StatusCode> {
    engine.sign_out(&who, bearer(&headers)?).await?;
    Ok(StatusCode::NO_CONTENT)
}
