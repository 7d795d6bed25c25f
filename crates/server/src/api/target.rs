//! Which session a request is about: named flat, or under its project.

use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::request::Parts;
use karta_engine::{Engine, Error, Principal};
use karta_types::SessionId;

use crate::problem::Failure;

/// The session in the path, and the project, if the route names one.
#[derive(Debug, Clone)]
pub struct Target {
    /// The session.
    pub session: SessionId,
    /// The project's id or slug.
    pub project: Option<String>,
    /// The rest of the path's parameters: `turn`, `request`.
    rest: Vec<(String, String)>,
}

impl Target {
    /// A parameter further on in the path. One that is no id is like one that does not exist.
    ///
    /// # Errors
    /// `not_found`.
    pub fn id<T: std::str::FromStr>(&self, name: &str) -> Result<T, Failure> {
        let value = self.rest.iter().find(|(key, _)| key == name).and_then(|(_, value)| value.parse().ok());
        value.ok_or_else(|| Error::not_found(name).into())
    }

    /// Holds a session that is named under a project to be of that project.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn check(&self, engine: &Engine, who: &Principal) -> Result<SessionId, Failure> {
        if let Some(reference) = &self.project {
            engine.session_in(who, self.session, reference).await?;
        }
        Ok(self.session)
    }
}

impl FromRequestParts<Engine> for Target {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, engine: &Engine) -> Result<Self, Failure> {
        let params = RawPathParams::from_request_parts(parts, engine)
            .await
            .map_err(|_| Failure::from(Error::not_found("session")))?;
        let (mut session, mut project, mut rest) = (None, None, Vec::new());
        for (name, value) in &params {
            match name {
                "session" => session = value.parse().ok(),
                "project" => project = Some(value.to_owned()),
                _ => rest.push((name.to_owned(), value.to_owned())),
            }
        }
        let session = session.ok_or_else(|| Failure::from(Error::not_found("session")))?;
        Ok(Self { session, project, rest })
    }
}
