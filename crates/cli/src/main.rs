//! The binary `karta`: commands and `serve`.

mod args;
mod commands;
mod complete;
mod printer;
mod settings;

use std::process::ExitCode;

use clap::Parser as _;

use crate::args::Cli;
use crate::printer::Printer;

fn main() -> ExitCode {
    if let Some(answered) = complete::answer() {
        return answered;
    }
    let cli = Cli::parse();
    let printer = Printer::new(cli.global.quiet, cli.global.color);
    let result = tokio::runtime::Runtime::new()
        .map_err(|why| anyhow::Error::new(why).context("starting the runtime"))
        .and_then(|runtime| runtime.block_on(Box::pin(commands::run(cli, &printer))));
    match result {
        Ok(code) => code,
        Err(error) => printer.failed(&error),
    }
}
