//! Signing in: by a link, by an invitation, by a provider of identities. And out.

use std::fmt::Write as _;

use axum::Form;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::request::Parts;
use axum::response::{Html, IntoResponse, Redirect, Response};
use karta_engine::control::sign_in::SignedIn;
use karta_engine::{Engine, Error};
use karta_types::ErrorCode;
use serde::Deserialize;

use super::cookies::{self, NEXT, SIGNED_IN, UNDER_WAY};
use super::failed;
use super::html::{escape, page as html_page};
use crate::auth::origin;
use crate::extract::Query;

/// Seconds that a sign-in at a provider may take.
const UNDER_WAY_SECONDS: u64 = 600;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    code: Option<String>,
    invite: Option<String>,
    next: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct ByLink {
    code: String,
    next: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct ByInvitation {
    code: String,
    #[serde(default)]
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Begin {
    org: Option<String>,
    next: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Back {
    code: Option<String>,
    state: Option<String>,
    error: Option<String>,
}

/// The page to sign in by. A link only shows a button: what merely looks at links does not use them up.
pub(super) async fn page(
    State(engine): State<Engine>,
    headers: HeaderMap,
    Query(asked): Query<Asked>,
) -> Response {
    let next = cookies::local(asked.next.as_deref());
    if let Some(code) = &asked.code {
        let body = format!(
            "<p>This link signs you in, once.</p><form method=\"post\" action=\"/login/link\">\
             <input type=\"hidden\" name=\"code\" value=\"{}\"><input type=\"hidden\" name=\"next\" value=\"{}\">\
             <button>Sign in</button></form>",
            escape(code),
            escape(next)
        );
        return Html(html_page("Sign in", &body)).into_response();
    }
    if let Some(code) = &asked.invite {
        let (invitation, org) = match engine.invitation(code).await {
            Ok(found) => found,
            Err(error) => return failed(error, "/login"),
        };
        let body = format!(
            "<p>{} is invited to <strong>{}</strong> as {}.</p><form method=\"post\" action=\"/login/invite\">\
             <input type=\"hidden\" name=\"code\" value=\"{}\"><p><label>Your name<br>\
             <input type=\"text\" name=\"name\" autocomplete=\"name\" maxlength=\"100\"></label></p>\
             <button>Join</button></form>",
            escape(&invitation.email),
            escape(&org),
            invitation.role,
            escape(code)
        );
        return Html(html_page("Join", &body)).into_response();
    }
    if cookies::person(&engine, &headers).await.is_some() {
        return Redirect::to(next).into_response();
    }
    let mut body = String::new();
    if let Some(name) = engine.oidc_name() {
        // Writing to a string can't fail.
        let _ = write!(
            body,
            "<p><a class=\"button\" href=\"/login/oidc?next={}\">Sign in with {}</a></p>",
            escape(&next.replace('?', "%3F").replace('=', "%3D")),
            escape(name)
        );
    }
    body.push_str(
        "<p>You can sign in with a link: an invitation, or one that whoever runs this server makes by \
         <code>karta admin bootstrap --email YOU</code>.</p>",
    );
    Html(html_page("Sign in", &body)).into_response()
}

/// Signs in by a link.
pub(super) async fn by_link(
    State(engine): State<Engine>,
    parts: Parts,
    Form(form): Form<ByLink>,
) -> Response {
    match engine.sign_in_by_link(&form.code, origin(&parts)).await {
        Ok(signed_in) => welcome(&engine, &signed_in, form.next.as_deref()),
        Err(error) => failed(error, "/login"),
    }
}

/// Takes an invitation up.
pub(super) async fn by_invitation(
    State(engine): State<Engine>,
    parts: Parts,
    Form(form): Form<ByInvitation>,
) -> Response {
    match engine.accept_invitation(&form.code, &form.name, origin(&parts)).await {
        Ok(signed_in) => welcome(&engine, &signed_in, None),
        Err(error) => failed(error, "/login"),
    }
}

fn welcome(engine: &Engine, signed_in: &SignedIn, next: Option<&str>) -> Response {
    let mut response = Redirect::to(cookies::local(next)).into_response();
    cookies::set(engine, &mut response, SIGNED_IN, signed_in.token.expose(), signed_in.expires_in);
    response
}

/// Sends the browser to the provider of identities.
pub(super) async fn begin_oidc(State(engine): State<Engine>, Query(begin): Query<Begin>) -> Response {
    match engine.begin_oidc(begin.org).await {
        Ok(beginning) => {
            let mut response = Redirect::to(&beginning.url).into_response();
            cookies::set(&engine, &mut response, UNDER_WAY, &beginning.cookie, UNDER_WAY_SECONDS);
            let next = cookies::local(begin.next.as_deref());
            cookies::set(&engine, &mut response, NEXT, next, UNDER_WAY_SECONDS);
            response
        }
        Err(error) => failed(error, "/login"),
    }
}

/// The browser is back from the provider.
pub(super) async fn finish_oidc(
    State(engine): State<Engine>,
    parts: Parts,
    Query(back): Query<Back>,
) -> Response {
    let cookie = cookies::get(&parts.headers, UNDER_WAY).unwrap_or_default();
    let next = cookies::get(&parts.headers, NEXT);
    let done = if let (Some(code), Some(state)) = (&back.code, &back.state) {
        engine.finish_oidc(cookie, state, code, origin(&parts)).await
    } else {
        let why = back.error.as_deref().unwrap_or("it sent nothing back");
        let why: String = why.chars().take(100).collect();
        Err(Error::told(ErrorCode::Unauthorized, format!("the provider did not sign you in: {why}")))
    };
    let mut response = match done {
        Ok(signed_in) => welcome(&engine, &signed_in, next),
        Err(error) => which(error),
    };
    cookies::set(&engine, &mut response, UNDER_WAY, "", 0);
    cookies::set(&engine, &mut response, NEXT, "", 0);
    response
}

/// Somebody in many organisations says which.
fn which(error: Error) -> Response {
    let orgs = error.problem().more.get("orgs").and_then(|orgs| orgs.as_array().cloned());
    let Some(orgs) = orgs else { return failed(error, "/login") };
    let mut body = String::from("<p>Which organisation?</p>");
    for slug in orgs.iter().filter_map(|slug| slug.as_str()) {
        let slug = escape(slug);
        // Writing to a string can't fail.
        let _ = write!(body, "<p><a class=\"button\" href=\"/login/oidc?org={slug}\">{slug}</a></p>");
    }
    Html(html_page("Sign in", &body)).into_response()
}

/// Signs out.
pub(super) async fn out(State(engine): State<Engine>, headers: HeaderMap) -> Response {
    if let (Some(who), Some(token)) =
        (cookies::person(&engine, &headers).await, cookies::get(&headers, SIGNED_IN))
        && let Err(error) = engine.sign_out(&who, token).await
    {
        return failed(error, "/console");
    }
    let mut response = Redirect::to("/login").into_response();
    cookies::set(&engine, &mut response, SIGNED_IN, "", 0);
    response
}
