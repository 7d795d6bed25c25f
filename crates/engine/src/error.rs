//! The application's error: a problem that the caller may know, or something internal that only the log may tell.

use karta_types::{ErrorCode, Problem};

/// What the application answers when it can't do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller may know: it becomes the answer.
    #[error("{0}")]
    Told(Box<Problem>),
    /// Only the log may know: the answer says nothing but the request's id.
    #[error("{doing}")]
    Internal {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A result of the application.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A problem of `code` with what happened this time.
    pub fn told(code: ErrorCode, detail: impl Into<String>) -> Self {
        Problem::new(code, detail).into()
    }

    /// The thing does not exist, or belongs to another organisation.
    pub fn not_found(what: &str) -> Self {
        Self::told(ErrorCode::NotFound, format!("there is no such {what}"))
    }

    /// There is no room on the disk.
    pub fn storage_full() -> Self {
        Self::told(ErrorCode::StorageFull, "the disk under the data directory is full")
    }

    /// The request is wrong at `pointer`.
    pub fn invalid(pointer: &str, detail: impl Into<String>) -> Self {
        Problem::new(ErrorCode::InvalidRequest, detail).at(pointer).into()
    }

    /// Something failed that is not the caller's doing.
    pub fn internal(
        doing: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Internal { doing, source: source.into() }
    }

    /// The code of the answer.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Told(problem) => problem.error,
            Self::Internal { .. } => ErrorCode::Internal,
        }
    }

    /// The problem object of the answer; an internal error says nothing of itself.
    pub fn problem(&self) -> Problem {
        match self {
            Self::Told(problem) => (**problem).clone(),
            Self::Internal { .. } => Problem::new(ErrorCode::Internal, ""),
        }
    }

    /// The error and its causes in one line, for the log.
    pub fn chain(&self) -> String {
        chain(self)
    }
}

/// Whether the disk is full, or a quota reached.
pub(crate) fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self::Told(Box::new(problem))
    }
}

impl From<Box<Problem>> for Error {
    fn from(problem: Box<Problem>) -> Self {
        Self::Told(problem)
    }
}

impl From<karta_store::Error> for Error {
    fn from(error: karta_store::Error) -> Self {
        match error {
            karta_store::Error::Full => Self::storage_full(),
            other => Self::internal("using the store", other),
        }
    }
}

impl From<karta_sandbox::Error> for Error {
    fn from(error: karta_sandbox::Error) -> Self {
        match &error {
            karta_sandbox::Error::Unavailable(why) => {
                Self::told(ErrorCode::IsolationUnavailable, why.clone())
            }
            full if full.is_full() => Self::storage_full(),
            karta_sandbox::Error::Spawn { .. } => Self::told(ErrorCode::HarnessStartFailed, chain(&error)),
            _ => Self::internal("using the sandbox", error),
        }
    }
}

impl From<karta_harness::Error> for Error {
    fn from(error: karta_harness::Error) -> Self {
        match &error {
            karta_harness::Error::UnknownAgent { .. } => Self::invalid("/agent", error.to_string()),
            karta_harness::Error::History(_) => Self::internal("reading the history", error),
            _ => Self::told(ErrorCode::ReleaseNotReady, error.to_string()),
        }
    }
}
