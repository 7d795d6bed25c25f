//! Rules of `[policy] egress`: `[METHOD[,METHOD…] ]host[:port][/path]`.

use std::collections::BTreeSet;
use std::fmt;

use super::host::{Hosts, Place};
use super::path::{Paths, RequestPath};

/// The longest rule.
const LONGEST: usize = 1024;

/// What a request does: a word in capital letters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Method(String);

impl Method {
    /// Reads a method. `CONNECT` and `TRACE` are none that a rule or a request inside a tunnel may have.
    pub fn read(text: &str) -> Option<Self> {
        let plain = (1..=32).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-')
            && !text.starts_with('-');
        (plain && !matches!(text, "CONNECT" | "TRACE")).then(|| Self(text.to_owned()))
    }

    /// The word.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What may be reached, or what may not.
///
/// - `api.example.com`: the host, on ports 80 and 443; `api.example.com:8443`: on this port; `*.example.com`: every host below.
/// - `GET api.example.com`, `GET,POST api.example.com`: only by these methods.
/// - `api.example.com/v1/*`: only what lies below; `/v1/*/content`: any one segment; `/v1/files`: this path alone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    methods: BTreeSet<Method>,
    hosts: Hosts,
    paths: Option<Paths>,
}

impl Rule {
    /// Reads a rule.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > LONGEST {
            return Err(format!("a rule has at most {LONGEST} characters"));
        }
        if text.contains("://") {
            return Err(format!("`{text}`: leave the scheme out, as in `api.example.com/v1/*`"));
        }
        let (words, rest) = text.split_once(' ').map_or((None, text), |(words, rest)| (Some(words), rest));
        let mut methods = BTreeSet::new();
        for word in words.into_iter().flat_map(|words| words.split(',')) {
            let method = Method::read(word).ok_or_else(|| {
                format!("`{text}`: `{word}` is no method; write them as in `GET,POST host`")
            })?;
            if !methods.insert(method) {
                return Err(format!("`{text}` names `{word}` twice"));
            }
        }
        let (hosts, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let hosts = Hosts::parse(hosts)?;
        let paths = if path.is_empty() { None } else { Some(Paths::parse(path)?) };
        Ok(Self { methods, hosts, paths })
    }

    /// Whether it is about this place, by whatever request.
    pub fn has(&self, place: &Place) -> bool {
        self.hosts.has(place)
    }

    /// Whether a place is all that it looks at: no request needs to be seen for it.
    pub fn is_whole(&self) -> bool {
        self.methods.is_empty() && self.looks_at_no_path()
    }

    fn looks_at_no_path(&self) -> bool {
        self.paths.as_ref().is_none_or(Paths::is_all)
    }

    /// Whether a request fits. A path that servers could read in several ways fits no rule about paths.
    pub fn fits(&self, place: &Place, method: &Method, path: Result<&RequestPath, &'static str>) -> bool {
        self.has(place)
            && (self.methods.is_empty() || self.methods.contains(method))
            && (self.looks_at_no_path()
                || path.is_ok_and(|path| self.paths.as_ref().is_none_or(|paths| paths.fit(path))))
    }

    /// Whether a request fits, or could: for what is not to be reached.
    pub fn may_fit(&self, place: &Place, method: &Method, path: Result<&RequestPath, &'static str>) -> bool {
        self.has(place)
            && (self.methods.is_empty() || self.methods.contains(method))
            && (self.looks_at_no_path()
                || path.map_or(true, |path| self.paths.as_ref().is_none_or(|paths| paths.fit(path))))
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, method) in self.methods.iter().enumerate() {
            write!(f, "{}{method}", if index > 0 { "," } else { "" })?;
        }
        if !self.methods.is_empty() {
            f.write_str(" ")?;
        }
        write!(f, "{}", self.hosts)?;
        self.paths.as_ref().map_or(Ok(()), |paths| write!(f, "{paths}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fits(rule: &str, method: &str, place: &str, path: &str) -> bool {
        let path = RequestPath::read(path);
        let path = path.as_ref().map_err(|why| *why);
        Rule::parse(rule).unwrap().fits(
            &Place::read(place, None).unwrap(),
            &Method::read(method).unwrap(),
            path,
        )
    }

    #[test]
    fn rules_allow_what_they_say() {
        assert!(fits("a.example", "POST", "a.example:443", "/x"));
        assert!(fits("GET a.example/*", "GET", "a.example:443", "/@s%2fname"), "`/*` looks at no path");
        assert!(fits("GET,POST api.example:8443/v1/*", "POST", "api.example:8443", "/v1/x"));
        for (method, place, path) in [
            ("PUT", "api.example:8443", "/v1/x"),
            ("GET", "api.example:443", "/v1/x"),
            ("GET", "api.example:8443", "/v2/x"),
            ("GET", "api.example:8443", "/v1/../v2"),
            ("GET", "api.example.evil:8443", "/v1/x"),
        ] {
            assert!(!fits("GET,POST api.example:8443/v1/*", method, place, path), "{method} {place} {path}");
        }
        assert!(
            Rule::parse("a.example").unwrap().is_whole() && Rule::parse("a.example/*").unwrap().is_whole()
        );
        assert!(!Rule::parse("GET a.example").unwrap().is_whole());
        assert!(!Rule::parse("a.example/v1").unwrap().is_whole());
    }

    #[test]
    fn what_is_forbidden_is_so_however_it_is_written() {
        let rule = Rule::parse("a.example/admin/*").unwrap();
        let place = Place::read("a.example:443", None).unwrap();
        let get = Method::read("GET").unwrap();
        for (path, forbidden) in [
            ("/admin/x", true),
            ("/x/../admin/x", true),
            ("/%61dmin/x", true),
            ("/x%2fadmin", true),
            ("/x", false),
        ] {
            let read = RequestPath::read(path);
            assert_eq!(rule.may_fit(&place, &get, read.as_ref().map_err(|why| *why)), forbidden, "{path}");
        }
    }

    #[test]
    fn what_is_no_rule_is_told() {
        for (text, part) in [
            ("https://a.example", "scheme"),
            ("get a.example", "no method"),
            ("GET, POST a.example", "no method"),
            ("GET,GET a.example", "twice"),
            ("CONNECT a.example", "no method"),
            ("GET  a.example", "must be"),
            (" a.example", "no method"),
            ("a.example ", "no method"),
            ("user@a.example", "must be"),
            ("a.example/x?y", "query"),
            ("a.example/../x", "several ways"),
            ("A.example", "lower case"),
            ("[::1]/x", "must be"),
            ("*", "must be"),
            ("", "must be"),
        ] {
            let why = Rule::parse(text).unwrap_err();
            assert!(why.contains(part), "{text}: {why}");
        }
    }

    proptest! {
        #[test]
        fn a_rule_reads_again_as_it_was(text in "((GET|POST|PUT)(,DELETE)? )?(\\*\\.)?[a-z]{1,4}\\.[a-z]{2,3}(:[1-9][0-9]{0,3})?(/[a-z]{1,3}|/\\*){0,4}") {
            let rule = Rule::parse(&text).unwrap();
            prop_assert_eq!(Rule::parse(&rule.to_string()).unwrap(), rule);
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,60}") {
            let _ = Rule::parse(&text);
        }
    }
}
