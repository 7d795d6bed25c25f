//! The binary from outside: what it prints, what it asks of a server, how it exits.

#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod chat;
mod commands;
mod fake;
mod help;
mod people;
mod planes;
mod policy;
mod real;
mod run;
mod served;
mod serving;
mod sweep;
mod terminal;
