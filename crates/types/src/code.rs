//! The closed list of stable error codes, and the problem object (RFC 9457) that carries one.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

macro_rules! codes {
    ($($name:ident $code:literal $status:literal $retry:literal $title:literal $help:literal;)*) => {
        /// A stable error code. People switch on it; it is never renamed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
        pub enum ErrorCode {
            $(#[doc = $title] #[serde(rename = $code)] $name,)*
        }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The code on the wire.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// The HTTP status that goes with it.
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }

            /// Whether the same request may work later, unchanged.
            pub const fn retryable(self) -> bool {
                match self { $(Self::$name => $retry,)* }
            }

            /// A short human title.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }

            /// What to do about it: the text of the problem's page.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$name => $help,)* }
            }
        }
    };
}

codes! {
    Unauthorized "unauthorized" 401 false "No valid credential"
        "Send `Authorization: Bearer kt_live_…` with a key that exists, has not expired and was not revoked.";
    BudgetExhausted "budget_exhausted" 402 false "The budget is used up"
        "Raise the cap named in the answer, or wait for its next period. Nothing was run.";
    SubscriptionInactive "subscription_inactive" 402 false "The subscription does not allow turns"
        "Pay what is due, or subscribe anew: `POST /v1/billing/checkout`. Nothing was run.";
    Forbidden "forbidden" 403 false "Not allowed with this credential"
        "The credential is valid but lacks the scope this action needs. Use a key with that scope.";
    NotFound "not_found" 404 false "Not found"
        "The thing does not exist, or belongs to another organisation; the two are not told apart.";
    TurnInProgress "turn_in_progress" 409 true "A turn is running in this session"
        "Wait for its `done`, interrupt it, or send the message with `on_busy` set to `queue`, `interrupt` or `steer`.";
    NoActiveRelease "no_active_release" 409 false "The project has no active release"
        "Publish a release, or activate one that exists.";
    ReleaseNotReady "release_not_ready" 409 true "The release can't be run"
        "It failed, was deleted, or is still being built. Look at its state.";
    InvalidRelease "invalid_release" 422 false "The release can't be accepted"
        "`detail` says which file breaks which rule, and where. What runs stays as it is; `karta check` says the same before publishing.";
    BuildFailed "build_failed" 422 false "The release's setup failed"
        "Read what it printed: `karta logs`. What runs stays as it is.";
    ContentMissing "content_missing" 409 true "Content that the archive relies on is not here"
        "Ask again which content is missing, and send that with the archive.";
    ReleaseInUse "release_in_use" 409 false "The release is in use"
        "It is active, a canary, a preview, or sessions are pinned to it. End that first.";
    NothingToRollBack "nothing_to_roll_back" 409 false "There is no earlier activation to go back to"
        "Activate a release by its version. The active release stays as it is.";
    InputAlreadyResolved "input_already_resolved" 409 false "This input was already answered"
        "The first answer won. Read the session's events to see which.";
    LastOwner "last_owner" 409 false "An organisation has at least one owner"
        "Make somebody else an owner first.";
    RequestInProgress "request_in_progress" 409 true "The first request with this Idempotency-Key is still running"
        "Wait for it, then repeat the request to get its answer.";
    IdempotencyMismatch "idempotency_mismatch" 422 false "This Idempotency-Key was used with another request"
        "Use a new key for a new request; repeat a key only with the same path and body.";
    InvalidRequest "invalid_request" 400 false "The request is not valid"
        "`detail` says what is wrong, `pointer` (a JSON pointer) where.";
    PayloadTooLarge "payload_too_large" 413 false "The body is too large"
        "Send less at once; `detail` names the limit.";
    ProviderKeyRejected "provider_key_rejected" 422 false "The model provider refused the key"
        "Check the provider key that the server uses: it may be wrong, revoked or out of credit.";
    RateLimited "rate_limited" 429 true "Too many requests"
        "Wait for the seconds in `Retry-After`.";
    IsolationUnavailable "isolation_unavailable" 503 false "The isolation asked for is not available here"
        "Ask for less, or run on a host that can give it; `detail` says what is missing.";
    Overloaded "overloaded" 503 true "The server is at its limit"
        "Wait for the seconds in `Retry-After` and try again.";
    Internal "internal" 500 true "Something went wrong inside the server"
        "Give the request id to whoever runs the server; its log tells more.";
    HarnessNotInstalled "harness_not_installed" 503 false "The harness is not installed"
        "Run the command that `detail` names on the server.";
    GitNotInstalled "git_not_installed" 503 false "git is not installed on the server"
        "Install git on the server; until then publish by `karta deploy`.";
    HarnessStartFailed "harness_start_failed" 503 true "The harness did not start"
        "`detail` has what it printed last. `karta doctor` runs the same start by hand.";
    HarnessFailed "harness_failed" 502 true "The harness ended unexpectedly"
        "`detail` has its exit status and what it printed last. The session goes on with the next message.";
    HarnessSilent "harness_silent" 504 true "The harness said nothing for too long"
        "It was stopped. Raise `limits.silence_seconds` if its tools really need longer.";
    HarnessOutputInvalid "harness_output_invalid" 502 true "The harness sent something that can't be read"
        "A line was malformed or too long. Check the harness version with `karta doctor`.";
    MaxTurnsReached "max_turns_reached" 422 false "The harness reached its limit of steps"
        "Raise the limit in the harness's configuration, or split the task.";
    ProviderRateLimited "provider_rate_limited" 429 true "The model provider limits the rate"
        "Retried without success. Wait, or raise the limit at the provider.";
    ProviderOverloaded "provider_overloaded" 503 true "The model provider is overloaded"
        "Retried without success. Try again later.";
    ProviderUnreachable "provider_unreachable" 502 true "The model provider can't be reached"
        "Check the provider's base URL and the server's network.";
    ProviderRejected "provider_rejected" 422 false "The model provider refused the request"
        "`detail` has the provider's own words.";
    ApprovalExpired "approval_expired" 409 false "Nobody answered in time"
        "The question was refused by itself. Raise `limits.approval_seconds`, or answer sooner.";
    InterruptedByRestart "interrupted_by_restart" 503 true "The server stopped during the turn"
        "The conversation is kept by the harness: send the next message to go on.";
    StorageFull "storage_full" 507 true "The server can't write its data"
        "Free space in the server's data directory. The turn was stopped before anything unsaved was shown.";
    TurnTimeout "turn_timeout" 504 false "The turn took too long"
        "It was stopped. Raise `limits.turn_seconds` or split the task.";
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for ErrorCode {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.iter().copied().find(|code| code.as_str() == text).ok_or(())
    }
}

/// The problem object: the body of every error answer, and the data of an `error` event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Problem {
    /// `/problems/<code>`: a page that the server serves.
    #[serde(rename = "type")]
    pub kind: String,
    /// A short human title.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened this time.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// The id of the request, for the server's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The code.
    pub error: ErrorCode,
    /// The code's reason as a word or sentence, for people who switch on strings.
    pub reason: String,
    /// JSON pointer to the field of the request that is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pointer: Option<String>,
    /// Whether the same request may work later.
    #[serde(default)]
    pub retryable: bool,
    /// More members, by code: `level`, `cap`, `left` of a budget.
    #[serde(flatten)]
    #[cfg_attr(feature = "schema", schema(value_type = std::collections::HashMap<String, Object>))]
    pub more: Map<String, Value>,
}

impl Problem {
    /// A problem of `code` with what happened this time.
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("/problems/{}", code.as_str()),
            title: code.title().to_owned(),
            status: code.status(),
            detail: detail.into(),
            request_id: None,
            error: code,
            reason: code.as_str().to_owned(),
            pointer: None,
            retryable: code.retryable(),
            more: Map::new(),
        }
    }

    /// With the place in the request that is wrong.
    #[must_use]
    pub fn at(mut self, pointer: impl Into<String>) -> Self {
        self.pointer = Some(pointer.into());
        self
    }

    /// With one more member.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.more.insert(name.to_owned(), value.into());
        self
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.title, self.error)?;
        if self.detail.is_empty() { Ok(()) } else { write!(f, ": {}", self.detail) }
    }
}
