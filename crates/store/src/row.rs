//! Reading rows: by position, with the column's name only for the error.

use std::str::FromStr;

use bytes::Bytes;
use karta_types::usage::Metered;
use karta_types::{Micros, Timestamp, Usage};
use serde::de::DeserializeOwned;

use crate::sql::{Row, Value};
use crate::{Error, Result};

/// A row that is read from left to right.
pub(crate) struct Reader<'a> {
    row: &'a Row,
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(row: &'a Row) -> Self {
        Self { row, at: 0 }
    }

    fn next(&mut self, name: &'static str) -> Result<&'a Value> {
        let value = self.row.get(self.at).ok_or(Error::Corrupt(name));
        self.at += 1;
        value
    }

    pub(crate) fn text(&mut self, name: &'static str) -> Result<String> {
        self.maybe_text(name)?.ok_or(Error::Corrupt(name))
    }

    pub(crate) fn maybe_text(&mut self, name: &'static str) -> Result<Option<String>> {
        match self.next(name)? {
            Value::Text(text) => Ok(Some(text.clone())),
            Value::Null(_) => Ok(None),
            _ => Err(Error::Corrupt(name)),
        }
    }

    pub(crate) fn int(&mut self, name: &'static str) -> Result<i64> {
        self.maybe_int(name)?.ok_or(Error::Corrupt(name))
    }

    pub(crate) fn maybe_int(&mut self, name: &'static str) -> Result<Option<i64>> {
        match self.next(name)? {
            Value::Int(number) => Ok(Some(*number)),
            Value::Null(_) => Ok(None),
            _ => Err(Error::Corrupt(name)),
        }
    }

    pub(crate) fn bytes(&mut self, name: &'static str) -> Result<Bytes> {
        self.maybe_bytes(name)?.ok_or(Error::Corrupt(name))
    }

    pub(crate) fn maybe_bytes(&mut self, name: &'static str) -> Result<Option<Bytes>> {
        match self.next(name)? {
            Value::Bytes(bytes) => Ok(Some(bytes.clone())),
            Value::Null(_) => Ok(None),
            _ => Err(Error::Corrupt(name)),
        }
    }

    pub(crate) fn count(&mut self, name: &'static str) -> Result<u64> {
        u64::try_from(self.int(name)?).map_err(|_| Error::Corrupt(name))
    }

    pub(crate) fn maybe_count(&mut self, name: &'static str) -> Result<Option<u64>> {
        self.maybe_int(name)?.map(|value| u64::try_from(value).map_err(|_| Error::Corrupt(name))).transpose()
    }

    pub(crate) fn time(&mut self, name: &'static str) -> Result<Timestamp> {
        self.int(name).map(Timestamp::from_micros)
    }

    pub(crate) fn maybe_time(&mut self, name: &'static str) -> Result<Option<Timestamp>> {
        Ok(self.maybe_int(name)?.map(Timestamp::from_micros))
    }

    /// Something that is kept as its text.
    pub(crate) fn parsed<T: FromStr>(&mut self, name: &'static str) -> Result<T> {
        self.text(name)?.parse().map_err(|_| Error::Corrupt(name))
    }

    pub(crate) fn maybe_parsed<T: FromStr>(&mut self, name: &'static str) -> Result<Option<T>> {
        self.maybe_text(name)?.map(|text| text.parse().map_err(|_| Error::Corrupt(name))).transpose()
    }

    /// Something that is kept as JSON.
    pub(crate) fn json<T: DeserializeOwned>(&mut self, name: &'static str) -> Result<T> {
        serde_json::from_str(&self.text(name)?).map_err(|_| Error::Corrupt(name))
    }

    pub(crate) fn maybe_json<T: DeserializeOwned>(&mut self, name: &'static str) -> Result<Option<T>> {
        let text = self.maybe_text(name)?;
        text.map(|text| serde_json::from_str(&text).map_err(|_| Error::Corrupt(name))).transpose()
    }

    /// Five columns: input, output, cache read, cache write, cost.
    pub(crate) fn metered(&mut self) -> Result<Metered> {
        let usage = Usage {
            input_tokens: self.count("input_tokens")?,
            output_tokens: self.count("output_tokens")?,
            cache_read_tokens: self.count("cache_read_tokens")?,
            cache_write_tokens: self.count("cache_write_tokens")?,
        };
        Ok(Metered::new(&usage, Micros::new(self.int("cost_micros")?)))
    }
}

/// A number for a BIGINT; counts beyond its range stick at its end.
pub(crate) fn big(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A value as JSON text.
pub(crate) fn json<T: serde::Serialize>(value: &T) -> String {
    // Our own plain data: there is nothing in it that JSON can't say.
    serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned())
}
