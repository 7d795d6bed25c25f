//! Adapters held to the laws over recorded sessions, and detection of harnesses.

mod claude_code;
mod laws;
mod opencode;
mod registry;
