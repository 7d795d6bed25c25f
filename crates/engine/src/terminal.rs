//! Text of others on its way to people.

/// Text of others as it can be shown on a terminal: one line, no control characters, and of an escape sequence nothing.
pub(crate) fn tame(text: &str) -> String {
    let mut tame = String::with_capacity(text.len());
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter == '\x1b' && letters.next_if_eq(&'[').is_some() {
            // Parameters, then the one letter that ends it (ECMA-48, 5.4).
            while letters.next_if(|part| matches!(part, ' '..='?')).is_some() {}
            letters.next_if(|end| matches!(end, '@'..='~'));
        } else if letter == '\t' {
            tame.push(' ');
        } else if !letter.is_control() {
            tame.push(letter);
        }
    }
    tame
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_terminal_can_not_be_played_by_what_is_shown() {
        assert_eq!(tame("\x1b[1;31mred\x1b[0m\x07 a\tb\r\x1b]0;x\u{9b}2J"), "red a b]0;x2J");
    }

    proptest! {
        #[test]
        fn nothing_that_moves_a_cursor_is_left(text in "\\PC*|[\\x00-\\x7f]*") {
            prop_assert!(!tame(&text).chars().any(char::is_control));
        }
    }
}
