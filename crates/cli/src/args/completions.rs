//! `karta completions`.

use clap::Args;
use clap_complete::Shell;

/// Print a completion script for a shell
///
/// It completes commands, options, and the names of projects, releases and previews, for which it asks the server.
///
/// bash: `karta completions bash > ~/.local/share/bash-completion/completions/karta`
///
/// zsh: `source <(karta completions zsh)` in `~/.zshrc`
///
/// fish: `karta completions fish > ~/.config/fish/completions/karta.fish`
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    pub(crate) shell: Shell,
}
