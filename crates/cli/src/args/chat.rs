//! `karta chat`.

use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use karta_types::SessionId;

use crate::complete;

/// Talk to an agent in the terminal
///
/// Without a message this is a conversation; Ctrl-C interrupts the running turn, Ctrl-D leaves. With `--message`, or with a
/// message on standard input, it is one turn, and the exit code says whether it completed (0) or not (1). The agent's words go to
/// standard output, everything else to standard error.
#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    /// Send this one message, print the answer, and exit
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) message: Option<String>,
    /// Go on with this session instead of a new one
    #[arg(long, value_name = "ID")]
    pub(crate) session: Option<SessionId>,
    /// The project, by id or slug [default: this folder's, or the one that `karta dev` serves]
    #[arg(long, value_name = "PROJECT", conflicts_with = "session", env = "KARTA_PROJECT", add = ArgValueCompleter::new(complete::projects))]
    pub(crate) project: Option<String>,
    /// The agent that takes the messages [default: the harness's own]
    #[arg(long, value_name = "NAME")]
    pub(crate) agent: Option<String>,
    /// Approve what tools ask for beforehand [default: ask at the terminal; without one, deny]
    #[arg(long, value_name = "SCOPE")]
    pub(crate) approve: Option<Approve>,
    /// The server's address [default: of the running `karta dev` or `karta serve`]
    #[arg(long, value_name = "URL", env = "KARTA_URL")]
    pub(crate) url: Option<String>,
    /// The API key; better given as `KARTA_API_KEY`, because other users of this machine can see command lines
    #[arg(long, value_name = "KEY", env = "KARTA_API_KEY", hide_env_values = true)]
    pub(crate) key: Option<String>,
}

/// How far an approval reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Approve {
    /// The one call
    Once,
    /// What the harness holds to be the same, for the rest of the session
    Session,
}
