//! The HTTP surface over the engine: the native API, problems, operations.
//!
//! A handler extracts, calls one function of the engine, and shapes the answer. Permission is an extractor in its signature
//! ([`auth`]); errors become problem objects in one place ([`problem`]); event streams are written in one place ([`sse`]).

pub mod api;
pub mod auth;
pub mod extract;
pub mod git;
pub mod idempotency;
pub mod metrics;
pub mod openapi;
pub mod operations;
pub mod pages;
pub mod problem;
mod serve;
pub mod sse;

pub use serve::{Server, router};
