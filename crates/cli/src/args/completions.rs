//! `karta completions`.

use clap::Args;
use clap_complete::Shell;

/// Print a completion script for a shell
///
/// For bash: `karta completions bash > ~/.local/share/bash-completion/completions/karta`
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    pub(crate) shell: Shell,
}
