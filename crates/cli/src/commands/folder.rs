//! A person's folder before it is published: picked, checked offline, and told of.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use karta_release::check::{Checked, Others};
use karta_release::folder::{Choice, LeftOut, Picked, Suspect};
use karta_release::{Fault, folder};

use super::found;
use crate::printer::{DIM, Printer, YELLOW, count, size, tame};

/// So many of a list are named one by one.
const NAMED: usize = 6;

/// A folder, and what publishing would say of it.
pub(super) struct Looked {
    pub(super) picked: Picked,
    pub(super) checked: Result<Checked, Vec<Fault>>,
}

/// Picks and checks a folder.
pub(super) async fn look(
    path: PathBuf,
    allow_secrets: Vec<String>,
    printer: &Printer,
) -> anyhow::Result<Looked> {
    printer.progress(format!("reading {}", path.display()));
    let work = tokio::task::spawn_blocking(move || -> anyhow::Result<Looked> {
        let picked = folder::pick(&path, &Choice { allow_secrets })?;
        let tree = picked.files.tree(&path)?;
        // Which versions can be run is the server's to say.
        let checked = karta_release::check::check(&picked.files, &tree, &|_| Others::Unknown);
        Ok(Looked { picked, checked })
    });
    printer.working(work).await.context("reading the folder")?
}

impl Looked {
    /// `12 files, 34 kB`
    pub(super) fn amount(&self) -> String {
        let files = &self.picked.files;
        format!("{}, {}", count(files.len() as u64, "file"), size(files.bytes()))
    }

    /// What it holds and what was left out.
    pub(super) fn about(&self) -> String {
        let mut text = String::new();
        let mut warnings = Vec::new();
        if let Ok(checked) = &self.checked {
            text += &found::found(&checked.pin, &checked.found);
            text += &found::entry("policy", &found::policy(&checked.recipe.policy));
            text += &found::entry("secrets", &found::secrets(&checked.recipe.secrets));
            warnings = checked.warnings.iter().map(|text| tame(text)).collect();
        }
        text += &found::entry("left out", &left_out(&self.picked.left_out));
        for warning in warnings {
            // Writing to a text never fails.
            let _ = writeln!(text, "{YELLOW}warning{YELLOW:#}: {warning}");
        }
        text
    }

    /// Everything that publishing would refuse, each as compilers say it.
    pub(super) fn faults(&self) -> Vec<String> {
        let faults = self.checked.as_ref().err().into_iter().flatten().map(|fault| tame(&fault.to_string()));
        faults.chain(self.picked.secrets.iter().map(suspect)).collect()
    }

    /// What to do about what looks like a secret, if something does.
    pub(super) fn advice(&self) -> Option<String> {
        let first = self.picked.secrets.first()?;
        Some(format!(
            "what is secret is left out by a line in `.kartaignore`; what is none goes by `--allow-secret {}`",
            tame(&first.path)
        ))
    }
}

fn suspect(one: &Suspect) -> String {
    let line = one.line.map(|line| format!(":{line}")).unwrap_or_default();
    format!("{}{line}: looks like a secret: {}", tame(&one.path), one.what)
}

/// The first of what was left out, and how much more there is.
fn left_out(all: &[LeftOut]) -> Vec<String> {
    let shown = all.iter().take(NAMED);
    let mut lines: Vec<_> =
        shown.map(|one| format!("{} {DIM}({}){DIM:#}", tame(&one.path), tame(&one.why))).collect();
    if all.len() > NAMED {
        lines.push(format!("and {} more", all.len() - NAMED));
    }
    lines
}
