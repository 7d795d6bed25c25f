//! Projects, their releases, and which of them is active.

use axum::Json;
use axum::extract::State;
use karta_engine::{Engine, Error};
use karta_types::page::Page;
use karta_types::permission::may::{ActivateReleases, ReadProjects};
use karta_types::release::{Activation, Project, Release};
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::May;
use crate::extract::{Body, Paging, Path, Query};
use crate::problem::Answer;

/// The routes.
pub fn routes() -> OpenApiRouter<Engine> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(read))
        .routes(routes!(releases))
        .routes(routes!(release))
        .routes(routes!(activations))
        .routes(routes!(activate))
        .routes(routes!(rollback))
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
    Ok(Json(engine.release(&who, &project, number(&version)?).await?))
}

/// `3` or `v3`.
fn number(version: &str) -> Result<u64, Error> {
    version.strip_prefix('v').unwrap_or(version).parse().map_err(|_| Error::not_found("release"))
}

/// Which release was made active when, by whom and why; newest first.
#[utoipa::path(get, path = "/{project}/activations", tag = "projects",
    params(("project" = String, Path), ("limit" = Option<u32>, Query), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Page<Activation>), (status = "4XX", body = karta_types::Problem)))]
async fn activations(
    State(engine): State<Engine>,
    May(who, _): May<ReadProjects>,
    Path(project): Path<String>,
    Query(paging): Query<Paging>,
) -> Answer<Json<Page<Activation>>> {
    Ok(Json(engine.activations(&who, &project, paging.cursor()?, paging.limit()?).await?))
}

/// What may be said with an activation.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct Activate {
    /// Why, for the history and the audit log.
    reason: Option<String>,
}

/// What may be said with a rollback.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct Rollback {
    /// The version to go back to, which was active before; absent is the one before the active one.
    to: Option<u64>,
    /// Why, for the history and the audit log.
    reason: Option<String>,
}

/// The most characters of a reason.
const REASON: usize = 1000;

fn checked(reason: Option<String>) -> Result<Option<String>, Error> {
    match &reason {
        Some(text) if text.chars().count() > REASON => {
            Err(Error::invalid("/reason", format!("a reason has at most {REASON} characters")))
        }
        _ => Ok(reason),
    }
}

/// Makes a release the active one. Turns that run end on theirs; the same again changes nothing.
#[utoipa::path(post, path = "/{project}/releases/{version}/activate", tag = "projects", request_body = Activate,
    params(("project" = String, Path), ("version" = String, Path, description = "`3` or `v3`")),
    responses((status = 200, body = Activation), (status = "4XX", body = karta_types::Problem)))]
async fn activate(
    State(engine): State<Engine>,
    May(who, _): May<ActivateReleases>,
    Path((project, version)): Path<(String, String)>,
    body: Body<Activate>,
) -> Answer<Json<Activation>> {
    let reason = checked(body.value.reason)?;
    Ok(Json(engine.activate(&who, &project, number(&version)?, reason).await?))
}

/// Goes back to the release that was active before: no build, one flip.
#[utoipa::path(post, path = "/{project}/rollback", tag = "projects", params(("project" = String, Path)),
    request_body = Rollback,
    responses((status = 200, body = Activation), (status = "4XX", body = karta_types::Problem)))]
async fn rollback(
    State(engine): State<Engine>,
    May(who, _): May<ActivateReleases>,
    Path(project): Path<String>,
    body: Body<Rollback>,
) -> Answer<Json<Activation>> {
    let reason = checked(body.value.reason)?;
    Ok(Json(engine.roll_back(&who, &project, body.value.to, reason).await?))
}
