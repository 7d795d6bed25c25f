//! The audit log.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use karta_engine::control::audit::Filter;
use karta_engine::{Engine, Principal};
use karta_types::audit::{Entry, Verdict};
use karta_types::page::Page;
use karta_types::permission::may::ReadAudit;
use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::May;
use crate::extract::{Query, cursor, limit};
use crate::problem::Answer;

/// The routes.
pub fn routes() -> OpenApiRouter<Engine> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(export)).routes(routes!(verify))
}

/// Which entries.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Wanted {
    actor: Option<String>,
    action: Option<String>,
    resource: Option<String>,
    limit: Option<u32>,
    cursor: Option<String>,
}

/// From where.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct From {
    after: u64,
}

/// The organisation's entries, newest first.
#[utoipa::path(get, path = "", tag = "audit",
    params(("actor" = Option<String>, Query), ("action" = Option<String>, Query), ("resource" = Option<String>, Query),
        ("limit" = Option<u32>, Query), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Object), (status = "4XX", body = karta_types::Problem)))]
async fn list(
    State(engine): State<Engine>,
    May(who, _): May<ReadAudit>,
    Query(wanted): Query<Wanted>,
) -> Answer<Json<Page<Entry>>> {
    let (limit, before) = (limit(wanted.limit)?, cursor(wanted.cursor.as_deref())?);
    let filter = Filter { actor: wanted.actor, action: wanted.action, resource: wanted.resource };
    Ok(Json(engine.audit(&who, &filter, before, limit).await?))
}

/// The organisation's entries after a place, oldest first, one JSON object a line.
#[utoipa::path(get, path = "/export", tag = "audit", params(("after" = Option<u64>, Query)),
    responses((status = 200, content_type = "application/x-ndjson", body = String), (status = "4XX", body = karta_types::Problem)))]
async fn export(
    State(engine): State<Engine>,
    May(who, _): May<ReadAudit>,
    Query(from): Query<From>,
) -> Answer<Response> {
    // The first read decides the status; what fails later cuts the connection, which no client takes for the end.
    let first = engine.audit_after(&who, from.after).await?;
    let state = (engine, who, Some(first));
    let lines = futures_util::stream::unfold(state, |(engine, who, rows)| async move {
        let rows = rows.filter(|rows| !rows.is_empty())?;
        let after = rows.last().map_or(0, |row| row.seq);
        let (bytes, next) = next(&engine, &who, &rows, after).await;
        Some((bytes, (engine, who, next)))
    });
    let mut response = Response::new(Body::from_stream(lines));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    Ok(response)
}

type Part = (Result<Bytes, std::io::Error>, Option<Vec<Entry>>);

async fn next(engine: &Engine, who: &Principal, rows: &[Entry], after: u64) -> Part {
    let mut lines = Vec::new();
    for row in rows {
        if let Err(error) = serde_json::to_writer(&mut lines, row) {
            return (Err(error.into()), None);
        }
        lines.push(b'\n');
    }
    match engine.audit_after(who, after).await {
        Ok(more) => (Ok(lines.into()), Some(more)),
        Err(error) => {
            tracing::error!(error = error.chain(), "exporting the audit log");
            (Err(std::io::Error::other("the audit log can't be read")), None)
        }
    }
}

/// Checks the chain from its first row to its end, and every signed end.
#[utoipa::path(get, path = "/verify", tag = "audit",
    responses((status = 200, body = Verdict), (status = "4XX", body = karta_types::Problem)))]
async fn verify(State(engine): State<Engine>, May(who, _): May<ReadAudit>) -> Answer<Json<Verdict>> {
    Ok(Json(engine.audit_verify(&who).await?))
}
