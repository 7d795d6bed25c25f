//! `docs/guides/folder.md` is complete, and what it shows is right.

use std::collections::BTreeMap;

use karta_release::{manifest, settings};

fn guide() -> String {
    let path = format!("{}/../../docs/guides/folder.md", std::env::var("CARGO_MANIFEST_DIR").unwrap());
    std::fs::read_to_string(path).unwrap()
}

/// What stands under a heading.
fn section<'a>(guide: &'a str, heading: &str) -> &'a str {
    let start = guide.find(&format!("\n## {heading}\n")).unwrap() + 1;
    let rest = &guide[start..];
    &rest[..rest[1..].find("\n## ").map_or(rest.len(), |end| end + 1)]
}

/// The rows of the table of keys.
fn rows(section: &str) -> BTreeMap<String, Vec<&str>> {
    section
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>())
        .map(|cells| (cells[0].trim_matches('`').to_owned(), cells))
        .collect()
}

/// The first block of code in this language.
fn block<'a>(section: &'a str, language: &str) -> &'a str {
    let fence = format!("```{language}\n");
    let start = section.find(&fence).unwrap() + fence.len();
    &section[start..start + section[start..].find("```").unwrap()]
}

#[test]
fn every_key_is_in_the_guide_and_no_other() {
    let guide = guide();
    for (heading, keys) in [("`karta.toml`", manifest::keys()), ("`karta.jsonc`", settings::keys())] {
        let rows = rows(section(&guide, heading));
        assert_eq!(rows.keys().cloned().collect::<Vec<_>>(), keys, "{heading}");
        for (key, cells) in rows {
            assert_eq!(cells.len(), 4, "{key}: {cells:?}");
            assert!(cells.iter().all(|cell| !cell.is_empty()), "{key}: {cells:?}");
            assert!(cells[3].ends_with('.'), "{key}: {cells:?}");
        }
    }
}

#[test]
fn what_the_guide_shows_can_be_read() {
    let guide = guide();
    let read = manifest::parse(block(section(&guide, "`karta.toml`"), "toml")).unwrap();
    assert_eq!((read.project.as_deref(), read.policy.tools.deny.len()), (Some("shop"), 1));
    let read = settings::parse(block(section(&guide, "`karta.jsonc`"), "jsonc")).unwrap();
    assert_eq!(read.hidden_events, ["reasoning"]);
}

#[test]
fn the_words_that_a_key_takes_are_in_its_row() {
    let guide = guide();
    for (heading, key, file) in [
        ("`karta.toml`", "policy.isolation", "policy.isolation = 'x'"),
        ("`karta.toml`", "harness.type", "harness.type = 'x'"),
        ("`karta.jsonc`", "permission_mode", r#"{"permission_mode": "x"}"#),
        ("`karta.jsonc`", "hidden_events", r#"{"hidden_events": ["x"]}"#),
        ("`karta.jsonc`", "runtime.permission_mode", r#"{"runtime": {"permission_mode": "x"}}"#),
    ] {
        let faults = if heading == "`karta.toml`" {
            manifest::parse(file).unwrap_err()
        } else {
            settings::parse(file).unwrap_err()
        };
        // `… must be one of `a`, `b`, not `x``, or `… those are `a`, `b``.
        let words: Vec<_> = faults[0]
            .message
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|word| !["x", key].contains(word))
            .collect();
        let rows = rows(section(&guide, heading));
        assert!(words.len() > 1, "{faults:?}");
        for word in words {
            assert!(rows[key][1].contains(&format!("`{word}`")), "{key}: {word}");
        }
    }
}
