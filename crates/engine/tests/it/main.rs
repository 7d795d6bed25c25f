//! The engine from outside.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that can't go on fails")]

mod audit;
mod fake_opencode;
mod gateway;
mod harnesses;
mod machine;
mod parked;
mod parked_http;
mod parked_trouble;
mod resume;
mod tokens;
