//! Secrets for the tools of a project's sessions.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use karta_engine::Engine;
use karta_types::Secret;
use karta_types::page::Page;
use karta_types::permission::may::{ManageSecrets, ReadSecrets};
use karta_types::tool_secret::ToolSecret;
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::May;
use crate::extract::{Body, Path};
use crate::problem::Answer;

/// The routes.
pub fn routes() -> OpenApiRouter<Engine> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(set, remove))
}

/// A secret to be set.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SetSecret {
    /// What it is: 8 to 8192 bytes in one line. It is never shown again.
    #[schema(value_type = String)]
    value: Secret,
}

/// The project's secrets, without their values.
#[utoipa::path(get, path = "/{project}/secrets", tag = "projects", params(("project" = String, Path)),
    responses((status = 200, body = Page<ToolSecret>), (status = "4XX", body = karta_types::Problem)))]
async fn list(
    State(engine): State<Engine>,
    May(who, _): May<ReadSecrets>,
    Path(project): Path<String>,
) -> Answer<Json<Page<ToolSecret>>> {
    Ok(Json(Page { data: engine.tool_secrets(&who, &project).await?, next_cursor: None }))
}

/// Sets a secret. The one before it is erased. Sessions that run have it from their next process on.
#[utoipa::path(put, path = "/{project}/secrets/{name}", tag = "projects",
    params(("project" = String, Path), ("name" = String, Path)), request_body = SetSecret,
    responses((status = 200, body = ToolSecret), (status = "4XX", body = karta_types::Problem)))]
async fn set(
    State(engine): State<Engine>,
    May(who, _): May<ManageSecrets>,
    Path((project, name)): Path<(String, String)>,
    body: Body<SetSecret>,
) -> Answer<Json<ToolSecret>> {
    Ok(Json(engine.set_tool_secret(&who, &project, &name, &body.value.value).await?))
}

/// Removes a secret.
#[utoipa::path(delete, path = "/{project}/secrets/{name}", tag = "projects",
    params(("project" = String, Path), ("name" = String, Path)),
    responses((status = 204), (status = "4XX", body = karta_types::Problem)))]
async fn remove(
    State(engine): State<Engine>,
    May(who, _): May<ManageSecrets>,
    Path((project, name)): Path<(String, String)>,
) -> Answer<StatusCode> {
    engine.remove_tool_secret(&who, &project, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}
