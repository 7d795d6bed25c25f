//! How two releases differ, for people: grouped, with `+`, `-` and `~`, so that it reads without colour too.

use std::fmt::Write as _;

use clap::builder::styling::{AnsiColor, Style};
use karta_types::release::{Changed, ReleaseDiff};

use crate::printer::tame;

const ADDED: Style = AnsiColor::Green.on_default();
const REMOVED: Style = AnsiColor::Red.on_default();
const CHANGED: Style = AnsiColor::Yellow.on_default();

/// All of it; nothing if there is no difference.
pub(super) fn show(diff: &ReleaseDiff) -> String {
    let mut text = String::new();
    if let Some((before, after)) = &diff.harness {
        let (one, other) =
            (format!("{} {}", before.kind, before.version), format!("{} {}", after.kind, after.version));
        text += "harness\n";
        text += &line(CHANGED, '~', &format!("{one} → {other}"));
    }
    for (name, changed) in [
        ("files", &diff.files),
        ("agents", &diff.agents),
        ("skills", &diff.skills),
        ("commands", &diff.commands),
        ("hooks", &diff.hooks),
        ("MCP servers", &diff.mcp_servers),
        ("policy", &diff.policy),
    ] {
        text += &group(name, changed);
    }
    text
}

fn group(name: &str, changed: &Changed) -> String {
    if changed.is_empty() {
        return String::new();
    }
    let mut lines: Vec<(&str, Style, char)> = Vec::new();
    for (all, style, sign) in
        [(&changed.added, ADDED, '+'), (&changed.removed, REMOVED, '-'), (&changed.changed, CHANGED, '~')]
    {
        lines.extend(all.iter().map(|one| (one.as_str(), style, sign)));
    }
    // By name: what was moved stands near to where it was.
    lines.sort();
    let mut text = String::new();
    // Writing to a text never fails.
    let _ = writeln!(text, "{name}");
    for (what, style, sign) in lines {
        text += &line(style, sign, &tame(what));
    }
    text
}

fn line(style: Style, sign: char, what: &str) -> String {
    format!("  {style}{sign} {what}{style:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use karta_types::release::HarnessPin;

    #[test]
    fn differences_read_without_colour() {
        let all = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let pin = |version: &str| HarnessPin { kind: "claude-code".into(), version: version.into() };
        let diff = ReleaseDiff {
            files: Changed { added: all(&["b", "d"]), removed: all(&["c"]), changed: all(&["a\u{1b}[2J"]) },
            policy: Changed { changed: all(&["hooks: false"]), ..Changed::default() },
            harness: Some((pin("1.0.0"), pin("1.0.1"))),
            ..ReleaseDiff::default()
        };
        let text = anstream::adapter::strip_str(&show(&diff)).to_string();
        let wanted = "harness\n  ~ claude-code 1.0.0 → claude-code 1.0.1\nfiles\n  ~ a[2J\n  + b\n  - c\n  + d\npolicy\n  ~ hooks: false\n";
        assert_eq!(text, wanted);
        assert_eq!(show(&ReleaseDiff::default()), "");
    }
}
