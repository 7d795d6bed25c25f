//! The cookies of the pages: who is signed in, a sign-in that is under way, where to go then.

use axum::http::header::{COOKIE, SET_COOKIE};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use karta_engine::{Actor, Engine, Principal};

/// Who is signed in.
pub(super) const SIGNED_IN: &str = "karta_session";
/// A sign-in at a provider of identities.
pub(super) const UNDER_WAY: &str = "karta_oidc";
/// Where to go after it.
pub(super) const NEXT: &str = "karta_next";

/// The value of a cookie.
pub(super) fn get<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let lines = headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(';')).find_map(|pair| {
        let (known, value) = pair.trim().split_once('=')?;
        (known == name).then_some(value)
    })
}

/// Sets a cookie for `seconds`; 0 takes it away. No script reads it, no other site's form carries it.
pub(super) fn set(engine: &Engine, response: &mut Response, name: &str, value: &str, seconds: u64) {
    let secure = engine.settings().public_url.as_deref().is_some_and(|url| url.starts_with("https://"));
    let secure = if secure { "; Secure" } else { "" };
    let line = format!("{name}={value}; Path=/; HttpOnly; SameSite=Lax; Max-Age={seconds}{secure}");
    if let Ok(line) = HeaderValue::from_str(&line) {
        response.headers_mut().append(SET_COOKIE, line);
    }
}

/// Who is signed in, with the request they act by.
pub(super) async fn person(engine: &Engine, headers: &HeaderMap) -> Option<Principal> {
    let who = engine.gate().authenticate(get(headers, SIGNED_IN)?).await.ok()?;
    matches!(who.actor, Actor::User(_)).then_some(who)
}

/// A path on this server that somebody asked to go to after signing in. Anything else is the console.
pub(super) fn local(path: Option<&str>) -> &str {
    let fine = |path: &&str| {
        path.starts_with('/')
            && !path.starts_with("//")
            && path.len() < 200
            && path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-_?=.".contains(&byte))
    };
    path.filter(fine).unwrap_or("/console")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_sent_elsewhere() {
        assert_eq!(local(Some("/device?code=BCDF-GHJK")), "/device?code=BCDF-GHJK");
        for elsewhere in
            ["//evil.example", "https://evil.example", "/\\evil.example", "/a\r\nb", "device", ""]
        {
            assert_eq!(local(Some(elsewhere)), "/console", "{elsewhere}");
        }
    }
}
