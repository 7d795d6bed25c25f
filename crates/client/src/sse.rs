//! Server-sent events, bytes in and frames out, with nothing in between: no IO, no clock.
//!
//! Invariant: the frames depend on the bytes alone, never on how they were cut into pushes; and what is held is bounded by the
//! limit, whatever comes.

/// One event, or one comment, of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// An event.
    Event {
        /// Its `id`, if it has one.
        id: Option<String>,
        /// Its `event` name, if it has one.
        name: Option<String>,
        /// Its `data` lines, joined by line feeds.
        data: String,
    },
    /// A comment: the server is alive.
    Comment,
}

/// Why a stream can't be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// A line or an event is longer than the limit.
    #[error("an event is longer than {0} bytes")]
    TooLong(usize),
    /// A line is not UTF-8.
    #[error("an event is not UTF-8 text")]
    NotText,
}

/// Turns bytes into frames.
#[derive(Debug)]
pub struct Decoder {
    limit: usize,
    line: Vec<u8>,
    /// The last byte was a carriage return: a line feed right after it belongs to it.
    after_return: bool,
    first_line: bool,
    id: Option<String>,
    name: Option<String>,
    data: Option<String>,
    broken: Option<Broken>,
}

impl Decoder {
    /// Accepts events of up to `limit` bytes.
    pub const fn new(limit: usize) -> Self {
        Self {
            limit,
            line: Vec::new(),
            after_return: false,
            first_line: true,
            id: None,
            name: None,
            data: None,
            broken: None,
        }
    }

    /// Takes the next bytes and adds the frames they complete to `out`. An event without its closing empty line stays inside;
    /// when the connection ends there it was never sent whole, and is rightly lost.
    ///
    /// # Errors
    /// When the stream can't be read on; every later push says the same.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<Frame>) -> Result<(), Broken> {
        if let Some(broken) = self.broken {
            return Err(broken);
        }
        let result = self.take(bytes, out);
        if let Err(broken) = result {
            self.broken = Some(broken);
            self.line = Vec::new();
            self.data = None;
        }
        result
    }

    fn take(&mut self, mut bytes: &[u8], out: &mut Vec<Frame>) -> Result<(), Broken> {
        while !bytes.is_empty() {
            if std::mem::take(&mut self.after_return) && bytes[0] == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let end = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let piece = &bytes[..end.unwrap_or(bytes.len())];
            if self.line.len() + piece.len() > self.limit {
                return Err(Broken::TooLong(self.limit));
            }
            self.line.extend_from_slice(piece);
            let Some(end) = end else { return Ok(()) };
            self.after_return = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
            let line = std::mem::take(&mut self.line);
            self.line(&line, out)?;
            // Keep the allocation for the next line.
            self.line = line;
            self.line.clear();
        }
        Ok(())
    }

    fn line(&mut self, line: &[u8], out: &mut Vec<Frame>) -> Result<(), Broken> {
        let text = std::str::from_utf8(line).map_err(|_| Broken::NotText)?;
        let text = if std::mem::take(&mut self.first_line) {
            text.strip_prefix('\u{feff}').unwrap_or(text)
        } else {
            text
        };
        if text.is_empty() {
            let (id, name) = (self.id.take(), self.name.take());
            if let Some(data) = self.data.take() {
                out.push(Frame::Event { id, name, data });
            }
            return Ok(());
        }
        let (field, value) = text.split_once(':').unwrap_or((text, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" => out.push(Frame::Comment),
            "data" => match &mut self.data {
                None => self.data = Some(value.to_owned()),
                Some(data) => {
                    if data.len() + 1 + value.len() > self.limit {
                        return Err(Broken::TooLong(self.limit));
                    }
                    data.push('\n');
                    data.push_str(value);
                }
            },
            "id" if !value.contains('\0') => self.id = Some(value.to_owned()),
            "event" => self.name = Some(value.to_owned()),
            // `retry` and what nobody knows: the client has its own back-off.
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(bytes: &[u8]) -> Vec<Frame> {
        let mut out = Vec::new();
        Decoder::new(1 << 16).push(bytes, &mut out).unwrap();
        out
    }

    #[test]
    fn an_event_with_everything() {
        let frames =
            decode(b"\xef\xbb\xbf: hi\nretry: 5\nid: 7\nevent: text\ndata: one\ndata:two\r\n\r\ndata\n\n");
        let whole = Frame::Event { id: Some("7".into()), name: Some("text".into()), data: "one\ntwo".into() };
        assert_eq!(
            frames,
            [Frame::Comment, whole, Frame::Event { id: None, name: None, data: String::new() }]
        );
    }

    #[test]
    fn an_event_cut_before_its_empty_line_is_not_given_out() {
        assert_eq!(decode(b"data: {\"half\":1}\n"), []);
    }

    #[test]
    fn too_long_ends_the_stream_for_good_and_holds_nothing() {
        let mut decoder = Decoder::new(8);
        let mut out = Vec::new();
        assert_eq!(decoder.push(b"data: 123456789", &mut out), Err(Broken::TooLong(8)));
        assert_eq!(decoder.push(b"\n\n", &mut out), Err(Broken::TooLong(8)));
        let mut decoder = Decoder::new(8);
        assert_eq!(decoder.push(b"data:abc\ndata:abc\ndata:abc\n", &mut out), Err(Broken::TooLong(8)));
        assert_eq!(Decoder::new(8).push(b"\xff\n", &mut out), Err(Broken::NotText));
        assert_eq!(out, []);
    }

    proptest! {
        #[test]
        fn what_was_framed_comes_out_whatever_the_cuts(
            events in proptest::collection::vec((proptest::option::of(0u64..1000), "[^\r\n\0]{0,20}(\n[^\r\n\0]{0,9}){0,3}"), 0..8),
            ending in prop_oneof![Just("\n"), Just("\r\n"), Just("\r")],
            cuts in proptest::collection::vec(1usize..9, 1..50),
        ) {
            let mut bytes = String::new();
            let mut expected = Vec::new();
            for (id, data) in events {
                let mut lines = vec![":alive".to_owned(), "event: x".to_owned()];
                lines.extend(id.map(|id| format!("id: {id}")));
                lines.extend(data.split('\n').map(|line| format!("data: {line}")));
                lines.push(String::new());
                for line in lines {
                    bytes.push_str(&line);
                    bytes.push_str(ending);
                }
                expected.push(Frame::Comment);
                expected.push(Frame::Event { id: id.map(|id| id.to_string()), name: Some("x".into()), data });
            }
            let mut decoder = Decoder::new(1 << 16);
            let mut out = Vec::new();
            let mut rest = bytes.as_bytes();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                decoder.push(now, &mut out).unwrap();
                rest = later;
            }
            prop_assert_eq!(out, expected);
        }

        #[test]
        fn any_bytes_any_cuts_the_same_frames(
            bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(b':'), Just(b'd'), any::<u8>()], 0..200),
            at in 0usize..200,
        ) {
            let at = at.min(bytes.len());
            let (mut whole, mut cut) = (Vec::new(), Vec::new());
            let once = Decoder::new(64).push(&bytes, &mut whole);
            let mut decoder = Decoder::new(64);
            let twice = decoder.push(&bytes[..at], &mut cut).and_then(|()| decoder.push(&bytes[at..], &mut cut));
            prop_assert_eq!(once, twice);
            prop_assert_eq!(whole, cut);
        }
    }
}
