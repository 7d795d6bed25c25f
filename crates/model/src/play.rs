//! Playing a step: pieces of a stream with pauses, and breaks.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use serde_json::Value;

use crate::script::Step;

/// Words cut into pieces of about twelve characters, at spaces where there are some.
pub(crate) fn pieces(text: &str) -> Vec<String> {
    let mut pieces = Vec::new();
    let mut piece = String::new();
    for word in text.split_inclusive(char::is_whitespace) {
        piece.push_str(word);
        if piece.len() >= 12 {
            pieces.push(std::mem::take(&mut piece));
        }
    }
    if !piece.is_empty() || pieces.is_empty() {
        pieces.push(piece);
    }
    pieces
}

/// A stream of these frames, broken off if the step says so.
pub(crate) fn stream(step: &Step, frames: Vec<Bytes>, cut: bool) -> Response {
    let pause = Duration::from_millis(step.chunk_delay_ms);
    let stop_at = step.cut_after_chunks.filter(|_| cut).unwrap_or(usize::MAX);
    let state = (frames.into_iter(), 0usize);
    let body = futures_util::stream::unfold(state, move |(mut frames, count)| async move {
        if count > stop_at {
            return None;
        }
        if count == stop_at {
            // What was said so far is to arrive before the break does.
            tokio::time::sleep(Duration::from_millis(20)).await;
            let broken = std::io::Error::other("cut by the script");
            return Some((Err(broken), (frames, count + 1)));
        }
        let frame = frames.next()?;
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        Some((Ok(frame), (frames, count + 1)))
    });
    let mut response = Response::new(Body::from_stream(body));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    response
}

/// A named event.
pub(crate) fn event(value: &Value) -> Bytes {
    let kind = value.get("type").and_then(Value::as_str).unwrap_or_default();
    format!("event: {kind}\ndata: {value}\n\n").into()
}

/// An event without a name.
pub(crate) fn data(value: &Value) -> Bytes {
    format!("data: {value}\n\n").into()
}

/// A JSON answer.
pub(crate) fn json(status: u16, value: &Value) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
