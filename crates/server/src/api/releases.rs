//! A project's releases: published, listed, compared, made active, deleted.

use std::time::Duration;

use axum::Json;
use axum::body::Body as Bytes;
use axum::extract::{OriginalUri, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::StreamExt as _;
use karta_engine::data::releases::{Publish, Published};
use karta_engine::{Engine, Error};
use karta_types::page::Page;
use karta_types::permission::may::{ActivateReleases, Deploy, ReadProjects};
use karta_types::release::{Activation, Hashes, LogLine, Project, Release, ReleaseDiff};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::{StreamReader, SyncIoBridge};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::May;
use crate::extract::{Body, Paging, Path, Query};
use crate::idempotency;
use crate::problem::{Answer, Failure};
use crate::sse::{Named, named, wants_events};

/// How long an upload may stand still.
const STILL: Duration = Duration::from_mins(1);
/// How long an upload may take in all; then it is cut off.
const LONGEST: Duration = Duration::from_hours(1);
/// Lines of a build that wait for a slow reader.
const WAITING: usize = 256;
/// The most characters of a reason.
const REASON: usize = 1000;
/// The most hashes in one question.
const HASHES: usize = 100_000;

/// The routes.
pub fn routes() -> OpenApiRouter<Engine> {
    OpenApiRouter::new()
        .routes(routes!(list, publish))
        .routes(routes!(missing))
        .routes(routes!(read, delete))
        .routes(routes!(archive))
        .routes(routes!(compare))
        .routes(routes!(activate))
        .routes(routes!(promote))
        .routes(routes!(abort))
        .routes(routes!(rollback))
        .routes(routes!(activations))
}

/// The project's releases, newest first.
#[utoipa::path(get, path = "/{project}/releases", tag = "releases",
    params(("project" = String, Path), ("limit" = Option<u32>, Query), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Page<Release>), (status = "4XX", body = karta_types::Problem)))]
async fn list(
    State(engine): State<Engine>,
    May(who, _): May<ReadProjects>,
    Path(project): Path<String>,
    Query(paging): Query<Paging>,
) -> Answer<Json<Page<Release>>> {
    Ok(Json(engine.releases(&who, &project, paging.cursor()?, paging.limit()?).await?))
}

/// How to publish.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PublishQuery {
    activate: Option<bool>,
    preview: Option<String>,
}

/// Publishes a tar, tar.gz or tar.zst archive of a folder; the first one makes the project. The same content again is the release
/// that has it. With `Accept: text/event-stream`, what the setup prints comes as it does: events `log`, then `release` or `error`.
#[utoipa::path(post, path = "/{project}/releases", tag = "releases",
    params(("project" = String, Path),
        ("activate" = Option<bool>, Query, description = "Whether it becomes the active release; `true` unless `preview` is given"),
        ("preview" = Option<String>, Query, description = "Shows it under `{project}@{preview}`"),
        ("Karta-Commit" = Option<String>, Header), ("Karta-Message" = Option<String>, Header, description = "Percent-encoded UTF-8")),
    request_body(content = Vec<u8>, content_type = "application/x-tar"),
    responses((status = 201, body = Release), (status = 200, body = Release, description = "The same content was there"),
        (status = "4XX", body = karta_types::Problem)))]
async fn publish(
    State(engine): State<Engine>,
    May(who, _): May<Deploy>,
    Path(project): Path<String>,
    Query(asked): Query<PublishQuery>,
    request: Request,
) -> Answer<Response> {
    let headers = request.headers();
    let streaming = wants_events(headers);
    let how = Publish {
        activate: asked.activate.unwrap_or_else(|| asked.preview.is_none()),
        commit: words(headers, "karta-commit")?,
        message: words(headers, "karta-message")?,
        preview: asked.preview,
        held: false,
    };
    if how.activate && how.preview.is_some() {
        return Err(Error::invalid(
            "/activate",
            "what is shown in a preview is not activated: leave one out",
        )
        .into());
    }
    let body = request.into_body().into_data_stream().take_until(tokio::time::sleep(LONGEST));
    let parts = tokio_stream::StreamExt::timeout(body, STILL);
    let parts = Box::pin(parts.map(|part| match part {
        Ok(part) => part.map_err(std::io::Error::other),
        Err(_) => Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "the upload stood still")),
    }));
    let archive = Box::new(SyncIoBridge::new(StreamReader::new(parts)));
    if !streaming {
        return Ok(answer(engine.publish(&who, &project, archive, how, None).await?));
    }
    let (lines, mut heard) = mpsc::channel(WAITING);
    let publishing = async move { engine.publish(&who, &project, archive, how, Some(lines)).await };
    let mut publishing = Box::pin(publishing);
    // The stream begins when the archive is read: until then a refusal is an answer of its own.
    let first = tokio::select! {
        done = &mut publishing => return Ok(named(futures_util::stream::iter([last(Ok(done?))]))),
        Some(line) = heard.recv() => line,
    };
    let state = Some((publishing, heard));
    let rest = futures_util::stream::unfold(state, |state| async move {
        let (mut publishing, mut heard) = state?;
        tokio::select! {
            biased;
            Some(line) = heard.recv() => Some((log(&line), Some((publishing, heard)))),
            done = &mut publishing => Some((last(done), None)),
        }
    });
    Ok(named(futures_util::stream::iter([log(&first)]).chain(rest)))
}

fn answer(published: Published) -> Response {
    let status = if published.fresh { StatusCode::CREATED } else { StatusCode::OK };
    (status, Json(published.release)).into_response()
}

fn log(line: &LogLine) -> Named {
    Named::new("log", Some(&line.cursor), line)
}

fn last(done: Result<Published, Error>) -> Named {
    match done {
        Ok(published) => Named::new("release", None, &published.release),
        Err(error) => Named::new("error", None, &*Failure::from(error).0),
    }
}

/// A header's text, percent-decoded.
fn words(headers: &HeaderMap, name: &'static str) -> Result<Option<String>, Error> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let wrong = || Error::invalid(&format!("/headers/{name}"), "not percent-encoded UTF-8 text");
    let bytes = value.as_bytes();
    let mut text = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        if *byte == b'%' {
            let digits = bytes.get(at + 1..at + 3).and_then(|two| std::str::from_utf8(two).ok());
            text.push(digits.and_then(|two| u8::from_str_radix(two, 16).ok()).ok_or_else(wrong)?);
            at += 3;
        } else {
            text.push(*byte);
            at += 1;
        }
    }
    String::from_utf8(text).map(|text| Some(text).filter(|text| !text.is_empty())).map_err(|_| wrong())
}

/// Which of these contents are not kept for the project: only they have to be in a partial archive.
#[utoipa::path(post, path = "/{project}/releases/missing", tag = "releases", request_body = Hashes,
    params(("project" = String, Path)),
    responses((status = 200, body = Hashes), (status = "4XX", body = karta_types::Problem)))]
async fn missing(
    State(engine): State<Engine>,
    May(who, _): May<Deploy>,
    Path(project): Path<String>,
    body: Body<Hashes>,
) -> Answer<Json<Hashes>> {
    if body.value.hashes.len() > HASHES {
        return Err(Error::invalid("/hashes", format!("at most {HASHES} at once")).into());
    }
    let hashes = engine.missing_contents(&who, &project, body.value.hashes).await?;
    Ok(Json(Hashes { hashes }))
}

/// One release.
#[utoipa::path(get, path = "/{project}/releases/{version}", tag = "releases",
    params(("project" = String, Path), ("version" = String, Path, description = "`3` or `v3`")),
    responses((status = 200, body = Release), (status = "4XX", body = karta_types::Problem)))]
async fn read(
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

/// Deletes a release: its record stays, its files go. Refused while something runs on it.
#[utoipa::path(delete, path = "/{project}/releases/{version}", tag = "releases",
    params(("project" = String, Path), ("version" = String, Path, description = "`3` or `v3`")),
    responses((status = 204), (status = "4XX", body = karta_types::Problem)))]
async fn delete(
    State(engine): State<Engine>,
    May(who, _): May<ActivateReleases>,
    Path((project, version)): Path<(String, String)>,
) -> Answer<StatusCode> {
    engine.delete_release(&who, &project, number(&version)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The files that were published, as a gzipped tar archive.
#[utoipa::path(get, path = "/{project}/releases/{version}/archive", tag = "releases",
    params(("project" = String, Path), ("version" = String, Path, description = "`3` or `v3`")),
    responses((status = 200, body = Vec<u8>, content_type = "application/gzip"), (status = "4XX", body = karta_types::Problem)))]
async fn archive(
    State(engine): State<Engine>,
    May(who, _): May<ReadProjects>,
    Path((project, version)): Path<(String, String)>,
) -> Answer<Response> {
    let version = number(&version)?;
    let parts = engine.release_archive(&who, &project, version).await?;
    let mut response = Response::new(Bytes::from_stream(ReceiverStream::new(parts)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/gzip"));
    let name =
        format!("attachment; filename=\"{}-v{version}.tar.gz\"", project.replace(['"', '\\', '/'], "-"));
    if let Ok(name) = HeaderValue::from_str(&name) {
        headers.insert(header::CONTENT_DISPOSITION, name);
    }
    Ok(response)
}

/// How two releases differ.
#[utoipa::path(get, path = "/{project}/releases/{version}/diff/{other}", tag = "releases",
    params(("project" = String, Path), ("version" = String, Path, description = "`3` or `v3`"),
        ("other" = String, Path, description = "`4` or `v4`")),
    responses((status = 200, body = ReleaseDiff), (status = "4XX", body = karta_types::Problem)))]
async fn compare(
    State(engine): State<Engine>,
    May(who, _): May<ReadProjects>,
    Path((project, version, other)): Path<(String, String, String)>,
) -> Answer<Json<ReleaseDiff>> {
    Ok(Json(engine.compare_releases(&who, &project, number(&version)?, number(&other)?).await?))
}

/// What may be said with an activation.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct Activate {
    /// Why, for the history and the audit log.
    reason: Option<String>,
    /// So many of a hundred new sessions only, 1 to 99: the release becomes the canary.
    percent: Option<u8>,
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

/// What may be said with a canary's end.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct Reason {
    /// Why, for the history and the audit log.
    reason: Option<String>,
}

fn checked(reason: Option<String>) -> Result<Option<String>, Error> {
    match &reason {
        Some(text) if text.chars().count() > REASON => {
            Err(Error::invalid("/reason", format!("a reason has at most {REASON} characters")))
        }
        _ => Ok(reason),
    }
}

/// What an activation answers: itself, or with `percent` the project with its canary.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
enum Activated {
    /// The release is active.
    Whole(Activation),
    /// It is the canary.
    Canary(Box<Project>),
}

/// Makes a release the active one; with `percent`, the canary. Turns that run end on theirs; the same again changes nothing.
#[utoipa::path(post, path = "/{project}/releases/{version}/activate", tag = "releases", request_body = Activate,
    params(("project" = String, Path), ("version" = String, Path, description = "`3` or `v3`")),
    responses((status = 200, body = Activated), (status = "4XX", body = karta_types::Problem)))]
async fn activate(
    State(engine): State<Engine>,
    May(who, _): May<ActivateReleases>,
    Path((project, version)): Path<(String, String)>,
    body: Body<Activate>,
) -> Answer<Json<Activated>> {
    let (reason, version) = (checked(body.value.reason)?, number(&version)?);
    Ok(Json(match body.value.percent {
        None => Activated::Whole(engine.activate(&who, &project, version, reason).await?),
        Some(percent) => {
            Activated::Canary(Box::new(engine.start_canary(&who, &project, version, percent, reason).await?))
        }
    }))
}

/// Makes the canary the active release.
#[utoipa::path(post, path = "/{project}/canary/promote", tag = "releases", request_body = Reason,
    params(("project" = String, Path)),
    responses((status = 200, body = Activation), (status = "4XX", body = karta_types::Problem)))]
async fn promote(
    State(engine): State<Engine>,
    May(who, _): May<ActivateReleases>,
    Path(project): Path<String>,
    body: Body<Reason>,
) -> Answer<Json<Activation>> {
    let reason = checked(body.value.reason)?;
    Ok(Json(engine.promote_canary(&who, &project, reason).await?))
}

/// Ends the canary: its sessions run on the active release from their next turn on.
#[utoipa::path(post, path = "/{project}/canary/abort", tag = "releases", request_body = Reason,
    params(("project" = String, Path)),
    responses((status = 200, body = Project), (status = "4XX", body = karta_types::Problem)))]
async fn abort(
    State(engine): State<Engine>,
    May(who, _): May<ActivateReleases>,
    Path(project): Path<String>,
    body: Body<Reason>,
) -> Answer<Json<Project>> {
    let reason = checked(body.value.reason)?;
    Ok(Json(engine.abort_canary(&who, &project, reason).await?))
}

/// Goes back to the release that was active before: no build, one flip. Sent again with its `Idempotency-Key` it goes back once.
#[utoipa::path(post, path = "/{project}/rollback", tag = "releases", params(("project" = String, Path)),
    request_body = Rollback,
    responses((status = 200, body = Activation), (status = "4XX", body = karta_types::Problem)))]
async fn rollback(
    State(engine): State<Engine>,
    May(who, _): May<ActivateReleases>,
    Path(project): Path<String>,
    method: Method,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: Body<Rollback>,
) -> Answer<Response> {
    // The one flip that is another one when it is sent again.
    let key = idempotency::key(&headers, &method, &uri, &body.bytes)?;
    let Rollback { to, reason } = body.value;
    let reason = checked(reason)?;
    let flip = async { Ok(Json(engine.roll_back(&who, &project, to, reason).await?).into_response()) };
    idempotency::once(&engine, &who, key, flip).await
}

/// Which release was made active when, by whom and why; newest first.
#[utoipa::path(get, path = "/{project}/activations", tag = "releases",
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
