//! The npm client as a child process: found on `PATH`, with an environment of its own, bounded in time and output.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use super::install::Error;

/// A download may be a few hundred megabytes on a slow line.
const INSTALL: Duration = Duration::from_mins(30);
/// A program that only prints its version.
const QUICK: Duration = Duration::from_mins(1);
/// How much of what a child prints is kept.
const KEEP: u64 = 16 << 10;
/// What npm may see of the environment, besides `npm_config_*`. Nothing that holds a provider's key is on it.
const ENVIRONMENT: &[&str] = &[
    "PATH",
    "HOME",
    "TMPDIR",
    "LANG",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "NODE_EXTRA_CA_CERTS",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];
/// Said for every call, so that no configuration of the user's turns an installation into something else: no scripts, nothing
/// outside the folder, no talk.
const ALWAYS: &[&str] = &[
    "--ignore-scripts",
    "--global=false",
    "--workspaces=false",
    "--install-strategy=hoisted",
    "--bin-links=false",
    "--package-lock=true",
    "--omit=dev",
    "--omit=optional",
    "--omit=peer",
    "--no-audit",
    "--no-fund",
    "--no-update-notifier",
    "--no-progress",
    "--loglevel=error",
];

/// An npm client.
#[derive(Debug, Clone)]
pub struct Npm {
    program: Option<PathBuf>,
    environment: Vec<(OsString, OsString)>,
}

impl Npm {
    /// The npm that `PATH` finds, with what it needs of this process's environment.
    pub fn from_path() -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let program = std::env::split_paths(&path).map(|folder| folder.join("npm")).find(|npm| npm.is_file());
        let allowed = |name: &OsString| {
            let name = name.to_string_lossy();
            ENVIRONMENT.contains(&name.as_ref()) || name.to_ascii_lowercase().starts_with("npm_config_")
        };
        Self { program, environment: std::env::vars_os().filter(|(name, _)| allowed(name)).collect() }
    }

    /// This program as npm, or none, with exactly this environment.
    pub fn at(program: Option<PathBuf>, environment: Vec<(OsString, OsString)>) -> Self {
        Self { program, environment }
    }

    /// Its version.
    ///
    /// # Errors
    /// [`Error::NoNpm`], or why it doesn't run.
    pub async fn version(&self) -> Result<String, Error> {
        let program = self.program.as_deref().ok_or(Error::NoNpm)?;
        let mut command = self.command(program, Path::new("/"));
        command.arg("--version");
        run("asking npm for its version", command, QUICK).await.map(|text| text.trim().to_owned())
    }

    /// Puts the one package into `folder`, checked against `integrity`.
    pub(super) async fn install_pinned(
        &self,
        folder: &Path,
        package: &str,
        version: &str,
        integrity: &str,
    ) -> Result<(), Error> {
        let program = self.program.as_deref().ok_or(Error::NoNpm)?;
        write(&folder.join("package.json"), &manifest(Some((package, version)))).await?;
        write(&folder.join("package-lock.json"), &lock(package, version, integrity)).await?;
        let mut command = self.command(program, folder);
        command.arg("ci").args(ALWAYS);
        run(&format!("installing {package}@{version} by npm"), command, INSTALL).await.map(drop)
    }

    /// Puts the one package into `folder` and says which integrity the registry gave for it.
    pub(super) async fn install_unpinned(
        &self,
        folder: &Path,
        package: &str,
        version: &str,
    ) -> Result<String, Error> {
        let program = self.program.as_deref().ok_or(Error::NoNpm)?;
        write(&folder.join("package.json"), &manifest(None)).await?;
        let mut command = self.command(program, folder);
        command.arg("install").args(ALWAYS).args(["--save", "--save-exact"]);
        command.arg(format!("{package}@{version}"));
        run(&format!("installing {package}@{version} by npm"), command, INSTALL).await?;
        let path = folder.join("package-lock.json");
        let lock = tokio::fs::read(&path).await.map_err(|why| Error::file("reading", &path, why))?;
        let lock: Value = serde_json::from_slice(&lock).unwrap_or_default();
        let entry = &lock["packages"][format!("node_modules/{package}")];
        match (entry["version"].as_str(), entry["integrity"].as_str()) {
            (Some(got), Some(integrity)) if got == version => Ok(integrity.to_owned()),
            _ => Err(Error::Npm {
                doing: format!("installing {package}@{version} by npm"),
                said: "its lock file doesn't have that version with an integrity".to_owned(),
            }),
        }
    }

    fn command(&self, program: &Path, folder: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(folder).env_clear().envs(self.environment.iter().cloned());
        command
    }
}

fn manifest(dependency: Option<(&str, &str)>) -> Value {
    let mut manifest = json!({ "name": "karta-harness", "version": "0.0.0", "private": true });
    if let Some((package, version)) = dependency {
        manifest["dependencies"] = json!({ package: version });
    }
    manifest
}

/// A lock of one package by its integrity. It names no URL: npm asks the registry it is set up for, whichever that is, and
/// refuses what doesn't hash to this.
fn lock(package: &str, version: &str, integrity: &str) -> Value {
    let mut root = manifest(Some((package, version)));
    if let Some(root) = root.as_object_mut() {
        root.remove("private");
    }
    json!({
        "name": "karta-harness",
        "version": "0.0.0",
        "lockfileVersion": 3,
        "requires": true,
        "packages": {
            "": root,
            format!("node_modules/{package}"): { "version": version, "integrity": integrity },
        },
    })
}

pub(super) async fn write(path: &Path, value: &Value) -> Result<(), Error> {
    let text = format!("{value:#}\n");
    tokio::fs::write(path, text).await.map_err(|why| Error::file("writing", path, why))
}

/// What `program --version` prints, run with nothing but a home of its own.
pub(super) async fn version_of(program: &Path, home: &Path) -> Result<String, Error> {
    let mut command = Command::new(program);
    command.arg("--version").current_dir(home).env_clear().env("HOME", home).env("PATH", "/usr/bin:/bin");
    run(&format!("running `{} --version`", program.display()), command, QUICK).await
}

/// Runs to the end, within time, and gives what was printed, up to a limit.
async fn run(doing: &str, mut command: Command, most: Duration) -> Result<String, Error> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let failed = |said: String| Error::Npm { doing: doing.to_owned(), said };
    let mut child = command.spawn().map_err(|why| failed(why.to_string()))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let ended = tokio::time::timeout(most, async {
        let (out, err, status) = tokio::join!(bounded(stdout), bounded(stderr), child.wait());
        status.map(|status| (out, err, status))
    });
    let (out, err, status) = ended
        .await
        .map_err(|_| failed(format!("it took longer than {} seconds and was stopped", most.as_secs())))?
        .map_err(|why| failed(why.to_string()))?;
    if status.success() {
        return Ok(out);
    }
    let said = if err.trim().is_empty() { out } else { err };
    Err(failed(format!("{status}\n{}", said.trim())))
}

/// Reads to the end, so that the child is never held up, and keeps the beginning.
async fn bounded(pipe: Option<impl tokio::io::AsyncRead + Unpin>) -> String {
    let mut kept = Vec::new();
    if let Some(mut pipe) = pipe {
        // A pipe that breaks has said what it had to say.
        let _ = (&mut pipe).take(KEEP).read_to_end(&mut kept).await;
        let _ = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
    }
    String::from_utf8_lossy(&kept).into_owned()
}
