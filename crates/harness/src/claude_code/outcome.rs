//! How a turn ended: the harness's last word put into our codes.

use karta_types::ErrorCode;
use serde_json::Value;

use super::wire::{flag, list, shortened, status, text};
use crate::codec::End;

/// The end that a `result` line tells. `failure` is the harness's word for the last failed model call (`authentication_failed`).
pub(super) fn of(result: &Value, failure: Option<&str>) -> End {
    let terminal = text(result, "terminal_reason").unwrap_or_default();
    let subtype = text(result, "subtype").unwrap_or_default();
    if terminal.starts_with("aborted") {
        return End::Interrupted;
    }
    if !flag(result, "is_error") && !subtype.starts_with("error") {
        return End::Completed { stop_reason: text(result, "stop_reason").map(str::to_owned) };
    }
    let code = match subtype {
        "error_max_turns" => ErrorCode::MaxTurnsReached,
        "error_max_budget_usd" => ErrorCode::BudgetExhausted,
        _ => code_of(result, failure),
    };
    let message = match (failure, status(result, "api_error_status")) {
        // Its own words are for people at a terminal: "run /login".
        (Some("authentication_failed"), Some(status)) => {
            format!("the model provider refused the key with status {status}")
        }
        _ => message(result),
    };
    End::Failed { code, message }
}

fn code_of(result: &Value, failure: Option<&str>) -> ErrorCode {
    // The gateway names its own errors by our codes.
    let named = text(result, "api_error_type").and_then(|kind| kind.parse().ok());
    if let Some(code) = named {
        return code;
    }
    match (failure.unwrap_or_default(), status(result, "api_error_status")) {
        ("authentication_failed" | "billing_error", _) | (_, Some(401 | 403)) => {
            ErrorCode::ProviderKeyRejected
        }
        (_, Some(402)) => ErrorCode::BudgetExhausted,
        ("rate_limit", _) | (_, Some(429)) => ErrorCode::ProviderRateLimited,
        (_, Some(500..)) => ErrorCode::ProviderOverloaded,
        (_, Some(400..=499)) => ErrorCode::ProviderRejected,
        _ if text(result, "terminal_reason") == Some("api_error") => ErrorCode::ProviderUnreachable,
        _ => ErrorCode::HarnessFailed,
    }
}

fn message(result: &Value) -> String {
    let said = text(result, "result").filter(|said| !said.is_empty()).map(str::to_owned);
    let errors = || list(result, "errors").iter().filter_map(Value::as_str).collect::<Vec<_>>().join("; ");
    let message = shortened(&said.unwrap_or_else(errors));
    if message.is_empty() {
        "Claude Code ended the turn with an error and did not say which".to_owned()
    } else {
        message
    }
}

/// The end of a turn whose process is gone.
pub(super) fn of_exit(status: Option<i32>, stderr_tail: &str) -> End {
    let how = status
        .map_or_else(|| "was killed by a signal".to_owned(), |status| format!("ended with status {status}"));
    let tail = shortened(stderr_tail);
    let message = if tail.is_empty() {
        format!("Claude Code {how} during the turn")
    } else {
        format!("Claude Code {how} during the turn: {tail}")
    };
    End::Failed { code: ErrorCode::HarnessFailed, message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn failed(result: &Value, failure: Option<&str>) -> ErrorCode {
        match of(result, failure) {
            End::Failed { code, .. } => code,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn statuses_become_codes() {
        let api = |status: Value, kind: &str| {
            json!({"is_error": true, "subtype": "success", "terminal_reason": "api_error",
                   "api_error_status": status, "api_error_type": kind, "result": "words"})
        };
        for (result, failure, code) in [
            (
                api(json!(401), "authentication_error"),
                Some("authentication_failed"),
                ErrorCode::ProviderKeyRejected,
            ),
            (
                api(json!(403), "permission_error"),
                Some("authentication_failed"),
                ErrorCode::ProviderKeyRejected,
            ),
            (api(json!(400), "invalid_request_error"), Some("billing_error"), ErrorCode::ProviderKeyRejected),
            (api(json!(400), "invalid_request_error"), Some("unknown"), ErrorCode::ProviderRejected),
            (api(json!(402), "budget_exhausted"), Some("unknown"), ErrorCode::BudgetExhausted),
            (api(json!(402), "payment"), None, ErrorCode::BudgetExhausted),
            (api(json!(404), "not_found_error"), Some("model_not_found"), ErrorCode::ProviderRejected),
            (api(json!(429), "rate_limit_error"), Some("rate_limit"), ErrorCode::ProviderRateLimited),
            (api(json!(500), "api_error"), Some("server_error"), ErrorCode::ProviderOverloaded),
            (api(json!(529), "overloaded_error"), Some("server_error"), ErrorCode::ProviderOverloaded),
            (api(json!(502), "provider_unreachable"), Some("server_error"), ErrorCode::ProviderUnreachable),
            (api(Value::Null, ""), Some("server_error"), ErrorCode::ProviderUnreachable),
        ] {
            assert_eq!(failed(&result, failure), code, "{result}");
        }
    }

    #[test]
    fn the_rest_of_the_table() {
        let aborted = json!({"is_error": true, "subtype": "error_during_execution", "terminal_reason": "aborted_tools"});
        assert_eq!(of(&aborted, None), End::Interrupted);
        let turns = json!({"is_error": true, "subtype": "error_max_turns", "errors": ["Reached"]});
        assert_eq!(
            of(&turns, None),
            End::Failed { code: ErrorCode::MaxTurnsReached, message: "Reached".to_owned() }
        );
        let missing =
            json!({"is_error": true, "subtype": "error_during_execution", "errors": ["No conversation"]});
        assert_eq!(failed(&missing, None), ErrorCode::HarnessFailed);
        assert!(
            matches!(of_exit(Some(1), "boom"), End::Failed { message, .. } if message.contains("status 1") && message.contains("boom"))
        );
    }
}
