//! Paths and patterns that come from outside.

use std::path::Path;

pub use karta_guest::paths::{LEVELS, Level, Pattern, plain};

use crate::Error;

/// Reads a pattern relative to a home.
///
/// # Errors
/// It leads out of the home, or a level has more than one `*`.
pub fn pattern(text: &str) -> Result<Pattern, Error> {
    Pattern::parse(Path::new(text)).ok_or_else(|| Error::Escape(text.to_owned()))
}
