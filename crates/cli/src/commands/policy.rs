//! `karta secrets`, `karta policy` and `karta egress`: one call of the API each, shown.

use std::io::{IsTerminal as _, Read as _};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use karta_client::Client;
use karta_types::Secret;
use karta_types::egress::Decision;
use karta_types::org_policy::OrgPolicy;
use karta_types::session::Isolation;

use crate::args::{EgressCommand, PolicyCommand, SecretsCommand};
use crate::printer::{Printer, minute, tame};

type Exit = anyhow::Result<ExitCode>;

/// The longest value that is read from standard input, in bytes.
const MAX_VALUE: u64 = 16 << 10;

pub(super) async fn secrets(
    client: &Client,
    project: &str,
    command: SecretsCommand,
    json: bool,
    printer: &Printer,
) -> Exit {
    match command {
        SecretsCommand::List => {
            let secrets = client.secrets(project).await?.data;
            if json {
                printer.json(&secrets)?;
                return Ok(ExitCode::SUCCESS);
            }
            let rows: Vec<_> = secrets
                .iter()
                .map(|one| vec![one.name.clone(), one.created_by.clone(), minute(one.created_at)])
                .collect();
            printer.table(&["SECRET", "SET BY", "SET AT"], &rows)?;
        }
        SecretsCommand::Set { name } => {
            if std::io::stdin().is_terminal() {
                printer.note(&format!("Paste the value of {name}, then Enter and Ctrl-D."));
            }
            let mut text = String::new();
            std::io::stdin().take(MAX_VALUE).read_to_string(&mut text).context("reading the value")?;
            let value = Secret::new(text.trim_end_matches(['\r', '\n']).to_owned());
            let set = client.set_secret(project, &name, &value).await?;
            if json {
                printer.json(&set)?;
            } else {
                printer.note(&format!(
                    "{name} is set for {project}: a session's next process has it, where karta.toml declares it."
                ));
            }
        }
        SecretsCommand::Remove { name } => {
            client.remove_secret(project, &name).await?;
            printer.note(&format!("{name} is removed from {project}."));
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn policy(client: &Client, command: PolicyCommand, json: bool, printer: &Printer) -> Exit {
    let policy = match command {
        PolicyCommand::Show => client.policy().await?,
        set @ PolicyCommand::Set { .. } => {
            let changed = changed(client.policy().await?, set)?;
            client.set_policy(&changed).await?
        }
    };
    if json {
        printer.json(&policy)?;
        return Ok(ExitCode::SUCCESS);
    }
    for line in lines(&policy) {
        printer.data(&line)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn changed(mut policy: OrgPolicy, command: PolicyCommand) -> anyhow::Result<OrgPolicy> {
    let PolicyCommand::Set {
        isolation,
        egress_allow,
        egress_allow_any,
        egress_allow_none,
        egress_deny,
        egress_deny_none,
    } = command
    else {
        return Ok(policy);
    };
    let before = policy.clone();
    if let Some(word) = &isolation {
        let known = [Isolation::None, Isolation::Process, Isolation::Namespace, Isolation::Microvm];
        policy.isolation = known.into_iter().find(|one| one.as_str() == word);
    }
    if !egress_allow.is_empty() || egress_allow_none {
        policy.egress_allow = Some(egress_allow);
    } else if egress_allow_any {
        policy.egress_allow = None;
    }
    if !egress_deny.is_empty() || egress_deny_none {
        policy.egress_deny = egress_deny;
    }
    let named = isolation.is_some() || egress_allow_any || egress_deny_none;
    if policy == before && !named {
        bail!("nothing is to be changed: name what, as in `karta policy set --isolation microvm`");
    }
    Ok(policy)
}

fn lines(policy: &OrgPolicy) -> Vec<String> {
    let isolation = policy.isolation.map_or("what each release asks for", Isolation::as_str);
    let allowed = match &policy.egress_allow {
        None => "whatever releases ask for".to_owned(),
        Some(rules) if rules.is_empty() => "nothing".to_owned(),
        Some(rules) => tame(&rules.join(", ")),
    };
    let denied =
        if policy.egress_deny.is_empty() { "none".to_owned() } else { tame(&policy.egress_deny.join(", ")) };
    vec![
        format!("least isolation: {isolation}"),
        format!("may be reached: {allowed}"),
        format!("forbidden: {denied}"),
    ]
}

pub(super) async fn egress(client: &Client, command: EgressCommand, json: bool, printer: &Printer) -> Exit {
    let (session, propose) = match command {
        EgressCommand::Show { session } => (session, false),
        EgressCommand::Propose { session } => (session, true),
    };
    let record = client.egress(session).await?;
    if !record.complete {
        printer.note(
            "Some of it is missing: events that are past their time are gone, and only so much is listed.",
        );
    }
    if json {
        printer.json(&record)?;
    } else if !propose {
        let rows: Vec<_> = record.decisions.iter().map(row).collect();
        printer.table(&["", "METHOD", "HOST", "PATH", "TIMES", "WHY"], &rows)?;
    } else if record.rules.is_empty() {
        printer.note("The session reached nothing that a rule would have to allow.");
    } else {
        printer.data("[policy]")?;
        printer.data("egress = [")?;
        for rule in &record.rules {
            printer.data(&format!("    \"{}\",", tame(rule)))?;
        }
        printer.data("]")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn row(one: &Decision) -> Vec<String> {
    let allowed = if one.allowed { "allowed" } else { "refused" };
    let method = one.method.clone().unwrap_or_else(|| "tunnel".to_owned());
    let why = one.why.as_deref().or(one.rule.as_deref()).unwrap_or_default();
    vec![
        allowed.to_owned(),
        tame(&method),
        tame(&format!("{}:{}", one.host, one.port)),
        tame(one.path.as_deref().unwrap_or_default()),
        one.count.to_string(),
        tame(why),
    ]
}
