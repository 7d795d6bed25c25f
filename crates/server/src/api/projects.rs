//! Projects and their releases, read.

use axum::Json;
use axum::extract::State;
use karta_engine::{Engine, Error};
use karta_types::page::Page;
use karta_types::permission::may::ReadProjects;
use karta_types::release::{Project, Release};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::May;
use crate::extract::{Paging, Path, Query};
use crate::problem::Answer;

/// The routes.
pub fn routes() -> OpenApiRouter<Engine> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(read))
        .routes(routes!(releases))
        .routes(routes!(release))
}

/// The organisation's projects, oldest first.
#[utoipa::path(get, path = "", tag = "projects",
    params(("limit" = Option<u32>, Query), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Page<Project>), (status = "4XX", body = karta_types::Problem)))]
async fn list(
    State(engine): State<Engine>,
    May(who, _): May<ReadProjects>,
    Query(paging): Query<Paging>,
) -> Answer<Json<Page<Project>>> {
    Ok(Json(engine.projects(&who, paging.cursor()?, paging.limit()?).await?))
}

/// One project.
#[utoipa::path(get, path = "/{project}", tag = "projects", params(("project" = String, Path, description = "Id or slug")),
    responses((status = 200, body = Project), (status = "4XX", body = karta_types::Problem)))]
async fn read(
    State(engine): State<Engine>,
    May(who, _): May<ReadProjects>,
    Path(project): Path<String>,
) -> Answer<Json<Project>> {
    Ok(Json(engine.project(&who, &project).await?))
}

/// The project's releases, newest first.
#[utoipa::path(get, path = "/{project}/releases", tag = "projects",
    params(("project" = String, Path), ("limit" = Option<u32>, Query), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Page<Release>), (status = "4XX", body = karta_types::Problem)))]
async fn releases(
    State(engine): State<Engine>,
    May(who, _): May<ReadProjects>,
    Path(project): Path<String>,
    Query(paging): Query<Paging>,
) -> Answer<Json<Page<Release>>> {
    Ok(Json(engine.releases(&who, &project, paging.cursor()?, paging.limit()?).await?))
}

/// One release.
#[utoipa::path(get, path = "/{project}/releases/{version}", tag = "projects",
    params(("project" = String, Path), ("version" = String, Path, description = "`3` or `v3`")),
    responses((status = 200, body = Release), (status = "4XX", body = karta_types::Problem)))]
async fn release(
    State(engine): State<Engine>,
    May(who, _): May<ReadProjects>,
    Path((project, version)): Path<(String, String)>,
) -> Answer<Json<Release>> {
    let version = version.strip_prefix('v').unwrap_or(&version).parse();
    let version = version.map_err(|_| Error::not_found("release"))?;
    Ok(Json(engine.release(&who, &project, version).await?))
}
