//! How bytes become records: lines with a limit, and HTTP as lines.

pub mod http;
pub mod lines;
