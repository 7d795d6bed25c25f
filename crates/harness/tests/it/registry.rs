//! Which harness a folder is for.

use karta_harness::registry::{ALL, Declared, detect, find};
use karta_harness::{Error, Tree};

fn tree(files: &[&str]) -> Tree {
    files.iter().map(|file| (*file, "")).collect()
}

fn declared(kind: &str) -> Declared {
    Declared { kind: Some(kind.to_owned()), version: None }
}

fn detected(files: &[&str], declared: &Declared) -> Result<&'static str, Error> {
    detect(&tree(files), declared).map(karta_harness::Harness::id)
}

#[test]
fn the_files_of_a_folder_tell() {
    let none = Declared::default();
    for (files, id) in [
        (&["CLAUDE.md"][..], "claude-code"),
        (&[".claude/agents/a.md"], "claude-code"),
        (&[".opencode/agent/a.md"], "opencode"),
        (&["CLAUDE.md", ".opencode/opencode.json"], "opencode"),
    ] {
        assert_eq!(detected(files, &none).unwrap(), id, "{files:?}");
    }
}

#[test]
fn what_is_declared_wins() {
    assert_eq!(detected(&["CLAUDE.md", ".opencode/a.md"], &declared("claude-code")).unwrap(), "claude-code");
    assert_eq!(detected(&["README.md"], &declared("claude-code")).unwrap(), "claude-code");
}

#[test]
fn a_declared_type_against_the_files_is_an_error_that_says_both() {
    let error = detected(&[".opencode/a.md"], &declared("claude-code")).unwrap_err().to_string();
    for word in ["claude-code", "opencode", ".opencode/", "CLAUDE.md"] {
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn nothing_recognisable_says_what_was_looked_for() {
    for files in [&[][..], &["README.md", "docs/CLAUDE.md"]] {
        let error = detected(files, &Declared::default()).unwrap_err().to_string();
        assert!(
            error.contains(".claude/") && error.contains("CLAUDE.md") && error.contains(".opencode/"),
            "{error}"
        );
        assert_eq!(error.contains("the folder is empty"), files.is_empty(), "{error}");
    }
}

#[test]
fn an_unknown_type_names_the_known_ones() {
    let error = detected(&["CLAUDE.md"], &declared("claud")).unwrap_err().to_string();
    assert!(
        error.contains("`claud`") && error.contains("claude-code") && error.contains("opencode"),
        "{error}"
    );
}

#[test]
fn ids_are_unique_and_found() {
    for harness in ALL {
        assert_eq!(find(harness.id()).map(karta_harness::Harness::id), Some(harness.id()));
    }
    assert!(find("none").is_none());
}

#[test]
fn packages_are_pinned() {
    for (harness, package) in
        ALL.iter().filter_map(|harness| harness.package().map(|package| (harness.id(), package)))
    {
        assert!(!package.pinned.is_empty(), "{harness}");
        for pinned in package.pinned {
            assert!(
                pinned.integrity.starts_with("sha512-") && pinned.integrity.len() == 95,
                "{}",
                pinned.name
            );
        }
    }
}
