//! git, found on `PATH` and run with nothing of this machine's: no system's, user's or attacker's configuration, bounded memory, and a
//! process group of its own that is killed when nobody waits for it any more.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use karta_types::ErrorCode;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};

use crate::{Error, Result};

/// The longest that one of git's small commands may take.
const QUICK: Duration = Duration::from_mins(1);
/// Bytes kept of what a command says of its failure.
const COMPLAINT: u64 = 8 << 10;

/// What is set before every git: no core files (they hold what was pushed), two GiB of memory, in KiB. A system that can't limit memory
/// runs without.
const LIMITED: &str = "ulimit -c 0; ulimit -v 2097152 2>/dev/null; exec \"$@\"";
/// The same; the socket that is standard error becomes descriptor 3, which hooks inherit. What git says outside its protocol is nobody's.
const LIMITED_WITH_CHANNEL: &str = "ulimit -c 0; ulimit -v 2097152 2>/dev/null; exec \"$@\" 3<&2 2>/dev/null";

/// What holds for every repository. Written beside them and read as the user's own configuration, which every git since long ago knows.
///
/// Harmless faults of old histories (as `GitHub` and others let pass) are let pass; everything else that fsck knows is refused. Packs are
/// kept as packs, so that one push makes two files and not thousands.
const CONFIG: &str = "\
[core]
\tlogAllRefUpdates = false
\tprotectHFS = true
\tprotectNTFS = true
\tbigFileThreshold = 16m
\tpackedGitLimit = 256m
\tattributesFile = /dev/null
\texcludesFile = /dev/null
[safe]
\tdirectory = *
[transfer]
\tfsckObjects = true
\tunpackLimit = 1
[receive]
\tfsckObjects = true
\tunpackLimit = 1
\tautogc = false
\tupdateServerInfo = false
\tadvertisePushOptions = false
\tshallowUpdate = true
[receive \"fsck\"]
\tbadTimezone = ignore
\tmissingSpaceBeforeDate = ignore
\tzeroPaddedFilemode = ignore
[gc]
\tauto = 512
\tautoPackLimit = 20
\tautoDetach = false
\tpruneExpire = now
\twriteCommitGraph = false
[maintenance]
\tauto = false
[pack]
\tthreads = 1
\twindowMemory = 64m
\tdeltaCacheSize = 32m
[tar]
\tumask = 0022
[log]
\tshowSignature = false
";

/// git, and where its own files of ours are.
#[derive(Debug, Clone)]
pub(super) struct Git {
    program: PathBuf,
    path: OsString,
    home: PathBuf,
}

/// The version of the git that `PATH` finds.
///
/// # Errors
/// There is none, or it does not run; with the command that mends it.
pub async fn version() -> Result<String> {
    let git = Git::find(Path::new("/"))?;
    let text = git.ask(Path::new("/"), ["version"], 200).await?;
    Ok(String::from_utf8_lossy(&text).trim().trim_start_matches("git version ").to_owned())
}

impl Git {
    /// The git on `PATH`, with `home` as its home.
    ///
    /// # Errors
    /// `git_not_installed`.
    pub(super) fn find(home: &Path) -> Result<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let program = std::env::split_paths(&path).map(|folder| folder.join("git")).find(|git| git.is_file());
        let program = program.ok_or_else(|| {
            Error::told(
                ErrorCode::GitNotInstalled,
                "git was not found on the server's PATH; `git push` to it works once it is installed: `apt-get install git`",
            )
        })?;
        Ok(Self { program, path, home: home.to_owned() })
    }

    /// Writes the configuration that holds for every repository.
    pub(super) fn configure(home: &Path) -> std::io::Result<()> {
        std::fs::write(home.join(".gitconfig"), CONFIG)
    }

    /// A command in a folder, to be run by [`Group::spawn`].
    pub(super) fn command<A: AsRef<OsStr>>(
        &self,
        folder: &Path,
        args: impl IntoIterator<Item = A>,
    ) -> Command {
        self.shell(LIMITED, folder, args)
    }

    /// The same, whose standard error must be a socket: hooks have it as descriptor 3.
    pub(super) fn command_with_channel<A: AsRef<OsStr>>(
        &self,
        folder: &Path,
        args: impl IntoIterator<Item = A>,
    ) -> Command {
        self.shell(LIMITED_WITH_CHANNEL, folder, args)
    }

    fn shell<A: AsRef<OsStr>>(
        &self,
        script: &str,
        folder: &Path,
        args: impl IntoIterator<Item = A>,
    ) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script, "sh"]).arg(&self.program).args(args);
        command.current_dir(folder).env_clear();
        command.env("PATH", &self.path).env("HOME", &self.home).env("LC_ALL", "C").env("TZ", "UTC");
        command.envs([
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_ATTR_NOSYSTEM", "1"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_NO_REPLACE_OBJECTS", "1"),
            ("GIT_NO_LAZY_FETCH", "1"),
            ("GIT_OPTIONAL_LOCKS", "0"),
            // The largest thing git may want memory for: a delta of a few bytes can stand for as much as it likes.
            ("GIT_ALLOC_LIMIT", "512m"),
        ]);
        command
    }

    /// Runs a command to its end and gives what it printed.
    ///
    /// # Errors
    /// It failed, took too long, or printed more than `most` bytes.
    pub(super) async fn ask<A: AsRef<OsStr>>(
        &self,
        folder: &Path,
        args: impl IntoIterator<Item = A>,
        most: u64,
    ) -> Result<Vec<u8>> {
        Self::output(self.command(folder, args), most).await
    }

    /// As [`Git::ask`], of a command made before.
    pub(super) async fn output(command: Command, most: u64) -> Result<Vec<u8>> {
        Self::output_within(command, most, QUICK).await
    }

    /// As [`Git::output`], for a command that may take longer.
    pub(super) async fn output_within(command: Command, most: u64, time: Duration) -> Result<Vec<u8>> {
        let failed = |why: String| Error::internal("running git", why);
        let mut group =
            Group::spawn(command, Stdio::piped(), Stdio::piped()).map_err(|why| failed(why.to_string()))?;
        let (stdout, stderr) = (group.child.stdout.take(), group.child.stderr.take());
        let ended = tokio::time::timeout(time, async {
            let (out, complaint) = tokio::join!(bounded(stdout, most + 1), bounded(stderr, COMPLAINT));
            (out, complaint, group.child.wait().await)
        });
        let (out, complaint, status) =
            ended.await.map_err(|_| failed(format!("took longer than {} seconds", time.as_secs())))?;
        let status = status.map_err(|why| failed(why.to_string()))?;
        if out.len() as u64 > most {
            return Err(failed(format!("printed more than {most} bytes")));
        }
        if !status.success() {
            return Err(failed(format!("{status}: {}", String::from_utf8_lossy(&complaint).trim())));
        }
        Ok(out)
    }
}

/// Reads at most so much; what more there is breaks the pipe.
async fn bounded(pipe: Option<impl AsyncRead + Unpin>, most: u64) -> Vec<u8> {
    let mut kept = Vec::new();
    if let Some(pipe) = pipe {
        // A pipe that breaks has said what it had to say.
        let _ = pipe.take(most).read_to_end(&mut kept).await;
    }
    kept
}

/// A process and everything it starts. Dropped before its end, all of it is killed.
#[derive(Debug)]
pub(super) struct Group {
    /// The first of them.
    pub(super) child: Child,
}

impl Group {
    /// Starts the first, without input.
    pub(super) fn spawn(mut command: Command, stdout: Stdio, stderr: Stdio) -> std::io::Result<Self> {
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        Self::start(command)
    }

    /// Starts the first, whose streams the caller has set.
    pub(super) fn start(mut command: Command) -> std::io::Result<Self> {
        command.process_group(0).kill_on_drop(true);
        Ok(Self { child: command.spawn()? })
    }

    /// Kills all of them, unless the first was waited for already: its number may be another's then.
    pub(super) fn kill(&self) {
        let first = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(first) = first {
            // Those that are gone need no killing.
            let _ = kill_process_group(first, Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}
