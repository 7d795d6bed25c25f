//! stub

pub mod harnesses;
