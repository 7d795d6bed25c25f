//! Whole ways out, against real servers on this machine's loopback.

#![expect(clippy::disallowed_methods, reason = "what a test starts ends with its runtime")]

mod plain;
mod programs;
mod secret;
mod support;
mod tunnels;
