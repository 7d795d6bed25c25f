//! The planes apart: a data plane asks the control plane over HTTP what [`crate::gate::Gate`] asks.
//!
//! Both use one PostgreSQL database by different roles: the data plane's has no right on the tables of the control plane (`karta admin
//! grants`), and what it has to write there it hands over (`karta_store`, `handover`). It shows a service token; several are good at
//! once, from a file that is read again when it changes.

mod remote;
mod server;
mod tokens;
mod wire;

pub(crate) use remote::Remote;
pub(crate) use server::serve;
pub(crate) use tokens::ServiceTokens;
