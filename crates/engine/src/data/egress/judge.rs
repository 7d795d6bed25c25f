//! What a session may reach: the rules of its release and of its organisation, and what no rule can allow.

use hyper::header::HeaderMap;
use karta_types::egress::{Method, Place, RequestPath, Rule};

use super::providers;

/// The rules that hold for a session or a build.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rules {
    /// What the release asks for.
    pub(crate) asked: Vec<Rule>,
    /// Where it asks, for people: "`[policy] egress` in karta.toml".
    pub(crate) asked_in: &'static str,
    /// What the organisation allows; none is whatever releases ask for.
    pub(crate) allowed: Option<Vec<Rule>>,
    /// What the organisation forbids.
    pub(crate) denied: Vec<Rule>,
    /// Whether everything public goes through and is only told: for development.
    pub(crate) observe: bool,
    /// Places where the server calls models.
    pub(crate) models: Vec<Place>,
}

/// What happens to a tunnel.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Tunnel {
    /// It goes on untouched; by which rule.
    Through(String),
    /// Each request in it is looked at.
    Look,
    /// It is refused.
    No(Refusal),
}

/// Why something is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// In words, after "… is refused: ".
    pub(super) why: String,
    /// The rule that says so.
    pub(super) rule: Option<String>,
}

impl Refusal {
    pub(super) fn of(why: impl Into<String>) -> Self {
        Self { why: why.into(), rule: None }
    }
}

/// Headers by which some servers take another method than the request's.
const METHODS: [&str; 3] = ["x-http-method-override", "x-http-method", "x-method-override"];
/// Headers by which some servers take another path.
const PATHS: [&str; 4] = ["x-original-url", "x-rewrite-url", "x-original-uri", "x-rewrite-uri"];
/// Headers by which some servers take another host.
const HOSTS: [&str; 3] = ["x-forwarded-host", "x-original-host", "x-host"];
/// As those, in a form of its own (RFC 7239).
const FORWARDED: [&str; 1] = ["forwarded"];

/// By which rule something goes through when everything does.
const OBSERVED: &str = "observe";

impl Rules {
    /// Whether requests are looked at somewhere.
    pub(super) fn looks(&self) -> bool {
        let partly = |rules: &[Rule]| rules.iter().any(|rule| !rule.is_whole());
        self.observe
            || partly(&self.asked)
            || partly(self.allowed.as_deref().unwrap_or_default())
            || partly(&self.denied)
    }

    /// What no rule can allow.
    fn never(&self, place: &Place) -> Option<Refusal> {
        providers::is_provider(place, &self.models)
            .then(|| Refusal::of("model calls go through the model gateway, never straight to a provider"))
    }

    /// A place, before any request is seen. `secret`: one is put in there, so that requests must be seen.
    pub(super) fn tunnel(&self, place: &Place, secret: bool) -> Tunnel {
        if let Some(refusal) = self.never(place) {
            return Tunnel::No(refusal);
        }
        if let Some(rule) = self.denied.iter().find(|rule| rule.is_whole() && rule.has(place)) {
            return Tunnel::No(denied(rule));
        }
        let asked: Vec<_> = self.asked.iter().filter(|rule| rule.has(place)).collect();
        if asked.is_empty() && !self.observe {
            return Tunnel::No(self.unasked());
        }
        let bound: Option<Vec<_>> =
            self.allowed.as_ref().map(|rules| rules.iter().filter(|rule| rule.has(place)).collect());
        if bound.as_ref().is_some_and(Vec::is_empty) {
            return Tunnel::No(unbound());
        }
        let whole = |rules: &[&Rule]| rules.iter().find(|rule| rule.is_whole()).map(ToString::to_string);
        let by = whole(&asked).or_else(|| self.observe.then(|| OBSERVED.to_owned()));
        let bounded = bound.is_none_or(|rules| whole(&rules).is_some());
        let watched = self.denied.iter().any(|rule| rule.has(place));
        match by {
            // What is observed is observed whole: the proposal names methods.
            Some(by) if bounded && !watched && !secret && by != OBSERVED => Tunnel::Through(by),
            _ => Tunnel::Look,
        }
    }

    /// A request. Answers the rule that lets it through.
    pub(super) fn request(&self, place: &Place, method: &str, path: &str) -> Result<String, Refusal> {
        if let Some(refusal) = self.never(place) {
            return Err(refusal);
        }
        let method =
            Method::read(method).ok_or_else(|| Refusal::of("its method is none that is let through"))?;
        let read = RequestPath::read(path);
        let path = read.as_ref().map_err(|why| *why);
        if let Some(rule) = self.denied.iter().find(|rule| rule.may_fit(place, &method, path)) {
            return Err(denied(rule));
        }
        let fits = |rules: &[Rule]| {
            rules.iter().find(|rule| rule.fits(place, &method, path)).map(ToString::to_string)
        };
        let by = fits(&self.asked).or_else(|| self.observe.then(|| OBSERVED.to_owned()));
        let Some(by) = by else {
            // A rule about paths would have been asked: why it could not be is worth knowing.
            return Err(match path {
                Err(why) if self.asked.iter().any(|rule| rule.has(place)) => Refusal::of(why),
                _ => self.unasked(),
            });
        };
        match &self.allowed {
            Some(rules) if fits(rules).is_none() => Err(unbound()),
            _ => Ok(by),
        }
    }

    /// A request with its headers: all that a server could take it for has to be let through. Answers the rule for what it says.
    pub(super) fn whole(
        &self,
        place: &Place,
        method: &str,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<String, Refusal> {
        let by = self.request(place, method, path)?;
        let odd = |name: &str, why: &str| Refusal::of(format!("its header `{name}` {why}"));
        let (mut methods, mut paths) = (vec![(method.to_owned(), "")], vec![(path.to_owned(), "")]);
        for (name, value) in said(headers, &METHODS) {
            methods.push((value.trim().to_ascii_uppercase(), name));
        }
        for (name, value) in said(headers, &PATHS) {
            paths.push((value.split('?').next().unwrap_or_default().to_owned(), name));
        }
        for (name, value) in said(headers, &HOSTS) {
            if !names(value, place) {
                return Err(odd(name, "names another host"));
            }
        }
        for (name, value) in said(headers, &FORWARDED) {
            if !forwarded(value, place) {
                return Err(odd(name, "names another host"));
            }
        }
        if methods.len() > 2 || paths.len() > 2 {
            return Err(Refusal::of("its headers ask for several methods or paths at once"));
        }
        for (method, by_method) in &methods {
            for (path, by_path) in &paths {
                let name = if by_path.is_empty() { by_method } else { by_path };
                if !name.is_empty() && self.request(place, method, path).is_err() {
                    return Err(odd(name, "asks for what is not let through"));
                }
            }
        }
        Ok(by)
    }

    fn unasked(&self) -> Refusal {
        Refusal::of(format!("{} does not name it", self.asked_in))
    }
}

/// Whether a header names the host of a place.
fn names(value: &str, place: &Place) -> bool {
    Place::read(value, Some(place.port)).is_some_and(|named| named.host == place.host)
}

/// Whether a header `Forwarded` names no other host than a place's. Every part of it that has to do with hosts must be one that can be
/// read in one way only, inside quotes too: servers read it in their own ways.
fn forwarded(value: &str, place: &Place) -> bool {
    !value.is_empty()
        && value.split([',', ';']).filter(|part| part.to_ascii_lowercase().contains("host")).all(|part| {
            let Some((key, host)) = part.split_once('=') else { return false };
            let host = host.trim();
            let host = host.strip_prefix('"').map_or(Some(host), |rest| rest.strip_suffix('"'));
            key.trim().eq_ignore_ascii_case("host") && host.is_some_and(|host| names(host, place))
        })
}

/// What headers of these names say; what is no text says nothing that could be let through.
fn said<'a>(headers: &'a HeaderMap, names: &[&'static str]) -> Vec<(&'static str, &'a str)> {
    let mut said = Vec::new();
    for &name in names {
        said.extend(headers.get_all(name).iter().map(|value| (name, value.to_str().unwrap_or_default())));
    }
    said
}

fn denied(rule: &Rule) -> Refusal {
    Refusal {
        why: "the organisation's policy forbids it (`karta policy show`)".to_owned(),
        rule: Some(rule.to_string()),
    }
}

fn unbound() -> Refusal {
    Refusal::of("the organisation's policy does not allow it (`karta policy show`)")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(list: &[&str]) -> Vec<Rule> {
        list.iter().map(|rule| Rule::parse(rule).unwrap()).collect()
    }

    fn asked(list: &[&str]) -> Rules {
        Rules { asked: rules(list), asked_in: "`[policy] egress` in karta.toml", ..Rules::default() }
    }

    fn tunnel(rules: &Rules, place: &str) -> &'static str {
        match rules.tunnel(&Place::read(place, Some(443)).unwrap(), false) {
            Tunnel::Through(_) => "through",
            Tunnel::Look => "look",
            Tunnel::No(_) => "no",
        }
    }

    fn goes(rules: &Rules, request: &str) -> bool {
        let (method, rest) = request.split_once(' ').unwrap();
        let (place, path) = rest.split_at(rest.find('/').unwrap());
        rules.request(&Place::read(place, Some(443)).unwrap(), method, path).is_ok()
    }

    #[test]
    fn nothing_goes_unasked() {
        let none = asked(&[]);
        assert_eq!(tunnel(&none, "a.example"), "no");
        assert!(!goes(&none, "GET a.example/"));
        let some = asked(&["a.example", "GET b.example/v1/*", "*.c.example"]);
        for (place, how) in
            [("a.example", "through"), ("b.example", "look"), ("x.c.example", "through"), ("c.example", "no")]
        {
            assert_eq!(tunnel(&some, place), how, "{place}");
        }
        assert!(goes(&some, "GET b.example/v1/x") && goes(&some, "DELETE a.example/any"));
        assert!(!goes(&some, "POST b.example/v1/x") && !goes(&some, "GET b.example/v1/../x"));
        assert!(!goes(&some, "CONNECT a.example/") && !goes(&some, "TRACE a.example/"));
        let place = Place::read("a.example:443", None).unwrap();
        assert_eq!(some.tunnel(&place, true), Tunnel::Look, "where a secret is put in, requests are seen");
    }

    #[test]
    fn the_organisation_bounds_what_releases_ask() {
        let mut some = asked(&["a.example", "b.example", "c.example"]);
        some.allowed = Some(rules(&["a.example", "GET b.example"]));
        assert_eq!((tunnel(&some, "a.example"), tunnel(&some, "b.example")), ("through", "look"));
        assert_eq!(tunnel(&some, "c.example"), "no");
        assert!(
            goes(&some, "GET b.example/")
                && !goes(&some, "POST b.example/")
                && !goes(&some, "GET c.example/")
        );
        some.denied = rules(&["a.example/admin/*", "b.example"]);
        assert_eq!((tunnel(&some, "a.example"), tunnel(&some, "b.example")), ("look", "no"));
        assert!(goes(&some, "GET a.example/x") && !goes(&some, "GET a.example/admin/x"));
        assert!(!goes(&some, "GET a.example/x/../admin/x"));
        some.allowed = Some(Vec::new());
        assert_eq!(tunnel(&some, "a.example"), "no");
    }

    #[test]
    fn providers_are_refused_whatever_a_rule_says() {
        let mut some = asked(&["api.anthropic.com", "*.googleapis.com", "*.amazonaws.com"]);
        some.observe = true;
        for place in
            ["api.anthropic.com", "us-aiplatform.googleapis.com", "bedrock-runtime.us-east-1.amazonaws.com"]
        {
            assert_eq!(tunnel(&some, place), "no", "{place}");
        }
        assert!(!goes(&some, "GET api.anthropic.com/v1/files"));
        assert_eq!(tunnel(&some, "storage.googleapis.com"), "through");
    }

    #[test]
    fn headers_ask_for_nothing_that_a_request_could_not() {
        let some = asked(&["GET,POST a.example/v1/*", "b.example"]);
        let goes = |request: &str, headers: &[(&'static str, &str)]| {
            let (method, rest) = request.split_once(' ').unwrap();
            let (place, path) = rest.split_at(rest.find('/').unwrap());
            let headers = headers
                .iter()
                .map(|(name, value)| (hyper::header::HeaderName::from_static(name), value.parse().unwrap()));
            let place = Place::read(place, Some(443)).unwrap();
            some.whole(&place, method, path, &headers.collect()).is_ok()
        };
        assert!(goes("POST a.example/v1/x", &[("x-other", "DELETE")]));
        assert!(goes("POST a.example/v1/x", &[("x-http-method-override", "get")]));
        assert!(goes("GET a.example/v1/x", &[("x-original-url", "/v1/y?z")]));
        assert!(goes("GET a.example/v1/x", &[("x-forwarded-host", "A.example:443")]));
        assert!(goes("GET a.example/v1/x", &[("x-original-uri", "/v1/y?z")]));
        assert!(goes("GET a.example/v1/x", &[("forwarded", "for=\"[2001:db8::1]:80\";proto=https")]));
        assert!(goes(
            "GET a.example/v1/x",
            &[("forwarded", "for=192.0.2.1; HOST=\"A.example:443\", host=a.example")]
        ));
        assert!(goes("POST b.example/x", &[("x-http-method-override", "DELETE"), ("x-rewrite-url", "/any")]));
        for headers in [
            &[("x-http-method-override", "DELETE")][..],
            &[("x-http-method", " delete ")],
            &[("x-method-override", "PATCH")],
            &[("x-http-method-override", "GET"), ("x-http-method-override", "DELETE")],
            &[("x-http-method-override", "GET"), ("x-method-override", "GET")],
            &[("x-original-url", "/admin")],
            &[("x-rewrite-url", "/v1/../admin")],
            &[("x-original-url", "https://a.example/v1/x")],
            &[("x-forwarded-host", "b.example")],
            &[("x-host", "a.example, b.example")],
            &[("x-original-uri", "/admin")],
            &[("x-rewrite-uri", "/v1/../admin")],
            &[("forwarded", "host=b.example")],
            &[("forwarded", "for=192.0.2.1;Host=\"b.example:443\"")],
            &[("forwarded", "host=a.example, for=192.0.2.1; host = b.example")],
            &[("forwarded", "host=a.example"), ("forwarded", "host=b.example")],
            &[("forwarded", "for=\"x;host=b.example\"")],
            &[("forwarded", "host=\"a.example,b.example\"")],
            &[("forwarded", "host=\"b\\.example\"")],
            &[("forwarded", "host=\u{e9}")],
        ] {
            assert!(!goes("POST a.example/v1/x", headers), "{headers:?}");
        }
        assert!(!goes("POST b.example/x", &[("x-forwarded-host", "a.example")]), "fronting by a header");
    }

    #[test]
    fn what_is_observed_is_let_through_and_seen() {
        let mut none = asked(&[]);
        none.observe = true;
        assert_eq!(tunnel(&none, "any.example"), "look");
        assert!(goes(&none, "GET any.example/x"));
        none.denied = rules(&["any.example"]);
        assert!(!goes(&none, "GET any.example/x"), "what the organisation forbids stays forbidden");
    }
}
