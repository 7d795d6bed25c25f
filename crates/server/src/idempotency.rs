//! `Idempotency-Key`: the same request again gets the same answer, for 24 hours, and runs nothing twice.
//!
//! A message is remembered by its turn, and that before the turn begins: a repeat reads the turn's events again (or, after a crash in
//! between, begins that very turn). Any other answer is kept as bytes.

use std::future::Future;
use std::time::Duration;

use aws_lc_rs::digest;
use axum::body::to_bytes;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use karta_engine::control::replies::{Replay, Reply};
use karta_engine::{Engine, Principal};
use karta_types::{ErrorCode, Problem};

use crate::problem::Failure;

const NAME: &str = "idempotency-key";
/// The longest key.
const MAX_KEY: usize = 255;
/// How long an answer is kept.
pub const KEPT: Duration = Duration::from_hours(24);
/// The largest answer that is kept.
const MAX_REPLY: usize = 4 << 20;

/// A key and what it was sent with.
#[derive(Debug, Clone)]
pub struct Key {
    /// The caller's key.
    pub name: String,
    /// Of method, path and body.
    pub fingerprint: [u8; 32],
}

/// The request's key, if it has one.
///
/// # Errors
/// `invalid_request` for an empty or overlong one.
pub fn key(headers: &HeaderMap, method: &Method, uri: &Uri, body: &[u8]) -> Result<Option<Key>, Failure> {
    let Some(value) = headers.get(NAME) else { return Ok(None) };
    let name = value.to_str().ok().filter(|name| !name.is_empty() && name.len() <= MAX_KEY);
    let name = name.ok_or_else(|| {
        Problem::new(
            ErrorCode::InvalidRequest,
            format!("Idempotency-Key must have 1 to {MAX_KEY} visible ASCII characters"),
        )
    })?;
    let mut context = digest::Context::new(&digest::SHA256);
    for part in [method.as_str().as_bytes(), uri.path().as_bytes(), body] {
        context.update(&(part.len() as u64).to_le_bytes());
        context.update(part);
    }
    let mut fingerprint = [0; 32];
    fingerprint.copy_from_slice(context.finish().as_ref());
    Ok(Some(Key { name: name.to_owned(), fingerprint }))
}

/// Runs `work` unless its answer is known already.
///
/// # Errors
/// `idempotency_mismatch`, `request_in_progress`, and whatever `work` answers.
pub async fn once<F>(engine: &Engine, who: &Principal, key: Option<Key>, work: F) -> Result<Response, Failure>
where
    F: Future<Output = Result<Response, Failure>>,
{
    let Some(key) = key else { return work.await };
    match engine.reply_begin(who, &key.name, key.fingerprint, KEPT).await? {
        Replay::Known(reply) => Ok(replay(reply)),
        Replay::New => {
            let answer = match work.await {
                Ok(answer) => answer,
                Err(failure) => {
                    // A failed request may be tried again with its key.
                    engine.reply_abandon(who, &key.name).await?;
                    return Err(failure);
                }
            };
            keep(engine, who, &key, answer).await
        }
    }
}

async fn keep(engine: &Engine, who: &Principal, key: &Key, answer: Response) -> Result<Response, Failure> {
    let (parts, body) = answer.into_parts();
    let body = to_bytes(body, MAX_REPLY).await.map_err(|_| Problem::new(ErrorCode::Internal, ""))?;
    let content_type = parts
        .headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned();
    let reply = Reply { status: parts.status.as_u16(), content_type, body: body.clone(), stream: None };
    engine.reply_finish(who, &key.name, &reply).await?;
    Ok(Response::from_parts(parts, body.into()))
}

fn replay(reply: Reply) -> Response {
    let status = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::OK);
    let mut response = (status, reply.body).into_response();
    if let Ok(kind) = HeaderValue::from_str(&reply.content_type) {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    response.headers_mut().insert("idempotent-replayed", HeaderValue::from_static("true"));
    response
}
