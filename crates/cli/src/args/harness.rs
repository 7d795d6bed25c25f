//! `karta harness`.

use std::str::FromStr;

use clap::{Args, Subcommand};

/// List, install and check harnesses
#[derive(Debug, Args)]
pub(crate) struct HarnessArgs {
    #[command(subcommand)]
    pub(crate) command: HarnessCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum HarnessCommand {
    /// Show which harnesses there are and which versions are installed
    List,
    /// Install a harness into the data directory, by the npm client
    Install {
        /// The harness, with an exact version if not the default: `claude-code`, `claude-code@2.1.330`
        #[arg(value_name = "ID[@VERSION]")]
        wanted: Wanted,
    },
    /// Check that harnesses are installed and start
    Doctor {
        /// The harness [default: all of them]
        id: Option<String>,
    },
}

/// A harness and perhaps a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) id: String,
    pub(crate) version: Option<String>,
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (id, version) = match text.split_once('@') {
            Some((id, version)) => (id, Some(version.to_owned())),
            None => (text, None),
        };
        if id.is_empty() || version.as_deref() == Some("") {
            return Err("write it like `claude-code` or `claude-code@2.1.330`".to_owned());
        }
        Ok(Self { id: id.to_owned(), version })
    }
}
