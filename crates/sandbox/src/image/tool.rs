//! Programs of the host that make images and disks: found on `PATH`, with an environment of their own, bounded in time and output.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;

use super::Error;

/// How much of what a program prints last is kept.
const KEEP: usize = 4 << 10;
/// What they may see of this process's environment, besides the settings of pip. Nothing that holds a provider's key is on it.
const ENVIRONMENT: &[&str] = &[
    "PATH",
    "HOME",
    "TMPDIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
];
/// Where programs for the administrator are, which `PATH` leaves out for others.
const SBIN: &[&str] = &["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// A program that has to be there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Need {
    /// Its name.
    pub(crate) program: &'static str,
    /// What it is needed for: "base systems are made by it".
    pub(crate) purpose: &'static str,
    /// The package of Debian that has it.
    pub(crate) package: &'static str,
}

/// Where the program is; none if it is not installed.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SBIN.iter().map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

/// One run of a program.
#[derive(Debug)]
pub(crate) struct Tool {
    command: tokio::process::Command,
}

impl Tool {
    /// The program, found. [`Error::Missing`] says how to get it.
    pub(crate) fn new(need: Need) -> Result<Self, Error> {
        let Need { program, purpose, package } = need;
        let found = find(program).ok_or(Error::Missing { program, purpose, package })?;
        let mut command = tokio::process::Command::new(found);
        let allowed = |name: &OsString| {
            let name = name.to_string_lossy();
            ENVIRONMENT.contains(&name.as_ref()) || name.starts_with("PIP_")
        };
        command
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| allowed(name)))
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        Ok(Self { command })
    }

    /// Adds an argument.
    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    pub(crate) fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets a variable.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Where it runs.
    pub(crate) fn folder(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Runs it to its end, within time, and gives the end of what it printed to standard output.
    pub(crate) async fn run(mut self, doing: &str, most: Duration) -> Result<String, Error> {
        let failed = |said: String| Error::Tool { doing: doing.to_owned(), said };
        let mut child = self.command.spawn().map_err(|error| failed(error.to_string()))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let ended = tokio::time::timeout(most, async {
            let (out, err, status) = tokio::join!(tail(stdout), tail(stderr), child.wait());
            status.map(|status| (out, err, status))
        });
        let (out, err, status) = ended
            .await
            .map_err(|_| failed(format!("it took longer than {} s and was stopped", most.as_secs())))?
            .map_err(|error| failed(error.to_string()))?;
        if status.success() {
            return Ok(out);
        }
        let said = if err.trim().is_empty() { out } else { err };
        Err(failed(format!("{status}\n{}", said.trim())))
    }
}

/// Reads to the end, so that the program is never held up, and keeps the end, where its reasons are.
async fn tail(pipe: Option<impl tokio::io::AsyncRead + Unpin>) -> String {
    let mut kept = Vec::new();
    if let Some(mut pipe) = pipe {
        let mut buffer = vec![0; 8 << 10];
        // A pipe that breaks has said what it had to say.
        while let Ok(read) = pipe.read(&mut buffer).await {
            if read == 0 {
                break;
            }
            kept.extend_from_slice(&buffer[..read]);
            kept.drain(..kept.len().saturating_sub(KEEP));
        }
    }
    String::from_utf8_lossy(&kept).into_owned()
}
