//! The one place where an error becomes an HTTP answer.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use karta_engine::Error;
use karta_types::{ErrorCode, Problem};
use serde_json::Value;

/// An error on its way out of a handler.
#[derive(Debug)]
pub struct Failure(pub Box<Problem>);

/// What handlers return.
pub type Answer<T> = Result<T, Failure>;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        if let Error::Internal { .. } = error {
            tracing::error!(error = error.chain(), "a request failed");
        }
        Self(Box::new(error.problem()))
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self(Box::new(problem))
    }
}

/// An error on its way to git, which shows its user plain text and nothing else.
#[derive(Debug)]
pub struct Plain(pub Failure);

impl<T: Into<Failure>> From<T> for Plain {
    fn from(error: T) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Plain {
    fn into_response(self) -> Response {
        let problem = &self.0.0;
        let unauthorized = problem.error == ErrorCode::Unauthorized;
        let text = match problem.error {
            ErrorCode::Internal => String::new(),
            ErrorCode::Unauthorized => {
                "the password is an API key, or the token of `karta login`; the user name can be anything\n"
                    .to_owned()
            }
            _ => format!("{}\n", problem.detail),
        };
        let told = format!("{text}{} ({})\n", problem.title, problem.error);
        let (mut parts, _) = self.0.into_response().into_parts();
        parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        parts.headers.remove(header::CONTENT_LENGTH);
        if unauthorized {
            parts.headers.insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Basic realm=\"Karta\", charset=\"UTF-8\""),
            );
        }
        Response::from_parts(parts, told.into())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut problem = *self.0;
        // The codes of a turn that failed can be statuses that mean something else for the request that carried it.
        let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        problem.request_id = crate::serve::current_request_id();
        if problem.error == ErrorCode::Internal {
            problem.detail = String::new();
        }
        let mut response = (status, Json(&problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        let wait = problem.more.get("retry_after").and_then(Value::as_i64);
        if wait.is_some() || matches!(problem.error, ErrorCode::RateLimited | ErrorCode::Overloaded) {
            let wait = wait.unwrap_or(1);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(wait));
            // As the IETF's draft of the RateLimit header fields names them.
            if let Some(limit) = problem.more.get("limit").and_then(Value::as_i64) {
                headers.insert("ratelimit-limit", HeaderValue::from(limit));
                headers.insert("ratelimit-remaining", HeaderValue::from(0));
                headers.insert("ratelimit-reset", HeaderValue::from(wait));
            }
        }
        if problem.error == ErrorCode::Unauthorized {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
