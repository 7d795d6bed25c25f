//! Permissions: a handler that is given a [`May`] was allowed to run.

use std::marker::PhantomData;
use std::net::SocketAddr;

use axum::extract::{ConnectInfo, FromRequestParts, MatchedPath};
use axum::http::header::{AUTHORIZATION, ORIGIN};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use karta_engine::gate::{Origin, Restriction};
use karta_engine::{Engine, Error, Principal};
use karta_types::ErrorCode;
use karta_types::permission::{Permission, Permit};

use crate::problem::{Failure, Plain};

/// Proof that the caller has a permission: `May<ReadSessions>`. Which keys and people have it is the table in [`karta_types::permission`].
#[derive(Debug, Clone)]
pub struct May<P>(pub Principal, pub PhantomData<P>);

impl<P: Permit> FromRequestParts<Engine> for May<P> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, engine: &Engine) -> Result<Self, Failure> {
        let who = permitted(parts, engine, bearer(&parts.headers)?, P::PERMISSION).await?;
        Ok(Self(who, PhantomData))
    }
}

/// As [`May`], for git: it sends a password, which is the credential, with any user name. A bearer is as good. What is refused is text,
/// because git shows no other, and asks for a password, because git has none until it is asked.
#[derive(Debug, Clone)]
pub struct GitMay<P>(pub Principal, pub PhantomData<P>);

impl<P: Permit> FromRequestParts<Engine> for GitMay<P> {
    type Rejection = Plain;

    async fn from_request_parts(parts: &mut Parts, engine: &Engine) -> Result<Self, Plain> {
        let token = password(&parts.headers).map_or_else(|| bearer(&parts.headers).map(str::to_owned), Ok)?;
        let who = permitted(parts, engine, &token, P::PERMISSION).await?;
        Ok(Self(who, PhantomData))
    }
}

/// Whose credential it is, if they may do this.
async fn permitted(
    parts: &Parts,
    engine: &Engine,
    token: &str,
    what: Permission,
) -> Result<Principal, Failure> {
    let mut who = engine.gate().authenticate(token).await?;
    who.origin = origin(parts);
    engine.check_rate(&who)?;
    if let Some(held) = &who.restriction {
        check_browser(held, parts)?;
    }
    if !who.may(what) {
        return Err(refusal(&who, what).into());
    }
    Ok(who)
}

/// The password of `Authorization: Basic …` (RFC 7617), if there is one.
fn password(headers: &HeaderMap) -> Option<String> {
    let (scheme, encoded) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = String::from_utf8(BASE64_STANDARD.decode(encoded.trim()).ok()?).ok()?;
    pair.split_once(':').map(|(_, password)| password.to_owned())
}

fn refusal(who: &Principal, what: Permission) -> Error {
    if who.project.is_some() && what.whole {
        let detail = format!("your key is for one project; `{what}` is about the whole organisation");
        return Error::told(ErrorCode::Forbidden, detail);
    }
    let detail = match (who.role, what.scope) {
        (Some(role), _) => {
            format!("this needs the permission `{what}`, which the role `{role}` does not have")
        }
        (None, Some(scope)) => {
            format!("this needs the scope `{scope}`; the key has `{}`", who.scopes)
        }
        (None, None) => format!("this needs the permission `{what}`, which only people have, by their role"),
    };
    Error::told(ErrorCode::Forbidden, detail)
}

/// The text of the bearer credential.
///
/// # Errors
/// `unauthorized` when there is none.
pub fn bearer(headers: &HeaderMap) -> Result<&str, Error> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    bearer.ok_or_else(|| Error::told(ErrorCode::Unauthorized, "there is no `Authorization: Bearer …` header"))
}

/// The request that somebody acts by.
pub(crate) fn origin(parts: &Parts) -> Origin {
    Origin {
        request: crate::serve::current_request_id(),
        address: parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip().to_string()),
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
