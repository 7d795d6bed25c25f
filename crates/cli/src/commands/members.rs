//! `karta members`.

use std::process::ExitCode;

use karta_client::Client;

use super::account::secret;
use crate::args::MembersCommand;
use crate::printer::Printer;

pub(super) async fn run(
    client: &Client,
    command: MembersCommand,
    json: bool,
    printer: &Printer,
) -> anyhow::Result<ExitCode> {
    match command {
        MembersCommand::List => {
            let mut members = Vec::new();
            let mut cursor = None;
            loop {
                let page = client.members(cursor.as_deref()).await?;
                members.extend(page.data);
                cursor = page.next_cursor;
                if cursor.is_none() {
                    break;
                }
            }
            if json {
                printer.json(&members)?;
                return Ok(ExitCode::SUCCESS);
            }
            let row = |member: &karta_types::person::Member| {
                let since = member.created_at.to_string();
                vec![
                    member.id.to_string(),
                    member.name.clone(),
                    member.email.clone(),
                    member.role.to_string(),
                    since,
                ]
            };
            let rows: Vec<_> = members.iter().map(row).collect();
            printer.table(&["ID", "NAME", "ADDRESS", "ROLE", "SINCE"], &rows)?;
        }
        MembersCommand::Invite { email, role } => {
            let made = client.invite(&email, role).await?;
            let note =
                format!("Send this link to {email}; it works once, within a week, and is shown only now.");
            secret(json, printer, &made, &made.url, &note)?;
        }
        MembersCommand::Invitations => {
            let invitations = client.invitations().await?.data;
            if json {
                printer.json(&invitations)?;
                return Ok(ExitCode::SUCCESS);
            }
            let row = |one: &karta_types::person::Invitation| {
                vec![one.id.to_string(), one.email.clone(), one.role.to_string(), one.expires_at.to_string()]
            };
            let rows: Vec<_> = invitations.iter().map(row).collect();
            printer.table(&["ID", "ADDRESS", "ROLE", "UNTIL"], &rows)?;
        }
        MembersCommand::Uninvite { id } => {
            client.revoke_invitation(id).await?;
            printer.note("The invitation is taken back.");
        }
        MembersCommand::Change { id, role } => {
            let member = client.change_member(id, role).await?;
            if json {
                printer.json(&member)?;
            } else {
                printer.note(&format!("{} is {} now.", member.email, member.role));
            }
        }
        MembersCommand::Remove { id } => {
            client.remove_member(id).await?;
            printer.note(&format!("{id} is removed."));
        }
    }
    Ok(ExitCode::SUCCESS)
}
