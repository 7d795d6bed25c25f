//! Extractors whose refusals are problem objects that name the field.

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use karta_engine::Engine;
use karta_types::page::{DEFAULT_LIMIT, MAX_LIMIT};
use karta_types::{ErrorCode, Problem};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::problem::Failure;

/// A JSON body. Unknown fields, wrong types and broken JSON are a 400 that says where. No body at all reads as `{}`.
#[derive(Debug, Clone)]
pub struct Body<T> {
    /// What was read.
    pub value: T,
    /// The bytes it was read from, for the fingerprint of an idempotent request.
    pub bytes: Bytes,
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let json = is_json(request.headers());
        let bytes = Bytes::from_request(request, state).await.map_err(|refused| {
            let too_large = refused.status() == axum::http::StatusCode::PAYLOAD_TOO_LARGE;
            let code = if too_large { ErrorCode::PayloadTooLarge } else { ErrorCode::InvalidRequest };
            Problem::new(code, refused.body_text())
        })?;
        if !json && !bytes.is_empty() {
            return Err(Problem::new(
                ErrorCode::InvalidRequest,
                "send the body as `Content-Type: application/json`",
            )
            .into());
        }
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        let value = parse(text)?;
        Ok(Self { value, bytes })
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).is_some_and(|value| {
        let kind = value.split(';').next().unwrap_or_default().trim();
        kind.eq_ignore_ascii_case("application/json") || kind.to_ascii_lowercase().ends_with("+json")
    })
}

/// Reads JSON and says where it is wrong, as a JSON pointer.
///
/// # Errors
/// `invalid_request` with the pointer.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let read = serde_path_to_error::deserialize(&mut deserializer);
    match read {
        Ok(value) => {
            deserializer.end().map_err(|error| Problem::new(ErrorCode::InvalidRequest, error.to_string()))?;
            Ok(value)
        }
        Err(error) => {
            let pointer = pointer(error.path());
            let mut pointer = if pointer == "/" { String::new() } else { pointer };
            let detail = error.inner().to_string();
            // serde names an unknown field in its message only.
            if let Some(field) =
                detail.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next())
                && !pointer.ends_with(&format!("/{field}"))
            {
                pointer.push('/');
                pointer.push_str(field);
            }
            Err(Problem::new(ErrorCode::InvalidRequest, detail).at(pointer).into())
        }
    }
}

fn pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    let mut text = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => text.extend(["/", &index.to_string()]),
            Segment::Map { key } => text.extend(["/", &key.replace('~', "~0").replace('/', "~1")]),
            Segment::Enum { .. } | Segment::Unknown => {}
        }
    }
    text
}

/// Where the caller reaches this server: the configured address, else what the request says.
#[derive(Debug, Clone)]
pub struct Base(pub String);

impl FromRequestParts<Engine> for Base {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, engine: &Engine) -> Result<Self, Failure> {
        if let Some(url) = &engine.settings().public_url {
            return Ok(Self(url.trim_end_matches('/').to_owned()));
        }
        let host = parts.headers.get(header::HOST).and_then(|value| value.to_str().ok());
        let host = host.or_else(|| parts.uri.authority().map(axum::http::uri::Authority::as_str));
        let host = host
            .filter(|host| host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte)));
        let host =
            host.ok_or_else(|| Problem::new(ErrorCode::InvalidRequest, "there is no valid `Host` header"))?;
        Ok(Self(format!("http://{host}")))
    }
}

/// Query parameters; unknown ones are a 400 that names them.
#[derive(Debug, Clone)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Failure> {
        axum::extract::Query::try_from_uri(&parts.uri)
            .map(|axum::extract::Query(value)| Self(value))
            .map_err(|refused| Problem::new(ErrorCode::InvalidRequest, refused.body_text()).into())
    }
}

/// Path parameters; an id that is none is a 404 like any id that does not exist.
#[derive(Debug, Clone)]
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        axum::extract::Path::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Path(value)| Self(value))
            .map_err(|refused| Problem::new(ErrorCode::NotFound, refused.body_text()).into())
    }
}

/// `?limit=` and `?cursor=` of every list.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Paging {
    /// Rows on the page: 50 by default, 200 at most.
    pub limit: Option<u32>,
    /// Where the page begins: `next_cursor` of the page before.
    pub cursor: Option<String>,
}

impl Paging {
    /// Rows on the page.
    ///
    /// # Errors
    /// `invalid_request` for none or more than there may be.
    pub fn limit(&self) -> Result<u32, Failure> {
        limit(self.limit)
    }

    /// Where the page begins.
    ///
    /// # Errors
    /// `invalid_request` for a cursor that is none.
    pub fn cursor<T: std::str::FromStr>(&self) -> Result<Option<T>, Failure> {
        cursor(self.cursor.as_deref())
    }
}

/// Rows on a page.
///
/// # Errors
/// `invalid_request` for none or more than there may be.
pub fn limit(limit: Option<u32>) -> Result<u32, Failure> {
    match limit.unwrap_or(DEFAULT_LIMIT) {
        0 => Err(Problem::new(ErrorCode::InvalidRequest, "limit must be at least 1").at("/limit").into()),
        limit if limit > MAX_LIMIT => {
            Err(Problem::new(ErrorCode::InvalidRequest, format!("limit must be at most {MAX_LIMIT}"))
                .at("/limit")
                .into())
        }
        limit => Ok(limit),
    }
}

/// Where a page begins.
///
/// # Errors
/// `invalid_request` for a cursor that is none.
pub fn cursor<T: std::str::FromStr>(cursor: Option<&str>) -> Result<Option<T>, Failure> {
    cursor
        .map(|text| {
            text.parse().map_err(|_| {
                Problem::new(
                    ErrorCode::InvalidRequest,
                    "not a cursor of this list; use `next_cursor` of a page",
                )
                .at("/cursor")
                .into()
            })
        })
        .transpose()
}
