//! Everything that would refuse a folder, all at once, without a server.

use karta_harness::{Fault, Harness, Tree, registry};
use karta_types::policy::Recipe;
use karta_types::release::{Discovery, HarnessPin};

use crate::files::{Entry, Files};
use crate::manifest::{self, Manifest};
use crate::settings;
use crate::version::Wanted;

/// Which versions of a harness can be run, beside the one that this build is made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Others {
    /// These.
    Only(Vec<String>),
    /// That is for the server to say: an exact version is believed.
    Unknown,
}

/// What a folder is, if it can be published.
pub struct Checked {
    /// The project it says it is.
    pub project: Option<String>,
    /// Its harness.
    pub harness: &'static dyn Harness,
    /// The exact version it runs on.
    pub pin: HarnessPin,
    /// What it declares in the harness's own files.
    pub found: Discovery,
    /// What it says to the platform.
    pub recipe: Recipe,
    /// What is not as it seems to be meant, one sentence each; those of `found` too.
    pub warnings: Vec<String>,
}

impl std::fmt::Debug for Checked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checked").field("pin", &self.pin).finish_non_exhaustive()
    }
}

/// Checks a folder: its files, and what adapters read of them ([`Files::tree`]).
///
/// # Errors
/// Everything that would refuse it.
pub fn check(
    files: &Files,
    tree: &Tree,
    others: &dyn Fn(&dyn Harness) -> Others,
) -> Result<Checked, Vec<Fault>> {
    if files.is_empty() {
        return Err(vec![Fault::of("", "the folder is empty: there is nothing to publish")]);
    }
    let mut faults = Vec::new();
    let manifest = own(files, tree, manifest::FILE, manifest::parse, &mut faults);
    let defaults = own(files, tree, settings::FILE, settings::parse, &mut faults);
    // With a manifest at fault the harness's own files are looked at all the same, if they show whose they are.
    let sound = manifest.is_some();
    let manifest = manifest.unwrap_or_default();
    let harness = match registry::detect(tree, &manifest.harness) {
        Ok(harness) => harness,
        Err(_) if !sound => return Err(faults),
        Err(error) => {
            let message = error.to_string();
            let declared = manifest.harness.kind.is_some();
            faults.push(if declared {
                manifest.fault("harness.type", message)
            } else {
                Fault::of("", message)
            });
            return Err(faults);
        }
    };
    let mut warnings = Vec::new();
    let version = version(&manifest, harness, others, &mut warnings).map_err(|fault| faults.push(fault)).ok();
    let own = version.as_deref().is_none_or(|version| version == default_version(harness));
    let refusals = harness.refusals(tree);
    if own {
        faults.extend(refusals);
    } else {
        // What another version refuses can't be known here.
        let text = |fault: &Fault| format!("{fault}, if it is as the version that this Karta is made for");
        warnings.extend(refusals.iter().map(text));
    }
    let found = harness.discover(tree).map_err(|error| faults.push(of_harness(error))).ok();
    match (version, found, defaults) {
        (Some(version), Some(found), Some(defaults)) if faults.is_empty() => {
            warnings.extend(found.warnings.iter().cloned());
            let Manifest { project, policy, build, env, secrets, .. } = manifest;
            Ok(Checked {
                project,
                harness,
                pin: HarnessPin { kind: harness.id().to_owned(), version },
                found,
                recipe: Recipe { policy, defaults, build, env, secrets },
                warnings,
            })
        }
        _ => Err(faults),
    }
}

/// Reads one of the platform's own files; its default if it is not there, nothing if it is at fault.
fn own<T: Default>(
    files: &Files,
    tree: &Tree,
    file: &str,
    parse: impl Fn(&str) -> Result<T, Vec<Fault>>,
    faults: &mut Vec<Fault>,
) -> Option<T> {
    let text = match (files.get(file), tree.text(file)) {
        (None, _) => return Some(T::default()),
        (Some(Entry::Link { .. }), _) => {
            faults.push(Fault::of(file, "it must be a file, not a link"));
            return None;
        }
        (Some(Entry::File { .. }), None) => {
            faults.push(Fault::of(file, "it is not UTF-8 text, or too large"));
            return None;
        }
        (Some(Entry::File { .. }), Some(text)) => text,
    };
    parse(text).map_err(|more| faults.extend(more)).ok()
}

/// The version that a harness has here if nobody says another.
fn default_version(harness: &dyn Harness) -> &'static str {
    harness.package().map_or(env!("CARGO_PKG_VERSION"), |package| package.default_version)
}

fn version(
    manifest: &Manifest,
    harness: &dyn Harness,
    others: &dyn Fn(&dyn Harness) -> Others,
    warnings: &mut Vec<String>,
) -> Result<String, Fault> {
    let default = default_version(harness);
    let Some(text) = &manifest.harness.version else { return Ok(default.to_owned()) };
    let fault = |message: String| manifest.fault("harness.version", message);
    let wanted = Wanted::parse(text).ok_or_else(|| fault(format!("`{text}` is no version")))?;
    let mut known = vec![default.to_owned()];
    match (others(harness), &wanted) {
        (Others::Only(more), _) => known.extend(more.into_iter().filter(|other| other != default)),
        (Others::Unknown, Wanted::Exact(version)) if version != default => {
            let id = harness.id();
            warnings.push(format!(
                "{}: whether the server has {id} {version} can't be told here",
                manifest::FILE
            ));
            return Ok(version.clone());
        }
        (Others::Unknown, _) => {}
    }
    wanted.newest(&known).map(str::to_owned).ok_or_else(|| {
        let id = harness.id();
        fault(format!("no known version of {id} is `{text}`; known are: {}", known.join(", ")))
    })
}

/// A file that can't be read at all. What readers of JSON say ends with the place.
fn of_harness(error: karta_harness::Error) -> Fault {
    let karta_harness::Error::File { file, reason } = error else {
        return Fault::of("", error.to_string());
    };
    let place = reason.split_once(" at line ").and_then(|(before, rest)| {
        let (line, rest) = rest.split_once(" column ")?;
        let end = rest.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(rest.len());
        Some((format!("{before}{}", &rest[end..]), line.parse().ok()?, rest[..end].parse().ok()?))
    });
    match place {
        Some((message, line, column)) => Fault::of(file, message).at(line, column),
        None => Fault::of(file, reason),
    }
}
