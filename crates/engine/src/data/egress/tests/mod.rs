//! Whole ways out, against real servers on this machine's loopback.

mod plain;
mod secret;
mod support;
mod tunnels;
