//! Names of hosts. One host has one spelling here: what could be read as another host by whoever resolves it is no host.

use std::fmt;
use std::net::Ipv4Addr;

/// The longest name, as the DNS has it.
const LONGEST: usize = 253;

/// A host's name, in its one spelling: lower case, without a dot at its end. Names beyond ASCII are written as the DNS has them
/// (`xn--…`). An address is IPv4 in its usual form, and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host(String);

impl Host {
    /// Reads the host of a request: upper case and one dot at the end are taken off, nothing else is mended.
    pub fn read(text: &str) -> Option<Self> {
        let text = text.strip_suffix('.').unwrap_or(text);
        let lower = text.to_ascii_lowercase();
        is_host(&lower).then_some(Self(lower))
    }

    /// Reads a host as rules write it: in its one spelling.
    pub fn exact(text: &str) -> Option<Self> {
        is_host(text).then(|| Self(text.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is an address and not a name.
    pub fn is_address(&self) -> bool {
        self.0.parse::<Ipv4Addr>().is_ok()
    }

    /// Whether it lies below a domain: `a.example.com` below `example.com`.
    pub fn is_below(&self, domain: &Self) -> bool {
        !self.is_address() && self.0.strip_suffix(&domain.0).is_some_and(|below| below.ends_with('.'))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `_` is in no host name but in many a DNS name that is used as one.
fn is_label(label: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    (1..=63).contains(&label.len())
        && label.bytes().all(inner)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

fn is_host(text: &str) -> bool {
    if text.len() > LONGEST || !text.split('.').all(is_label) {
        return false;
    }
    // Resolvers read numbers in many forms (`127.1`, `0x7f.1`, `2130706433`) as addresses: of them only the usual one is a host.
    let last = text.rsplit('.').next().unwrap_or_default();
    let number = last.bytes().all(|byte| byte.is_ascii_digit())
        || last.strip_prefix("0x").is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_hexdigit()));
    !number || text.parse::<Ipv4Addr>().is_ok()
}

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The host.
    pub host: Host,
    /// The port.
    pub port: u16,
}

impl Place {
    /// Reads `host` or `host:port` as requests have it. Whatever else an authority may hold (a user, an IPv6 address) is refused.
    pub fn read(authority: &str, default: Option<u16>) -> Option<Self> {
        let (host, port) = split(authority)?;
        Some(Self { host: Host::read(host)?, port: port.or(default)? })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// The host, and the port if there is one.
fn split(authority: &str) -> Option<(&str, Option<u16>)> {
    match authority.split_once(':') {
        None => Some((authority, None)),
        Some((host, port)) => {
            let plain = !port.is_empty() && port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit());
            let port = port.parse::<u16>().ok().filter(|port| plain && *port > 0)?;
            Some((host, Some(port)))
        }
    }
}

/// The hosts that a rule is about: `host`, `host:port`, `*.domain`, `*.domain:port`. Without a port it is 80 and 443.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hosts {
    below: bool,
    host: Host,
    port: Option<u16>,
}

impl Hosts {
    /// Reads it as rules write it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` must be `host`, `host:port` or `*.domain`, in lower case, names beyond ASCII as `xn--…`"
            )
        };
        let (name, port) = split(text).ok_or_else(wrong)?;
        let (below, name) = name.strip_prefix("*.").map_or((false, name), |domain| (true, domain));
        let host = Host::exact(name).ok_or_else(wrong)?;
        if below && (host.is_address() || !name.contains('.')) {
            return Err(format!(
                "`{text}` would be every host of `.{name}`: name the domain, as in `*.example.com`"
            ));
        }
        Ok(Self { below, host, port })
    }

    /// Whether a place is among them.
    pub fn has(&self, place: &Place) -> bool {
        let host = if self.below { place.host.is_below(&self.host) } else { place.host == self.host };
        host && self.port.map_or(matches!(place.port, 80 | 443), |port| port == place.port)
    }
}

impl fmt::Display for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let below = if self.below { "*." } else { "" };
        write!(f, "{below}{}", self.host)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_host_has_one_spelling() {
        for (text, host) in [
            ("Example.COM", "example.com"),
            ("example.com.", "example.com"),
            ("localhost", "localhost"),
            ("8.8.8.8", "8.8.8.8"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("_dmarc.example.com", "_dmarc.example.com"),
        ] {
            assert_eq!(Host::read(text).unwrap().as_str(), host, "{text}");
        }
        for text in [
            "",
            ".",
            "example.com..",
            ".example.com",
            "a..b",
            "[::1]",
            "::1",
            "127.1",
            "0x7f.0.0.1",
            "0x7f000001",
            "2130706433",
            "0177.0.0.1",
            "127.0.0.01",
            "1.2.3.4.5",
            "256.1.1.1",
            "bücher.example",
            "a b",
            "a\0b",
            "a%2eb",
            "user@host",
            "a/b",
            "a\\b",
            "-a.b",
            "a-.b",
            "a,b",
            "a?b",
            "a#b",
            "ⓔxample.com",
            "example。com",
        ] {
            assert_eq!(Host::read(text), None, "{text}");
        }
        assert_eq!(Host::exact("Example.com"), None);
        assert_eq!(Host::exact("example.com."), None);
    }

    #[test]
    fn an_authority_is_a_host_and_a_port() {
        let read = |text| Place::read(text, Some(80)).map(|place| place.to_string());
        assert_eq!(read("A.example").as_deref(), Some("a.example:80"));
        assert_eq!(read("a.example:8443").as_deref(), Some("a.example:8443"));
        for text in ["a:", "a:0", "a:+1", "a:70000", "a:1:2", "u@a:1", "[::1]:80", "a: 1", "a:0000080", ":80"]
        {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(Place::read("a.example", None), None);
    }

    #[test]
    fn patterns_name_what_they_name() {
        let has =
            |rule: &str, place: &str| Hosts::parse(rule).unwrap().has(&Place::read(place, None).unwrap());
        assert!(has("a.example", "a.example:443") && has("a.example", "A.EXAMPLE.:80"));
        assert!(!has("a.example", "a.example:22") && !has("a.example", "b.a.example:443"));
        assert!(has("b.example:8080", "b.example:8080") && !has("b.example:8080", "b.example:443"));
        assert!(has("*.c.example", "x.c.example:443") && has("*.c.example", "x.y.c.example:80"));
        for not in ["c.example:443", "xc.example:443", "x.c.example.evil:443", "evil-c.example:443"] {
            assert!(!has("*.c.example", not), "{not}");
        }
        for bad in [
            "",
            "*",
            "*.",
            "*.com",
            "a.*.example",
            "*a.example",
            "*.10.0.0.1",
            "A.example",
            "a.example.",
            "https://a",
            "a/b",
        ] {
            assert!(Hosts::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_reads_again_the_same(text in "\\PC{0,40}") {
            if let Some(host) = Host::read(&text) {
                prop_assert_eq!(Host::exact(host.as_str()), Some(host.clone()));
                prop_assert!(host.as_str().is_ascii());
            }
            if let Ok(hosts) = Hosts::parse(&text) {
                prop_assert_eq!(hosts.to_string(), text);
            }
        }

        #[test]
        fn no_other_name_is_below(name in "[a-z.-]{0,12}", domain in "[a-z]{1,5}\\.[a-z]{2,4}") {
            let rule = Hosts::parse(&format!("*.{domain}")).unwrap();
            let text = format!("{name}{domain}");
            if let Some(place) = Place::read(&text, Some(443)) {
                prop_assert_eq!(rule.has(&place), name.ends_with('.'));
            }
        }
    }
}
