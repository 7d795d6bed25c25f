//! The three types of a column, and a row of them.

use bytes::Bytes;

/// The type of a value that is not there; PostgreSQL wants to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Int,
    Text,
    Bytes,
}

/// A value of a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Null(Kind),
    Int(i64),
    Text(String),
    Bytes(Bytes),
}

macro_rules! from {
    ($($type:ty => $kind:ident, $make:expr;)*) => {$(
        impl From<$type> for Value {
            fn from(value: $type) -> Self {
                Self::$kind($make(value))
            }
        }

        impl From<Option<$type>> for Value {
            fn from(value: Option<$type>) -> Self {
                value.map_or(Self::Null(Kind::$kind), Into::into)
            }
        }
    )*};
}

from! {
    i64 => Int, std::convert::identity;
    String => Text, std::convert::identity;
    &str => Text, str::to_owned;
    Bytes => Bytes, std::convert::identity;
    Vec<u8> => Bytes, Bytes::from;
}

/// A row, its columns in order.
#[derive(Debug)]
pub(crate) struct Row(pub(super) Vec<Value>);

impl Row {
    pub(crate) fn get(&self, at: usize) -> Option<&Value> {
        self.0.get(at)
    }
}
