//! Reading what people write: values with their places, keys that are asked for, and everything that is wrong told at once.

mod document;
mod fields;
mod jsonc;
mod node;
mod toml;

pub(crate) use document::{Document, Places};
pub(crate) use fields::{Fields, did_you_mean, quoted};
pub(crate) use node::{Key, Node, Value};
