//! Projects: made, found, renamed, removed.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use karta_engine::Engine;
use karta_types::page::Page;
use karta_types::permission::may::{ActivateReleases, Deploy, ReadProjects};
use karta_types::release::Project;
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::May;
use crate::extract::{Body, Paging, Path, Query};
use crate::problem::Answer;

/// The routes.
pub fn routes() -> OpenApiRouter<Engine> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(read, rename, delete))
}

/// The organisation's projects, oldest first; previews are listed at theirs.
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

/// A new project.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewProject {
    /// Its name in URLs: 1 to 63 of a-z, 0-9 and -.
    slug: String,
    /// Its name for people; absent is the slug.
    name: Option<String>,
}

/// Makes a project without a release. Publishing to a slug makes it too.
#[utoipa::path(post, path = "", tag = "projects", request_body = NewProject,
    responses((status = 201, body = Project), (status = "4XX", body = karta_types::Problem)))]
async fn create(
    State(engine): State<Engine>,
    May(who, _): May<Deploy>,
    body: Body<NewProject>,
) -> Answer<(StatusCode, Json<Project>)> {
    let NewProject { slug, name } = body.value;
    Ok((StatusCode::CREATED, Json(engine.create_project(&who, &slug, name).await?)))
}

/// One project.
#[utoipa::path(get, path = "/{project}", tag = "projects",
    params(("project" = String, Path, description = "Id, slug, or `{slug}@{preview}`")),
    responses((status = 200, body = Project), (status = "4XX", body = karta_types::Problem)))]
async fn read(
    State(engine): State<Engine>,
    May(who, _): May<ReadProjects>,
    Path(project): Path<String>,
) -> Answer<Json<Project>> {
    Ok(Json(engine.project(&who, &project).await?))
}

/// What to change of a project.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Rename {
    /// Its name for people.
    name: String,
}

/// Gives a project another name for people.
#[utoipa::path(patch, path = "/{project}", tag = "projects", request_body = Rename, params(("project" = String, Path)),
    responses((status = 200, body = Project), (status = "4XX", body = karta_types::Problem)))]
async fn rename(
    State(engine): State<Engine>,
    May(who, _): May<Deploy>,
    Path(project): Path<String>,
    body: Body<Rename>,
) -> Answer<Json<Project>> {
    Ok(Json(engine.rename_project(&who, &project, body.value.name).await?))
}

/// Removes a project with its sessions, previews and releases. Usage records stay.
#[utoipa::path(delete, path = "/{project}", tag = "projects", params(("project" = String, Path)),
    responses((status = 204), (status = "4XX", body = karta_types::Problem)))]
async fn delete(
    State(engine): State<Engine>,
    May(who, _): May<ActivateReleases>,
    Path(project): Path<String>,
) -> Answer<StatusCode> {
    engine.delete_project(&who, &project).await?;
    Ok(StatusCode::NO_CONTENT)
}
