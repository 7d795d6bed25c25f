//! Why a checkpoint was not taken, or not put back.

use karta_types::ErrorCode;

use crate::Error;

/// What went wrong. Whatever it is, the checkpoints that were there before still are.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The session has made more than it may.
    #[error(
        "the session has {have} {what}, and may have {most}: remove some, or raise `state.session_{what}`"
    )]
    Refused {
        /// Of what: `bytes` or `files`.
        what: &'static str,
        /// How much it has; counting stops soon after the limit.
        have: u64,
        /// How much it may have.
        most: u64,
    },
    /// The sandbox said something that can't be, or that can't be kept.
    #[error("what the sandbox gave can't be kept: {0}")]
    Unfit(String),
    /// A checkpoint is not as it was written, or a part of it is gone.
    #[error("the checkpoint {seq} can't be read: {why}")]
    Damaged {
        /// Its number.
        seq: u64,
        /// What is wrong.
        why: String,
    },
    /// The key is not there any more.
    #[error("the key of the checkpoint was destroyed")]
    Shredded,
    /// Another owner has the session, or it was erased.
    #[error("another owner took the session")]
    Fenced,
    /// The blob store has no room.
    #[error("the blob store has no room: free space where `releases.blobs` points to")]
    Full,
    /// It took too long.
    #[error("{0} took longer than `state.seconds` allows")]
    Late(&'static str),
    /// The sandbox failed.
    #[error("the sandbox failed")]
    Sandbox(#[from] karta_sandbox::Error),
    /// The database failed.
    #[error("the database failed")]
    Store(#[source] karta_store::Error),
    /// The blob store failed.
    #[error("{doing}")]
    Blobs {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Something of the platform's own failed.
    #[error("{0}")]
    Own(&'static str),
    /// Keys failed.
    #[error("the checkpoint's key can't be had")]
    Key(#[source] Error),
}

impl CheckpointError {
    /// Whether the same may work later.
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Full | Self::Late(_) | Self::Store(_) | Self::Blobs { .. } | Self::Key(_) | Self::Own(_)
        )
    }

    /// What may be told to whoever reads the session's events.
    pub fn told(&self) -> String {
        match self {
            Self::Refused { .. }
            | Self::Unfit(_)
            | Self::Late(_)
            | Self::Full
            | Self::Fenced
            | Self::Shredded => self.to_string(),
            Self::Damaged { .. } => "an earlier checkpoint can't be read".to_owned(),
            Self::Sandbox(_) => "the sandbox did not give what the session has made".to_owned(),
            Self::Store(_) | Self::Blobs { .. } | Self::Own(_) | Self::Key(_) => {
                "the server could not keep it; its log tells why".to_owned()
            }
        }
    }
}

impl From<karta_store::Error> for CheckpointError {
    fn from(error: karta_store::Error) -> Self {
        match error {
            karta_store::Error::Fenced => Self::Fenced,
            error => Self::Store(error),
        }
    }
}

impl From<CheckpointError> for Error {
    fn from(error: CheckpointError) -> Self {
        match error {
            CheckpointError::Full => Self::storage_full(),
            CheckpointError::Sandbox(error) => error.into(),
            CheckpointError::Store(error) => error.into(),
            CheckpointError::Key(error) => error,
            CheckpointError::Refused { .. } | CheckpointError::Unfit(_) | CheckpointError::Shredded => {
                Self::told(ErrorCode::HarnessStartFailed, error.to_string())
            }
            error => Self::internal("keeping what a session has made", error),
        }
    }
}

/// The error of an operation on the blob store.
pub(super) fn blobs(doing: &'static str) -> impl FnOnce(object_store::Error) -> CheckpointError {
    move |error| {
        let full = std::iter::successors(std::error::Error::source(&error), |error| error.source())
            .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
            .any(crate::error::is_full);
        if full { CheckpointError::Full } else { CheckpointError::Blobs { doing, source: Box::new(error) } }
    }
}
