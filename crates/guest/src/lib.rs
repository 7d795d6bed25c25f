//! What the host and the program inside a sandbox say to one another.
//!
//! The program `karta-guest` of this crate is the first process inside every isolated sandbox, of a virtual machine and of
//! namespaces alike; it also makes the confinement of processes on the host (`karta-guest jail`). Both sides treat every byte of
//! the other as hostile.

pub mod beneath;
pub mod find;
pub mod jail;
pub mod paths;
pub mod proto;
pub mod remove;
