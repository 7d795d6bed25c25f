//! Budgets.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use karta_engine::{Engine, Error};
use karta_types::budget::{Budget, Caps, Level, Period};
use karta_types::page::Page;
use karta_types::permission::may::{ReadBudgets, SetBudgets};
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::May;
use crate::extract::{Body, Path, Query};
use crate::problem::Answer;

/// The routes.
pub fn routes() -> OpenApiRouter<Engine> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(set, remove))
}

/// A budget to be set.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SetBudget {
    /// How long it holds: `day`, `month` or `total`.
    #[serde(default)]
    period: Period,
    /// Fresh input and both cache classes.
    input_tokens: Option<u64>,
    /// Output.
    output_tokens: Option<u64>,
    /// All classes.
    total_tokens: Option<u64>,
    /// Cost in micro-dollars.
    cost_micros: Option<i64>,
}

/// Which of a subject's budgets.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Which {
    period: Period,
}

fn level(text: &str) -> Answer<Level> {
    Ok(text.parse().map_err(|_| Error::not_found("level: use org, project, key, end_user or session"))?)
}

/// The organisation's budgets, with what was used, what is set aside and what is left.
#[utoipa::path(get, path = "", tag = "budgets",
    responses((status = 200, body = Object), (status = "4XX", body = karta_types::Problem)))]
async fn list(State(engine): State<Engine>, May(who, _): May<ReadBudgets>) -> Answer<Json<Page<Budget>>> {
    Ok(Json(Page { data: engine.budgets(&who).await?, next_cursor: None }))
}

/// Sets a budget: what was used in its period before counts.
#[utoipa::path(put, path = "/{level}/{id}", tag = "budgets",
    params(("level" = String, Path), ("id" = String, Path)), request_body = SetBudget,
    responses((status = 200, body = Budget), (status = "4XX", body = karta_types::Problem)))]
async fn set(
    State(engine): State<Engine>,
    May(who, _): May<SetBudgets>,
    Path((name, id)): Path<(String, String)>,
    body: Body<SetBudget>,
) -> Answer<Json<Budget>> {
    let SetBudget { period, input_tokens, output_tokens, total_tokens, cost_micros } = body.value;
    let caps = Caps { input_tokens, output_tokens, total_tokens, cost_micros };
    Ok(Json(engine.set_budget(&who, level(&name)?, &id, period, caps).await?))
}

/// Removes a budget.
#[utoipa::path(delete, path = "/{level}/{id}", tag = "budgets",
    params(("level" = String, Path), ("id" = String, Path), ("period" = Option<String>, Query)),
    responses((status = 204), (status = "4XX", body = karta_types::Problem)))]
async fn remove(
    State(engine): State<Engine>,
    May(who, _): May<SetBudgets>,
    Path((name, id)): Path<(String, String)>,
    Query(which): Query<Which>,
) -> Answer<StatusCode> {
    engine.remove_budget(&who, level(&name)?, &id, which.period).await?;
    Ok(StatusCode::NO_CONTENT)
}
