//! `karta image`: what isolated sandboxes start from.

use std::path::Path;
use std::process::ExitCode;

use karta_engine::images::{Image, Images, Progress, Pruned, Recipe};
use serde_json::{Value, json};

use crate::args::{ImageBuildArgs, ImageCommand};
use crate::printer::{Printer, count, size};

pub(super) async fn run(
    command: ImageCommand,
    data: &Path,
    json: bool,
    printer: &Printer,
) -> anyhow::Result<ExitCode> {
    let images = Images::new(data.join("images"));
    match command {
        ImageCommand::Build(args) => build(&images, args, json, printer).await,
        ImageCommand::List => list(&images, json, printer).await,
        ImageCommand::Prune => prune(images, json, printer).await,
    }
}

async fn build(
    images: &Images,
    args: ImageBuildArgs,
    json: bool,
    printer: &Printer,
) -> anyhow::Result<ExitCode> {
    let ImageBuildArgs { suite, sources, packages, kernel, rebuild } = args;
    let recipe = Recipe { suite, sources, packages, kernel, rebuild };
    let tell = |progress| {
        let doing = match progress {
            Progress::Waiting => "waiting for another build",
            Progress::Kernel => "fetching the kernel by pip",
            Progress::Base => "making the base by mmdebstrap",
            Progress::Reusing => "taking over the base of an earlier image",
            Progress::Packing => "packing the base",
        };
        printer.doing(doing.to_owned());
    };
    let image = printer.working(images.build(&recipe, &tell)).await?;
    if json {
        printer.json(&shown(&image))?;
    } else {
        printer.note(&format!("Image {} of {}, {}", short(&image), image.manifest.suite, size(image.size)));
        printer.data(&image.folder.display().to_string())?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(images: &Images, json: bool, printer: &Printer) -> anyhow::Result<ExitCode> {
    let listing = images.clone();
    let all = tokio::task::spawn_blocking(move || listing.list()).await??;
    if json {
        printer.json(&all.iter().map(shown).collect::<Vec<_>>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<_> = all
        .iter()
        .map(|image| {
            let state = if image.is_current() { "yes" } else { "no (of another Karta)" };
            vec![short(image), image.manifest.suite.clone(), size(image.size), state.to_owned()]
        })
        .collect();
    printer.table(&["IMAGE", "SUITE", "SIZE", "USABLE"], &rows)?;
    if !all.iter().any(Image::is_current) {
        printer.note("Make one by `karta image build`");
    }
    Ok(ExitCode::SUCCESS)
}

async fn prune(images: Images, json: bool, printer: &Printer) -> anyhow::Result<ExitCode> {
    let Pruned { removed, left } = tokio::task::spawn_blocking(move || images.prune()).await??;
    if json {
        let left = left.iter().map(|(image, why)| {
            let mut shown = shown(image);
            shown["why"] = json!(why.as_str());
            shown
        });
        printer.json(&json!({
            "removed": removed.iter().map(shown).collect::<Vec<_>>(),
            "left": left.collect::<Vec<_>>(),
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let freed = removed.iter().map(|image| image.size).sum();
    printer.note(&format!("Removed {}, {}", count(removed.len() as u64, "image"), size(freed)));
    for (image, why) in &left {
        printer.note(&format!("Left {}: {}", short(image), why.as_str()));
    }
    Ok(ExitCode::SUCCESS)
}

/// As much of an id as tells images apart.
fn short(image: &Image) -> String {
    image.id().chars().take(12).collect()
}

fn shown(image: &Image) -> Value {
    json!({
        "id": image.id(),
        "folder": image.folder,
        "size": image.size,
        "current": image.is_current(),
        "manifest": image.manifest,
    })
}
