//! `karta login`, `karta logout`, `karta whoami`.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use karta_client::{Client, Error};
use karta_types::Secret;
use serde_json::json;

use crate::printer::{CYAN, Printer};
use crate::settings::{self, Credentials};

pub(super) async fn login(
    url: Option<String>,
    data: &Path,
    as_json: bool,
    printer: &Printer,
) -> anyhow::Result<ExitCode> {
    let Some(url) = url.or_else(|| settings::running_url(data)).or(Credentials::read()?.current) else {
        bail!("no server is known: name one by `--url` (or `KARTA_URL`)");
    };
    let nobody = Client::new(&url, Secret::new("nobody".to_owned()))?;
    let grant = nobody.begin_device().await?;
    printer.note(&format!(
        "Open {CYAN}{}{CYAN:#}\nand compare the code: {CYAN}{}{CYAN:#}\nWaiting; Ctrl-C to give up",
        grant.verification_uri_complete, grant.user_code
    ));
    let mut pause = Duration::from_secs(grant.interval.clamp(1, 30));
    let token = loop {
        tokio::time::sleep(pause).await;
        match nobody.take_device(&grant.device_code).await {
            Ok(access) => break Secret::new(access.access_token),
            Err(Error::Problem(problem)) if problem.reason == "authorization_pending" => {}
            Err(Error::Problem(problem))
                if matches!(problem.reason.as_str(), "slow_down" | "rate_limited") =>
            {
                pause += Duration::from_secs(2);
            }
            Err(error) => return Err(error.into()),
        }
    };
    let me = Client::new(&url, token.clone())?.whoami().await?;
    Credentials::read()?.set(&url, Some(&token))?;
    let role = me.role.as_deref().unwrap_or("member");
    if as_json {
        printer.json(&json!({ "url": url, "user": me.principal.id, "org": me.org.slug, "role": role }))?;
    } else {
        printer.note(&format!("Signed in to {} as {role} of {}", url, me.org.slug));
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn logout(url: Option<String>, printer: &Printer) -> anyhow::Result<ExitCode> {
    let known = Credentials::read()?;
    let url = url.or_else(|| known.current.clone()).context("not signed in anywhere")?;
    let Some(token) = known.token(&url) else { bail!("not signed in to {url}") };
    let ended = Client::new(&url, token)?.sign_out().await;
    // Forgotten here in any case: a server that is gone must not keep somebody signed in.
    known.set(&url, None)?;
    ended.with_context(|| {
        format!("{url} was not told; the token is forgotten here, and ends there by itself")
    })?;
    printer.note(&format!("Signed out of {url}"));
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn whoami(client: &Client, as_json: bool, printer: &Printer) -> anyhow::Result<ExitCode> {
    let me = client.whoami().await?;
    let may = me.role.clone().unwrap_or_else(|| me.scopes.join(","));
    if as_json {
        printer.json(&json!({
            "url": client.base_url(), "principal": { "kind": me.principal.kind, "id": me.principal.id },
            "org": { "id": me.org.id, "slug": me.org.slug }, "role": me.role, "scopes": me.scopes,
        }))?;
    } else {
        printer.data(&format!(
            "{} {} ({may}) of {} at {}",
            me.principal.kind,
            me.principal.id,
            me.org.slug,
            client.base_url()
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
