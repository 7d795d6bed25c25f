//! The typed client of Karta's HTTP API, with event streams that resume by themselves.
//!
//! ```no_run
//! # async fn run() -> Result<(), karta_client::Error> {
//! use karta_client::{Client, CreateSession, SendMessage};
//! use karta_types::Secret;
//!
//! let client = Client::new("http://127.0.0.1:4747", Secret::new("kt_test_…".to_owned()))?;
//! let session = client.create_session(&CreateSession::default()).await?;
//! let mut events = client.send_streaming(session.id, &SendMessage::text("Hello"))?;
//! while let Some(event) = events.next().await {
//!     let event = event?;
//!     // … ends by itself after the turn's `done`, however often the connection was cut.
//! #   let _ = event;
//! }
//! # Ok(()) }
//! ```
//!
//! The client knows nothing but [`karta_types`]. It tolerates what it doesn't know in answers, so an older client reads a newer
//! server, and it bounds everything it reads.

mod account;
mod billing;
mod client;
mod control;
mod error;
mod events;
mod frames;
mod inputs;
mod logs;
mod members;
mod messages;
mod projects;
mod publish;
mod releases;
mod retry;
mod sessions;
pub mod sse;
mod turns;
mod webhooks;

pub use account::{OrgRef, Principal, UsageQuery, UsageRow, Whoami};
pub use client::Client;
pub use control::{CreateKey, MintToken};
pub use error::Error;
pub use events::EventStream;
pub use inputs::PendingInput;
pub use logs::{LogFilter, LogStream};
pub use messages::{Accepted, OnBusy, Reply, SendMessage};
pub use publish::{Publication, Publish, Published};
pub use retry::Retry;
pub use sessions::{CreateSession, PatchSession, SessionFilter};
