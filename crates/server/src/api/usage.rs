//! What was used.

use axum::Json;
use axum::extract::State;
use karta_engine::control::usage::{Query as UsageQuery, Row, parse_group};
use karta_engine::{Engine, Error};
use karta_types::Timestamp;
use karta_types::page::Page;
use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::{May, READ};
use crate::extract::Query;
use crate::problem::Answer;

/// The routes.
pub fn routes() -> OpenApiRouter<Engine> {
    OpenApiRouter::new().routes(routes!(read))
}

/// Query of the sums.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Params {
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    project: Option<String>,
    group_by: String,
}

/// Turns, tokens and cost: one sum, or one for each group.
#[utoipa::path(get, path = "", tag = "usage",
    params(("from" = Option<String>, Query), ("to" = Option<String>, Query), ("project" = Option<String>, Query),
        ("group_by" = Option<String>, Query, description = "`day,project,model,key,end_user`, any of them")),
    responses((status = 200, body = Object), (status = "4XX", body = karta_types::Problem)))]
async fn read(
    State(engine): State<Engine>,
    May(who): May<READ>,
    Query(params): Query<Params>,
) -> Answer<Json<Page<Row>>> {
    let group_by = parse_group(&params.group_by).map_err(|why| Error::invalid("/group_by", why))?;
    let project = match &params.project {
        Some(reference) => Some(engine.project_row(&who, reference).await?.id),
        None => None,
    };
    let query = UsageQuery { from: params.from, to: params.to, project, group_by };
    let data = engine.usage(&who, query).await?;
    Ok(Json(Page { data, next_cursor: None }))
}
