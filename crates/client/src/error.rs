//! What can go wrong between a caller and the server.

use karta_types::{ErrorCode, Problem};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server understood and refused; the problem says why and has a stable code.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// The request did not reach the server, or its answer did not come back.
    #[error("{doing}")]
    Transport {
        /// What was being done.
        doing: String,
        /// Why it failed.
        #[source]
        source: reqwest::Error,
    },
    /// The server, or something in between, answered with what this client can't read.
    #[error("{doing}: {reason}")]
    Protocol {
        /// What was being done.
        doing: String,
        /// What is wrong with the answer.
        reason: String,
        /// The HTTP status, if there was an answer.
        status: Option<u16>,
    },
    /// The client itself can't be made or used this way: a bad address, a key with line breaks.
    #[error("{0}")]
    Usage(String),
}

impl Error {
    /// The stable code of the server's refusal.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Problem(problem) => Some(problem.error),
            _ => None,
        }
    }

    /// Whether the same request may work later, unchanged.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Problem(problem) => problem.retryable,
            Self::Transport { source, .. } => !source.is_builder(),
            Self::Protocol { status, .. } => matches!(status, Some(408 | 429 | 500 | 502..=504)),
            Self::Usage(_) => false,
        }
    }

    /// Whether the server could not be reached at all.
    pub fn unreachable(&self) -> bool {
        matches!(self, Self::Transport { source, .. } if source.is_connect())
    }

    pub(crate) fn transport(doing: impl Into<String>, source: reqwest::Error) -> Self {
        Self::Transport { doing: doing.into(), source: source.without_url() }
    }

    pub(crate) fn protocol(doing: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Protocol { doing: doing.into(), reason: reason.into(), status: None }
    }
}
