//! TOML as values with places.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::document::Document;
use super::node::{Key, Node, Value};

/// Reads a document. What can't be read is a fault of it.
pub(super) fn parse(document: &mut Document<'_>) -> Vec<(Key, Node)> {
    let (root, errors) = DeTable::parse_recoverable(document.text);
    for error in errors {
        let at = error.span().map_or(0, |span| span.start);
        document.fault(at, error.message().trim_end().replace('\n', ", "), None);
    }
    table(root.get_ref())
}

fn table(table: &DeTable<'_>) -> Vec<(Key, Node)> {
    let entry = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
        let name: &std::borrow::Cow<'_, str> = key.get_ref();
        (Key { at: key.span().start, name: name.clone().into_owned() }, node(value))
    };
    table.iter().map(entry).collect()
}

fn node(spanned: &Spanned<DeValue<'_>>) -> Node {
    let value = match spanned.get_ref() {
        DeValue::String(text) => Value::Text(text.clone().into_owned()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(Value::Other("a number too large"), Value::Whole),
        DeValue::Boolean(flag) => Value::Flag(*flag),
        DeValue::Float(_) => Value::Other("a number with a point"),
        DeValue::Datetime(_) => Value::Other("a date"),
        DeValue::Array(items) => Value::List(items.iter().map(node).collect()),
        DeValue::Table(entries) => Value::Table(table(entries)),
    };
    Node { at: spanned.span().start, value }
}
