//! Permissions: a handler that is given a [`May`] was allowed to run.

use std::net::SocketAddr;

use axum::extract::{ConnectInfo, FromRequestParts, MatchedPath};
use axum::http::Method;
use axum::http::header::{AUTHORIZATION, ORIGIN};
use axum::http::request::Parts;
use karta_engine::gate::{Origin, Restriction};
use karta_engine::{Engine, Error, Principal};
use karta_types::ErrorCode;
use karta_types::scope::Scope;

use crate::problem::Failure;

/// Proof that the caller's key is valid and has the scope: `May<READ>`, `May<WRITE>`, `May<ADMIN>`.
#[derive(Debug, Clone)]
pub struct May<const SCOPE: u8>(pub Principal);

/// List things, usage, logs.
pub const READ: u8 = 0;
/// Sessions and turns.
pub const WRITE: u8 = 1;
/// Keys, members, budgets, activation.
pub const ADMIN: u8 = 2;

const fn scope_of(level: u8) -> Scope {
    match level {
        READ => Scope::Read,
        WRITE => Scope::Write,
        _ => Scope::Admin,
    }
}

impl<const SCOPE: u8> FromRequestParts<Engine> for May<SCOPE> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, engine: &Engine) -> Result<Self, Failure> {
        let token = parts
            .headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| {
                let (scheme, token) = value.split_once(' ')?;
                scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
            })
            .ok_or_else(|| {
                Error::told(ErrorCode::Unauthorized, "there is no `Authorization: Bearer …` header")
            })?;
        let mut who = engine.gate().authenticate(token).await?;
        who.origin = Origin {
            request: crate::serve::current_request_id(),
            address: parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip().to_string()),
        };
        engine.check_rate(&who)?;
        if let Some(held) = &who.restriction {
            check_browser(held, parts)?;
        }
        let wanted = scope_of(SCOPE);
        if !who.scopes.has(wanted) {
            let has = who.scopes.to_string();
            return Err(Error::told(
                ErrorCode::Forbidden,
                format!("this needs the scope `{wanted}`; the key has `{has}`"),
            )
            .into());
        }
        Ok(Self(who))
    }
}

/// What of the project family a session token reaches: sessions and turns, nothing that erases or configures.
fn check_browser(held: &Restriction, parts: &Parts) -> Result<(), Failure> {
    let path = parts.extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let rest = path.strip_prefix("/v1/projects/{project}");
    let family = rest.is_some_and(|rest| rest.starts_with("/sessions") || rest == "/messages");
    let harmless = parts.method != Method::DELETE && parts.method != Method::PATCH;
    if !family || !harmless {
        return Err(Error::told(
            ErrorCode::Forbidden,
            "a session token is good for the sessions and messages of its project only",
        )
        .into());
    }
    if !held.origins.is_empty() {
        let origin = parts.headers.get(ORIGIN).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if !held.origins.iter().any(|allowed| allowed == origin) {
            return Err(Error::told(ErrorCode::Forbidden, "the token is not for pages from here").into());
        }
    }
    Ok(())
}
