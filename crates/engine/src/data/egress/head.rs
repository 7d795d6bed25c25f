//! The head of a request, as a program in a sandbox writes it: read strictly, so that nobody behind this reads it another way.

use std::io;

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

/// The most bytes of a head.
pub(super) const LONGEST: usize = 48 << 10;
/// The most headers.
const HEADERS: usize = 128;

/// How long a request's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Length {
    /// It has none.
    None,
    /// So many bytes.
    Of(u64),
    /// In chunks, to its last.
    Chunked,
}

/// A request's head.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own that the head says")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    /// The method.
    pub(super) method: String,
    /// What is asked for: `http://…`, `host:port` or a path.
    pub(super) target: String,
    /// The headers, without those that are between two parties only.
    pub(super) headers: HeaderMap,
    /// The `Host` header.
    pub(super) host: Option<String>,
    /// How long the body is.
    pub(super) length: Length,
    /// Whether another request may follow on the connection.
    pub(super) goes_on: bool,
    /// Whether the program says that another will.
    pub(super) keeps: bool,
    /// Whether it is of HTTP/1.1: knows chunks.
    pub(super) chunks: bool,
    /// Whether the body is sent only when it is asked for.
    pub(super) expects: bool,
}

/// Headers that are between two parties only.
const OWN: [&str; 11] = [
    "connection",
    "expect",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

/// Where a head ends in what was read so far: after its empty line.
pub(super) fn end(read: &[u8]) -> Option<usize> {
    read.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

/// Takes out what is between two parties only, with what `Connection` names.
pub(super) fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in OWN {
        headers.remove(name);
    }
}

/// Reads a head, from its first byte to its empty line.
///
/// # Errors
/// What is wrong with it, in words.
pub(super) fn read(bytes: &[u8]) -> Result<Head, &'static str> {
    // Lines end one way, and nothing else looks like an end.
    let ends = |pair: &[u8]| (pair[1] == b'\n') == (pair[0] == b'\r');
    if !bytes.windows(2).all(ends) || !bytes.first().is_some_and(u8::is_ascii_uppercase) {
        return Err("its lines must end with CR LF, and nothing may come before them");
    }
    let mut room = [httparse::EMPTY_HEADER; HEADERS];
    let mut parsed = httparse::Request::new(&mut room);
    match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(read)) if read == bytes.len() => {}
        Err(httparse::Error::TooManyHeaders) => return Err("it has too many headers"),
        _ => return Err("it is no request of HTTP/1.1"),
    }
    let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version) else {
        return Err("it is no request of HTTP/1.1");
    };
    let mut headers = HeaderMap::with_capacity(parsed.headers.len());
    for found in parsed.headers.iter() {
        let name = HeaderName::from_bytes(found.name.as_bytes()).map_err(|_| "a header has no name")?;
        let value =
            HeaderValue::from_bytes(found.value).map_err(|_| "a header has no value that can be read")?;
        headers.append(name, value);
    }
    let chunks = version == 1;
    let length = length(&headers, chunks)?;
    let host = one(&headers, &header::HOST)?;
    if chunks && host.is_none() {
        return Err("it has no `Host`");
    }
    let says = |name: HeaderName, word: &str| {
        headers.get_all(name).iter().any(|value| {
            value
                .to_str()
                .is_ok_and(|value| value.split(',').any(|one| one.trim().eq_ignore_ascii_case(word)))
        })
    };
    let (closes, expects) = (says(header::CONNECTION, "close"), says(header::EXPECT, "100-continue"));
    // `Proxy-Connection` is what old clients write to a proxy.
    let keeps = says(header::CONNECTION, "keep-alive")
        || says(HeaderName::from_static("proxy-connection"), "keep-alive");
    headers.remove(header::HOST);
    strip(&mut headers);
    headers.remove(header::CONTENT_LENGTH);
    Ok(Head {
        method: method.to_owned(),
        target: target.to_owned(),
        headers,
        host,
        length,
        goes_on: !closes && (chunks || keeps),
        keeps,
        chunks,
        expects: expects && chunks,
    })
}

/// The one value of a header.
fn one(headers: &HeaderMap, name: &HeaderName) -> Result<Option<String>, &'static str> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err("it has `Host`, `Content-Length` or `Transfer-Encoding` twice");
    }
    value.to_str().map(|value| Some(value.to_owned())).map_err(|_| "a header has no value that can be read")
}

fn length(headers: &HeaderMap, chunks: bool) -> Result<Length, &'static str> {
    let coding = one(headers, &header::TRANSFER_ENCODING)?;
    let length = one(headers, &header::CONTENT_LENGTH)?;
    match (coding, length) {
        (Some(_), Some(_)) => Err("it has both `Content-Length` and `Transfer-Encoding`"),
        (Some(coding), None) if chunks && coding.eq_ignore_ascii_case("chunked") => Ok(Length::Chunked),
        (Some(_), None) => Err("its `Transfer-Encoding` is not `chunked`"),
        (None, Some(length)) => {
            let plain = (1..=18).contains(&length.len()) && length.bytes().all(|byte| byte.is_ascii_digit());
            let length = length.parse().ok().filter(|_| plain).ok_or("its `Content-Length` is no number")?;
            Ok(if length == 0 { Length::None } else { Length::Of(length) })
        }
        (None, None) => Ok(Length::None),
    }
}

/// The length of the chunk that a line begins, without its line end. Extensions are not kept.
pub(super) fn chunk(line: &[u8]) -> io::Result<u64> {
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
    let digits = std::str::from_utf8(digits).unwrap_or_default().trim_end_matches([' ', '\t']);
    let plain = (1..=15).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    u64::from_str_radix(digits, 16)
        .ok()
        .filter(|_| plain)
        .ok_or_else(|| io::Error::other("the length of a chunk can't be read"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(text: &str) -> Result<Head, &'static str> {
        read(text.as_bytes())
    }

    #[test]
    fn a_head_is_read() {
        let read = head(
            "POST http://a.example/x HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\nX-One: 1\r\nConnection: X-Two, close\r\nX-Two: 2\r\nProxy-Authorization: x\r\n\r\n",
        )
        .unwrap();
        assert_eq!(
            (read.method.as_str(), read.target.as_str(), read.length),
            ("POST", "http://a.example/x", Length::Of(5))
        );
        assert!(!read.goes_on && read.chunks && !read.expects);
        assert_eq!(read.headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-one"]);
        let old = head("GET / HTTP/1.0\r\n\r\n").unwrap();
        assert!(!old.goes_on && !old.chunks && old.host.is_none());
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for (headers, part) in [
            ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "both"),
            ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "both"),
            ("Content-Length: 5\r\nContent-Length: 5\r\n", "twice"),
            ("Content-Length: 5\r\nContent-Length: 6\r\n", "twice"),
            ("Content-Length: 5, 5\r\n", "no number"),
            ("Content-Length: +5\r\n", "no number"),
            ("Content-Length: 0x5\r\n", "no number"),
            ("Content-Length: \r\n", "no number"),
            ("Transfer-Encoding: chunked, chunked\r\n", "not `chunked`"),
            ("Transfer-Encoding: gzip, chunked\r\n", "not `chunked`"),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "twice"),
            ("Transfer-Encoding: \x0bchunked\r\n", "HTTP/1.1"),
            ("Transfer-Encoding : chunked\r\n", "HTTP/1.1"),
            ("Host: b.example\r\n", "twice"),
            ("X: a\r\n b\r\n", "HTTP/1.1"),
            ("X: a\nY: b\r\n", "CR LF"),
            ("X: a\rY: b\r\n", "CR LF"),
            (" X: a\r\n", "HTTP/1.1"),
            ("X\r\n", "HTTP/1.1"),
            (": a\r\n", "HTTP/1.1"),
        ] {
            let why = head(&format!("POST / HTTP/1.1\r\nHost: a.example\r\n{headers}\r\n")).unwrap_err();
            assert!(why.contains(part), "{headers:?}: {why}");
        }
        for first in [
            "\r\nGET / HTTP/1.1",
            "GET  / HTTP/1.1",
            "GET / HTTP/2.0",
            "GET / HTTP/1.1 x",
            " GET / HTTP/1.1",
            "GET /",
        ] {
            assert!(head(&format!("{first}\r\nHost: a\r\n\r\n")).is_err(), "{first:?}");
        }
        assert!(head("GET / HTTP/1.1\r\n\r\n").unwrap_err().contains("Host"));
        assert!(head("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
    }

    #[test]
    fn chunks_have_plain_lengths() {
        assert_eq!((chunk(b"5").unwrap(), chunk(b"aF;x=1").unwrap(), chunk(b"0 ").unwrap()), (5, 0xaf, 0));
        for bad in [&b""[..], b"-1", b"+5", b"0x5", b" 5", b"g", b"1234567890abcdef0", b";x"] {
            assert!(chunk(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "[A-Z]{1,4} /\\PC{0,8} HTTP/1.1\r\n(\\PC{0,9}: \\PC{0,9}\r\n){0,3}\r\n") {
            let _ = read(&bytes);
            let _ = end(&bytes);
            let _ = chunk(&bytes);
            if let Ok(head) = read(text.as_bytes()) {
                prop_assert!(head.headers.len() <= HEADERS);
            }
        }
    }
}
