//! What was decided about requests, and the rules that a recorded run would need.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Host, Method};

/// The longest path that is told.
const PATH: usize = 200;

/// What was decided about a request, and how often.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Decision {
    /// Whether it went on.
    pub allowed: bool,
    /// What it would do; none for a tunnel that is not looked into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Where to.
    pub host: String,
    /// On which port.
    pub port: u16,
    /// Its path without the query, cut; none for a tunnel that is not looked into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The rule that let it through or kept it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Why it was refused, or what is to be known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// How often since it was last told.
    pub count: u64,
}

impl Decision {
    /// A path as it is told: without its query, cut.
    pub fn shown_path(path: &str) -> String {
        let path = path.split(['?', '#']).next().unwrap_or_default();
        let shown: String = path.chars().filter(|letter| !letter.is_control()).take(PATH).collect();
        if shown.len() < path.len() { format!("{shown}…") } else { shown }
    }
}

/// What a session reached, as its events tell.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Record {
    /// What was decided, each once with how often.
    pub decisions: Vec<Decision>,
    /// The rules of `[policy] egress` that what was let through needs.
    pub rules: Vec<String>,
    /// Whether nothing is missing: events that are past their time are gone, and only so much is listed.
    pub complete: bool,
}

/// The rules of `[policy] egress` that what was seen needs: a line for each host, with the methods where they are known. Paths are left
/// out: what one run asked for says little of what the next will.
pub fn propose<'a>(seen: impl IntoIterator<Item = &'a Decision>) -> Vec<String> {
    let mut places: BTreeMap<(String, Option<u16>), Option<BTreeSet<String>>> = BTreeMap::new();
    for one in seen.into_iter().filter(|one| one.allowed) {
        let Some(host) = Host::exact(&one.host) else { continue };
        let port = Some(one.port).filter(|port| !matches!(port, 80 | 443));
        let methods = places.entry((host.to_string(), port)).or_insert_with(|| Some(BTreeSet::new()));
        match one.method.as_deref().and_then(Method::read) {
            // A tunnel that nobody looked into: whatever went through it needs the whole host.
            None => *methods = None,
            Some(method) => {
                if let Some(methods) = methods {
                    methods.insert(method.to_string());
                }
            }
        }
    }
    let line = |((host, port), methods): ((String, Option<u16>), Option<BTreeSet<String>>)| {
        let methods: Vec<_> = methods.unwrap_or_default().into_iter().collect();
        let before = if methods.is_empty() { String::new() } else { format!("{} ", methods.join(",")) };
        let port = port.map_or_else(String::new, |port| format!(":{port}"));
        format!("{before}{host}{port}")
    };
    places.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Rule;
    use super::*;

    fn seen(allowed: bool, method: Option<&str>, host: &str, port: u16) -> Decision {
        let (method, path) = (method.map(str::to_owned), method.map(|_| "/x".to_owned()));
        Decision { allowed, method, host: host.to_owned(), port, path, rule: None, why: None, count: 1 }
    }

    #[test]
    fn a_run_proposes_what_it_used() {
        let run = [
            seen(true, None, "b.example", 443),
            seen(true, Some("GET"), "b.example", 80),
            seen(true, Some("POST"), "a.example", 8443),
            seen(true, Some("GET"), "a.example", 8443),
            seen(false, None, "refused.example", 443),
            seen(true, None, "not\na host", 443),
        ];
        let lines = propose(&run);
        assert_eq!(lines, ["GET,POST a.example:8443", "b.example"]);
        assert!(lines.iter().all(|line| Rule::parse(line).is_ok()));
    }

    #[test]
    fn a_query_is_never_told() {
        assert_eq!(Decision::shown_path("/a?token=secret"), "/a");
        assert_eq!(Decision::shown_path(&format!("/{}", "x".repeat(400))).chars().count(), PATH + 1);
    }
}
