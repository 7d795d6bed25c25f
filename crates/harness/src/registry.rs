//! The harnesses there are, and which one a folder is for.

use crate::tree::Tree;
use crate::{Error, Harness};

/// Every harness, in the order of detection.
pub static ALL: &[&dyn Harness] =
    &[&crate::opencode::OpenCode, &crate::claude_code::ClaudeCode, &crate::scripted::Scripted];

/// The harness with this id.
pub fn find(id: &str) -> Option<&'static dyn Harness> {
    ALL.iter().copied().find(|harness| harness.id() == id)
}

/// What `karta.toml` declares about the harness.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Declared {
    /// `claude-code`, `opencode`, `scripted`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The exact version; absent is the default.
    pub version: Option<String>,
}

/// Which harness the folder is for: what `karta.toml` declares, else what its files show.
///
/// # Errors
/// An unknown type, a declared type whose files are absent while another's are present, or nothing recognisable.
pub fn detect(tree: &Tree, declared: &Declared) -> Result<&'static dyn Harness, Error> {
    let shown: Vec<_> = ALL
        .iter()
        .copied()
        .filter_map(|harness| {
            harness.signals().iter().find(|signal| tree.has(signal)).map(|signal| (harness, *signal))
        })
        .collect();
    let Some(kind) = declared.kind.as_deref() else {
        return shown.first().map(|(harness, _)| *harness).ok_or_else(|| nothing_recognised(tree));
    };
    let harness = find(kind).ok_or_else(|| {
        let known: Vec<_> = ALL.iter().map(|harness| harness.id()).collect();
        Error::Detect(format!(
            "karta.toml: harness type `{kind}` is not known; known are: {}",
            known.join(", ")
        ))
    })?;
    let has_own = shown.iter().any(|(other, _)| other.id() == harness.id());
    match shown.iter().find(|(other, _)| other.id() != harness.id()) {
        Some((other, signal)) if !has_own => Err(Error::Detect(format!(
            "karta.toml declares harness `{kind}`, but the folder has `{signal}` of `{}` and none of {}; \
             change `[harness] type` or add one of those files",
            other.id(),
            quoted(harness.signals()),
        ))),
        _ => Ok(harness),
    }
}

fn nothing_recognised(tree: &Tree) -> Error {
    let looked: Vec<_> =
        ALL.iter().map(|harness| format!("{} ({})", quoted(harness.signals()), harness.id())).collect();
    let empty = if tree.is_empty() { "the folder is empty; " } else { "" };
    Error::Detect(format!(
        "no harness recognised: {empty}looked for {}; add one of them, or declare `[harness] type` in karta.toml",
        looked.join(", ")
    ))
}

fn quoted(signals: &[&str]) -> String {
    signals.iter().map(|signal| format!("`{signal}`")).collect::<Vec<_>>().join(" or ")
}
