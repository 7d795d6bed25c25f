//! Load against a running server, printed as one table.
//!
//! `cargo run --release -p bench` starts the platform as a process of its own (authentication and the durable journal on, the scripted
//! harness in memory) and measures it from this one; `--url` and `--key` run the same load against any server with the same routes.

mod client;
mod control;
mod load;
mod machines;
mod memory;
mod releases;
mod report;
mod serve;

use std::process::ExitCode;

use clap::Parser;

/// Load against a Karta server
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// A server to load instead of one of our own
    #[arg(long, requires = "key")]
    url: Option<String>,
    /// A key for it
    #[arg(long)]
    key: Option<String>,
    /// Its project
    #[arg(long, default_value = "app")]
    project: String,
    /// Seconds for each row
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// How many clients, one connection each
    #[arg(long, value_delimiter = ',', default_value = "1,32,200")]
    clients: Vec<usize>,
    /// Rows as JSON lines
    #[arg(long)]
    json: bool,
    /// Only what publishing and flipping cost
    #[arg(long)]
    releases: bool,
    /// Only what virtual machines cost, with the image under this data directory
    #[arg(long, value_name = "DATA")]
    machines: Option<std::path::PathBuf>,
    /// MiB of memory of each of them
    #[arg(long, default_value_t = 512)]
    memory: u64,
    /// How many of them are begun at once
    #[arg(long, default_value_t = 100)]
    at_once: usize,
    /// Serve, to be measured by another process
    #[arg(long, hide = true)]
    serve: Option<std::path::PathBuf>,
    /// Serve the baseline, to be measured by another process
    #[arg(long, hide = true)]
    serve_baseline: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        if let Some(data) = &args.serve {
            serve::platform(data).await?;
        } else if args.serve_baseline {
            serve::baseline().await?;
        } else if let Some(data) = &args.machines {
            machines::run(data, args.memory, args.at_once).await?;
        } else if args.releases {
            releases::run().await?;
        } else {
            load::run(&args).await?;
        }
        Ok(ExitCode::SUCCESS)
    })
}
