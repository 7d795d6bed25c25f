//! `karta play`: the scripted harness as a child process, over standard input and output.

use std::process::ExitCode;

pub(super) async fn run(args: &[String]) -> anyhow::Result<ExitCode> {
    let status = karta_engine::play(args).await?;
    Ok(ExitCode::from(u8::try_from(status).unwrap_or(1)))
}
