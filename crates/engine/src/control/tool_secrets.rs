//! Secrets for the tools of a project's sessions: set, listed, removed, opened for the way out alone.

use karta_store::ToolSecretRow;
use karta_types::tool_secret::ToolSecret;
use karta_types::{OrgId, ProjectId, Secret};

use crate::control::audit::digest;
use crate::control::encryption::{self, KeyEncryption, Sealed};
use crate::{Engine, Error, Principal, Result};

/// Secrets of one project.
const MOST: u32 = 100;
/// The least bytes of a value: a shorter one would be found in every other text.
const SHORTEST: usize = 8;
/// The most bytes of a value.
const LONGEST: usize = 8 << 10;
/// Secrets wrapped anew in one step.
const STEP: u32 = 100;

/// What a secret is bound to: in another row it does not open.
fn context(org: OrgId, project: ProjectId, name: &str) -> Vec<u8> {
    format!("tool_secret\0{org}\0{project}\0{name}").into_bytes()
}

/// Opens a secret.
pub(crate) async fn open(keys: &dyn KeyEncryption, row: &ToolSecretRow) -> Result<Secret> {
    let sealed = Sealed { kek: row.kek.clone(), wrapped: row.wrapped.clone(), sealed: row.sealed.clone() };
    encryption::open(keys, &context(row.org, row.project, &row.name), &sealed).await
}

impl Engine {
    /// Sets a secret of a project. The one before it is erased.
    ///
    /// # Errors
    /// `not_found` for the project; `invalid_request` for a name that no variable may have, and for what can't be in a header.
    pub async fn set_tool_secret(
        &self,
        who: &Principal,
        project: &str,
        name: &str,
        value: &Secret,
    ) -> Result<ToolSecret> {
        let project = self.project_row(who, project).await?.home();
        karta_release::manifest::variable(name)
            .map_err(|why| Error::invalid("/name", format!("`{name}`: {why}")))?;
        let plain = value.expose();
        let length = SHORTEST..=LONGEST;
        if !length.contains(&plain.len()) || plain.chars().any(char::is_control) {
            let why = format!(
                "a secret has {SHORTEST} to {LONGEST} bytes, without line ends and control characters"
            );
            return Err(Error::invalid("/value", why));
        }
        let keys = self.control().encryption();
        let context = context(who.org, project, name);
        let Sealed { kek, wrapped, sealed } =
            encryption::seal(keys, self.rng(), &context, plain.as_bytes()).await?;
        let row = ToolSecretRow {
            org: who.org,
            project,
            name: name.to_owned(),
            kek,
            wrapped,
            sealed,
            created_by: who.actor.to_string(),
            created_at: self.clock().now(),
        };
        let shown = show(&row);
        let mut told = self.told(who, "secret.set", format!("{project}/{name}"));
        told.after = Some(digest(&shown)?);
        if self.store().tool_secret_set(row, MOST, told).await? {
            Ok(shown)
        } else {
            Err(Error::invalid("/name", format!("a project has at most {MOST} secrets: remove one first")))
        }
    }

    /// The project's secrets, without their values.
    ///
    /// # Errors
    /// `not_found` for the project.
    pub async fn tool_secrets(&self, who: &Principal, project: &str) -> Result<Vec<ToolSecret>> {
        let project = self.project_row(who, project).await?.home();
        Ok(self.store().tool_secret_list(who.org, project).await?.iter().map(show).collect())
    }

    /// Removes a secret of a project.
    ///
    /// # Errors
    /// `not_found` for the project and the secret.
    pub async fn remove_tool_secret(&self, who: &Principal, project: &str, name: &str) -> Result<()> {
        let project = self.project_row(who, project).await?.home();
        let told = self.told(who, "secret.remove", format!("{project}/{name}"));
        let removed = self.store().tool_secret_remove(who.org, project, name.to_owned(), told).await?;
        if removed { Ok(()) } else { Err(Error::not_found("secret")) }
    }

    /// Wraps the data keys of secrets with the current key-encryption key. Answers how many.
    pub(crate) async fn rewrap_tool_secrets(&self, current: &str) -> Result<u64> {
        let keys = self.control().encryption();
        let mut done = 0;
        loop {
            let rows = self.store().tool_secrets_not_under(current, STEP).await?;
            if rows.is_empty() {
                return Ok(done);
            }
            for row in rows {
                let context = context(row.org, row.project, &row.name);
                let old = (row.kek.as_str(), &*row.wrapped);
                let Some(wrapped) = encryption::rewrap(keys, current, &context, old).await? else {
                    return Ok(done);
                };
                self.store().tool_secret_rewrap(&row, current.to_owned(), wrapped).await?;
                done += 1;
            }
        }
    }
}

fn show(row: &ToolSecretRow) -> ToolSecret {
    ToolSecret { name: row.name.clone(), created_by: row.created_by.clone(), created_at: row.created_at }
}
