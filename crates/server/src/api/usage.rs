//! What was used.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use karta_engine::control::usage::{Query as UsageQuery, csv, parse_group};
use karta_engine::{Engine, Error};
use karta_types::page::Page;
use karta_types::permission::may::ReadUsage;
use karta_types::{ModelCallId, Timestamp};
use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::May;
use crate::extract::Query;
use crate::problem::Answer;

/// The routes.
pub fn routes() -> OpenApiRouter<Engine> {
    OpenApiRouter::new().routes(routes!(read)).routes(routes!(export))
}

/// Query of the sums.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Params {
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    project: Option<String>,
    group_by: String,
    format: Format,
}

/// How the sums are written.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Format {
    #[default]
    Json,
    Csv,
}

/// From where.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct From {
    after: Option<ModelCallId>,
}

/// Turns, tokens and cost: one sum, or one for each group.
#[utoipa::path(get, path = "", tag = "usage",
    params(("from" = Option<String>, Query), ("to" = Option<String>, Query), ("project" = Option<String>, Query),
        ("group_by" = Option<String>, Query, description = "`day,project,model,key,end_user,release`, any of them"),
        ("format" = Option<String>, Query, description = "`json` or `csv`")),
    responses((status = 200, body = Object), (status = "4XX", body = karta_types::Problem)))]
async fn read(
    State(engine): State<Engine>,
    May(who, _): May<ReadUsage>,
    Query(params): Query<Params>,
) -> Answer<Response> {
    let group_by = parse_group(&params.group_by).map_err(|why| Error::invalid("/group_by", why))?;
    let project = match &params.project {
        Some(reference) => Some(engine.project_row(&who, reference).await?.id),
        None => None,
    };
    let query = UsageQuery { from: params.from, to: params.to, project, group_by };
    let group_by = query.group_by.clone();
    let data = engine.usage(&who, query).await?;
    Ok(match params.format {
        Format::Json => Json(Page { data, next_cursor: None }).into_response(),
        Format::Csv => {
            ([(header::CONTENT_TYPE, "text/csv; charset=utf-8")], csv(&group_by, &data)).into_response()
        }
    })
}

/// Every model call after one, oldest first, as lines of `CloudEvents` 1.0 in JSON.
#[utoipa::path(get, path = "/export", tag = "usage", params(("after" = Option<String>, Query)),
    responses((status = 200, content_type = "application/x-ndjson", body = String), (status = "4XX", body = karta_types::Problem)))]
async fn export(
    State(engine): State<Engine>,
    May(who, _): May<ReadUsage>,
    Query(from): Query<From>,
) -> Answer<Response> {
    let first = engine.usage_events(&who, from.after).await?;
    let lines = futures_util::stream::unfold((engine, who, Some(first)), |(engine, who, rows)| async move {
        let rows = rows.filter(|rows| !rows.is_empty())?;
        let last = rows.last().map(|(id, _)| *id);
        let text = rows.iter().fold(String::new(), |text, (_, event)| format!("{text}{event}\n"));
        let (part, next) = match engine.usage_events(&who, last).await {
            Ok(next) => (Ok(text), Some(next)),
            // The connection breaks, which no client takes for the end.
            Err(error) => {
                tracing::error!(error = error.chain(), "exporting what was used");
                (Err(std::io::Error::other("what was used can't be read")), None)
            }
        };
        Some((part, (engine, who, next)))
    });
    let mut response = Response::new(Body::from_stream(lines));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    Ok(response)
}
