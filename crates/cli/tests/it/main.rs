//! The binary from outside: what it prints, what it asks of a server, how it exits.

#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod chat;
mod check;
mod commands;
mod completion;
mod crashes;
mod deploy;
mod fake;
mod help;
mod init;
mod logs;
mod people;
mod planes;
mod policy;
mod published;
mod real;
mod resumed;
mod run;
mod served;
mod serving;
mod stub;
mod sweep;
mod terminal;
