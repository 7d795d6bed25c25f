//! `karta serve`: serves folders as projects, for others.

use std::process::ExitCode;

use anyhow::ensure;
use karta_engine::Settings;
use karta_engine::control::keys::Environment;
use karta_engine::settings::Plane;

use super::running::{announce, headline, hint_harness, hint_inactive, project_of, served_folder, start};
use crate::args::ServeArgs;
use crate::printer::{DIM, Printer, YELLOW};

pub(super) async fn run(
    args: ServeArgs,
    mut settings: Settings,
    printer: &Printer,
) -> anyhow::Result<ExitCode> {
    settings.plane = match args.plane.as_deref() {
        None => settings.plane,
        Some("control") => Plane::Control,
        Some("data") => Plane::Data,
        Some(_) => Plane::All,
    };
    // `process` keeps nothing apart: it is never what somebody gets without having asked for it.
    let isolation =
        args.isolation.or_else(|| settings.isolation.take()).unwrap_or_else(|| "microvm".to_owned());
    if settings.plane != Plane::Control {
        settings.isolation = Some(isolation);
    }
    ensure!(
        settings.plane != Plane::Control || args.paths.is_empty(),
        "a control plane serves no folders: name them where `--plane data` runs"
    );
    let paths = args.paths.iter().map(|path| served_folder(path)).collect::<anyhow::Result<Vec<_>>>()?;
    let listen = args.listen.unwrap_or(settings.listen);
    let shown = settings.clone();
    let first = settings.plane != Plane::Data && !settings.data.join("keys").exists();
    let running = start(settings, listen).await?;
    headline(&format!("Listening on {}", running.url), printer);
    if shown.plane == Plane::Control {
        let (listen, tokens) = (shown.authority.listen, shown.service_tokens());
        printer.note(&format!("  data planes ask at {listen}, with a token of {}", tokens.display()));
    }
    if shown.plane != Plane::Control {
        printer.note(&match shown.driver() {
            "process" => format!(
                "  {YELLOW}isolation: process{YELLOW:#}: agents run as this user, with its rights; serve only folders and people you trust"
            ),
            isolation => format!("  isolation: {isolation}"),
        });
        for note in running.engine.sandbox_notes().await {
            printer.note(&format!("  {DIM}{note}{DIM:#}"));
        }
    }
    for path in paths {
        let project = project_of(&path);
        match running.engine.publish_folder(running.org, &project, &path).await {
            Ok(release) => {
                headline(&format!("{project} v{}", release.version), printer);
                hint_inactive(&project, &release, printer);
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
