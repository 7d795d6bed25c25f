//! The scripted harness: it plays a file. For tests, faults, demos, and for measuring the platform without a harness.
//!
//! A folder with `karta.script.json` is for it. Its program is [`Player`], which the platform runs as a task in memory or as a child
//! process (`karta play`); both speak the lines of [`wire`].

mod codec;
mod player;
mod script;
mod wire;

use karta_types::message::{Message, Part, Role};
use karta_types::release::{Agent, Discovery};

use crate::launch::{Command, Launch, Native, Transport};
use crate::tree::Tree;
use crate::{Capabilities, Codec, Error, Harness, HistorySource, Package};

pub use player::{Action, Player};
pub use script::{Script, Step, Turn};

/// The file that marks a folder, and that is played.
pub const FILE: &str = "karta.script.json";
/// The name of its program; the platform knows what to run for it.
pub const PROGRAM: &str = "karta-scripted-player";

/// The scripted harness.
#[derive(Debug, Clone, Copy)]
pub struct Scripted;

impl Harness for Scripted {
    fn id(&self) -> &'static str {
        "scripted"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            resume: true,
            approvals: true,
            edited_input: true,
            interrupt: true,
            steer: true,
            agent_per_message: true,
            thinking: true,
            images: true,
            gateway_metered: false,
        }
    }

    fn package(&self) -> Option<&'static Package> {
        None
    }

    fn signals(&self) -> &'static [&'static str] {
        &[FILE]
    }

    fn discover(&self, tree: &Tree) -> Result<Discovery, Error> {
        let script = read(tree)?;
        let agent = |name: &String| Agent { name: name.clone(), file: FILE.to_owned(), ..Agent::default() };
        Ok(Discovery { agents: script.agents.iter().map(agent).collect(), ..Discovery::default() })
    }

    fn command(&self, launch: &Launch<'_>) -> Result<Command, Error> {
        read(launch.tree)?;
        let native = native(launch);
        Ok(Command {
            program: PROGRAM.to_owned(),
            args: vec![
                format!("{}/{FILE}", launch.workspace),
                native.to_owned(),
                format!("{}/{}", launch.home, history(native)),
            ],
            env: launch.env.to_vec(),
            cwd: launch.workspace.to_owned(),
            seeds: Vec::new(),
            transport: Transport::Stdio,
        })
    }

    fn codec(&self, _launch: &Launch<'_>) -> Result<Box<dyn Codec>, Error> {
        Ok(Box::new(codec::ScriptedCodec::default()))
    }

    fn history_source(&self, native: &str) -> HistorySource {
        HistorySource::File(history(native))
    }

    fn read_history(&self, bytes: &[u8]) -> Result<Vec<Message>, Error> {
        let lines = bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        let message = |(index, line): (usize, &[u8])| {
            let said: wire::Said =
                serde_json::from_slice(line).map_err(|error| Error::History(error.to_string()))?;
            Ok(Message {
                id: format!("msg_{}", index + 1),
                role: if said.user { Role::User } else { Role::Assistant },
                text: said.text.clone(),
                parts: vec![Part::Text { text: said.text }],
                created_at: None,
            })
        };
        lines.enumerate().map(message).collect()
    }
}

/// The history file, from the session's home.
fn history(native: &str) -> String {
    format!("scripted/{native}.jsonl")
}

fn native<'a>(launch: &'a Launch<'_>) -> &'a str {
    match &launch.native {
        Native::New(id) | Native::Resume(id) => id,
    }
}

fn read(tree: &Tree) -> Result<Script, Error> {
    let fail = |reason: String| Error::File { file: FILE.to_owned(), reason };
    let text = tree.text(FILE).ok_or_else(|| fail("it is not there, or not UTF-8".to_owned()))?;
    serde_json::from_str(text).map_err(|error| fail(error.to_string()))
}
