//! One thing that is wrong with a folder, and where.
//!
//! Its text reads like a compiler's: `opencode.json:3:5: unknown key …; did you mean …?`

use std::fmt;

use serde::{Deserialize, Serialize};

/// Something that keeps a folder from becoming a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The file; empty where it is the folder itself.
    pub file: String,
    /// The line, from 1.
    pub line: Option<u64>,
    /// The column in characters, from 1.
    pub column: Option<u64>,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
}

impl Fault {
    /// Of a file as a whole.
    pub fn of(file: impl Into<String>, message: impl Into<String>) -> Self {
        Self { file: file.into(), line: None, column: None, message: message.into(), help: None }
    }

    /// With a place in the file.
    #[must_use]
    pub const fn at(mut self, line: u64, column: u64) -> Self {
        self.line = Some(line);
        self.column = Some(column);
        self
    }

    /// With what to do about it.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.is_empty() {
            f.write_str(&self.file)?;
            for number in [self.line, self.column].into_iter().flatten() {
                write!(f, ":{number}")?;
            }
            f.write_str(": ")?;
        }
        f.write_str(&self.message)?;
        match &self.help {
            Some(help) => write!(f, "; {help}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Fault {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_reads_like_a_compilers() {
        let fault = Fault::of("karta.toml", "unknown key `harnes`");
        assert_eq!(fault.to_string(), "karta.toml: unknown key `harnes`");
        let fault = fault.at(3, 5).help("did you mean `harness`?");
        assert_eq!(fault.to_string(), "karta.toml:3:5: unknown key `harnes`; did you mean `harness`?");
        assert_eq!(Fault::of("", "the folder is empty").to_string(), "the folder is empty");
    }
}
