//! Letting a command line in: it begins and asks, a person decides on a page (RFC 8628).

use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::request::Parts;
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::{Form, Json};
use karta_engine::Engine;
use karta_types::person::{DeviceGrant, NewAccess};
use serde::Deserialize;

use super::html::{escape, page as html_page};
use super::{cookies, failed};
use crate::auth::origin;
use crate::extract::{Base, Body, Query};
use crate::problem::Answer;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Take {
    device_code: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    code: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Decide {
    code: String,
    decision: String,
}

/// A command line wants in.
pub(super) async fn begin(State(engine): State<Engine>, Base(base): Base) -> Answer<Json<DeviceGrant>> {
    Ok(Json(engine.begin_device(&base).await?))
}

/// A command line asks whether it may.
pub(super) async fn take(
    State(engine): State<Engine>,
    parts: Parts,
    body: Body<Take>,
) -> Answer<Json<NewAccess>> {
    Ok(Json(engine.take_device(&body.value.device_code, origin(&parts)).await?))
}

/// The page where a person decides.
pub(super) async fn page(
    State(engine): State<Engine>,
    headers: HeaderMap,
    Query(asked): Query<Asked>,
) -> Response {
    let Some(who) = cookies::person(&engine, &headers).await else {
        let code =
            asked.code.as_deref().map(|code| format!("%3Fcode%3D{}", escape(code))).unwrap_or_default();
        return Redirect::to(&format!("/login?next=/device{code}")).into_response();
    };
    let Some(code) = asked.code.filter(|code| !code.is_empty()) else {
        let body = "<form method=\"get\"><p><label>The code that the terminal shows<br>\
                    <input type=\"text\" name=\"code\" autocomplete=\"off\" autofocus></label></p><button>Go on</button></form>";
        return Html(html_page("Sign a terminal in", body)).into_response();
    };
    let code = match engine.device(&code).await {
        Ok(code) => code,
        Err(error) => return failed(error, "/device"),
    };
    let org = match engine.org(&who).await {
        Ok(org) => org,
        Err(error) => return failed(error, "/device"),
    };
    let body = format!(
        "<p>A terminal wants to act as you in <strong>{}</strong>. Only go on if you started <code>karta login</code> yourself \
         just now and it shows this code:</p><p class=\"code\">{code}</p><form method=\"post\" action=\"/device\">\
         <input type=\"hidden\" name=\"code\" value=\"{code}\"><button name=\"decision\" value=\"yes\">Sign it in</button> \
         <button name=\"decision\" value=\"no\">Refuse</button></form>",
        escape(&org.name)
    );
    Html(html_page("Sign a terminal in", &body)).into_response()
}

/// A person decided.
pub(super) async fn decide(State(engine): State<Engine>, parts: Parts, Form(form): Form<Decide>) -> Response {
    let Some(mut who) = cookies::person(&engine, &parts.headers).await else {
        return Redirect::to("/login?next=/device").into_response();
    };
    who.origin = origin(&parts);
    let yes = form.decision == "yes";
    match engine.decide_device(&who, &form.code, yes).await {
        Ok(()) if yes => {
            Html(html_page("Signed in", "<p>The terminal is signed in. You can close this page.</p>"))
                .into_response()
        }
        Ok(()) => Html(html_page("Refused", "<p>The terminal was not signed in.</p>")).into_response(),
        Err(error) => failed(error, "/device"),
    }
}
