//! `karta serve`: serves folders as projects, for others.

use std::process::ExitCode;

use karta_engine::Settings;
use karta_engine::control::keys::Environment;

use super::running::{announce, folder, headline, hint_harness, slug_of, start};
use crate::args::ServeArgs;
use crate::printer::{DIM, Printer, YELLOW};

pub(super) async fn run(args: ServeArgs, settings: Settings, printer: &Printer) -> anyhow::Result<ExitCode> {
    let paths = args.paths.iter().map(|path| folder(path)).collect::<anyhow::Result<Vec<_>>>()?;
    let listen = args.listen.unwrap_or(settings.listen);
    let shown = settings.clone();
    let first = !settings.data.join("karta.db").exists();
    let running = start(settings, listen).await?;
    headline(&format!("Listening on {}", running.url), printer);
    if shown.isolation == "process" {
        printer.note(&format!(
            "  {YELLOW}isolation: process{YELLOW:#}: agents run as this user, with its rights; serve only folders and people you trust"
        ));
    }
    for path in paths {
        let project = slug_of(&path);
        match running.engine.publish_folder(running.org, &project, &path).await {
            Ok(release) => {
                headline(&format!("{project} v{}", release.version), printer);
                announce(&release, &shown, printer);
                hint_harness(&running.engine, &release, printer);
            }
            Err(error) => {
                running.server.shutdown().await;
                return Err(anyhow::anyhow!(error.chain()).context(format!("serving `{}`", path.display())));
            }
        }
    }
    running.own_key(None).await?;
    if first {
        let key = running.engine.bootstrap_key(running.org, Environment::Live, "bootstrap").await?;
        printer.note(&format!("The first key, with every scope; it is shown {DIM}only now{DIM:#}:"));
        printer.data(key.expose())?;
    }
    running.until_stopped(printer).await
}
