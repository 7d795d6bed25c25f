//! Secrets of a session's tools: inside there are placeholders, and what they stand for is put in here, only toward the hosts that each
//! is declared for, and taken out of what comes back.

use std::fmt::Write as _;

use base64::Engine as _;
use hyper::header::{self, HeaderMap, HeaderValue};
use karta_types::Secret;
use karta_types::egress::{Hosts, Place};

use super::swap::{Found, Needle, Swap};

/// What every placeholder begins with.
pub(crate) const PLACEHOLDER: &str = "karta_secret_";

/// A secret of a session.
#[derive(Debug, Clone)]
pub(crate) struct ToolSecret {
    /// The variable's name.
    pub(crate) name: String,
    /// What the variable holds inside.
    pub(crate) placeholder: String,
    /// Where it may go.
    pub(crate) hosts: Vec<Hosts>,
    /// What it is; none while nobody has set it.
    pub(crate) value: Option<Secret>,
}

/// All of a session's.
#[derive(Debug, Default)]
pub(super) struct Secrets(Vec<ToolSecret>);

/// How a text is written where a secret is put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// As it is.
    Plain,
    /// In a URL or a form.
    Escaped,
    /// In a string of JSON.
    Json,
}

impl Written {
    fn write(self, value: &str) -> Vec<u8> {
        match self {
            Self::Plain => value.as_bytes().to_vec(),
            Self::Escaped => escaped(value).into_bytes(),
            Self::Json => json(value).into_bytes(),
        }
    }

    /// How a body of this type is written; none if nothing is put into it.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let encoded = headers.get(header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity");
        let kind = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
        let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match kind.as_str() {
            _ if encoded => None,
            "application/x-www-form-urlencoded" => Some(Self::Escaped),
            "application/json" | "application/graphql" => Some(Self::Json),
            _ if kind.ends_with("+json") => Some(Self::Json),
            "multipart/form-data" | "application/xml" => Some(Self::Plain),
            _ if kind.starts_with("text/") || kind.ends_with("+xml") => Some(Self::Plain),
            _ => None,
        }
    }
}

/// What a secret must not do, in words.
pub(super) type Refused = String;

impl Secrets {
    pub(super) const fn new(all: Vec<ToolSecret>) -> Self {
        Self(all)
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The variables with their placeholders.
    pub(super) fn variables(&self) -> impl Iterator<Item = (String, String)> + '_ {
        self.0.iter().map(|secret| (secret.name.clone(), secret.placeholder.clone()))
    }

    /// Whether one may go to this place.
    pub(super) fn any_for(&self, place: &Place) -> bool {
        self.0.iter().any(|secret| secret.may_go(place))
    }

    /// Looks for placeholders in what goes to a place. `safe`: nobody can listen on the way.
    pub(super) fn going(&self, place: &Place, safe: bool, written: Option<Written>) -> Swap {
        let needle = |(of, secret): (usize, &ToolSecret)| {
            let value = secret.value.as_ref().filter(|_| safe && secret.may_go(place));
            let by = value.zip(written).map(|(value, written)| written.write(value.expose()));
            Needle { text: secret.placeholder.clone().into_bytes(), by, of }
        };
        Swap::new(self.0.iter().enumerate().map(needle).collect())
    }

    /// Looks for values in what comes from a place that they may have gone to.
    pub(super) fn coming(&self, place: &Place) -> Swap {
        let mut needles = Vec::new();
        for (of, secret) in self.0.iter().enumerate().filter(|(_, secret)| secret.may_go(place)) {
            let Some(value) = &secret.value else { continue };
            for written in [Written::Plain, Written::Escaped, Written::Json] {
                let text = written.write(value.expose());
                if needles.iter().all(|needle: &Needle| needle.text != text) {
                    needles.push(Needle { text, by: Some(secret.placeholder.clone().into_bytes()), of });
                }
            }
        }
        Swap::new(needles)
    }

    /// Why a placeholder that was found must not go on.
    pub(super) fn refusal(&self, found: &Found, place: &Place, safe: bool) -> Refused {
        let Some(secret) = self.0.get(found.0) else { return "it carries a secret".to_owned() };
        let name = &secret.name;
        if !secret.may_go(place) {
            let hosts: Vec<_> = secret.hosts.iter().map(ToString::to_string).collect();
            format!("it carries the secret `{name}`, which is declared for {} alone", hosts.join(", "))
        } else if secret.value.is_none() {
            format!("the secret `{name}` has no value: set it with `karta secrets set`")
        } else if !safe {
            format!("it carries the secret `{name}`, which goes over TLS only")
        } else {
            format!(
                "it carries the secret `{name}` where none is put in: in a body, only JSON, forms and texts of at most 1 MiB may"
            )
        }
    }

    /// Puts values into the headers of a request. Answers whether there was one to put in.
    pub(super) fn put_in(&self, headers: &mut HeaderMap, place: &Place, safe: bool) -> Result<bool, Refused> {
        let mut swap = self.going(place, safe, Some(Written::Plain));
        if swap.is_idle() {
            return Ok(false);
        }
        for (name, value) in headers.iter_mut() {
            let basic = if matches!(*name, header::AUTHORIZATION | header::PROXY_AUTHORIZATION) {
                value.to_str().ok().and_then(credentials)
            } else {
                None
            };
            let before = swap.swapped;
            swap.swapped = false;
            let plain = basic.as_deref().unwrap_or(value.as_bytes());
            let made = swap.whole(plain).map_err(|found| self.refusal(&found, place, safe))?;
            if swap.swapped {
                let made = if basic.is_some() {
                    let encoded = base64::engine::general_purpose::STANDARD.encode(&made);
                    format!("Basic {encoded}").into_bytes()
                } else {
                    made
                };
                *value = HeaderValue::from_bytes(&made).map_err(|_| {
                    format!(
                        "a secret can't be in the header `{name}`: it has characters that no header may have"
                    )
                })?;
                value.set_sensitive(true);
            }
            swap.swapped |= before;
        }
        Ok(swap.swapped)
    }

    /// Puts values into a path and query.
    pub(super) fn put_in_target(
        &self,
        target: &str,
        place: &Place,
        safe: bool,
    ) -> Result<(String, bool), Refused> {
        let mut swap = self.going(place, safe, Some(Written::Escaped));
        let made = swap.whole(target.as_bytes()).map_err(|found| self.refusal(&found, place, safe))?;
        let made = String::from_utf8(made).map_err(|_| "its target is no text".to_owned())?;
        Ok((made, swap.swapped))
    }

    /// Takes values out of the headers of an answer.
    pub(super) fn take_out(&self, headers: &mut HeaderMap, place: &Place) {
        let mut swap = self.coming(place);
        if swap.is_idle() {
            return;
        }
        let mut spoilt = Vec::new();
        for (name, value) in headers.iter_mut() {
            // Nothing is refused on the way back.
            match swap.whole(value.as_bytes()).map(|made| HeaderValue::from_bytes(&made)) {
                Ok(Ok(made)) => *value = made,
                _ => spoilt.push(name.clone()),
            }
        }
        for name in spoilt {
            headers.remove(name);
        }
    }
}

impl ToolSecret {
    fn may_go(&self, place: &Place) -> bool {
        self.hosts.iter().any(|hosts| hosts.has(place))
    }
}

/// What `Basic` credentials say.
fn credentials(value: &str) -> Option<Vec<u8>> {
    let (scheme, encoded) = value.split_once(' ')?;
    let encoded = encoded.trim();
    scheme
        .eq_ignore_ascii_case("basic")
        .then(|| base64::engine::general_purpose::STANDARD.decode(encoded).ok())
        .flatten()
}

fn escaped(value: &str) -> String {
    value.bytes().fold(String::new(), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            text.push(char::from(byte));
        } else {
            // Writing to a text never fails.
            let _ = write!(text, "%{byte:02X}");
        }
        text
    })
}

fn json(value: &str) -> String {
    let quoted = serde_json::Value::from(value).to_string();
    quoted.get(1..quoted.len() - 1).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUE: &str = "sk \"live\"/é+1";

    fn secrets() -> Secrets {
        Secrets::new(vec![ToolSecret {
            name: "TOOL_KEY".into(),
            placeholder: format!("{PLACEHOLDER}00ff"),
            hosts: vec![Hosts::parse("api.example.com").unwrap()],
            value: Some(Secret::new(VALUE.to_owned())),
        }])
    }

    fn place(text: &str) -> Place {
        Place::read(text, Some(443)).unwrap()
    }

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        list.iter()
            .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap()))
            .collect()
    }

    #[test]
    fn a_value_goes_only_where_it_may() {
        let secrets = secrets();
        let with = || headers(&[("x-key", "karta_secret_00ff"), ("x-other", "1")]);
        let mut there = with();
        assert_eq!(secrets.put_in(&mut there, &place("api.example.com"), true), Ok(true));
        assert_eq!(there["x-key"].as_bytes(), VALUE.as_bytes());
        for (host, safe, part) in
            [("other.example.com", true, "api.example.com alone"), ("api.example.com", false, "TLS only")]
        {
            let why = secrets.put_in(&mut with(), &place(host), safe).unwrap_err();
            assert!(why.contains(part) && !why.contains("live"), "{why}");
        }
        let mut none = headers(&[("x-key", "karta_secret_other")]);
        assert_eq!(secrets.put_in(&mut none, &place("other.example.com"), true), Ok(false));
    }

    #[test]
    fn basic_credentials_are_looked_into() {
        let secrets = secrets();
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let basic = format!("basic {}", encode("me:karta_secret_00ff"));
        let mut there = headers(&[("authorization", &basic)]);
        assert_eq!(secrets.put_in(&mut there, &place("api.example.com"), true), Ok(true));
        assert_eq!(there["authorization"], format!("Basic {}", encode(&format!("me:{VALUE}"))));
        assert!(
            secrets.put_in(&mut headers(&[("authorization", &basic)]), &place("b.example"), true).is_err()
        );
    }

    #[test]
    fn a_value_is_written_as_its_place_wants_it() {
        let secrets = secrets();
        let (target, put) =
            secrets.put_in_target("/x?key=karta_secret_00ff&a=1", &place("api.example.com"), true).unwrap();
        assert_eq!((target.as_str(), put), ("/x?key=sk%20%22live%22%2F%C3%A9%2B1&a=1", true));
        let body = |kind, text: &str| {
            let written = Written::of(&headers(&[("content-type", kind)]));
            secrets.going(&place("api.example.com"), true, written).whole(text.as_bytes())
        };
        let made = body("application/json; charset=utf-8", r#"{"key":"karta_secret_00ff"}"#).unwrap();
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&made).unwrap()["key"], VALUE);
        assert_eq!(body("text/plain", "karta_secret_00ff").unwrap(), VALUE.as_bytes());
        assert_eq!(body("application/octet-stream", "karta_secret_00ff"), Err(Found(0)));
    }

    #[test]
    fn a_value_that_comes_back_is_taken_out() {
        let secrets = secrets();
        let mut back =
            headers(&[("x-echo", &format!("<{VALUE}>")), ("location", "/?k=sk%20%22live%22%2F%C3%A9%2B1")]);
        secrets.take_out(&mut back, &place("api.example.com"));
        assert_eq!(
            (&back["x-echo"], &back["location"]),
            (&"<karta_secret_00ff>".parse().unwrap(), &"/?k=karta_secret_00ff".parse().unwrap())
        );
        let text = format!("{} {VALUE}", serde_json::Value::from(VALUE));
        let out = secrets.coming(&place("api.example.com")).whole(text.as_bytes()).unwrap();
        assert_eq!(out, b"\"karta_secret_00ff\" karta_secret_00ff");
    }
}
