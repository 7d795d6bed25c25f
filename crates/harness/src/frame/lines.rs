//! Lines from a hostile process: any chunking, bounded memory.

use bytes::{Bytes, BytesMut};

/// A line longer than this is dropped and reported.
pub const MAX_LINE: usize = 8 << 20;

/// One step of reading lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// A line without its end.
    Whole(Bytes),
    /// A line was longer than the limit and was dropped; so many bytes.
    TooLong(usize),
}

/// Cuts a stream of bytes into lines.
#[derive(Debug)]
pub struct Lines {
    pending: BytesMut,
    /// Bytes dropped of the line that is too long, while its end has not come.
    dropped: Option<usize>,
    limit: usize,
}

impl Default for Lines {
    fn default() -> Self {
        Self::with_limit(MAX_LINE)
    }
}

impl Lines {
    /// Lines of at most `limit` bytes.
    pub fn with_limit(limit: usize) -> Self {
        Self { pending: BytesMut::new(), dropped: None, limit }
    }

    /// Takes bytes in and calls `each` for every line that they complete.
    pub fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(Line)) {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            let (line, after) = (&rest[..end], &rest[end + 1..]);
            rest = after;
            if let Some(dropped) = self.dropped.take() {
                each(Line::TooLong(dropped + line.len()));
            } else if self.pending.len() + line.len() > self.limit {
                let whole = self.pending.len() + line.len();
                self.pending.clear();
                each(Line::TooLong(whole));
            } else {
                self.pending.extend_from_slice(line);
                let mut whole = self.pending.split().freeze();
                if whole.last() == Some(&b'\r') {
                    whole.truncate(whole.len() - 1);
                }
                each(Line::Whole(whole));
            }
        }
        if let Some(dropped) = &mut self.dropped {
            *dropped += rest.len();
        } else if self.pending.len() + rest.len() > self.limit {
            self.dropped = Some(self.pending.len() + rest.len());
            self.pending = BytesMut::new();
        } else {
            self.pending.extend_from_slice(rest);
        }
    }

    /// The last line, if it had no end.
    pub fn finish(&mut self) -> Option<Line> {
        match self.dropped.take() {
            Some(dropped) => Some(Line::TooLong(dropped)),
            None if self.pending.is_empty() => None,
            None => Some(Line::Whole(self.pending.split().freeze())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(limit: usize, chunks: &[&[u8]]) -> Vec<Line> {
        let mut lines = Lines::with_limit(limit);
        let mut all = Vec::new();
        for chunk in chunks {
            lines.feed(chunk, |line| all.push(line));
        }
        all.extend(lines.finish());
        all
    }

    proptest! {
        #[test]
        fn splitting_anywhere_changes_nothing(bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..200), cuts in proptest::collection::vec(0usize..200, 0..8)) {
            let whole = read(16, &[&bytes]);
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(read(16, &chunks), whole);
        }
    }

    #[test]
    fn a_line_over_the_limit_is_counted_not_kept() {
        let long = vec![b'x'; 100];
        assert_eq!(
            read(16, &[&long, b"\nok\n"]),
            [Line::TooLong(100), Line::Whole(Bytes::from_static(b"ok"))]
        );
    }
}
