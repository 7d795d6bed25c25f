//! Which version of a harness: the exact one, or the newest of those that a constraint allows.

use semver::{Version, VersionReq};

/// What a folder asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// This one.
    Exact(String),
    /// Any of these.
    Range(VersionReq),
}

impl Wanted {
    /// Reads a version (`2.1.330`) or a constraint (`2.1`, `^2.1.0`, `2.1.x`, `>=2.1, <3`).
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if Version::parse(text).is_ok() {
            return Some(Self::Exact(text.to_owned()));
        }
        // As in npm, from where harnesses come: `2.1` is every 2.1, and nothing else.
        let bare = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        let range = if bare { VersionReq::parse(&format!("~{text}")) } else { VersionReq::parse(text) };
        range.ok().map(Self::Range)
    }

    /// The newest of the known versions that is one of these.
    pub(crate) fn newest<'a>(&self, known: &'a [String]) -> Option<&'a str> {
        match self {
            Self::Exact(version) => known.iter().map(String::as_str).find(|other| other == version),
            Self::Range(range) => {
                let versions = known.iter().filter_map(|text| Some((Version::parse(text).ok()?, text)));
                let fitting = versions.filter(|(version, _)| range.matches(version));
                fitting.max_by(|(one, _), (other, _)| one.cmp(other)).map(|(_, text)| text.as_str())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constraints_take_the_newest_that_fits() {
        let known = ["1.9.0", "2.0.5", "2.1.9", "2.1.330", "2.2.0-beta.1", "3.0.0"].map(str::to_owned);
        for (wanted, version) in [
            ("2.1.9", Some("2.1.9")),
            ("2.1.8", None),
            ("2.1", Some("2.1.330")),
            ("2", Some("2.1.330")),
            ("2.1.x", Some("2.1.330")),
            ("2.0", Some("2.0.5")),
            ("2.0.*", Some("2.0.5")),
            ("^2.1.0", Some("2.1.330")),
            ("~2.0", Some("2.0.5")),
            ("=2.1.9", Some("2.1.9")),
            (">=2.1, <3", Some("2.1.330")),
            (">3", None),
            ("*", Some("3.0.0")),
            ("2.2.0-beta.1", Some("2.2.0-beta.1")),
        ] {
            assert_eq!(Wanted::parse(wanted).unwrap().newest(&known), version, "{wanted}");
        }
        for bad in ["", "latest", "v2.1.330", "2.1.330.4", "two"] {
            assert_eq!(Wanted::parse(bad), None, "{bad}");
        }
    }
}
