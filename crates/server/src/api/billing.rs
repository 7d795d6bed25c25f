//! What the organisation pays.

use std::fmt::Write as _;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use karta_engine::control::billing::statement;
use karta_engine::{Engine, Error};
use karta_types::billing::{Billing, Credit, Statement};
use karta_types::page::Page;
use karta_types::permission::may::{ManageBilling, ReadBilling};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::May;
use crate::extract::{Base, Body, Path, Query};
use crate::pages::html::{escape, page};
use crate::problem::Answer;

/// The routes.
pub fn routes() -> OpenApiRouter<Engine> {
    OpenApiRouter::new()
        .routes(routes!(read))
        .routes(routes!(credit))
        .routes(routes!(checkout))
        .routes(routes!(statement_of))
}

/// What to subscribe to.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Checkout {
    /// The plan's name: one of `plans` of `GET /v1/billing`.
    plan: String,
}

/// Where to pay.
#[derive(Debug, Serialize, ToSchema)]
struct CheckoutAt {
    /// Opened in a browser.
    url: String,
}

/// How a statement is written.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Format {
    #[default]
    Json,
    Csv,
    Html,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct As {
    format: Format,
}

/// Subscription, plans and credit.
#[utoipa::path(get, path = "", tag = "billing",
    responses((status = 200, body = Billing), (status = "4XX", body = karta_types::Problem)))]
async fn read(State(engine): State<Engine>, May(who, _): May<ReadBilling>) -> Answer<Json<Billing>> {
    Ok(Json(engine.billing(&who).await?))
}

/// Credit that was granted, oldest first, and what is left of each.
#[utoipa::path(get, path = "/credit", tag = "billing",
    responses((status = 200, body = Object), (status = "4XX", body = karta_types::Problem)))]
async fn credit(State(engine): State<Engine>, May(who, _): May<ReadBilling>) -> Answer<Json<Page<Credit>>> {
    Ok(Json(Page { data: engine.credits(&who).await?, next_cursor: None }))
}

/// Begins to subscribe: answers where a person pays.
#[utoipa::path(post, path = "/checkout", tag = "billing", request_body = Checkout,
    responses((status = 201, body = CheckoutAt), (status = "4XX", body = karta_types::Problem)))]
async fn checkout(
    State(engine): State<Engine>,
    May(who, _): May<ManageBilling>,
    Base(base): Base,
    body: Body<Checkout>,
) -> Answer<(StatusCode, Json<CheckoutAt>)> {
    let url = engine.checkout(&who, &body.value.plan, &base).await?;
    Ok((StatusCode::CREATED, Json(CheckoutAt { url })))
}

/// What was used in a month like `2026-11`, with the rounding shown: as JSON, as CSV, or as a page to print.
#[utoipa::path(get, path = "/statements/{month}", tag = "billing",
    params(("month" = String, Path), ("format" = Option<Format>, Query)),
    responses((status = 200, body = Statement), (status = "4XX", body = karta_types::Problem)))]
async fn statement_of(
    State(engine): State<Engine>,
    May(who, _): May<ReadBilling>,
    Path(month): Path<String>,
    Query(written): Query<As>,
) -> Answer<Response> {
    let statement = engine.statement(&who, &month).await?;
    Ok(match written.format {
        Format::Json => Json(statement).into_response(),
        Format::Csv => {
            let name = format!("attachment; filename=\"statement-{}.csv\"", statement.month);
            let kind = "text/csv; charset=utf-8".to_owned();
            let headers = [(header::CONTENT_TYPE, kind), (header::CONTENT_DISPOSITION, name)];
            (headers, statement::csv(&statement)).into_response()
        }
        Format::Html => Html(html(&statement)).into_response(),
    })
}

fn dollars(micros: i64) -> String {
    let sign = if micros < 0 { "-" } else { "" };
    let micros = micros.unsigned_abs();
    format!("{sign}${}.{:06}", micros / 1_000_000, micros % 1_000_000)
}

fn html(statement: &Statement) -> String {
    let mut rows = String::new();
    for line in &statement.lines {
        // Writing to a string can't fail.
        let _ = write!(
            rows,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&line.project),
            escape(&line.model),
            line.turns,
            line.input_tokens + line.cache_read_tokens + line.cache_write_tokens,
            line.output_tokens,
            dollars(line.cost_micros.get())
        );
    }
    let state = if statement.closed { "" } else { "<p>This month is not over: the numbers grow.</p>" };
    let unpriced = if statement.unpriced_calls == 0 {
        String::new()
    } else {
        format!("<p>{} calls had no price and are not in the sum.</p>", statement.unpriced_calls)
    };
    let body = format!(
        "<p>{}</p>{state}<table><thead><tr><th>Project</th><th>Model</th><th>Turns</th><th>Input</th><th>Output</th><th>Cost</th></tr>\
         </thead><tbody>{rows}</tbody><tfoot><tr><td colspan=\"5\">Sum</td><td>{}</td></tr><tr><td colspan=\"5\">Rounding to whole cents</td>\
         <td>{}</td></tr><tr><th colspan=\"5\">Total</th><th>${}.{:02}</th></tr></tfoot></table>{unpriced}",
        escape(&statement.org),
        dollars(statement.cost_micros.get()),
        dollars(statement.rounding_micros),
        statement.total_cents / 100,
        statement.total_cents % 100
    );
    page(&format!("Statement {}", statement.month), &body)
}

/// Stripe's webhook: no credential but its signature over the body.
pub(crate) async fn stripe(
    State(engine): State<Engine>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<StatusCode> {
    let signature = headers.get("stripe-signature").and_then(|value| value.to_str().ok());
    let signature = signature.ok_or_else(|| Error::invalid("", "there is no `Stripe-Signature` header"))?;
    engine.stripe_event(signature, &body).await?;
    Ok(StatusCode::NO_CONTENT)
}
