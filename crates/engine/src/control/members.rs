//! Who is what in an organisation: members and invitations. Nobody gives or takes more than they may.

use std::time::Duration;

use karta_store::{InvitationRow, MemberRow};
use karta_types::page::Page;
use karta_types::person::{Invitation, Member, NewInvitation};
use karta_types::{ErrorCode, InvitationId, Role, Secret, UserId};

use crate::control::audit::digest;
use crate::control::keys::generate;
use crate::{Actor, Engine, Error, Principal, Result};

/// How long an invitation can be taken up.
const INVITATION: Duration = Duration::from_hours(24 * 7);
/// What an invitation's code begins with.
const CODE: &str = "kt_invite_";

/// Reads an address: lower case, one `@` with something on both sides, nothing that a page or a header could trip over.
///
/// # Errors
/// `invalid_request` at `pointer`.
pub(crate) fn email(text: &str, pointer: &str) -> Result<String> {
    let address = text.trim().to_lowercase();
    let fine = address.len() <= 254
        && address.split_once('@').is_some_and(|(name, host)| {
            !name.is_empty() && host.contains('.') && !host.starts_with('.') && !host.contains('@')
        })
        && address
            .chars()
            .all(|letter| !letter.is_whitespace() && !letter.is_control() && !"<>\"'".contains(letter));
    if fine {
        Ok(address)
    } else {
        Err(Error::invalid(pointer, "not an e-mail address like ann@example.com"))
    }
}

impl Principal {
    /// The strongest role that this caller acts as among members: keys and the platform as an admin and an owner.
    const fn rank(&self) -> Role {
        match (self.role, self.actor) {
            (Some(role), _) => role,
            (None, Actor::System) => Role::Owner,
            (None, _) => Role::Admin,
        }
    }

    fn check_rules(&self, role: Role) -> Result<()> {
        if self.rank().rules(role) {
            return Ok(());
        }
        Err(Error::told(
            ErrorCode::Forbidden,
            format!("{}s don't give or take the role `{role}`", self.rank()),
        ))
    }
}

impl Engine {
    /// The organisation's people.
    ///
    /// # Errors
    /// The store can't read.
    pub async fn members(&self, who: &Principal, after: Option<UserId>, limit: u32) -> Result<Page<Member>> {
        let rows = self.store().member_list(who.org, after, limit + 1).await?;
        let more = rows.len() > limit as usize;
        let data: Vec<_> = rows.into_iter().take(limit as usize).map(show).collect();
        let next_cursor = data.last().filter(|_| more).map(|last| last.id.to_string());
        Ok(Page { data, next_cursor })
    }

    /// One of the organisation's people.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn member(&self, who: &Principal, id: UserId) -> Result<Member> {
        let row = self.store().member_get(who.org, id).await?;
        row.map(show).ok_or_else(|| Error::not_found("member"))
    }

    /// Gives somebody another role.
    ///
    /// # Errors
    /// `not_found`; `forbidden` for a role beyond the caller's; `last_owner` when nobody would own the organisation.
    pub async fn change_member(&self, who: &Principal, id: UserId, role: Role) -> Result<Member> {
        let before = self.member(who, id).await?;
        who.check_rules(before.role)?;
        who.check_rules(role)?;
        let after = Member { role, ..before.clone() };
        let mut told = self.told(who, "member.change", id);
        told.before = Some(digest(&before)?);
        told.after = Some(digest(&after)?);
        told.reason = Some(format!("{} to {role}", before.role));
        let done = self.store().member_put(who.org, id, role, self.clock().now(), told).await;
        done.map_err(last_owner)?;
        self.control().keys().clear();
        Ok(after)
    }

    /// Removes somebody, or oneself. Their tokens for the organisation end at once.
    ///
    /// # Errors
    /// As [`Engine::change_member`].
    pub async fn remove_member(&self, who: &Principal, id: UserId) -> Result<()> {
        let member = self.member(who, id).await?;
        let myself = who.actor == Actor::User(id);
        if !myself {
            who.check_rules(member.role)?;
        }
        let mut told = self.told(who, if myself { "member.leave" } else { "member.remove" }, id);
        told.before = Some(digest(&member)?);
        let done = self.store().member_remove(who.org, id, self.clock().now(), told).await;
        done.map_err(last_owner)?;
        self.control().keys().clear();
        Ok(())
    }

    /// Leaves the organisation.
    ///
    /// # Errors
    /// `invalid_request` for anybody but a person; `last_owner` when nobody would own the organisation.
    pub async fn leave(&self, who: &Principal) -> Result<()> {
        let Actor::User(id) = who.actor else {
            return Err(Error::invalid("", "only people leave; a key is revoked by `DELETE /v1/keys/{key}`"));
        };
        self.remove_member(who, id).await
    }

    /// The organisation's invitations that were not yet taken up.
    ///
    /// # Errors
    /// The store can't read.
    pub async fn invitations(&self, who: &Principal) -> Result<Vec<Invitation>> {
        let rows = self.store().invitation_list(who.org, self.clock().now()).await?;
        Ok(rows.into_iter().map(show_invitation).collect())
    }

    /// Invites somebody. `base` is where this server is reached.
    ///
    /// # Errors
    /// `forbidden` for a role beyond the caller's; `invalid_request` for an address that is none or somebody's who is here.
    pub async fn invite(
        &self,
        who: &Principal,
        address: &str,
        role: Role,
        base: &str,
    ) -> Result<NewInvitation> {
        let address = email(address, "/email")?;
        who.check_rules(role)?;
        if let Some(person) = self.store().person_by_email(&address).await?
            && self.store().member_get(who.org, person.id).await?.is_some()
        {
            return Err(Error::invalid("/email", "is a member already; change their role instead"));
        }
        let now = self.clock().now();
        let row = InvitationRow {
            id: InvitationId::new(self.clock(), self.rng()),
            org: who.org,
            email: address,
            role,
            created_by: who.actor.to_string(),
            created_at: now,
            expires_at: now.plus(INVITATION),
        };
        let code = Secret::new(generate(CODE, self.rng()));
        let record = show_invitation(row.clone());
        let mut told = self.told(who, "invitation.create", row.id);
        told.after = Some(digest(&record)?);
        self.store().invitation_insert(row, self.keyring().digest_key(code.expose()), told).await?;
        Ok(NewInvitation { record, url: format!("{base}/login?invite={}", code.expose()) })
    }

    /// Takes an invitation back.
    ///
    /// # Errors
    /// `not_found` when there is none, or it was taken up.
    pub async fn revoke_invitation(&self, who: &Principal, id: InvitationId) -> Result<()> {
        let told = self.told(who, "invitation.revoke", id);
        if !self.store().invitation_revoke(who.org, id, self.clock().now(), told).await? {
            return Err(Error::not_found("open invitation"));
        }
        Ok(())
    }

    /// The invitation that a code is for, and the organisation's name.
    ///
    /// # Errors
    /// `not_found` when it can't be taken up.
    pub async fn invitation(&self, code: &str) -> Result<(Invitation, String)> {
        let row = self.invitation_row(code).await?;
        let org = self.store().org_get(row.org).await?.ok_or_else(|| Error::not_found("organisation"))?;
        Ok((show_invitation(row), org.name))
    }

    pub(crate) async fn invitation_row(&self, code: &str) -> Result<InvitationRow> {
        let digest = self.keyring().digest_key(code);
        let row = self.store().invitation_by_digest(&digest, self.clock().now()).await?;
        row.ok_or_else(|| Error::not_found("open invitation; ask for a new one"))
    }
}

fn last_owner(error: karta_store::Error) -> Error {
    match error {
        karta_store::Error::LastOwner => {
            Error::told(ErrorCode::LastOwner, "make somebody else an owner first")
        }
        other => other.into(),
    }
}

pub(crate) fn show(row: MemberRow) -> Member {
    Member {
        id: row.person.id,
        email: row.person.email,
        name: row.person.name,
        role: row.role,
        created_at: row.since,
    }
}

fn show_invitation(row: InvitationRow) -> Invitation {
    Invitation {
        id: row.id,
        email: row.email,
        role: row.role,
        created_by: row.created_by,
        created_at: row.created_at,
        expires_at: row.expires_at,
    }
}
