//! A scripted model server: it speaks the providers' shapes and says what it was told to say.
//!
//! Real harnesses run against it without a provider: in `karta demo`, in end-to-end tests, while transcripts are recorded. What to
//! say is carried in the prompt (`SCRIPT: [{"text":"Hello"}]`), so the server needs no set-up and no memory of conversations: it finds
//! the last human words in a request, counts the answers given since, and plays that step. Words without a script are matched with
//! [`Rule`]s, and else answered in kind.

mod anthropic;
mod chat;
mod play;
mod responses;
mod script;
mod server;

pub use script::{Rule, Step, ToolCall};
pub use server::{Options, Recorded, Server};
