//! The frames.

/// The version both sides must have in common.
pub const VERSION: u32 = 1;
