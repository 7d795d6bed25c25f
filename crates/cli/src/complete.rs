//! Names that only the server knows, for the shell's completion: projects, releases, previews.
//!
//! Somebody waits with a finger on the tab key, so everything is bounded by a second, and whatever goes wrong is silence.

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::CommandFactory as _;
use clap_complete::engine::CompletionCandidate;
use clap_complete::env::Shells;
use clap_complete::{CompleteEnv, Shell};
use futures_util::future::join_all;
use karta_client::Client;
use karta_types::release::ReleaseState;

use crate::args::{Cli, version};
use crate::printer::tame;
use crate::settings;

/// The variable by which a shell's script asks this program for completions.
const VARIABLE: &str = "KARTA_COMPLETE";
/// The longest that the server may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// Answers a shell's question, if this run is one.
pub(crate) fn answer() -> Option<ExitCode> {
    let here = std::env::current_dir().ok();
    match CompleteEnv::with_factory(Cli::command)
        .var(VARIABLE)
        .try_complete(std::env::args_os(), here.as_deref())
    {
        Ok(false) => None,
        Ok(true) => Some(ExitCode::SUCCESS),
        Err(_) => Some(ExitCode::FAILURE),
    }
}

/// The script that makes a shell ask.
pub(crate) fn script(shell: Shell) -> std::io::Result<Vec<u8>> {
    let mut script = Vec::new();
    let shells = Shells::builtins();
    let name = shell.to_string();
    let shell =
        shells.completer(&name).ok_or_else(|| std::io::Error::other(format!("`{name}` is unknown")))?;
    // By its name, as the shell finds it then, unless it was called by a path.
    let called = std::env::args_os().next().unwrap_or_else(|| "karta".into());
    let program = std::path::PathBuf::from(&called);
    let program =
        if program.components().count() > 1 { std::env::current_dir()?.join(program) } else { program };
    shell.write_registration(VARIABLE, "karta", "karta", &program.to_string_lossy(), &mut script)?;
    script.flush()?;
    Ok(script)
}

/// What a word may be.
#[derive(Debug, Clone, Copy)]
enum What {
    Project,
    Version,
    Preview,
}

/// Projects, by their slugs.
pub(crate) fn projects(current: &OsStr) -> Vec<CompletionCandidate> {
    offer(current, &[What::Project])
}

/// Releases of the project that was named before, or of this folder's.
pub(crate) fn versions(current: &OsStr) -> Vec<CompletionCandidate> {
    offer(current, &[What::Version])
}

/// Previews, by their names.
pub(crate) fn previews(current: &OsStr) -> Vec<CompletionCandidate> {
    offer(current, &[What::Preview])
}

/// A project whose release comes next, or a release of this folder's.
pub(crate) fn project_or_version(current: &OsStr) -> Vec<CompletionCandidate> {
    offer(current, &[What::Version, What::Project])
}

/// A project whose preview comes next, or a preview of this folder's.
pub(crate) fn project_or_preview(current: &OsStr) -> Vec<CompletionCandidate> {
    offer(current, &[What::Preview, What::Project])
}

/// The words of `karta releases diff`: a project or a release first, then releases.
pub(crate) fn words_of_diff(current: &OsStr) -> Vec<CompletionCandidate> {
    match Typed::read() {
        Some(typed) if typed.words.is_empty() => project_or_version(current),
        _ => versions(current),
    }
}

/// What the server has that begins so, if it says it in time.
fn offer(current: &OsStr, wanted: &[What]) -> Vec<CompletionCandidate> {
    let begin = current.to_string_lossy();
    let fits = |one: &CompletionCandidate| one.get_value().to_string_lossy().starts_with(begin.as_ref());
    ask(wanted).unwrap_or_default().into_iter().flatten().filter(fits).collect()
}

fn ask(wanted: &[What]) -> Option<Vec<Vec<CompletionCandidate>>> {
    let (client, project) = Typed::read()?.server()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let all = wanted.iter().map(|what| names(&client, *what, project.as_deref()));
    // The timer needs the runtime, so it is made inside.
    let answer = runtime.block_on(async { tokio::time::timeout(PATIENCE, join_all(all)).await });
    // A host's name that is still being looked up is not waited for.
    runtime.shutdown_background();
    answer.ok()
}

/// Nothing, where the server refuses.
async fn names(client: &Client, what: What, project: Option<&str>) -> Vec<CompletionCandidate> {
    match (what, project) {
        (What::Project, _) => {
            let projects = client.projects().await.map(|page| page.data).unwrap_or_default();
            projects.iter().map(|project| candidate(&project.slug, &project.name)).collect()
        }
        (What::Version, Some(project)) => {
            let releases = client.releases(project, None).await.map(|page| page.data).unwrap_or_default();
            let there = releases.into_iter().filter(|release| release.state != ReleaseState::Deleted);
            let candidates = there.map(|release| {
                let state = release.state.as_str();
                let about =
                    release.message.map_or_else(|| state.to_owned(), |text| format!("{state}: {text}"));
                candidate(&format!("v{}", release.version), &about)
            });
            candidates.collect()
        }
        (What::Preview, Some(project)) => {
            let previews = client.previews(project, None).await.map(|page| page.data).unwrap_or_default();
            let candidates = previews.iter().map(|preview| {
                let about = format!("v{}, until {}", preview.release.version, preview.expires_at.day());
                candidate(&preview.name, &about)
            });
            candidates.collect()
        }
        (What::Version | What::Preview, None) => Vec::new(),
    }
}

/// What stands on the line already, as far as it matters here.
struct Typed {
    url: Option<String>,
    key: Option<String>,
    data: Option<std::path::PathBuf>,
    project: Option<String>,
    /// The words of `karta releases diff` that are whole.
    words: Vec<String>,
}

impl Typed {
    /// Reads the line as the command itself would, with what must follow filled in.
    fn read() -> Option<Self> {
        let mut line: Vec<OsString> = std::env::args_os().skip_while(|word| word != "--").skip(1).collect();
        // Where the cursor is; shells that don't say ask at the end.
        let at = std::env::var("_CLAP_COMPLETE_INDEX").ok().and_then(|at| at.parse().ok());
        line.truncate(at.unwrap_or_else(|| line.len().saturating_sub(1)));
        // A release where the cursor stands: with it a word before is the project, as it will be.
        line.push("v1".into());
        let matches = Cli::command().ignore_errors(true).try_get_matches_from(line).ok()?;
        let mut below = &matches;
        while let Some((_, next)) = below.subcommand() {
            below = next;
        }
        let text = |name: &str| below.try_get_one::<String>(name).ok().flatten().cloned();
        let words = below.try_get_many::<String>("words").ok().flatten();
        // The last is the one that was filled in.
        let mut words: Vec<String> = words.map(|words| words.cloned().collect()).unwrap_or_default();
        words.pop();
        let named = words.first().filter(|word| version(word).is_err()).cloned();
        Some(Self {
            url: text("url"),
            key: text("key"),
            data: below.try_get_one("data").ok().flatten().cloned(),
            project: named.or_else(|| text("project")),
            words,
        })
    }

    /// The known server and the project that is meant.
    fn server(&self) -> Option<(Client, Option<String>)> {
        let data = settings::data_dir(self.data.clone()).ok()?;
        let connection = settings::connection(self.url.clone(), self.key.clone(), &data).ok()?;
        let client = Client::new(&connection.url, connection.key).ok()?;
        let here = || settings::project_here().ok().flatten().or(connection.project);
        Some((client, self.project.clone().or_else(here)))
    }
}

/// Somebody else's words don't move the cursor of a shell.
fn candidate(value: &str, about: &str) -> CompletionCandidate {
    let about = tame(about).lines().next().unwrap_or_default().to_owned();
    CompletionCandidate::new(tame(value)).help(Some(about.into()))
}
