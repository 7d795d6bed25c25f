//! The application: everything Karta does, without HTTP. Embeddable as a library.
//!
//! Two planes. [`control`] is the system of record: organisations, keys, budgets, usage. [`data`] runs agents: projects and releases,
//! sessions, turns, event streams. The data plane asks the control plane only through [`gate::Gate`]. [`gateway`] is the only way from
//! a harness to a model provider.
//!
//! [`Engine::open`] makes one from [`Settings`]; its methods, grouped by noun in the files of [`data`], are what the server calls.

pub mod addresses;
mod authority;
pub mod control;
pub mod data;
mod engine;
mod error;
pub mod gate;
pub mod gateway;
pub mod harnesses;
mod hex;
mod keeping;
pub mod settings;
pub mod tasks;
mod terminal;

pub use data::player::{functions as scripted_functions, play};
pub use engine::{Builder, Engine};
pub use error::{Error, Result};
pub use gate::{Actor, Principal};
pub use karta_sandbox as sandbox;
pub use karta_sandbox::image as images;
pub use settings::Settings;
