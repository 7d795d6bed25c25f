//! `karta completions`: a script for a shell.

use std::io::Write as _;
use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::args::Cli;
use crate::printer::Printer;

pub(super) fn run(shell: Shell, printer: &Printer) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "karta", &mut script);
    printer.out().into_inner().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}
