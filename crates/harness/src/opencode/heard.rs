//! How much of one text was heard and said, though some of it may have been missed.

/// The most that is kept of pieces whose place is not known, in bytes.
const MAX_KEPT: usize = 256 << 10;

/// A text that grows.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// How much of it was said, in bytes from its start.
    said: usize,
    place: Place,
}

/// Where in the text the stream is.
#[derive(Debug)]
enum Place {
    /// After so many bytes. What was told elsewhere may be ahead of it.
    At(usize),
    /// Nobody knows: pieces may have been missed, or be part of what was told elsewhere.
    Lost {
        /// What was said since, told elsewhere.
        rest: String,
        /// What the stream brought since.
        pieces: String,
    },
}

impl Default for Place {
    fn default() -> Self {
        Self::At(0)
    }
}

impl Place {
    const fn lost() -> Self {
        Self::Lost { rest: String::new(), pieces: String::new() }
    }
}

impl Heard {
    /// Of a text that the stream has not told of.
    pub(super) const fn elsewhere() -> Self {
        Self { said: 0, place: Place::lost() }
    }

    pub(super) const fn any_said(&self) -> bool {
        self.said > 0
    }

    /// Pieces may have been missed.
    pub(super) fn lose_place(&mut self) {
        if let Place::At(_) = self.place {
            self.place = Place::lost();
        }
    }

    /// The stream brings a piece; answers what of it is to be said.
    pub(super) fn piece<'a>(&mut self, piece: &'a str) -> &'a str {
        match &mut self.place {
            Place::At(at) => {
                let known = self.said.saturating_sub(*at);
                *at += piece.len();
                self.said = self.said.max(*at);
                piece.get(known..).unwrap_or_default()
            }
            Place::Lost { pieces, .. } => {
                if pieces.len() + piece.len() <= MAX_KEPT {
                    pieces.push_str(piece);
                }
                ""
            }
        }
    }

    /// The stream tells the text as it is now; answers what of it is to be said.
    pub(super) fn whole<'a>(&mut self, text: &'a str) -> &'a str {
        match &mut self.place {
            Place::At(at) => *at = text.len().max(*at),
            // It tells an empty text when it makes a part: no word about one of which something was said.
            Place::Lost { .. } if text.is_empty() && self.said > 0 => {}
            lost @ Place::Lost { .. } => *lost = Place::At(text.len()),
        }
        self.rest(text)
    }

    /// The server was asked and tells the text, which may be ahead of the stream or behind it; answers what of it is to be said.
    pub(super) fn asked<'a>(&mut self, text: &'a str) -> &'a str {
        let more = self.rest(text);
        if let Place::Lost { rest, .. } = &mut self.place
            && rest.len() + more.len() <= MAX_KEPT
        {
            rest.push_str(more);
        }
        more
    }

    fn rest<'a>(&mut self, text: &'a str) -> &'a str {
        let rest = text.get(self.said..).unwrap_or_default();
        self.said += rest.len();
        rest
    }

    /// No more will come: what of the pieces that have no place is to be said. They may begin with the end of what was told elsewhere.
    pub(super) fn last(&mut self) -> String {
        let Place::Lost { rest, pieces } = std::mem::replace(&mut self.place, Place::At(self.said)) else {
            return String::new();
        };
        let known = overlap(rest.as_bytes(), pieces.as_bytes());
        pieces.get(known..).unwrap_or_default().to_owned()
    }
}

/// The length of the longest start of `next` that `before` ends with. Takes time in proportion to both.
fn overlap(before: &[u8], next: &[u8]) -> usize {
    // For each start of `next`: the length of the longest shorter one that it ends with.
    let mut shorter = vec![0_usize; next.len()];
    let longer = |shorter: &[usize], mut length: usize, byte: u8| loop {
        if next.get(length) == Some(&byte) {
            return length + 1;
        }
        match length.checked_sub(1).and_then(|last| shorter.get(last)) {
            Some(less) => length = *less,
            None => return 0,
        }
    };
    let mut length = 0;
    for at in 1..next.len() {
        length = longer(&shorter, length, next[at]);
        shorter[at] = length;
    }
    before.iter().fold(0, |length, byte| longer(&shorter, length, *byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_texts_share_is_found() {
        for (before, next, shared) in [
            ("", "", 0),
            ("abc", "", 0),
            ("", "abc", 0),
            ("xab", "abc", 2),
            ("abab", "abab!", 4),
            ("aabaaab", "aabx", 3),
            ("aaaa", "aa", 2),
            ("é", "é!", 2),
            ("ab", "b\u{e9}", 1),
            ("abc", "x", 0),
        ] {
            assert_eq!(overlap(before.as_bytes(), next.as_bytes()), shared, "{before} {next}");
        }
    }

    #[test]
    fn what_was_told_elsewhere_is_not_said_again() {
        let mut heard = Heard::default();
        assert_eq!(heard.piece("ab"), "ab");
        assert_eq!(heard.asked("abcdé"), "cdé", "ahead of the stream");
        assert_eq!((heard.piece("cd"), heard.piece("éf")), ("", "f"));
        assert_eq!(heard.whole("abcdéfg"), "g");
        assert_eq!(heard.last(), "");
    }
}
