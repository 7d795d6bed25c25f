//! The git remote of each project, `{host}/git/{project}.git`: git's "smart" HTTP protocol, for pushing only.
//!
//! The two requests of a push are those of gitprotocol-http(5): the refs are asked for, then what `git receive-pack` reads is posted.

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, EXPIRES, PRAGMA, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use futures_util::StreamExt as _;
use karta_engine::{Engine, Error};
use karta_types::permission::may::Deploy;
use karta_types::{ErrorCode, Problem};
use serde::Deserialize;

use crate::auth::GitMay;
use crate::extract::{Base, Path};
use crate::problem::{Failure, Plain};

const REFS: &str = "application/x-git-receive-pack-advertisement";
const REQUEST: &str = "application/x-git-receive-pack-request";
const RESULT: &str = "application/x-git-receive-pack-result";

/// The routes. A push has a limit of its own, which git holds.
pub fn routes() -> Router<Engine> {
    Router::new()
        .route("/git/{project}/info/refs", get(refs))
        .route("/git/{project}/git-receive-pack", post(receive))
        .route("/git/{project}/git-upload-pack", post(fetch))
        .layer(DefaultBodyLimit::disable())
}

/// The name of what is asked for. Other parameters are for services that there are none of.
#[derive(Debug, Deserialize)]
struct Service {
    service: Option<String>,
}

/// The refs of the project, for `git push`.
async fn refs(
    State(engine): State<Engine>,
    GitMay(who, _): GitMay<Deploy>,
    Path(project): Path<String>,
    axum::extract::Query(asked): axum::extract::Query<Service>,
) -> Result<Response, Plain> {
    match asked.service.as_deref() {
        Some("git-receive-pack") => {}
        Some("git-upload-pack") => return Err(pushes_only()),
        _ => {
            let detail = "this remote speaks git's smart protocol only: use git 1.6.6 or newer";
            return Err(Problem::new(ErrorCode::InvalidRequest, detail).into());
        }
    }
    let refs = engine.push_refs(&who, name(&project)).await?;
    // A packet that says what follows, and the one that ends its list.
    let mut body = b"001f# service=git-receive-pack\n0000".to_vec();
    body.extend_from_slice(&refs);
    Ok((headers(REFS), body).into_response())
}

/// What `git push` sends. The answer begins once git has something to say, so that what goes wrong before has a status of its own.
async fn receive(
    State(engine): State<Engine>,
    GitMay(who, _): GitMay<Deploy>,
    Path(project): Path<String>,
    Base(base): Base,
    headers_sent: HeaderMap,
    body: Body,
) -> Result<Response, Plain> {
    let sent = |name: HeaderName| headers_sent.get(name).and_then(|value| value.to_str().ok());
    if sent(CONTENT_TYPE) != Some(REQUEST) {
        return Err(unsupported(&format!("the body of a push is `Content-Type: {REQUEST}`")));
    }
    if sent(CONTENT_ENCODING).is_some_and(|encoding| !encoding.eq_ignore_ascii_case("identity")) {
        return Err(unsupported("a push is not compressed once more: send it without `Content-Encoding`"));
    }
    let incoming = body.into_data_stream().map(|chunk| chunk.map_err(Into::into));
    let said = engine.push(&who, name(&project), base, Box::pin(incoming)).await?;
    Ok((headers(RESULT), Body::from_stream(said)).into_response())
}

/// Fetching and cloning: there is nothing to fetch that was not pushed.
async fn fetch(GitMay(..): GitMay<Deploy>) -> Plain {
    pushes_only()
}

fn pushes_only() -> Plain {
    Error::told(
        ErrorCode::Forbidden,
        "this remote takes pushes only; to get a release's files, use `GET /v1/projects/{project}/releases/{version}/archive`",
    )
    .into()
}

fn unsupported(detail: &str) -> Plain {
    let mut problem = Problem::new(ErrorCode::InvalidRequest, detail);
    problem.status = StatusCode::UNSUPPORTED_MEDIA_TYPE.as_u16();
    Failure(Box::new(problem)).into()
}

/// `app.git` is the project `app`.
fn name(project: &str) -> &str {
    project.strip_suffix(".git").unwrap_or(project)
}

/// As git's own server sends them: refs are never remembered by anything in between.
fn headers(kind: &'static str) -> [(HeaderName, &'static str); 5] {
    [
        (CONTENT_TYPE, kind),
        (CACHE_CONTROL, "no-cache, max-age=0, must-revalidate"),
        (PRAGMA, "no-cache"),
        (EXPIRES, "Fri, 01 Jan 1980 00:00:00 GMT"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ]
}
