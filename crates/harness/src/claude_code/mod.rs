//! Claude Code: one process for each session, spoken to by its control protocol on standard input and output.
//!
//! What is relied on was seen with the pinned version; `transcripts/claude-code` has the lines.

mod asks;
mod codec;
mod command;
mod discover;
mod history;
mod outcome;
mod refusals;
mod settings;
mod stream;
mod turn;
mod wire;

use karta_types::message::Message;
use karta_types::release::Discovery;

use crate::{
    Capabilities, Codec, Command, Error, Fault, Harness, HistorySource, Launch, Package, Pinned, Tree,
};

/// The adapter.
#[derive(Debug, Clone, Copy)]
pub struct ClaudeCode;

static PACKAGE: Package = Package {
    default_version: "2.1.330",
    pinned: &[
        Pinned {
            arch: "x86_64",
            name: "@anthropic-ai/claude-code-linux-x64",
            program: "claude",
            integrity: "sha512-9Gn+V7DtJ8M1nztP9CeDVl9g3RtrepI7rOFTyPRRnZe8D6zebIHKmC7OvBauucuAP0X0k85SDN/LPVZyjsGezQ==",
        },
        Pinned {
            arch: "aarch64",
            name: "@anthropic-ai/claude-code-linux-arm64",
            program: "claude",
            integrity: "sha512-V4yanAY5EA5UpwwRPtjSfqDbNqAlUJeVn3NYZw2AgmRHjdpSsLtHAzbxRXfkAnbjwTXzE0uedjQxUY02ARPcsA==",
        },
    ],
    licence: "proprietary; Anthropic's terms apply to whoever installs it",
};

impl Harness for ClaudeCode {
    fn id(&self) -> &'static str {
        "claude-code"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            resume: true,
            approvals: true,
            edited_input: true,
            interrupt: true,
            steer: true,
            agent_per_message: false,
            thinking: true,
            images: true,
            gateway_metered: true,
        }
    }

    fn package(&self) -> Option<&'static Package> {
        Some(&PACKAGE)
    }

    fn signals(&self) -> &'static [&'static str] {
        &[".claude/", "CLAUDE.md"]
    }

    fn discover(&self, tree: &Tree) -> Result<Discovery, Error> {
        discover::discover(tree)
    }

    fn refusals(&self, tree: &Tree) -> Vec<Fault> {
        refusals::refusals(tree)
    }

    fn command(&self, launch: &Launch<'_>) -> Result<Command, Error> {
        command::command(launch)
    }

    fn codec(&self, launch: &Launch<'_>) -> Result<Box<dyn Codec>, Error> {
        Ok(Box::new(codec::ClaudeCodec::new(launch.thinking_budget, launch.permission_mode)))
    }

    fn history_source(&self, native: &str) -> HistorySource {
        let safe: String =
            native.chars().filter(|letter| letter.is_ascii_alphanumeric() || *letter == '-').collect();
        HistorySource::File(format!(".claude/projects/*/{safe}.jsonl"))
    }

    fn read_history(&self, bytes: &[u8]) -> Result<Vec<Message>, Error> {
        Ok(history::read(bytes))
    }
}
