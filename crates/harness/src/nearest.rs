//! The word that was probably meant.

/// The one of `words` that is nearest to what was written, if it is near enough to be what was meant.
pub fn nearest<'a>(written: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let written = written.to_lowercase();
    let length = written.chars().count();
    let slips = |word: &str| {
        // The beginning of a word is as good as the word.
        let begun = length >= 3 && word.starts_with(&written);
        if begun { 1 } else { distance(&written, &word.to_lowercase()) }
    };
    words
        .into_iter()
        .map(|word| (slips(word), word))
        .filter(|(slips, word)| *slips <= (length.max(word.chars().count()) / 3).max(1))
        .min_by_key(|(slips, _)| *slips)
        .map(|(_, word)| word)
}

/// How many letters were left out, put in, exchanged for another, or for their neighbour.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    let mut last = None;
    for (index, letter) in one.chars().enumerate() {
        let mut next = vec![index + 1];
        for (at, &against) in other.iter().enumerate() {
            let mut fewest =
                (row[at + 1] + 1).min(next[at] + 1).min(row[at] + usize::from(letter != against));
            if at > 0 && Some(against) == last && Some(&letter) == other.get(at - 1) {
                fewest = fewest.min(before[at - 1] + 1);
            }
            next.push(fewest);
        }
        before = std::mem::replace(&mut row, next);
        last = Some(letter);
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_counted_in_slips() {
        for (one, other, slips) in [
            ("", "", 0),
            ("harness", "harness", 0),
            ("harnes", "harness", 1),
            ("hraness", "harness", 1),
            ("", "abc", 3),
            ("abc", "", 3),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(one, other), slips, "{one} {other}");
        }
    }

    #[test]
    fn only_what_is_near_is_meant() {
        let words = ["harness", "build", "policy", "env"];
        assert_eq!(nearest("harnes", words), Some("harness"));
        assert_eq!(nearest("Policy", words), Some("policy"));
        assert_eq!(nearest("policies", words), None);
        assert_eq!(nearest("polices", words), Some("policy"));
        assert_eq!(nearest("entry_point", words), None);
        assert_eq!(nearest("", words), None);
        assert_eq!(nearest("pol", words), Some("policy"));
        assert_eq!(nearest("claude", ["opencode", "claude-code"]), Some("claude-code"));
    }
}
