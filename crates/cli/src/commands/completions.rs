//! `karta completions`: a script for a shell.

use std::io::Write as _;
use std::process::ExitCode;

use clap_complete::Shell;

use crate::complete;
use crate::printer::Printer;

pub(super) fn run(shell: Shell, printer: &Printer) -> anyhow::Result<ExitCode> {
    printer.out().into_inner().write_all(&complete::script(shell)?)?;
    Ok(ExitCode::SUCCESS)
}
