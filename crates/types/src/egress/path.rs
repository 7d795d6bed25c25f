//! Paths of requests and patterns of them.
//!
//! A server may read one path in several ways (`/a/../b`, `/a%2fb`, `//a`). Where a rule is about paths, one that could be read another
//! way than here is no path at all: it is refused, never mended.

use std::fmt::{self, Write as _};

/// The longest path that is looked at.
const LONGEST: usize = 8 << 10;

/// The path of a request as rules see it: every escape that needs none is undone, the others are in upper case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestPath(Vec<String>);

impl RequestPath {
    /// Reads the path of a request, without its query.
    ///
    /// # Errors
    /// In how many ways it could be read.
    pub fn read(path: &str) -> Result<Self, &'static str> {
        if path.len() > LONGEST {
            return Err("its path is too long");
        }
        let rest = path.strip_prefix('/').ok_or("its path does not begin with `/`")?;
        let segments: Vec<&str> = rest.split('/').collect();
        let last = segments.len() - 1;
        let mut read = Vec::with_capacity(segments.len());
        for (index, segment) in segments.into_iter().enumerate() {
            if segment.is_empty() && index != last {
                return Err("its path has `//`, which servers read in several ways");
            }
            let plain = decode(segment)?;
            // Some servers cut what follows `;` before they look for dots.
            let before = plain.split(';').next().unwrap_or_default();
            if matches!(before, "." | "..") {
                return Err("its path has `.` or `..`, which servers read in several ways");
            }
            read.push(plain);
        }
        Ok(Self(read))
    }
}

/// A segment without needless escapes.
fn decode(segment: &str) -> Result<String, &'static str> {
    let bytes = segment.as_bytes();
    let mut plain = String::with_capacity(segment.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        if *byte != b'%' {
            if !byte.is_ascii_graphic() || matches!(byte, b'\\' | b'?' | b'#') {
                return Err("its path has characters that must be escaped");
            }
            plain.push(char::from(*byte));
            at += 1;
            continue;
        }
        let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        let hex = hex.filter(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let value =
            hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()).ok_or("its path has a broken escape")?;
        match value {
            b'/' | b'\\' => {
                return Err("its path has an escaped `/` or `\\`, which servers read in several ways");
            }
            b'%' => return Err("its path has an escaped `%`, which servers read in several ways"),
            0..=0x1f | 0x7f => return Err("its path has an escaped control character"),
            b'.' | b'-' | b'_' | b'~' | b';' => plain.push(char::from(value)),
            _ if value.is_ascii_alphanumeric() => plain.push(char::from(value)),
            // Writing to a text never fails.
            _ => {
                let _ = write!(plain, "%{value:02X}");
            }
        }
        at += 3;
    }
    Ok(plain)
}

/// One segment of a pattern.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Segment {
    Exact(String),
    /// `*`: one segment, whatever it is, but not none.
    Any,
}

/// A pattern of paths: `/v1/files`; `*` for one whole segment; `/*` at its end for everything below.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Paths {
    segments: Vec<Segment>,
    below: bool,
}

impl Paths {
    /// Reads a pattern, in its one spelling.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.contains(['?', '#']) {
            return Err(format!("`{text}`: a rule is about the path, without a query"));
        }
        let RequestPath(read) = RequestPath::read(text).map_err(|why| format!("`{text}`: {why}"))?;
        let count = read.len();
        let mut segments = Vec::with_capacity(count);
        let mut below = false;
        for (index, segment) in read.into_iter().enumerate() {
            match segment.as_str() {
                "*" if index + 1 == count => below = true,
                "*" => segments.push(Segment::Any),
                other if other.contains('*') => {
                    return Err(format!("`{text}`: `*` stands for a whole segment of the path"));
                }
                _ => segments.push(Segment::Exact(segment)),
            }
        }
        let made = Self { segments, below };
        let spelled = made.to_string();
        if spelled == text { Ok(made) } else { Err(format!("`{text}` must be written `{spelled}`")) }
    }

    /// Whether it is every path: `/*`.
    pub fn is_all(&self) -> bool {
        self.below && self.segments.is_empty()
    }

    /// Whether a path fits.
    pub fn fit(&self, RequestPath(path): &RequestPath) -> bool {
        let length =
            if self.below { path.len() > self.segments.len() } else { path.len() == self.segments.len() };
        length
            && self.segments.iter().zip(path).all(|(segment, found)| match segment {
                Segment::Exact(exact) => exact == found,
                Segment::Any => !found.is_empty(),
            })
    }
}

impl fmt::Display for Paths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for segment in &self.segments {
            match segment {
                Segment::Exact(exact) => write!(f, "/{exact}")?,
                Segment::Any => f.write_str("/*")?,
            }
        }
        if self.below { f.write_str("/*") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fits(pattern: &str, path: &str) -> bool {
        RequestPath::read(path).is_ok_and(|path| Paths::parse(pattern).unwrap().fit(&path))
    }

    #[test]
    fn patterns_fit_what_they_say() {
        for (pattern, path) in [
            ("/v1/files", "/v1/files"),
            ("/v1/files", "/v1/%66iles"),
            ("/v1/*", "/v1/a"),
            ("/v1/*", "/v1/a/b/"),
            ("/v1/*", "/v1/"),
            ("/v1/*/content", "/v1/x/content"),
            ("/*", "/"),
            ("/", "/"),
            ("/a%20b", "/a%20b"),
            ("/v1/*", "/v1/...a"),
        ] {
            assert!(fits(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in [
            ("/v1/files", "/v1/files/"),
            ("/v1/files", "/V1/files"),
            ("/v1/files", "/v1/filesx"),
            ("/v1/*", "/v1"),
            ("/v1/*", "/v2/a"),
            ("/v1/*", "/v1/../v2"),
            ("/v1/*", "/v1/%2e%2e/v2"),
            ("/v1/*", "/v1/.%2E/v2"),
            ("/v1/*", "/v1/..;x/v2"),
            ("/v1/*", "/v1/%2e%2e%3bx/v2"),
            ("/v1/*", "/v1/a%2fb"),
            ("/v1/*", "/v1/a%5cb"),
            ("/v1/*", "/v1/a\\b"),
            ("/v1/*", "//v1/a"),
            ("/v1/*", "/v1//a"),
            ("/v1/*", "/v1/%252e%252e/a"),
            ("/v1/*", "/v1/%00"),
            ("/v1/*", "/v1/%"),
            ("/v1/*", "/v1/%zz"),
            ("/v1/*", "/v1/ü"),
            ("/v1/*", "v1/a"),
            ("/v1/*/content", "/v1//content"),
            ("/v1/*/content", "/v1/a/b/content"),
        ] {
            assert!(!fits(pattern, path), "{pattern} {path}");
        }
    }

    #[test]
    fn a_pattern_has_one_spelling() {
        for good in ["/", "/*", "/v1", "/v1/", "/v1/*", "/*/x", "/a%20b", "/@scope/*", "/a;b=1"] {
            assert_eq!(Paths::parse(good).unwrap().to_string(), good);
        }
        for bad in [
            "", "v1", "/a*", "/**", "/a/../b", "//", "/a%2fb", "/%41", "/a%2e", "/a?b", "/a#b", "/a b",
            "/%c3%a9",
        ] {
            assert!(Paths::parse(bad).is_err(), "{bad}");
        }
        assert!(Paths::parse("/%41").unwrap_err().contains("`/A`"));
        assert_eq!(Paths::parse("/%C3%A9").unwrap().to_string(), "/%C3%A9");
    }

    /// What the most lenient server would make of a path: decoded twice, backslashes as slashes, dots resolved.
    fn lenient(path: &str) -> Vec<String> {
        let once = |text: &str| {
            let bytes = text.as_bytes();
            let (mut plain, mut at) = (Vec::new(), 0);
            while at < bytes.len() {
                let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
                match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| bytes[at] == b'%') {
                    Some(value) => (plain.push(value), at += 3).1,
                    None => (plain.push(bytes[at]), at += 1).1,
                }
            }
            String::from_utf8_lossy(&plain).into_owned()
        };
        let decoded = once(&once(path)).replace('\\', "/");
        let mut segments = Vec::new();
        for segment in decoded.split('/').map(|segment| segment.split(';').next().unwrap_or_default()) {
            match segment {
                "" | "." => {}
                ".." => drop(segments.pop()),
                other => segments.push(other.to_owned()),
            }
        }
        segments
    }

    proptest! {
        #[test]
        fn nothing_that_fits_leads_elsewhere(tail in "(/|\\.|%2e|%2E|%2f|%5c|%25|;|\\\\|a|b|v2){0,10}") {
            let path = format!("/v1/{tail}");
            if fits("/v1/*", &path) {
                let read = lenient(&path);
                prop_assert_eq!(read.first().map(String::as_str), Some("v1"), "{}", path);
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}") {
            let _ = RequestPath::read(&text);
            if let Ok(paths) = Paths::parse(&text) {
                prop_assert_eq!(paths.to_string(), text);
            }
        }
    }
}
