//! The scripted harness's program, hosted: as a task inside the server, or as a process of its own.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use karta_harness::scripted::{Action, PROGRAM, Player};
use karta_sandbox::fake::{Call, Files};
use karta_sandbox::{Driver, Exit, fake};
use karta_types::{Clock, ErrorCode, Rng};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};

use crate::Error;

/// A driver that runs the player as a task. One that does not keep its places forgets them as a machine does.
pub(crate) fn driver(clock: Arc<dyn Clock>, rng: Arc<dyn Rng>, keeps: bool) -> Arc<dyn Driver> {
    let driver = fake::Driver::new(functions(), clock, rng);
    Arc::new(if keeps { driver } else { driver.forgetful() })
}

/// The scripted harness's program as a function, for a driver in memory.
pub fn functions() -> HashMap<String, fake::Program> {
    let program: fake::Program = Arc::new(|call| Box::pin(as_task(call)));
    HashMap::from([(PROGRAM.to_owned(), program)])
}

async fn as_task(call: Call) -> Exit {
    let Call { command, stdin, stdout, stderr, files } = call;
    let [script, native, history] = command.args.as_slice() else { return exit(2) };
    let path = PathBuf::from(history);
    let kept = files.get(&path).unwrap_or_default();
    let script = tokio::fs::read_to_string(script).await;
    let player = script.map_err(|error| error.to_string()).and_then(|text| Player::new(&text, native, &kept));
    let keep = Keep::Memory(files, path, kept);
    match player {
        Ok(player) => exit(host(player, stdin, stdout, stderr, keep).await),
        Err(_) => exit(2),
    }
}

const fn exit(status: i32) -> Exit {
    Exit { status: Some(status), signal: None }
}

/// Plays the scripted harness over standard input and output until it ends. Answers its exit status.
///
/// # Errors
/// The arguments are not those that the adapter gives, or the script can't be read.
pub async fn play(args: &[String]) -> Result<i32, Error> {
    let wrong = |why: String| Error::told(ErrorCode::HarnessStartFailed, why);
    let [script, native, history] = args else {
        return Err(wrong("`karta play` takes a script, a session and a history file".to_owned()));
    };
    let text = tokio::fs::read_to_string(script)
        .await
        .map_err(|error| wrong(format!("reading `{script}`: {error}")))?;
    let path = PathBuf::from(history);
    let kept = tokio::fs::read(&path).await.unwrap_or_default();
    let player =
        Player::new(&text, native, &kept).map_err(|why| wrong(format!("reading `{script}`: {why}")))?;
    let keep = Keep::Disk(path);
    Ok(host(player, tokio::io::stdin(), tokio::io::stdout(), tokio::io::stderr(), keep).await)
}

/// Where the conversation is kept.
enum Keep {
    Memory(Files, PathBuf, Vec<u8>),
    Disk(PathBuf),
}

impl Keep {
    async fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Memory(files, path, kept) => {
                kept.extend_from_slice(bytes);
                files.put(path, kept).map_err(std::io::Error::other)
            }
            Self::Disk(path) => append(path, bytes).await,
        }
    }
}

async fn append(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        tokio::fs::create_dir_all(folder).await?;
    }
    let mut file = tokio::fs::File::options().create(true).append(true).open(path).await?;
    file.write_all(bytes).await?;
    file.flush().await
}

/// Does what the player says. Ends when it exits, or when nobody speaks or listens to it any more.
async fn host(
    mut player: Player,
    stdin: impl AsyncRead + Unpin,
    mut stdout: impl AsyncWrite + Unpin,
    mut stderr: impl AsyncWrite + Unpin,
    mut keep: Keep,
) -> i32 {
    let mut lines = BufReader::new(stdin);
    let mut line = Vec::new();
    loop {
        let done = match player.next_action() {
            Action::Exit(status) => return status,
            Action::Write(bytes) => match stdout.write_all(&bytes).await {
                Ok(()) => stdout.flush().await,
                failed => failed,
            },
            Action::Stderr(text) => stderr.write_all(text.as_bytes()).await,
            Action::Append(bytes) => keep.append(&bytes).await,
            Action::Wait(millis) => {
                let end = tokio::time::sleep(Duration::from_millis(millis));
                tokio::pin!(end);
                loop {
                    tokio::select! {
                        () = &mut end => break,
                        // `read_until` keeps what it has read in `line` when it is cut off here.
                        read = lines.read_until(b'\n', &mut line) => if !heard(&mut player, &read, &mut line) { return 0 },
                    }
                }
                Ok(())
            }
            Action::Listen => {
                let read = lines.read_until(b'\n', &mut line).await;
                if !heard(&mut player, &read, &mut line) {
                    return 0;
                }
                Ok(())
            }
        };
        if done.is_err() {
            return 1;
        }
    }
}

/// Gives the player a line. Answers whether there may be more.
fn heard(player: &mut Player, read: &std::io::Result<usize>, line: &mut Vec<u8>) -> bool {
    match read {
        Ok(0) | Err(_) => false,
        Ok(_) => {
            player.line(line);
            line.clear();
            true
        }
    }
}
