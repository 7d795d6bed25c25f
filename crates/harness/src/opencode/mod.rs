//! OpenCode: one `opencode serve` for each session, spoken to over HTTP.
//!
//! The server announces its port on standard output; the platform connects, opens the event stream and hands the codec lines of
//! JSON ([`crate::frame::http`]). Requests that change something are answered at once and tell nothing: what happens is told by
//! the event stream alone, which has no replay.

mod asks;
mod codec;
mod command;
mod discover;
mod failure;
mod heard;
mod history;
mod parts;
mod recent;
mod refusals;
mod turn;
mod wire;

use karta_types::message::Message;
use karta_types::release::Discovery;

use crate::{
    Capabilities, Codec, Command, Error, Fault, Harness, HistorySource, Launch, Package, Pinned, Tree,
};

/// The adapter.
#[derive(Debug, Clone, Copy)]
pub struct OpenCode;

/// The build without AVX2 runs on every x86-64 machine; the other is not faster at waiting for a model.
static PACKAGE: Package = Package {
    default_version: "1.18.33",
    pinned: &[Pinned {
        arch: "x86_64",
        name: "opencode-linux-x64-baseline",
        program: "bin/opencode",
        integrity: "sha512-1KQGBiiDDeL/VHHbHkOvvFo8Jr97WT5+C1tear+p7IcDTnXgVHXqIjU4O4jM4mHQzykTP2i884FCnW5LDa+zCA==",
    }],
    licence: "MIT",
};

impl Harness for OpenCode {
    fn id(&self) -> &'static str {
        "opencode"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            resume: true,
            approvals: true,
            edited_input: false,
            interrupt: true,
            steer: true,
            agent_per_message: true,
            thinking: true,
            images: true,
            gateway_metered: true,
        }
    }

    fn package(&self) -> Option<&'static Package> {
        Some(&PACKAGE)
    }

    fn signals(&self) -> &'static [&'static str] {
        &[".opencode/", "opencode.json", "opencode.jsonc"]
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
        let commands = discover::discover(launch.tree)?.commands.into_iter().map(|command| command.name);
        Ok(Box::new(codec::ServeCodec::new(launch, commands.collect())))
    }

    fn history_source(&self, _native: &str) -> HistorySource {
        HistorySource::Ask
    }

    fn read_history(&self, _bytes: &[u8]) -> Result<Vec<Message>, Error> {
        Err(Error::History("OpenCode keeps a database; its running process is asked instead".to_owned()))
    }
}
