//! Values held to a schema: the part of JSON Schema that the schemas of harnesses use.
//!
//! A schema stands under a name in a file of them; `$ref` ends in such a name. What a schema says that is not known here is taken
//! for granted, so a value is never refused for a rule that nobody understood.

use serde_json::{Map, Value};

use crate::jsonc::Step;
use crate::nearest::nearest;

/// Something in a value that its schema doesn't have so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Breach {
    /// Where, from the outermost value.
    pub(crate) at: Vec<Step>,
    /// What.
    pub(crate) kind: Kind,
}

/// What is not as a schema has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The value: what it must be, and the word that was probably meant.
    Wrong(String, Option<String>),
    /// The key of the value, which no key is: and the one that was probably meant.
    Unknown(Option<String>),
}

impl Breach {
    /// The whole name of the key: `mcp.shop.command[0]`.
    pub(crate) fn name(&self) -> String {
        let part = |(index, step): (usize, &Step)| match step {
            Step::Index(index) => format!("[{index}]"),
            Step::Key(key) if index == 0 => key.clone(),
            Step::Key(key) => format!(".{key}"),
        };
        self.at.iter().enumerate().map(part).collect()
    }
}

/// Schemas by name.
pub(crate) struct Schemas(Map<String, Value>);

impl Schemas {
    /// Reads a file of schemas that is part of this crate; a test sees that it can be read.
    pub(crate) fn new(text: &str) -> Self {
        Self(serde_json::from_str(text).unwrap_or_default())
    }

    /// The schema of this name, to be changed.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// Adds a schema.
    pub(crate) fn add(&mut self, name: &str, schema: Value) {
        self.0.insert(name.to_owned(), schema);
    }

    /// Holds a value to the schema of this name.
    pub(crate) fn check(&self, name: &str, value: &Value) -> Vec<Breach> {
        let mut check = Check { schemas: self, at: Vec::new(), found: Vec::new() };
        if let Some(schema) = self.0.get(name) {
            check.value(schema, value);
        }
        check.found
    }

    fn resolve<'a>(&'a self, mut schema: &'a Value) -> &'a Value {
        while let Some(name) = schema.get("$ref").and_then(Value::as_str) {
            let name = name.rsplit('/').next().unwrap_or(name);
            match self.0.get(name) {
                Some(named) => schema = named,
                None => return &Value::Null,
            }
        }
        schema
    }
}

struct Check<'a> {
    schemas: &'a Schemas,
    at: Vec<Step>,
    found: Vec<Breach>,
}

impl<'a> Check<'a> {
    fn wrong(&mut self, must: impl Into<String>) {
        self.found.push(Breach { at: self.at.clone(), kind: Kind::Wrong(must.into(), None) });
    }

    fn below(&mut self, step: Step, schema: &'a Value, value: &Value) {
        self.at.push(step);
        self.value(schema, value);
        self.at.pop();
    }

    fn value(&mut self, schema: &'a Value, value: &Value) {
        let schema = self.schemas.resolve(schema);
        if let Some(branches) = schema.get("anyOf").and_then(Value::as_array) {
            return self.any(branches, value);
        }
        if !fits(schema, value) {
            let (wanted, is) = (self.described(schema), described(value));
            return self.wrong(format!("must be {wanted}, not {is}"));
        }
        match value {
            Value::Object(members) => self.object(schema, members),
            Value::Array(items) => self.array(schema, items),
            Value::Number(number) => self.number(schema, number.as_f64().unwrap_or_default()),
            Value::String(text) => self.text(schema, text),
            Value::Null | Value::Bool(_) => {}
        }
        if let Some(only) = schema.get("enum").and_then(Value::as_array)
            && !only.contains(value)
        {
            let words = only.iter().filter_map(Value::as_str);
            let meant = value.as_str().and_then(|word| nearest(word, words)).map(str::to_owned);
            let must = format!("must be {}, not {}", self.described(schema), shown(value));
            self.found.push(Breach { at: self.at.clone(), kind: Kind::Wrong(must, meant) });
        }
    }

    /// One of several: what is told is what is wrong with the one that it is most like.
    fn any(&mut self, branches: &'a [Value], value: &Value) {
        let tried = branches.iter().map(|branch| {
            let mut check = Check { schemas: self.schemas, at: self.at.clone(), found: Vec::new() };
            check.value(branch, value);
            check.found
        });
        let is_wrong = |breach: &&Breach| matches!(breach.kind, Kind::Wrong(..));
        let tried: Vec<_> = branches.iter().zip(tried).collect();
        if let Some((_, found)) =
            tried.iter().find(|(_, found)| !found.iter().any(|breach| is_wrong(&breach)))
        {
            self.found.extend(found.iter().cloned());
            return;
        }
        let like = tried.iter().filter(|(branch, _)| self.is_like(branch, value));
        match like.min_by_key(|(_, found)| found.iter().filter(is_wrong).count()) {
            Some((_, found)) if value.is_object() || value.is_array() => {
                self.found.extend(found.iter().cloned());
            }
            _ if value.is_object() && branches.iter().all(|branch| self.is_table(branch)) => {
                self.table(branches, value);
            }
            _ => {
                let mut all: Vec<String> = branches.iter().map(|branch| self.described(branch)).collect();
                all.dedup();
                self.wrong(format!("must be {}, not {}", all.join(", or "), shown(value)));
            }
        }
    }

    fn is_table(&self, schema: &'a Value) -> bool {
        self.schemas.resolve(schema).get("type").is_some_and(|kind| kind == "object")
    }

    /// A table that is like none of several: the word that would say which it is, or what it would be known by.
    fn table(&mut self, branches: &'a [Value], value: &Value) {
        let branches = || branches.iter().map(|branch| self.schemas.resolve(branch));
        let words = branches().filter_map(|branch| branch.pointer("/properties/type"));
        let words: Vec<Value> = words
            .flat_map(|word| match (word.get("enum").and_then(Value::as_array), word.get("const")) {
                (Some(words), _) => words.clone(),
                (None, one) => one.cloned().into_iter().collect(),
            })
            .collect();
        if let Some(said) = value.get("type").filter(|said| !words.contains(said)) {
            let (words, said) = (words.iter().map(shown).collect::<Vec<_>>().join(", "), shown(said));
            self.at.push(Step::Key("type".to_owned()));
            self.wrong(format!("must be one of {words}, not {said}"));
            self.at.pop();
            return;
        }
        let required = branches().filter_map(|branch| branch.get("required")?.as_array());
        let known = required.map(|keys| keys.iter().map(shown).collect::<Vec<_>>().join(" and "));
        let known = known.collect::<Vec<_>>().join(", or ");
        self.wrong(format!("lacks {known}"));
    }

    /// Whether a value is meant to be this: it is of its kind, and says so where kinds are told apart by a word.
    fn is_like(&self, branch: &'a Value, value: &Value) -> bool {
        let branch = self.schemas.resolve(branch);
        let word = |(key, schema): (&String, &Value)| {
            let said = value.get(key)?;
            let only = schema.get("enum").and_then(Value::as_array);
            let one = schema.get("const").is_none_or(|one| one == said);
            Some(one && only.is_none_or(|only| only.contains(said)))
        };
        let words = branch.get("properties").and_then(Value::as_object);
        let kind = words.and_then(|words| word((&"type".to_owned(), words.get("type")?)));
        // Without a word, what it must have shows what it is.
        let has = |key: &Value| key.as_str().is_some_and(|key| key == "type" || value.get(key).is_some());
        let required = branch.get("required").and_then(Value::as_array);
        fits(branch, value)
            && kind.unwrap_or_else(|| {
                required.is_none_or(|required| required.iter().any(|key| key != "type" && has(key)))
            })
    }

    fn object(&mut self, schema: &'a Value, members: &Map<String, Value>) {
        let none = Map::new();
        let known = schema.get("properties").and_then(Value::as_object);
        let names = || known.unwrap_or(&none).keys().map(String::as_str);
        for key in
            schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
        {
            if !members.contains_key(key) {
                self.wrong(format!("lacks `{key}`"));
            }
        }
        let allowed =
            schema.get("propertyNames").and_then(|names| names.get("enum")).and_then(Value::as_array);
        for (key, value) in members {
            let step = Step::Key(key.clone());
            if let Some(schema) = known.and_then(|known| known.get(key)) {
                self.below(step, schema, value);
                continue;
            }
            let meant = match (allowed, schema.get("additionalProperties")) {
                (Some(allowed), _) if !allowed.iter().any(|word| word == key) => {
                    nearest(key, allowed.iter().filter_map(Value::as_str))
                }
                (_, Some(Value::Object(_))) => {
                    let schema = &schema["additionalProperties"];
                    self.below(step, schema, value);
                    continue;
                }
                _ => nearest(key, names()),
            };
            let at = self.at.iter().cloned().chain([step]).collect();
            self.found.push(Breach { at, kind: Kind::Unknown(meant.map(str::to_owned)) });
        }
    }

    fn array(&mut self, schema: &'a Value, items: &[Value]) {
        let first = schema.get("prefixItems").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        for (index, item) in items.iter().enumerate() {
            if let Some(schema) = first.get(index).or_else(|| schema.get("items")) {
                self.below(Step::Index(index), schema, item);
            }
        }
        let length = |key: &str| schema.get(key).and_then(Value::as_u64);
        if length("minItems").is_some_and(|least| (items.len() as u64) < least)
            || length("maxItems").is_some_and(|most| items.len() as u64 > most)
        {
            self.wrong("has too few or too many items");
        }
    }

    fn number(&mut self, schema: &Value, number: f64) {
        let limit = |key: &str| schema.get(key).and_then(Value::as_f64);
        if limit("minimum").is_some_and(|least| number < least)
            || limit("exclusiveMinimum").is_some_and(|above| number <= above)
            || limit("maximum").is_some_and(|most| number > most)
        {
            self.wrong("is too small or too large a number");
        }
    }

    fn text(&mut self, schema: &Value, text: &str) {
        if schema.get("minLength").and_then(Value::as_u64).is_some_and(|least| (text.len() as u64) < least) {
            self.wrong("must not be empty");
        }
        let colour = schema.get("pattern").and_then(Value::as_str) == Some("^#[0-9a-fA-F]{6}$");
        let digits = || {
            text.strip_prefix('#')
                .is_some_and(|rest| rest.len() == 6 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
        };
        if colour && !digits() {
            self.wrong("must be a colour like `#FF5733`");
        }
    }

    /// What a schema asks for, in words.
    fn described(&self, schema: &Value) -> String {
        let schema = self.schemas.resolve(schema);
        if let Some(only) = schema.get("enum").and_then(Value::as_array) {
            let words: Vec<_> = only.iter().map(shown).collect();
            return if words.len() == 1 { words.concat() } else { format!("one of {}", words.join(", ")) };
        }
        if let Some(one) = schema.get("const") {
            return shown(one);
        }
        if let Some(branches) = schema.get("anyOf").and_then(Value::as_array) {
            let all: Vec<String> = branches.iter().map(|branch| self.described(branch)).collect();
            return all.join(", or ");
        }
        if schema.get("pattern").is_some() {
            return "a colour like `#FF5733`".to_owned();
        }
        let kinds: Vec<&str> = kinds(schema).map(word).collect();
        if kinds.is_empty() { "something else".to_owned() } else { kinds.join(", or ") }
    }
}

/// The types that a schema takes.
fn kinds(schema: &Value) -> impl Iterator<Item = &str> {
    let (one, many) = match schema.get("type") {
        Some(Value::String(one)) => (Some(one.as_str()), None),
        Some(Value::Array(many)) => (None, Some(many.iter().filter_map(Value::as_str))),
        _ => (None, None),
    };
    one.into_iter().chain(many.into_iter().flatten())
}

fn word(kind: &str) -> &str {
    match kind {
        "string" => "a text",
        "integer" => "a whole number",
        "number" => "a number",
        "boolean" => "true or false",
        "array" => "a list",
        "object" => "an object",
        other => other,
    }
}

/// Whether a value is of a schema's kind, whatever is in it.
fn fits(schema: &Value, value: &Value) -> bool {
    if let Some(one) = schema.get("const") {
        return one == value;
    }
    let fits = |kind: &str| match kind {
        "string" => value.is_string(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => true,
    };
    let mut kinds = kinds(schema).peekable();
    kinds.peek().is_none() || kinds.any(fits)
}

/// What a value is, in words.
fn described(value: &Value) -> String {
    match value {
        Value::Object(_) => "an object".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        scalar => shown(scalar),
    }
}

/// A value as it is shown: never a long one.
fn shown(value: &Value) -> String {
    const SHOWN: usize = 60;
    match value {
        Value::Object(_) | Value::Array(_) => described(value),
        Value::String(text) if text.chars().count() > SHOWN => "a longer text".to_owned(),
        Value::String(text) => format!("`{text}`"),
        Value::Null => "nothing".to_owned(),
        other => other.to_string(),
    }
}
