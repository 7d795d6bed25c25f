//! For operators: alive, ready, numbers, the API's description, the pages of problems.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use karta_engine::{Engine, Error};
use karta_types::ErrorCode;
use serde_json::{Value, json};

use crate::extract::Path;
use crate::metrics::Metrics;
use crate::pages::html::{escape, page};
use crate::problem::Answer;

/// The routes, open to all: they tell nothing of any tenant.
pub fn routes(document: String, metrics: Arc<Metrics>) -> Router<Engine> {
    let document: Arc<str> = document.into();
    let openapi = move || {
        let document = document.clone();
        async move { ([(header::CONTENT_TYPE, "application/json")], document.to_string()) }
    };
    let numbers = move |State(engine): State<Engine>| {
        let metrics = metrics.clone();
        async move {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], metrics.page(&engine))
        }
    };
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(numbers))
        .route("/openapi.json", get(openapi))
        .route("/.well-known/jwks.json", get(async |State(engine): State<Engine>| Json(engine.jwks())))
        .route("/problems", get(problems))
        .route("/problems/{code}", get(problem))
}

/// Whether everything needed works; names what is down.
async fn ready(State(engine): State<Engine>) -> Response {
    let mut parts = serde_json::Map::new();
    let mut fine = true;
    for (name, state) in engine.ready().await {
        fine &= state.is_ok();
        parts.insert(name.to_owned(), state.map_or_else(Value::String, |()| json!("ok")));
    }
    let status = if fine { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": fine, "parts": parts }))).into_response()
}

/// The page that a problem's `type` points to.
async fn problem(Path(code): Path<String>) -> Answer<Html<String>> {
    let code: ErrorCode = code.parse().map_err(|()| Error::not_found("problem"))?;
    Ok(Html(page(
        code.title(),
        &format!(
            "<p><code>{}</code> &middot; status {} &middot; {}</p><p>{}</p><p><a href=\"/problems\">All problems</a></p>",
            code,
            code.status(),
            if code.retryable() {
                "the same request may work later"
            } else {
                "the same request will not work later"
            },
            escape(code.help()),
        ),
    )))
}

async fn problems() -> Html<String> {
    let mut rows = String::new();
    for code in ErrorCode::ALL {
        let title = escape(code.title());
        // Writing to a string can't fail.
        let _ = write!(rows, "<li><a href=\"/problems/{code}\"><code>{code}</code></a> {title}</li>");
    }
    Html(page("Problems", &format!("<ul>{rows}</ul>")))
}
