//! `karta dev`: serves a folder while it is worked on.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use karta_engine::{Engine, Settings};
use karta_types::OrgId;

use super::running::{
    announce, curl, headline, hint_harness, hint_inactive, project_of, served_folder, start,
    use_scripted_model,
};
use crate::args::DevArgs;
use crate::printer::{DIM, Printer, RED};

/// How often the folder is looked at.
const LOOK: Duration = Duration::from_millis(500);

pub(super) async fn run(
    args: DevArgs,
    mut settings: Settings,
    printer: &Printer,
) -> anyhow::Result<ExitCode> {
    let path = served_folder(&args.path)?;
    let project = args.project.unwrap_or_else(|| project_of(&path));
    settings.folder.hooks &= !args.no_hooks;
    settings.folder.mcp &= !args.no_mcp;
    // Whoever works on a folder receives its webhooks on the same machine.
    settings.webhooks.loopback = true;
    let keyless = settings.providers.anthropic.is_none() && settings.providers.openai.is_none();
    let _model =
        if args.scripted_model { Some(use_scripted_model(&mut settings, Vec::new()).await?) } else { None };
    let shown = settings.clone();
    let running = start(settings, args.listen).await?;
    let release = match running.engine.publish_folder(running.org, &project, &path).await {
        Ok(release) => release,
        Err(error) => {
            running.server.shutdown().await;
            return Err(anyhow::anyhow!(error.chain()).context(format!("serving `{}`", path.display())));
        }
    };
    let key = running.own_key(Some(&project)).await?;
    headline(&format!("Serving {project} v{} on {}", release.version, running.url), printer);
    hint_inactive(&project, &release, printer);
    announce(&release, &shown, printer);
    hint_harness(&running.engine, &release, printer);
    if args.scripted_model {
        printer.note("  The built-in scripted model answers: no provider is called");
    } else if keyless {
        printer.note(
            "  No provider key: set ANTHROPIC_API_KEY or OPENAI_API_KEY, or try with `--scripted-model`",
        );
    }
    printer.note(&format!("  {DIM}key{DIM:#} {}", key.expose()));
    printer.note("\nTry it:");
    printer.data(&curl(&running.url, &project, &key))?;
    printer.note(&format!("{DIM}or `karta chat` in another terminal; Ctrl-C ends the server{DIM:#}\n"));
    let watching = watch(running.engine.clone(), running.org, project, path, shown, printer);
    tokio::pin!(watching);
    tokio::select! {
        never = &mut watching => match never {},
        done = running.until_stopped(printer) => done,
    }
}

/// Publishes the folder again whenever it changes. A folder that is broken for a moment leaves the last release as it is.
async fn watch(
    engine: Engine,
    org: OrgId,
    project: String,
    path: PathBuf,
    settings: Settings,
    printer: &Printer,
) -> std::convert::Infallible {
    let look = |path: PathBuf| async move {
        let seen = tokio::task::spawn_blocking(move || karta_release::folder::fingerprint(&path));
        seen.await.ok().flatten()
    };
    let mut last = look(path.clone()).await;
    loop {
        tokio::time::sleep(LOOK).await;
        let now = look(path.clone()).await;
        if now == last {
            continue;
        }
        // Editors write in steps: wait until it stands still.
        tokio::time::sleep(LOOK / 2).await;
        if look(path.clone()).await != now {
            continue;
        }
        last = now;
        match engine.publish_folder(org, &project, &path).await {
            Ok(release) => {
                headline(
                    &format!("Changed: {project} is v{} from the next turn on", release.version),
                    printer,
                );
                hint_inactive(&project, &release, printer);
                announce(&release, &settings, printer);
            }
            Err(error) => {
                printer.note(&format!(
                    "{RED}not taken over{RED:#}: {}; the last release goes on",
                    error.chain()
                ));
            }
        }
    }
}
