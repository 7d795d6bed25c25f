//! A file that is being read, and everything that is wrong with it.

use std::collections::BTreeMap;

use karta_harness::nearest::nearest;
use karta_harness::{Fault, jsonc as json};

use super::node::{Key, Node};
use super::{jsonc, toml};

/// Where the values of a file's keys stand: line and column, by the key's whole name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Places(BTreeMap<String, (u64, u64)>);

impl Places {
    /// The fault, with the place of this key's value.
    pub(crate) fn put(&self, key: &str, fault: Fault) -> Fault {
        match self.0.get(key) {
            Some((line, column)) => fault.at(*line, *column),
            None => fault,
        }
    }
}

/// A key that nobody asked for.
pub(super) struct Stray {
    pub(super) at: usize,
    /// The whole name of its table, with the dot.
    pub(super) prefix: String,
    pub(super) name: String,
    /// The keys that are known beside it.
    pub(super) known: Vec<&'static str>,
}

/// A file that is being read.
pub(crate) struct Document<'a> {
    file: &'static str,
    pub(super) text: &'a str,
    /// By place.
    faults: Vec<(usize, Fault)>,
    pub(super) strays: Vec<Stray>,
    /// The whole names of all keys that were asked for, and where the values stand of those that are there.
    pub(super) keys: BTreeMap<String, Option<usize>>,
}

impl<'a> Document<'a> {
    /// A file of this name and text.
    pub(crate) const fn new(file: &'static str, text: &'a str) -> Self {
        Self { file, text, faults: Vec::new(), strays: Vec::new(), keys: BTreeMap::new() }
    }

    /// Reads it as TOML.
    pub(crate) fn toml(&mut self) -> Vec<(Key, Node)> {
        toml::parse(self)
    }

    /// Reads it as JSON with comments.
    pub(crate) fn jsonc(&mut self) -> Vec<(Key, Node)> {
        jsonc::parse(self)
    }

    /// Something is wrong at this place.
    pub(crate) fn fault(&mut self, at: usize, message: impl Into<String>, help: Option<String>) {
        let (line, column) = self.place(at);
        let fault = Fault::of(self.file, message).at(line, column);
        self.faults.push((at, help.into_iter().fold(fault, Fault::help)));
    }

    /// Whether something is wrong already.
    pub(crate) fn is_broken(&self) -> bool {
        !self.faults.is_empty()
    }

    /// Where this key's value stands, given by its whole name, if it is there.
    pub(crate) fn find(&self, key: &str) -> Option<usize> {
        self.keys.get(key).copied().flatten()
    }

    /// The whole names of the keys that were asked for.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.keys.keys().cloned().collect()
    }

    /// Everything that is wrong, or else what was made of the file, and where its values stand.
    pub(crate) fn finish<T>(mut self, made: impl FnOnce(Places) -> T) -> Result<T, Vec<Fault>> {
        for stray in std::mem::take(&mut self.strays) {
            let Stray { at, prefix, name, known } = stray;
            let whole = format!("{prefix}{name}");
            if name.contains('.') && self.keys.contains_key(&whole) {
                let help = "each part of it is a table in the one before".to_owned();
                self.fault(at, format!("unknown key `{whole}`, written as one word with dots"), Some(help));
                continue;
            }
            let beside = nearest(&name, known).map(|meant| format!("{prefix}{meant}"));
            let elsewhere = || self.keys.keys().find(|key| key.rsplit('.').next() == Some(&name)).cloned();
            let help = beside.or_else(elsewhere).map(|meant| format!("did you mean `{meant}`?"));
            self.fault(at, format!("unknown key `{whole}`"), help);
        }
        if self.faults.is_empty() {
            let place = |(key, at): (&String, &Option<usize>)| Some((key.clone(), self.place((*at)?)));
            return Ok(made(Places(self.keys.iter().filter_map(place).collect())));
        }
        self.faults.sort_by_key(|(at, _)| *at);
        Err(self.faults.into_iter().map(|(_, fault)| fault).collect())
    }

    fn place(&self, at: usize) -> (u64, u64) {
        json::line_and_column(self.text, at)
    }
}
