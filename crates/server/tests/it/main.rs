//! The API over a real server, a real database and the scripted harness.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that can't go on fails")]

mod access;
mod account;
mod billing;
mod budgets;
mod conduct;
mod events;
mod faults;
mod git;
mod git_client;
mod git_hostile;
mod inputs;
mod keeping;
mod messages;
mod misuse;
mod oidc;
mod operations;
mod people;
mod policy;
mod provider_keys;
mod publish;
mod releases;
mod repeat;
mod rotation;
mod secrets;
mod session_tokens;
mod sessions;
mod support;
mod webhooks;
