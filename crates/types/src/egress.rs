//! What a sandbox may reach outside: hosts, rules of `[policy] egress`, and what was decided about a request.

mod decision;
mod host;
mod path;
mod rule;

pub use decision::{Decision, Record, propose};
pub use host::{Host, Hosts, Place};
pub use path::{Paths, RequestPath};
pub use rule::{Method, Rule};
