//! `karta git-credential`: git asks for a key by the protocol of its credential helpers (gitcredentials(7)).

use std::io::BufRead as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;

use crate::args::GitCredentialArgs;
use crate::printer::Printer;
use crate::settings;

/// The most that git asks with, in bytes.
const MAX_QUESTION: u64 = 64 << 10;

/// Answers `get` for a server that is known. Whatever else is asked is somebody else's to answer, so nothing is said.
pub(super) fn run(args: GitCredentialArgs, data: &Path, printer: &Printer) -> anyhow::Result<ExitCode> {
    if args.operation != "get" {
        return Ok(ExitCode::SUCCESS);
    }
    let question = read(std::io::stdin().lock())?;
    let Some(origin) = question.origin() else { return Ok(ExitCode::SUCCESS) };
    if let Some(key) = settings::key_for(&origin, args.server.url, args.server.key, data) {
        // Git takes a key as the password; the name says only what it is.
        printer.data(&format!("username=karta\npassword={}", key.expose()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What git says of where it wants to go.
#[derive(Default)]
struct Question {
    protocol: Option<String>,
    host: Option<String>,
}

impl Question {
    fn origin(&self) -> Option<String> {
        let (protocol, host) = (self.protocol.as_deref()?, self.host.as_deref()?);
        matches!(protocol, "http" | "https").then(|| settings::origin_of(&format!("{protocol}://{host}")))?
    }
}

fn read(from: impl std::io::BufRead) -> anyhow::Result<Question> {
    let mut question = Question::default();
    for line in from.take(MAX_QUESTION).lines() {
        let line = line.context("reading what git asks")?;
        match line.split_once('=') {
            Some(("protocol", value)) => question.protocol = Some(value.to_owned()),
            Some(("host", value)) => question.host = Some(value.to_owned()),
            None if line.is_empty() => break,
            _ => {}
        }
    }
    Ok(question)
}
