//! `karta init`: a folder is made ready to be published, by a small `karta.toml` and a remote for git.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use karta_engine::harnesses::{self, Harnesses};
use karta_release::manifest::{self, is_slug};
use karta_types::release::HarnessPin;
use serde_json::json;

use super::git::{REMOTE, Repository};
use super::running;
use crate::args::InitArgs;
use crate::printer::{Advised, CYAN, DIM, Printer, YELLOW};
use crate::settings::{Connection, origin_of};

/// What `karta init` needs to know.
pub(super) struct Settings {
    /// The server, if one is known.
    pub(super) connection: Option<Connection>,
    /// The data directory, where another than the usual is given.
    pub(super) data: Option<PathBuf>,
    pub(super) args: InitArgs,
    pub(super) json: bool,
}

/// A harness that folders are made for.
struct Known {
    id: &'static str,
    version: &'static str,
    signals: &'static [&'static str],
}

impl Known {
    /// The file by which the folder shows that it is for this harness.
    fn shown_by(&self, folder: &Path) -> Option<&'static str> {
        self.signals.iter().copied().find(|signal| folder.join(signal).exists())
    }
}

fn known() -> Vec<Known> {
    let all = Harnesses::new(PathBuf::new()).list().into_iter();
    let known = all.filter_map(|status| {
        let signals = harnesses::find(status.id)?.signals();
        Some(Known { id: status.id, version: status.default_version, signals })
    });
    known.collect()
}

pub(super) fn run(settings: &Settings, printer: &Printer) -> anyhow::Result<ExitCode> {
    let Settings { connection, data, args, json } = settings;
    let path = running::folder(&args.path)?;
    let file = path.join(manifest::FILE);
    let there = match std::fs::read_to_string(&file) {
        Ok(text) => Some(text),
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => None,
        Err(why) => return Err(why).with_context(|| format!("reading `{}`", file.display())),
    };
    let (project, harness) = match &there {
        Some(text) => keep(text, &path, args, printer)?,
        None => make(&file, &path, args, printer)?,
    };
    let remote = if args.no_git {
        None
    } else {
        match Repository::of(&path) {
            Some(repository) => {
                connect(&repository, &path, &project, connection.as_ref(), data.as_deref(), printer)?
            }
            None => None,
        }
    };
    if *json {
        let made = there.is_none();
        printer.json(
            &json!({ "project": project, "harness": harness, "file": file, "made": made, "remote": remote }),
        )?;
    } else {
        printer.note(&format!("Next: {CYAN}`karta check`{CYAN:#}, then {CYAN}`karta deploy`{CYAN:#}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Says what a `karta.toml` that is there holds; it is not changed.
fn keep(
    text: &str,
    path: &Path,
    args: &InitArgs,
    printer: &Printer,
) -> anyhow::Result<(String, Option<HarnessPin>)> {
    let file = manifest::FILE;
    let said = match manifest::parse(text) {
        Ok(said) => said,
        Err(faults) => {
            let faults: Vec<_> = faults.iter().map(|fault| format!("\n{fault}")).collect();
            let what = format!("`{file}` is there, and can't be used{}", faults.concat());
            bail!(Advised {
                what,
                advice: Some("mend it, or remove it and run `karta init` again".to_owned())
            });
        }
    };
    let slug = said.project.clone().unwrap_or_else(|| running::slug_of(path));
    let harness = match (&said.harness.kind, &said.harness.version) {
        (Some(kind), Some(version)) => format!("harness {kind} {version}"),
        (Some(kind), None) => format!("harness {kind}"),
        (None, _) => "no harness named".to_owned(),
    };
    let project =
        said.project.as_ref().map_or_else(|| "no project named".to_owned(), |slug| format!("project {slug}"));
    printer.note(&format!("`{file}` is there and stays as it is: {project}, {harness}"));
    let differs = |given: &Option<String>, said: &Option<String>| given.is_some() && given != said;
    if differs(&args.project, &said.project) || differs(&args.harness, &said.harness.kind) {
        printer.note(&format!("{YELLOW}What you named was not written{YELLOW:#}: change it in `{file}`"));
    }
    let pin = said.harness.kind.zip(said.harness.version);
    Ok((slug, pin.map(|(kind, version)| HarnessPin { kind, version })))
}

/// Writes a `karta.toml` with what is known.
fn make(
    file: &Path,
    path: &Path,
    args: &InitArgs,
    printer: &Printer,
) -> anyhow::Result<(String, Option<HarnessPin>)> {
    let person = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    let project = project(path, args, person, printer)?;
    let known = known();
    let harness = harness(&known, path, args, person, printer)?;
    let text = content(&project, harness);
    std::fs::File::create_new(file)
        .and_then(|mut made| made.write_all(text.as_bytes()))
        .with_context(|| format!("writing `{}`", file.display()))?;
    let about =
        harness.map_or_else(String::new, |harness| format!(", harness {} {}", harness.id, harness.version));
    printer.note(&format!("Wrote `{}`: project {project}{about}", manifest::FILE));
    if known.iter().all(|harness| harness.shown_by(path).is_none()) {
        printer.note(&format!(
            "{YELLOW}There is nothing for a harness here yet{YELLOW:#}; what you add is yours to write:"
        ));
        for harness in &known {
            let signals: Vec<_> = harness.signals.iter().map(|signal| format!("`{signal}`")).collect();
            printer.note(&format!("  {DIM}{}{DIM:#} {}", harness.id, signals.join(" or ")));
        }
    }
    let pin = harness
        .map(|harness| HarnessPin { kind: harness.id.to_owned(), version: harness.version.to_owned() });
    Ok((project, pin))
}

fn content(project: &str, harness: Option<&Known>) -> String {
    let harness = harness.map_or_else(String::new, |harness| {
        format!(
            "\n[harness]\ntype = \"{}\"\nversion = \"{}\"  # exact: what you tried is what runs\n",
            harness.id, harness.version
        )
    });
    format!(
        "# What Karta needs to know of this folder; the harness's own files stay the harness's.\n\
         # Every key there is: docs/guides/folder.md\n\n\
         project = \"{project}\"  # its name in addresses\n{harness}"
    )
}

/// The project's name: as given, as typed, or as the folder is called.
fn project(path: &Path, args: &InitArgs, person: bool, printer: &Printer) -> anyhow::Result<String> {
    const RULE: &str = "1 to 63 of a-z, 0-9 and -, not beginning with -";
    if let Some(given) = &args.project {
        if !is_slug(given) {
            bail!("`{given}` can't be a project's name: it is {RULE}");
        }
        return Ok(given.clone());
    }
    let own = running::slug_of(path);
    if !person {
        return Ok(own);
    }
    loop {
        printer.ask(&format!("The project's name in addresses [{CYAN}{own}{CYAN:#}]: "));
        match typed()?.as_str() {
            "" => return Ok(own),
            name if is_slug(name) => return Ok(name.to_owned()),
            _ => printer.note(&format!("A name is {RULE}")),
        }
    }
}

/// The harness: as given, as the files show, as typed where that is not clear; none where nobody can say.
fn harness<'a>(
    known: &'a [Known],
    path: &Path,
    args: &InitArgs,
    person: bool,
    printer: &Printer,
) -> anyhow::Result<Option<&'a Known>> {
    let ids: Vec<_> = known.iter().map(|harness| harness.id).collect();
    let named = |name: &str| known.iter().find(|harness| harness.id == name);
    if let Some(given) = &args.harness {
        let found = named(given);
        return found
            .map(Some)
            .with_context(|| format!("there is no harness `{given}`; there are: {}", ids.join(", ")));
    }
    let shown: Vec<_> = known.iter().filter(|harness| harness.shown_by(path).is_some()).collect();
    if let [only] = shown.as_slice() {
        return Ok(Some(only));
    }
    // As the server would take it.
    let first = shown.first().copied();
    if let Some(first) = first {
        let all: Vec<_> = shown
            .iter()
            .map(|harness| format!("`{}` ({})", harness.shown_by(path).unwrap_or_default(), harness.id))
            .collect();
        printer.note(&format!("There are files of more than one harness: {}", all.join(", ")));
        if !person {
            printer.note(&format!("{} it is, as long as nobody says otherwise by `--harness`", first.id));
        }
    }
    if !person {
        return Ok(first);
    }
    loop {
        let default = first.map_or(String::new(), |first| format!(" [{CYAN}{}{CYAN:#}]", first.id));
        printer.ask(&format!("The harness, {}{default}: ", ids.join(" or ")));
        let name = typed()?;
        if name.is_empty() {
            return Ok(first);
        }
        match named(&name) {
            Some(harness) => return Ok(Some(harness)),
            None => printer.note(&format!("There is no harness `{name}`")),
        }
    }
}

fn typed() -> anyhow::Result<String> {
    let mut line = String::new();
    let read = std::io::stdin().read_line(&mut line).context("reading the answer")?;
    if read == 0 {
        bail!("there is nobody to answer; nothing was written");
    }
    Ok(line.trim().to_owned())
}

/// Lets git push to the server: a remote, and the way to its key. Answers where the remote leads.
fn connect(
    repository: &Repository,
    path: &Path,
    project: &str,
    connection: Option<&Connection>,
    data: Option<&Path>,
    printer: &Printer,
) -> anyhow::Result<Option<String>> {
    let Some(connection) = connection else {
        printer.note("Git has no remote for it: no server is known. Run `karta init` again after `karta login --url URL`");
        return Ok(None);
    };
    let url = format!("{}/git/{project}.git", connection.url.trim_end_matches('/'));
    let Some(server) = origin_of(&connection.url) else { bail!("`{}` is no address", connection.url) };
    let old = match repository.remote() {
        Some(there) if there == url => true,
        Some(there) => {
            printer.note(&format!(
                "{YELLOW}The git remote `{REMOTE}` leads elsewhere{YELLOW:#}, to {there}, and stays; for this server: `git remote set-url {REMOTE} {url}`"
            ));
            return Ok(None);
        }
        None => {
            repository.add_remote(&url)?;
            false
        }
    };
    let new_helper = repository.set_helper(&server, &helper(data)?)?;
    if old && !new_helper {
        printer.note(&format!("Git has its remote `{REMOTE}` already: {url}"));
        return Ok(Some(url));
    }
    printer.note(&format!("Git, in this repository only: the remote `{REMOTE}` is {url}"));
    printer
        .note(&format!("  {DIM}its key is asked of `karta git-credential`; no key is written down{DIM:#}"));
    printer.note(&format!(
        "  {DIM}undo{DIM:#} git remote remove {REMOTE} && git config --remove-section credential.{server}"
    ));
    if repository.top == path {
        printer.note(&format!("  {DIM}publish{DIM:#} git push {REMOTE}"));
    } else {
        let inside = path.strip_prefix(&repository.top).unwrap_or(path);
        printer.note(&format!(
            "  {DIM}publish{DIM:#} git subtree push --prefix {} {REMOTE} main",
            inside.display()
        ));
    }
    Ok(Some(url))
}

/// How git starts this program.
fn helper(data: Option<&Path>) -> anyhow::Result<String> {
    let program = std::env::current_exe().context("finding this program's own file")?;
    let data = data.map(|data| std::path::absolute(data).map(|data| format!(" --data {}", quoted(&data))));
    let data = data.transpose().context("finding the data directory")?.unwrap_or_default();
    Ok(format!("!{}{data} git-credential", quoted(&program)))
}

/// As one word of a shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_can_be_read() {
        let harness = known().into_iter().find(|harness| harness.id == "claude-code").unwrap();
        let said = manifest::parse(&content("support-bot", Some(&harness))).unwrap();
        assert_eq!(said.project.as_deref(), Some("support-bot"));
        assert_eq!(said.harness.kind.as_deref(), Some("claude-code"));
        assert_eq!(said.harness.version.as_deref(), Some(harness.version));
        let said = manifest::parse(&content("app", None)).unwrap();
        assert_eq!((said.project.as_deref(), said.harness.kind), (Some("app"), None));
    }

    #[test]
    fn a_shell_reads_the_path_as_one_word() {
        assert_eq!(quoted(Path::new("/it's here/karta")), r"'/it'\''s here/karta'");
    }
}
