//! Records sessions of the real harnesses anew: `cargo run -p bench --bin record -- [--harness opencode] PROGRAM FOLDER [CASE…]`
//!
//! The real binary runs with the adapter's own command line against the scripted model, driven through the adapter's own codec; what went
//! over the pipes becomes a transcript, trimmed to the protocol (no prose of the vendor's) and with every random id counted, so that two
//! recordings of the same version differ only where the protocol does. The folder is `crates/harness/transcripts/<harness>`; after a
//! recording read the diff of it, then run the tests of `karta-harness` with `INSTA_UPDATE=always` and read that diff too.
//!
//! This is a tool for people at a terminal; it prints what is said as it goes.
#![expect(clippy::print_stdout, reason = "a tool for people at a terminal")]

mod cases;
mod drive;
mod opencode;
mod trim;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Parser;
use karta_harness::transcript::Step;
use karta_model::{Options, Server};

/// Records sessions of a real harness
#[derive(Debug, Parser)]
struct Args {
    /// Whose: `claude-code` or `opencode`
    #[arg(long, default_value = "claude-code", value_parser = ["claude-code", "opencode"])]
    harness: String,
    /// The real binary: `karta harness install …` prints it
    program: PathBuf,
    /// Where the transcripts go
    folder: PathBuf,
    /// Only these cases
    only: Vec<String>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Runtime::new()?;
    let program = args.program.to_str().context("the program's path is not UTF-8")?;
    if args.harness == "opencode" {
        let failed = runtime.block_on(opencode::record(program, &args.folder, &args.only))?;
        anyhow::ensure!(failed.is_empty(), "not recorded: {}", failed.join(", "));
        return Ok(());
    }
    let root = tempfile::tempdir()?;
    let mut failed = Vec::new();
    for (number, case) in cases::all().into_iter().enumerate() {
        // What a case resumes must have been recorded in the same run.
        let needed = cases::needs(case.name, &args.only);
        if !needed {
            continue;
        }
        let name = case.name;
        println!("== {name}");
        // One of its own for each case, so that its ids count from one.
        let model =
            runtime.block_on(Server::start(Options::default())).context("starting the scripted model")?;
        match drive::run(case, program, &model.base_url(), root.path(), number) {
            Ok(steps) => write(&args.folder.join(format!("{name}.jsonl")), &steps)?,
            Err(error) => {
                println!("!! {name}: {error:#}");
                failed.push(name);
            }
        }
        runtime.block_on(model.shutdown());
    }
    anyhow::ensure!(failed.is_empty(), "not recorded: {}", failed.join(", "));
    Ok(())
}

fn write(path: &Path, steps: &[Step]) -> anyhow::Result<()> {
    let mut text = String::new();
    for step in steps {
        text.push_str(&serde_json::to_string(step)?);
        text.push('\n');
    }
    std::fs::write(path, text).with_context(|| format!("writing `{}`", path.display()))
}
