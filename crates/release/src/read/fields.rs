//! A table's keys, asked for one by one: what nobody asked for is unknown.

use karta_harness::nearest::nearest;

use super::document::{Document, Stray};
use super::node::{Key, Node, Value};

/// A table of a document.
pub(crate) struct Fields<'n> {
    /// The whole name of the table with its dot; empty at the top.
    prefix: String,
    entries: &'n [(Key, Node)],
    known: Vec<&'static str>,
}

impl<'n> Fields<'n> {
    /// The outermost table.
    pub(crate) const fn top(entries: &'n [(Key, Node)]) -> Self {
        Self { prefix: String::new(), entries, known: Vec::new() }
    }

    /// A table whose keys are known by this prefix, which ends with a dot.
    pub(crate) const fn below(prefix: String, entries: &'n [(Key, Node)]) -> Self {
        Self { prefix, entries, known: Vec::new() }
    }

    /// The entry of a key, which is known from now on.
    fn find(&mut self, name: &'static str) -> Option<&'n (Key, Node)> {
        self.known.push(name);
        self.entries.iter().find(|(key, _)| key.name == name)
    }

    /// The value of a key.
    fn get(&mut self, name: &'static str, document: &mut Document<'_>) -> Option<&'n Node> {
        let node = self.find(name).map(|(_, node)| node);
        document.keys.insert(self.whole(name), node.map(|node| node.at));
        node
    }

    fn whole(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// A table below; empty if it is not there.
    pub(crate) fn table(&mut self, name: &'static str, document: &mut Document<'_>) -> Self {
        let prefix = format!("{}{name}.", self.prefix);
        let entries = match self.find(name).map(|(_, node)| node) {
            None => &[][..],
            Some(Node { value: Value::Table(entries), .. }) => entries,
            Some(other) => {
                self.wrong(name, other, "a table", document);
                &[]
            }
        };
        Self { prefix, entries, known: Vec::new() }
    }

    /// Every entry, whatever its name: for tables whose keys are the person's own.
    pub(crate) fn all(&mut self, document: &mut Document<'_>) -> &'n [(Key, Node)] {
        for name in ["NAME", "NAME.hosts", "NAME.secret"] {
            document.keys.insert(self.whole(name), None);
        }
        std::mem::take(&mut self.entries)
    }

    /// A text, and where it stands.
    pub(crate) fn text(
        &mut self,
        name: &'static str,
        document: &mut Document<'_>,
    ) -> Option<(&'n str, usize)> {
        match self.get(name, document)? {
            Node { value: Value::Text(text), at } => Some((text, *at)),
            other => {
                self.wrong(name, other, "a text", document);
                None
            }
        }
    }

    /// `true` or `false`.
    pub(crate) fn flag(&mut self, name: &'static str, document: &mut Document<'_>) -> Option<bool> {
        match self.get(name, document)? {
            Node { value: Value::Flag(flag), .. } => Some(*flag),
            other => {
                self.wrong(name, other, "true or false", document);
                None
            }
        }
    }

    /// A whole number from 1 to `most`.
    pub(crate) fn number(
        &mut self,
        name: &'static str,
        most: u64,
        document: &mut Document<'_>,
    ) -> Option<u64> {
        let node = self.get(name, document)?;
        let Value::Whole(number) = &node.value else {
            self.wrong(name, node, "a whole number", document);
            return None;
        };
        let number = u64::try_from(*number).ok().filter(|number| (1..=most).contains(number));
        if number.is_none() {
            document.fault(node.at, format!("`{}` must be from 1 to {most}", self.whole(name)), None);
        }
        number
    }

    /// A list of texts, each with its place; `check` says what is wrong with one.
    pub(crate) fn texts(
        &mut self,
        name: &'static str,
        check: impl Fn(&str) -> Result<(), String>,
        document: &mut Document<'_>,
    ) -> Vec<String> {
        let Some(node) = self.get(name, document) else { return Vec::new() };
        let Value::List(items) = &node.value else {
            self.wrong(name, node, "a list of texts", document);
            return Vec::new();
        };
        let mut texts = Vec::new();
        for item in items {
            match &item.value {
                Value::Text(text) => match check(text) {
                    Ok(()) => texts.push(text.clone()),
                    Err(reason) => document.fault(item.at, format!("`{}`: {reason}", self.whole(name)), None),
                },
                _ => self.wrong(name, item, "a list of texts", document),
            }
        }
        texts
    }

    /// One of a few words.
    pub(crate) fn choice<T: Copy>(
        &mut self,
        name: &'static str,
        words: &[(&'static str, T)],
        document: &mut Document<'_>,
    ) -> Option<T> {
        let (text, at) = self.text(name, document)?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning);
        if found.is_none() {
            let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            let message = format!("`{}` must be one of {}, not `{text}`", self.whole(name), quoted(&known));
            document.fault(at, message, did_you_mean(text, &known));
        }
        found
    }

    /// A key that others know and this platform doesn't take: refused by name, with the reason.
    pub(crate) fn refuse(&mut self, name: &'static str, reason: &str, document: &mut Document<'_>) {
        if let Some((key, _)) = self.find(name) {
            document.fault(key.at, format!("`{}` is not taken: {reason}", self.whole(name)), None);
        }
    }

    /// Nothing more is asked: what is left is unknown.
    pub(crate) fn finish(self, document: &mut Document<'_>) {
        for (key, _) in self.entries.iter().filter(|(key, _)| !self.known.contains(&key.name.as_str())) {
            document.strays.push(Stray {
                at: key.at,
                prefix: self.prefix.clone(),
                name: key.name.clone(),
                known: self.known.clone(),
            });
        }
    }

    fn wrong(&self, name: &str, node: &Node, wanted: &str, document: &mut Document<'_>) {
        let message = format!("`{}` must be {wanted}, not {}", self.whole(name), node.value.name());
        document.fault(node.at, message, None);
    }
}

/// Words in a row, each in its quotes.
pub(crate) fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

/// The help for a word that is none of these.
pub(crate) fn did_you_mean(written: &str, known: &[&str]) -> Option<String> {
    nearest(written, known.iter().copied()).map(|meant| format!("did you mean `{meant}`?"))
}
