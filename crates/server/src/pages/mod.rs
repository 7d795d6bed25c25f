//! Pages for people: signing in, letting a command line in, and what they are.

mod account;
mod cookies;
mod device;
pub mod html;
mod sign_in;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_SECURITY_POLICY, HOST, ORIGIN, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use karta_engine::{Engine, Error};
use karta_types::ErrorCode;

use crate::problem::Failure;

/// The routes. The API is asked with a bearer; the cookie is good for these pages alone.
pub fn routes(engine: &Engine) -> Router<Engine> {
    Router::new()
        .route("/", get(async || axum::response::Redirect::to("/console")))
        .route("/console", get(account::show))
        .route("/login", get(sign_in::page))
        .route("/login/link", post(sign_in::by_link))
        .route("/login/invite", post(sign_in::by_invitation))
        .route("/login/oidc", get(sign_in::begin_oidc))
        .route("/login/oidc/callback", get(sign_in::finish_oidc))
        .route("/login/device", post(device::begin))
        .route("/login/device/token", post(device::take))
        .route("/logout", post(sign_in::out))
        .route("/device", get(device::page).post(device::decide))
        .layer(from_fn_with_state(engine.clone(), around))
        .route("/webhooks/stripe", post(crate::api::billing::stripe))
}

/// Around every page: strangers ask seldom, forms come from here, and the page can load and tell nothing elsewhere.
async fn around(State(engine): State<Engine>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    if let Err(limited) = engine.check_stranger(crate::auth::origin(&parts).address.as_deref()) {
        return Failure::from(limited).into_response();
    }
    if !is_from_here(&parts.headers) {
        return Failure::from(Error::told(ErrorCode::Forbidden, "the form is not of this server"))
            .into_response();
    }
    let mut response = next.run(Request::from_parts(parts, body)).await;
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
        ),
    );
    // Codes stand in some addresses.
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(axum::http::header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Whether a form was sent by one of our own pages. Browsers name the origin of every form; what is no browser has no cookie to misuse.
fn is_from_here(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or_default());
    let (Some(origin), Some(host)) = (text(ORIGIN), text(HOST)) else { return text(ORIGIN).is_none() };
    origin.split_once("://").is_some_and(|(_, from)| from == host)
}

/// An error as a page.
fn failed(error: Error, back: &str) -> Response {
    let problem = Failure::from(error).0;
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let detail = if problem.detail.is_empty() { problem.error.help() } else { &problem.detail };
    let back = format!("<p>{}</p><p><a href=\"{back}\">Back</a></p>", html::escape(detail));
    (status, Html(html::page(&problem.title, &back))).into_response()
}
