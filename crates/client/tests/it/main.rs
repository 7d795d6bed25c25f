//! The client against a server that does what it is told, well and badly.

#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod calls;
mod fake;
mod releases;
mod streams;
