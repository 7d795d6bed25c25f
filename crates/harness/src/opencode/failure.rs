//! What OpenCode's errors mean in our codes.

use karta_types::ErrorCode;

use super::wire::Fault;
use super::wire::shortened;

/// Our code for an error of a model call or of a prompt, and its words for people.
pub(super) fn of(fault: &Fault) -> (ErrorCode, String) {
    let told = fault.data.message.as_deref().unwrap_or(&fault.name);
    // Some errors bring the server's own stack along.
    let words = shortened(told.split("\n    at ").next().unwrap_or(told));
    let code = match fault.name.as_str() {
        "ProviderAuthError" => ErrorCode::ProviderKeyRejected,
        "ContextOverflowError" | "ContentFilterError" | "MessageOutputLengthError" => {
            ErrorCode::ProviderRejected
        }
        _ => match fault.data.status_code {
            Some(status) => of_status(status, &words),
            None if unreachable(&words) => ErrorCode::ProviderUnreachable,
            None if fault.name == "APIError" => ErrorCode::ProviderRejected,
            None => ErrorCode::HarnessFailed,
        },
    };
    (code, words)
}

fn of_status(status: u16, words: &str) -> ErrorCode {
    match status {
        401 | 403 => ErrorCode::ProviderKeyRejected,
        402 => ErrorCode::BudgetExhausted,
        429 => ErrorCode::ProviderRateLimited,
        400 if words.to_ascii_lowercase().contains("credit") => ErrorCode::ProviderKeyRejected,
        500.. => ErrorCode::ProviderOverloaded,
        _ => ErrorCode::ProviderRejected,
    }
}

/// Whether these are the words of a connection that failed.
fn unreachable(words: &str) -> bool {
    let words = words.to_ascii_lowercase();
    [
        "unable to connect",
        "cannot connect",
        "econnrefused",
        "econnreset",
        "enotfound",
        "fetch failed",
        "socket",
    ]
    .iter()
    .any(|sign| words.contains(sign))
}

/// The provider's status behind the words of a retry, which carry no number.
pub(super) fn status_of_retry(words: &str) -> Option<u16> {
    let words = words.to_ascii_lowercase();
    if words.contains("overloaded") {
        Some(529)
    } else if words.contains("rate limit") || words.contains("too many requests") {
        Some(429)
    } else {
        None
    }
}
