//! Who may do what: one table of resource, action, the scope that a key needs, and the roles that people need.
//!
//! `snapshots/roles.txt` is this table printed; a test holds the two together, and another walks every route with every role.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::scope::{Scope, Scopes};

/// What somebody is in an organisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Role {
    /// Everything, owners included. There is always one.
    Owner,
    /// Everything but owners, the organisation itself and what it pays.
    Admin,
    /// Sessions, projects, what an integrator needs.
    Developer,
    /// Usage, budgets, what is paid.
    Billing,
    /// Looks.
    Viewer,
}

impl Role {
    /// Every role, strongest first.
    pub const ALL: [Self; 5] = [Self::Owner, Self::Admin, Self::Developer, Self::Billing, Self::Viewer];

    const fn bit(self) -> u8 {
        match self {
            Self::Owner => 1,
            Self::Admin => 2,
            Self::Developer => 4,
            Self::Billing => 8,
            Self::Viewer => 16,
        }
    }

    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Admin => "admin",
            Self::Developer => "developer",
            Self::Billing => "billing",
            Self::Viewer => "viewer",
        }
    }

    /// Whether somebody with this role may give and take `other`: owners all, admins all but owners, the rest none.
    pub const fn rules(self, other: Self) -> bool {
        match self {
            Self::Owner => true,
            Self::Admin => !matches!(other, Self::Owner),
            Self::Developer | Self::Billing | Self::Viewer => false,
        }
    }

    /// The most that a key made by somebody with this role can do.
    pub fn scopes(self) -> Scopes {
        match self {
            Self::Owner | Self::Admin => Scopes::all(),
            Self::Developer => [Scope::Read, Scope::Write].into_iter().collect(),
            Self::Billing | Self::Viewer => [Scope::Read].into_iter().collect(),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|role| role.as_str() == text);
        found.ok_or_else(|| {
            format!("`{text}` is not a role; the roles are owner, admin, developer, billing, viewer")
        })
    }
}

/// One line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permission {
    /// On what.
    pub resource: &'static str,
    /// What is done.
    pub action: &'static str,
    /// The scope that a key needs; none is for people only.
    pub scope: Option<Scope>,
    /// Whether it is about the whole organisation: not for keys that are for one project.
    pub whole: bool,
    roles: u8,
}

/// A type that stands for a line of the table: an extractor's parameter.
pub trait Permit: Send + Sync + 'static {
    /// The line.
    const PERMISSION: Permission;
}

impl Permission {
    /// Whether people with the role have it.
    pub const fn is_of(&self, role: Role) -> bool {
        self.roles & role.bit() != 0
    }

    /// The line of this name (`resource.action`).
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|line| line.to_string() == name)
    }

    /// The table as text: what is checked in.
    pub fn table() -> String {
        use std::fmt::Write as _;
        let mut text = format!("{:<26}{:<8}{:<13}", "resource.action", "scope", "project keys");
        // Writing to a string can't fail.
        let _ =
            writeln!(text, "{}", Role::ALL.map(|role| format!("{:<11}", role.as_str())).concat().trim_end());
        for line in Self::ALL {
            let marks = Role::ALL.map(|role| if line.is_of(role) { "yes        " } else { "-          " });
            let scope = line.scope.map_or("-", Scope::as_str);
            let project = if line.whole || line.scope.is_none() { "-" } else { "yes" };
            let marks = marks.concat();
            let _ = writeln!(text, "{:<26}{scope:<8}{project:<13}{}", line.to_string(), marks.trim_end());
        }
        text
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.resource, self.action)
    }
}

macro_rules! reach {
    (any) => {
        false
    };
    (whole) => {
        true
    };
}

macro_rules! permissions {
    ($($(#[doc = $doc:literal])* $name:ident $resource:literal $action:literal $scope:expr, $reach:ident [$($role:ident)*];)*) => {
        /// The lines of the table as types.
        pub mod may {
            use super::{Permission, Permit, Role, Scope};
            $(
                $(#[doc = $doc])*
                #[derive(Debug, Clone, Copy)]
                pub enum $name {}
                impl Permit for $name {
                    const PERMISSION: Permission = Permission {
                        resource: $resource, action: $action, scope: $scope, whole: reach!($reach), roles: 0 $(| Role::$role.bit())*,
                    };
                }
            )*
        }
        impl Permission {
            /// Every line.
            pub const ALL: &'static [Self] = &[$(may::$name::PERMISSION,)*];
        }
    };
}

permissions! {
    /// Ask who one is.
    LookAround "whoami" "read" Some(Scope::Read), any [Owner Admin Developer Billing Viewer];
    /// See projects and releases.
    ReadProjects "projects" "read" Some(Scope::Read), any [Owner Admin Developer Viewer];
    /// See sessions, turns, events, waiting questions.
    ReadSessions "sessions" "read" Some(Scope::Read), any [Owner Admin Developer Viewer];
    /// Run turns, answer questions, change and end sessions.
    UseSessions "sessions" "write" Some(Scope::Write), any [Owner Admin Developer];
    /// Mint and revoke session tokens.
    MintTokens "session_tokens" "write" Some(Scope::Write), any [Owner Admin Developer];
    /// Publish releases and make them active by that; make and remove previews.
    Deploy "releases" "deploy" Some(Scope::Write), any [Owner Admin Developer];
    /// Make a release the active one; roll back; canaries.
    ActivateReleases "releases" "activate" Some(Scope::Admin), any [Owner Admin Developer];
    /// See what was used.
    ReadUsage "usage" "read" Some(Scope::Read), any [Owner Admin Developer Billing Viewer];
    /// See caps.
    ReadBudgets "budgets" "read" Some(Scope::Read), any [Owner Admin Developer Billing Viewer];
    /// Set and remove caps.
    SetBudgets "budgets" "write" Some(Scope::Admin), any [Owner Admin Billing];
    /// See API keys, without their texts.
    ReadKeys "keys" "read" Some(Scope::Admin), any [Owner Admin];
    /// Make, replace, revoke API keys.
    ManageKeys "keys" "write" Some(Scope::Admin), any [Owner Admin];
    /// See which model providers have a key.
    ReadProviderKeys "provider_keys" "read" Some(Scope::Admin), whole [Owner Admin];
    /// Set and erase keys of model providers.
    ManageProviderKeys "provider_keys" "write" Some(Scope::Admin), whole [Owner Admin];
    /// See which secrets a project has, without their values.
    ReadSecrets "secrets" "read" Some(Scope::Admin), any [Owner Admin Developer];
    /// Set and remove secrets of projects.
    ManageSecrets "secrets" "write" Some(Scope::Admin), any [Owner Admin Developer];
    /// See what the organisation demands of all its sessions.
    ReadPolicy "policy" "read" Some(Scope::Read), whole [Owner Admin Developer Viewer];
    /// Change what the organisation demands of all its sessions.
    SetPolicy "policy" "write" Some(Scope::Admin), whole [Owner Admin];
    /// See who is in the organisation.
    ReadMembers "members" "read" Some(Scope::Read), whole [Owner Admin Developer Billing Viewer];
    /// Invite, change roles, remove; each only up to the own role.
    ManageMembers "members" "write" Some(Scope::Admin), whole [Owner Admin];
    /// See where webhooks go and what was delivered.
    ReadWebhooks "webhooks" "read" Some(Scope::Admin), whole [Owner Admin Developer];
    /// Add, change, remove endpoints; deliver again.
    ManageWebhooks "webhooks" "write" Some(Scope::Admin), whole [Owner Admin];
    /// See plan, credit, statements.
    ReadBilling "billing" "read" Some(Scope::Admin), whole [Owner Admin Billing];
    /// Subscribe, change what is paid. Not by keys: an admin could make one.
    ManageBilling "billing" "write" None, whole [Owner Billing];
    /// Read, export, check the audit log.
    ReadAudit "audit" "read" Some(Scope::Admin), whole [Owner Admin];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_the_one_checked_in() {
        // Where the test runs, not where it was built: checkouts may share what is built.
        let path = format!("{}/../../snapshots/roles.txt", std::env::var("CARGO_MANIFEST_DIR").unwrap());
        if std::env::var_os("KARTA_BLESS").is_some() {
            std::fs::write(&path, Permission::table()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), Permission::table(), "bless with KARTA_BLESS=1");
    }

    #[test]
    fn owners_may_all_and_nobody_gives_more_than_their_own() {
        assert!(Permission::ALL.iter().all(|line| line.is_of(Role::Owner)));
        for role in Role::ALL.into_iter().filter(|role| may::ManageKeys::PERMISSION.is_of(*role)) {
            let by_key = |line: &&Permission| line.scope.is_some_and(|scope| role.scopes().has(scope));
            let beyond = Permission::ALL.iter().filter(by_key).find(|line| !line.is_of(role));
            assert_eq!(beyond, None, "{role} could make a key that can more");
        }
        assert!(
            !Role::Admin.rules(Role::Owner)
                && Role::Admin.rules(Role::Admin)
                && Role::Owner.rules(Role::Owner)
        );
    }
}
