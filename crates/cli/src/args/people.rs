//! `karta login`, `logout`, `whoami`, `members`.

use clap::{Args, Subcommand};
use karta_types::{InvitationId, Role, UserId};

use super::ServerArgs;

/// Sign this terminal in: somebody approves it in a browser
#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    /// The server's address [default: of the running `karta dev` or `karta serve`]
    #[arg(long, value_name = "URL", env = "KARTA_URL")]
    pub(crate) url: Option<String>,
}

/// End this terminal's sign-in
#[derive(Debug, Args)]
pub(crate) struct LogoutArgs {
    /// The server's address [default: the one signed in to last]
    #[arg(long, value_name = "URL", env = "KARTA_URL")]
    pub(crate) url: Option<String>,
}

/// Show who this terminal acts as
#[derive(Debug, Args)]
pub(crate) struct WhoamiArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// List, invite, change and remove people
#[derive(Debug, Args)]
pub(crate) struct MembersArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    #[command(subcommand)]
    pub(crate) command: MembersCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum MembersCommand {
    /// Show the organisation's people
    List,
    /// Invite somebody and print the link, once
    Invite {
        /// Their address
        email: String,
        /// What they will be: owner, admin, developer, billing or viewer
        #[arg(long, default_value = "developer")]
        role: Role,
    },
    /// Show invitations that were not yet taken up
    Invitations,
    /// Take an invitation back
    Uninvite {
        /// The invitation's id
        id: InvitationId,
    },
    /// Give somebody another role
    Change {
        /// The person's id
        id: UserId,
        /// What they are from now on: owner, admin, developer, billing or viewer
        role: Role,
    },
    /// Remove somebody; their sign-ins end at once
    Remove {
        /// The person's id
        id: UserId,
    },
}
