//! Permissions: a handler that is given a [`May`] was allowed to run.

use std::marker::PhantomData;
use std::net::SocketAddr;

use axum::extract::{ConnectInfo, FromRequestParts, MatchedPath};
use axum::http::header::{AUTHORIZATION, ORIGIN};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method};
use karta_engine::gate::{Origin, Restriction};
use karta_engine::{Engine, Error, Principal};
use karta_types::ErrorCode;
use karta_types::permission::{Permission, Permit};

use crate::problem::Failure;

/// Proof that the caller has a permission: `May<ReadSessions>`. Which keys and people have it is the table in [`karta_types::permission`].
#[derive(Debug, Clone)]
pub struct May<P>(pub Principal, pub PhantomData<P>);

impl<P: Permit> FromRequestParts<Engine> for May<P> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, engine: &Engine) -> Result<Self, Failure> {
        let mut who = engine.gate().authenticate(bearer(&parts.headers)?).await?;
        who.origin = origin(parts);
        engine.check_rate(&who)?;
        if let Some(held) = &who.restriction {
            check_browser(held, parts)?;
        }
        if !who.may(P::PERMISSION) {
            return Err(refusal(&who, P::PERMISSION).into());
        }
        Ok(Self(who, PhantomData))
    }
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
