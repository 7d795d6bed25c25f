//! A value and where it stands.

/// A value. Places are bytes from the text's beginning.
pub(crate) struct Node {
    pub(crate) at: usize,
    pub(crate) value: Value,
}

/// What a value is.
pub(crate) enum Value {
    Text(String),
    Whole(i64),
    Flag(bool),
    List(Vec<Node>),
    Table(Vec<(Key, Node)>),
    /// Something that no key takes, by its name: `a date`.
    Other(&'static str),
}

/// A key of a table.
pub(crate) struct Key {
    pub(crate) at: usize,
    pub(crate) name: String,
}

impl Value {
    /// What it is, in words.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Text(_) => "a text",
            Self::Whole(_) => "a whole number",
            Self::Flag(_) => "true or false",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
            Self::Other(name) => name,
        }
    }
}
