//! Paths and patterns that come from outside.

use std::path::Path;

pub(crate) use karta_guest::paths::{Level, Pattern, plain};

use crate::Error;

/// Reads a pattern relative to a home.
pub(crate) fn pattern(text: &str) -> Result<Pattern, Error> {
    Pattern::parse(Path::new(text)).ok_or_else(|| Error::Escape(text.to_owned()))
}
