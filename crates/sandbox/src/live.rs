//! The names of what this process has on the host now: what is made, used or being removed.
//!
//! What a crash left is found by names, at any time, while others come and go. A name is taken before anything is made under it and
//! given back when nothing of it is left; so whoever looks first at what is there, and then here, never takes what is in use for
//! left behind.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

static NAMES: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// A name that is in use until this is dropped. No two may be the same at a time.
#[derive(Debug)]
pub(crate) struct Live(String);

impl Live {
    /// Takes a name.
    pub(crate) fn new(name: String) -> Self {
        names().insert(name.clone());
        Self(name)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        names().remove(&self.0);
    }
}

/// Whether this process uses this name.
pub(crate) fn is(name: &str) -> bool {
    names().contains(name)
}

fn names() -> MutexGuard<'static, BTreeSet<String>> {
    NAMES.lock().unwrap_or_else(PoisonError::into_inner)
}
