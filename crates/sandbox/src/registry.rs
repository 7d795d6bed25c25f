//! The drivers there are.
