//! Running the binary with nothing of this process's environment.

use std::process::{Output, Stdio};

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// What a run printed and how it exited.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

pub(crate) fn karta(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_karta"));
    command.args(args).env_clear().env("HOME", "/nonexistent").kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub(crate) async fn run(mut command: Command, stdin: &str) -> Ran {
    let mut child = command.spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    // The program may exit without reading.
    let _ = pipe.write_all(stdin.as_bytes()).await;
    drop(pipe);
    child.wait_with_output().await.unwrap().into()
}
