//! What a project did: its builds and turns, in the order of time.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse as _, Response};
use futures_util::StreamExt as _;
use karta_engine::Engine;
use karta_engine::data::releases::{LogCursor, LogKind};
use karta_types::page::Page;
use karta_types::permission::may::ReadSessions;
use karta_types::release::LogLine;
use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::May;
use crate::extract::{self, Path, Query};
use crate::problem::Answer;
use crate::sse::{LAST_EVENT_ID, Named, named, wants_events};

/// The routes.
pub fn routes() -> OpenApiRouter<Engine> {
    OpenApiRouter::new().routes(routes!(read))
}

/// Which lines.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Wanted {
    after: Option<String>,
    limit: Option<u32>,
    kind: Option<LogKind>,
    version: Option<u64>,
}

/// What builds printed and how turns ended, oldest first: after a cursor, or the newest. With `Accept: text/event-stream` it is
/// followed: the newest `limit` lines unless there is a cursor, then what comes; events `log`, whose ids are cursors.
#[utoipa::path(get, path = "/{project}/logs", tag = "releases",
    params(("project" = String, Path), ("after" = Option<String>, Query, description = "A line's `cursor`"),
        ("limit" = Option<u32>, Query), ("kind" = Option<String>, Query, description = "`build` or `turn`"),
        ("version" = Option<u64>, Query, description = "Of this release only")),
    responses((status = 200, body = Page<LogLine>), (status = "4XX", body = karta_types::Problem)))]
async fn read(
    State(engine): State<Engine>,
    May(who, _): May<ReadSessions>,
    Path(project): Path<String>,
    Query(wanted): Query<Wanted>,
    headers: HeaderMap,
) -> Answer<Response> {
    let last = headers.get(LAST_EVENT_ID).and_then(|id| id.to_str().ok());
    let after: Option<LogCursor> = extract::cursor(last.or(wanted.after.as_deref()))?;
    let limit = extract::limit(wanted.limit)?;
    let Wanted { kind, version, .. } = wanted;
    if !wants_events(&headers) {
        return Ok(Json(engine.logs(&who, &project, kind, version, after, limit).await?).into_response());
    }
    let fresh = after.is_none();
    let mut reader = engine.log_reader(&who, &project, kind, version, after).await?;
    let first = if fresh { reader.newest(limit).await? } else { Vec::new() };
    let rest = futures_util::stream::unfold((reader, engine), |(mut reader, engine)| async move {
        let lines = tokio::select! {
            lines = reader.next() => lines,
            () = engine.tasks().stopping() => return None,
        };
        match lines {
            Ok(lines) => Some((lines, (reader, engine))),
            Err(error) => {
                // The client comes back with its cursor.
                tracing::error!(error = error.chain(), "reading a project's log");
                None
            }
        }
    });
    let lines = futures_util::stream::iter([first]).chain(rest).flat_map(|lines| {
        futures_util::stream::iter(lines.into_iter().map(|line| Named::new("log", Some(&line.cursor), &line)))
    });
    Ok(named(lines))
}
