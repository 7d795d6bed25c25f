//! What every driver holds, and what the process driver holds besides.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

mod attacks;
mod crash;
mod guest;
mod images;
mod isolated;
mod laws;
mod leak;
mod leftovers;
mod machines;
mod places;
mod processes;
mod registry;
mod support;
mod update;
