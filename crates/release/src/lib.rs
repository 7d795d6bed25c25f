//! A folder as a release: what is in it, how it travels, and what it declares.
//!
//! [`folder`] picks the files of a person's folder, [`archive`] packs them and unpacks what others packed, [`Files`] is what is hashed,
//! kept and compared. [`manifest`] and [`settings`] read the platform's own two files; [`check`] is everything that would refuse a
//! folder, all at once. Blocking: callers run it off their runtime.

pub mod archive;
mod beneath;
pub mod check;
mod files;
pub mod folder;
mod hash;
mod layer;
pub mod manifest;
mod names;
mod read;
pub mod settings;
mod version;

pub use files::{Entry, Files, release_digest};
pub use hash::Hash;
pub use karta_harness::Fault;
pub use layer::inputs_digest;
pub use names::Rule;
