//! Texts put in the place of others in a stream, across the borders of its pieces. What could be the beginning of one is held back
//! until it is known, so that no part of what is looked for goes on.

/// What is looked for, and what it becomes.
#[derive(Debug, Clone)]
pub(super) struct Needle {
    /// The text. Never empty.
    pub(super) text: Vec<u8>,
    /// What is put in its place; none where it must not be at all.
    pub(super) by: Option<Vec<u8>>,
    /// Whose it is.
    pub(super) of: usize,
}

/// What must not be in a stream was in it; whose it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found(pub(super) usize);

/// A stream that is looked through.
#[derive(Debug)]
pub(super) struct Swap {
    /// Longest first.
    needles: Vec<Needle>,
    first: [bool; 256],
    held: Vec<u8>,
    /// Whether anything was put in.
    pub(super) swapped: bool,
}

impl Swap {
    pub(super) fn new(mut needles: Vec<Needle>) -> Self {
        needles.retain(|needle| !needle.text.is_empty());
        needles.sort_by_key(|needle| std::cmp::Reverse(needle.text.len()));
        let mut first = [false; 256];
        for byte in needles.iter().filter_map(|needle| needle.text.first()) {
            first[usize::from(*byte)] = true;
        }
        Self { needles, first, held: Vec::new(), swapped: false }
    }

    /// Whether there is nothing to look for.
    pub(super) const fn is_idle(&self) -> bool {
        self.needles.is_empty()
    }

    /// The next piece. Answers what may go on.
    pub(super) fn piece(&mut self, piece: &[u8]) -> Result<Vec<u8>, Found> {
        self.run(piece, false)
    }

    /// The end. Answers what was held back.
    pub(super) fn end(&mut self) -> Result<Vec<u8>, Found> {
        self.run(&[], true)
    }

    /// A whole text.
    pub(super) fn whole(&mut self, text: &[u8]) -> Result<Vec<u8>, Found> {
        let mut out = self.piece(text)?;
        out.extend(self.end()?);
        Ok(out)
    }

    fn run(&mut self, piece: &[u8], end: bool) -> Result<Vec<u8>, Found> {
        let mut data = std::mem::take(&mut self.held);
        data.extend_from_slice(piece);
        let mut out = Vec::with_capacity(data.len());
        let mut at = 0;
        while at < data.len() {
            let rest = &data[at..];
            if !self.first[usize::from(rest[0])] {
                let plain = rest.iter().position(|byte| self.first[usize::from(*byte)]).unwrap_or(rest.len());
                out.extend_from_slice(&rest[..plain]);
                at += plain;
                continue;
            }
            // A longer one that may still come goes before a shorter one that is there.
            if !end
                && self
                    .needles
                    .iter()
                    .any(|needle| needle.text.len() > rest.len() && needle.text.starts_with(rest))
            {
                self.held = rest.to_vec();
                return Ok(out);
            }
            match self.needles.iter().find(|needle| rest.starts_with(&needle.text)) {
                Some(Needle { by: None, of, .. }) => return Err(Found(*of)),
                Some(Needle { text, by: Some(by), .. }) => {
                    out.extend_from_slice(by);
                    at += text.len();
                    self.swapped = true;
                }
                None => {
                    out.push(rest[0]);
                    at += 1;
                }
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn needle(text: &str, by: Option<&str>) -> Needle {
        Needle { text: text.into(), by: by.map(Into::into), of: 7 }
    }

    fn pieces(needles: &[Needle], pieces: &[&[u8]]) -> Result<Vec<u8>, Found> {
        let mut swap = Swap::new(needles.to_vec());
        let mut out = Vec::new();
        for piece in pieces {
            out.extend(swap.piece(piece)?);
        }
        out.extend(swap.end()?);
        Ok(out)
    }

    #[test]
    fn what_is_cut_in_two_is_found() {
        let needles = [needle("karta_secret_1", Some("REAL"))];
        assert_eq!(pieces(&needles, &[b"a karta_se", b"cret_1 b"]).unwrap(), b"a REAL b");
        assert_eq!(
            pieces(&needles, &[b"karta_secret"]).unwrap(),
            b"karta_secret",
            "what is none goes on at the end"
        );
        let refused = [needle("karta_secret_1", None)];
        let mut swap = Swap::new(refused.to_vec());
        assert_eq!(swap.piece(b"x karta_secret_").unwrap(), b"x ", "nothing of it goes on");
        assert_eq!(swap.piece(b"1"), Err(Found(7)));
        let both = [needle("abcdefgh", Some("1")), needle("abcdefghij", Some("2"))];
        assert_eq!(pieces(&both, &[b"abcdefgh", b"ij abcdefghi"]).unwrap(), b"2 1i");
    }

    proptest! {
        #[test]
        fn pieces_are_as_the_whole(text in "[ab]{0,60}", cuts in proptest::collection::vec(0_usize..60, 0..6)) {
            let needles = [needle("abab", Some("XX")), needle("aab", Some("")), needle("bbbb", Some("aab"))];
            let whole = pieces(&needles, &[text.as_bytes()]).unwrap();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.sort_unstable();
            let mut parts = Vec::new();
            let mut from = 0;
            for cut in cuts {
                parts.push(&text.as_bytes()[from..cut]);
                from = cut;
            }
            parts.push(&text.as_bytes()[from..]);
            prop_assert_eq!(pieces(&needles, &parts).unwrap(), whole);
        }

        #[test]
        fn nothing_of_a_secret_goes_on(before in "[a-c]{0,9}", after in "[a-c]{0,9}", cut in 0_usize..30) {
            let text = format!("{before}abcabcab{after}");
            let cut = cut.min(text.len());
            let out = pieces(&[needle("abcabcab", Some("_"))], &[&text.as_bytes()[..cut], &text.as_bytes()[cut..]]).unwrap();
            prop_assert!(!String::from_utf8(out).unwrap().contains("abcabcab"));
        }
    }
}
