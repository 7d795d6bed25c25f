//! What somebody who signed in is, and who else is there.

use std::fmt::Write as _;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{Html, IntoResponse, Redirect, Response};
use karta_engine::{Engine, Error, Principal};
use karta_types::page::MAX_LIMIT;

use super::html::{escape, page};
use super::{cookies, failed};

/// The page.
pub(super) async fn show(State(engine): State<Engine>, headers: HeaderMap) -> Response {
    let Some(who) = cookies::person(&engine, &headers).await else {
        return Redirect::to("/login").into_response();
    };
    match body(&engine, &who).await {
        Ok((title, body)) => Html(page(&title, &body)).into_response(),
        Err(error) => failed(error, "/login"),
    }
}

async fn body(engine: &Engine, who: &Principal) -> Result<(String, String), Error> {
    let org = engine.org(who).await?;
    let members = engine.members(who, None, MAX_LIMIT).await?.data;
    let me = who.actor.id();
    let mut rows = String::new();
    for member in &members {
        let marked = if member.id.to_string() == me { " (you)" } else { "" };
        // Writing to a string can't fail.
        let _ = write!(
            rows,
            "<tr><td>{}{marked}</td><td>{}</td><td>{}</td></tr>",
            escape(&member.name),
            escape(&member.email),
            member.role
        );
    }
    let billing = if engine.settings().billing.stripe.is_none() {
        "no billing configured".to_owned()
    } else {
        let subscription = engine.billing(who).await?.subscription;
        subscription.map_or_else(
            || "no subscription".to_owned(),
            |known| format!("{} ({})", escape(&known.plan), known.status.as_str()),
        )
    };
    let body = format!(
        "<p>Billing: {billing}</p><table><thead><tr><th>Name</th><th>Address</th><th>Role</th></tr></thead><tbody>{rows}</tbody></table>\
         <form method=\"post\" action=\"/logout\"><button>Sign out</button></form>"
    );
    Ok((org.name, body))
}
