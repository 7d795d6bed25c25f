//! Checkpoints against a machine, a blob store and crashes that are the test's to choose.

mod crashes;
mod hostile;
mod keys;
mod random;
mod real;
mod support;
