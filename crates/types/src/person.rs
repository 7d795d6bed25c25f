//! People and their place in an organisation, as callers see them.

use serde::{Deserialize, Serialize};

use crate::id::{InvitationId, UserId};
use crate::permission::Role;
use crate::time::Timestamp;

/// Somebody in an organisation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Member {
    /// Who.
    pub id: UserId,
    /// Their address.
    pub email: String,
    /// Their name.
    pub name: String,
    /// What they are.
    pub role: Role,
    /// Since when.
    pub created_at: Timestamp,
}

/// An invitation that was not yet taken up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Invitation {
    /// Its id.
    pub id: InvitationId,
    /// Who is invited.
    pub email: String,
    /// What they will be.
    pub role: Role,
    /// Who invited.
    pub created_by: String,
    /// When.
    pub created_at: Timestamp,
    /// Until when it can be taken up.
    pub expires_at: Timestamp,
}

/// An invitation just made: the only time its link is shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct NewInvitation {
    /// The invitation.
    #[serde(flatten)]
    pub record: Invitation,
    /// Where it is taken up, once. Whoever has it gets in.
    pub url: String,
}

impl std::fmt::Debug for NewInvitation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewInvitation").field("record", &self.record).finish_non_exhaustive()
    }
}

/// What a command line that wants to sign in is told (RFC 8628).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct DeviceGrant {
    /// What it asks with.
    pub device_code: String,
    /// What the person compares.
    pub user_code: String,
    /// Where the person decides.
    pub verification_uri: String,
    /// The same with the code in it.
    pub verification_uri_complete: String,
    /// Seconds that the codes are good.
    pub expires_in: u64,
    /// Seconds between two questions.
    pub interval: u64,
}

impl std::fmt::Debug for DeviceGrant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceGrant").field("user_code", &self.user_code).finish_non_exhaustive()
    }
}

/// A personal access token just made: the only time it is shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct NewAccess {
    /// Its text.
    pub access_token: String,
    /// `bearer`.
    pub token_type: String,
    /// Seconds that it is good.
    pub expires_in: u64,
}

impl std::fmt::Debug for NewAccess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewAccess").field("expires_in", &self.expires_in).finish_non_exhaustive()
    }
}
