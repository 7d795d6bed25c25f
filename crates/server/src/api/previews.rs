//! A project's previews.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use karta_engine::Engine;
use karta_types::page::Page;
use karta_types::permission::may::{Deploy, ReadProjects};
use karta_types::release::Preview;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::May;
use crate::extract::{Paging, Path, Query};
use crate::problem::Answer;

/// The routes.
pub fn routes() -> OpenApiRouter<Engine> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(remove))
}

/// The project's previews, oldest first.
#[utoipa::path(get, path = "/{project}/previews", tag = "releases",
    params(("project" = String, Path), ("limit" = Option<u32>, Query), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Page<Preview>), (status = "4XX", body = karta_types::Problem)))]
async fn list(
    State(engine): State<Engine>,
    May(who, _): May<ReadProjects>,
    Path(project): Path<String>,
    Query(paging): Query<Paging>,
) -> Answer<Json<Page<Preview>>> {
    Ok(Json(engine.previews(&who, &project, paging.cursor()?, paging.limit()?).await?))
}

/// Tears a preview down with its sessions. Its release stays.
#[utoipa::path(delete, path = "/{project}/previews/{preview}", tag = "releases",
    params(("project" = String, Path), ("preview" = String, Path)),
    responses((status = 204), (status = "4XX", body = karta_types::Problem)))]
async fn remove(
    State(engine): State<Engine>,
    May(who, _): May<Deploy>,
    Path((project, preview)): Path<(String, String)>,
) -> Answer<StatusCode> {
    engine.remove_preview(&who, &project, &preview).await?;
    Ok(StatusCode::NO_CONTENT)
}
