//! How people sign in: a link that works once, an invitation, a provider of identities, and a command line that somebody approves.
//!
//! What it gives is a personal access for one organisation: a browser's cookie or a command line's token. It is never for more
//! organisations than the one that was signed in to.

use std::time::Duration;

use karta_store::{AccessKind, AccessRow, DeviceRow, DeviceState, Keyring, OrgRow, PersonRow, Store};
use karta_types::person::{DeviceGrant, NewAccess};
use karta_types::scope::Scopes;
use karta_types::{Clock, ErrorCode, OrgId, PersonalAccessId, Rng, Role, Secret, UserId};

use crate::control::audit::by_platform;
use crate::control::keys::{Environment, NewKey, PERSONAL, generate, mint};
use crate::control::members::email;
use crate::gate::Origin;
use crate::settings::Settings;
use crate::{Actor, Engine, Error, Principal, Result};

/// How long a browser stays signed in.
const BROWSER: Duration = Duration::from_hours(24 * 7);
/// How long a command line does.
const CLI: Duration = Duration::from_hours(24 * 90);
/// How long a link works.
const LINK: Duration = Duration::from_hours(24);
/// How long a command line waits to be signed in.
const DEVICE: Duration = Duration::from_mins(10);
/// How often it may ask, in seconds.
const INTERVAL: u64 = 2;
/// Letters that can't be mistaken for others or make words (RFC 8628, 6.1).
const LETTERS: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";

/// Somebody who signed in.
#[derive(Debug)]
pub struct SignedIn {
    /// The personal access.
    pub token: Secret,
    /// Seconds that it is good.
    pub expires_in: u64,
}

/// What `karta admin bootstrap` made.
#[derive(Debug)]
pub struct Bootstrapped {
    /// The code of a link that signs the owner in, once.
    pub code: Secret,
    /// A key with every scope, the first time.
    pub key: Option<Secret>,
}

/// Makes the first owner of an organisation, and the organisation; or, for somebody who is a member, only a new link. Works on the
/// store, whether a server runs or not.
///
/// # Errors
/// `forbidden` when the organisation has owners and this is none of its members; the store can't be opened.
pub async fn bootstrap(settings: &Settings, slug: &str, address: &str) -> Result<Bootstrapped> {
    let (clock, rng) = (karta_types::time::System, karta_types::rng::System);
    let address = email(address, "/email")?;
    std::fs::create_dir_all(&settings.data)
        .map_err(|error| Error::internal("making the data directory", error))?;
    let keyring = Keyring::load_or_create(&settings.data.join("keys"), &rng)?;
    let store = Store::open(settings.store_options(keyring.clone())).await?;
    let made = first_owner(&store, &keyring, &clock, &rng, slug, address).await;
    store.close().await;
    made
}

async fn first_owner(
    store: &Store,
    keyring: &Keyring,
    clock: &dyn Clock,
    rng: &dyn Rng,
    slug: &str,
    address: String,
) -> Result<Bootstrapped> {
    let now = clock.now();
    let org = if let Some(org) = store.org_by_slug(slug).await? {
        org
    } else {
        let id = OrgId::new(clock, rng);
        let org = OrgRow { id, slug: slug.to_owned(), name: slug.to_owned(), created_at: now };
        store.org_insert(&org).await?;
        org
    };
    let told = |action: &str, resource: String| {
        by_platform((clock, rng), org.id, action, resource, Some("by whoever runs the server".to_owned()))
    };
    let first = store.member_list(org.id, None, 1).await?.is_empty();
    let name = address.split('@').next().unwrap_or_default().to_owned();
    let person = PersonRow { id: UserId::new(clock, rng), email: address.clone(), name, created_at: now };
    let known = store.person_by_email(&address).await?;
    let member = match &known {
        Some(person) => store.member_get(org.id, person.id).await?.is_some(),
        None => false,
    };
    if !first && !member {
        return Err(Error::told(
            ErrorCode::Forbidden,
            format!("`{slug}` has members and {address} is none of them: let one of its owners invite them"),
        ));
    }
    let person = store.person_ensure(person).await?;
    let mut key = None;
    if first {
        store.member_put(org.id, person, Role::Owner, now, told("member.join", person.to_string())).await?;
        let new = NewKey {
            name: "bootstrap".to_owned(),
            environment: Environment::Live,
            scopes: Scopes::all(),
            project: None,
            expires_at: None,
        };
        let (row, text) = mint(keyring, clock, rng, org.id, Some(Actor::System.to_string()), new);
        store.key_insert(&row, told("key.create", row.id.to_string())).await?;
        key = Some(text);
    }
    let code = Secret::new(generate("kt_link_", rng));
    let entry = told("sign_in.link_made", person.to_string());
    store.link_insert(keyring.digest_key(code.expose()), org.id, person, now, now.plus(LINK), entry).await?;
    Ok(Bootstrapped { code, key })
}

impl Engine {
    /// Signs in by a link's code, which is used up.
    ///
    /// # Errors
    /// `unauthorized` when the link does not work any more.
    pub async fn sign_in_by_link(&self, code: &str, origin: Origin) -> Result<SignedIn> {
        let gone =
            || Error::told(ErrorCode::Unauthorized, "this link was used or is too old; ask for a new one");
        let digest = self.keyring().digest_key(code);
        let (org, person) = self.store().link_get(digest, self.clock().now()).await?.ok_or_else(gone)?;
        let role = self.role_of(org, person).await?.ok_or_else(gone)?;
        let (access, signed_in) = self.access(org, person, AccessKind::Browser);
        let told = self.told(&person_in(org, person, role, origin), "sign_in.link", access.id);
        if !self.store().link_use(digest, access, told).await? {
            return Err(gone());
        }
        Ok(signed_in)
    }

    /// Takes an invitation up by its code, and signs in.
    ///
    /// # Errors
    /// `not_found` when it can't be taken up any more.
    pub async fn accept_invitation(&self, code: &str, name: &str, origin: Origin) -> Result<SignedIn> {
        let row = self.invitation_row(code).await?;
        let person = self.join(&row, None, name, &origin).await?;
        let person = person.ok_or_else(|| Error::not_found("open invitation; ask for a new one"))?;
        self.sign_in(row.org, person, "sign_in.invitation", AccessKind::Browser, origin).await
    }

    /// Takes an invitation up, for somebody who is known or for whoever has its address. Nothing when somebody else was first.
    pub(crate) async fn join(
        &self,
        row: &karta_store::InvitationRow,
        known: Option<UserId>,
        name: &str,
        origin: &Origin,
    ) -> Result<Option<UserId>> {
        let now = self.clock().now();
        let name: String = name.trim().chars().filter(|letter| !letter.is_control()).take(100).collect();
        let name =
            if name.is_empty() { row.email.split('@').next().unwrap_or_default().to_owned() } else { name };
        let id = if let Some(id) = known {
            id
        } else {
            let person = self.store().person_by_email(&row.email).await?;
            person.map_or_else(|| UserId::new(self.clock(), self.rng()), |person| person.id)
        };
        let person = PersonRow { id, email: row.email.clone(), name, created_at: now };
        let mut told = self.told(&person_in(row.org, id, row.role, origin.clone()), "member.join", row.id);
        told.reason = Some(format!("as {}", row.role));
        Ok(self.store().invitation_accept(row, known, person, now, told).await?)
    }

    /// Gives a member a personal access.
    pub(crate) async fn sign_in(
        &self,
        org: OrgId,
        person: UserId,
        how: &str,
        kind: AccessKind,
        origin: Origin,
    ) -> Result<SignedIn> {
        let role = self.role_of(org, person).await?.ok_or_else(|| Error::not_found("member"))?;
        let (access, signed_in) = self.access(org, person, kind);
        let told = self.told(&person_in(org, person, role, origin), how, access.id);
        self.store().access_insert(access, told).await?;
        Ok(signed_in)
    }

    /// Ends the personal access that this is the text of.
    ///
    /// # Errors
    /// `invalid_request` for what is no personal access.
    pub async fn sign_out(&self, who: &Principal, token: &str) -> Result<()> {
        if !matches!(who.actor, Actor::User(_)) {
            return Err(Error::invalid(
                "",
                "only people sign out; a key is revoked by `DELETE /v1/keys/{key}`",
            ));
        }
        let digest = self.keyring().digest_key(token);
        let told = self.told(who, "sign_out", who.actor.id());
        self.store().access_revoke(who.org, digest, self.clock().now(), told).await?;
        self.control().keys().forget(&[digest]);
        Ok(())
    }

    /// A command line wants to be signed in. `base` is where this server is reached.
    ///
    /// # Errors
    /// The store can't be written.
    pub async fn begin_device(&self, base: &str) -> Result<DeviceGrant> {
        let now = self.clock().now();
        let device = Secret::new(generate("kt_device_", self.rng()));
        let code = user_code(self.rng());
        let row = DeviceRow {
            device: self.keyring().digest_key(device.expose()),
            code: code.clone(),
            created_at: now,
            expires_at: now.plus(DEVICE),
        };
        self.store().device_insert(row).await?;
        Ok(DeviceGrant {
            device_code: device.expose().clone(),
            verification_uri: format!("{base}/device"),
            verification_uri_complete: format!("{base}/device?code={code}"),
            user_code: code,
            expires_in: DEVICE.as_secs(),
            interval: INTERVAL,
        })
    }

    /// Whether a command line waits with this code, which is brought into its form.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn device(&self, code: &str) -> Result<String> {
        let letters: String = code
            .chars()
            .filter(char::is_ascii_alphabetic)
            .map(|letter| letter.to_ascii_uppercase())
            .take(9)
            .collect();
        let code = match letters.split_at_checked(4) {
            Some((first, second)) => format!("{first}-{second}"),
            None => letters,
        };
        if self.store().device_waits(&code, self.clock().now()).await? {
            return Ok(code);
        }
        Err(Error::not_found("waiting code; look at it again, or run `karta login` anew"))
    }

    /// Signs a waiting command line in as this person, or refuses it.
    ///
    /// # Errors
    /// `forbidden` for anybody but a person; `not_found` when nothing waits.
    pub async fn decide_device(&self, who: &Principal, code: &str, yes: bool) -> Result<()> {
        let Actor::User(person) = who.actor else {
            return Err(Error::told(ErrorCode::Forbidden, "only people sign command lines in"));
        };
        let code = self.device(code).await?;
        let told =
            self.told(who, if yes { "sign_in.device_approved" } else { "sign_in.device_denied" }, person);
        let now = self.clock().now();
        if !self.store().device_decide(code, who.org, person, yes, now, told).await? {
            return Err(Error::not_found("waiting code"));
        }
        Ok(())
    }

    /// What a waiting command line gets. While nobody has decided, the problem's `reason` is `authorization_pending` or `slow_down`;
    /// later `access_denied` or `expired_token` (RFC 8628, 3.5).
    ///
    /// # Errors
    /// `invalid_request` with those reasons.
    pub async fn take_device(&self, device: &str, origin: Origin) -> Result<NewAccess> {
        let not_yet = |reason: &str, detail: &str| {
            let mut problem = karta_types::Problem::new(ErrorCode::InvalidRequest, detail);
            reason.clone_into(&mut problem.reason);
            Error::from(problem)
        };
        let expired = || not_yet("expired_token", "nobody decided in time; run `karta login` again");
        let digest = self.keyring().digest_key(device);
        let now = self.clock().now();
        let (org, person) = match self.store().device_poll(digest, now).await?.ok_or_else(expired)? {
            DeviceState::Approved { org, person } => (org, person),
            DeviceState::Denied => return Err(not_yet("access_denied", "the sign-in was refused")),
            DeviceState::Waiting { polled_at } => {
                let soon = polled_at.is_some_and(|at| now.since(at) < Duration::from_secs(INTERVAL) / 2);
                let reason = if soon { "slow_down" } else { "authorization_pending" };
                return Err(not_yet(reason, "nobody has decided yet"));
            }
        };
        let role = self.role_of(org, person).await?.ok_or_else(expired)?;
        let (access, signed_in) = self.access(org, person, AccessKind::Cli);
        let told = self.told(&person_in(org, person, role, origin), "sign_in.device", access.id);
        if !self.store().device_take(digest, access, told).await? {
            return Err(expired());
        }
        Ok(NewAccess {
            access_token: signed_in.token.expose().clone(),
            token_type: "bearer".to_owned(),
            expires_in: signed_in.expires_in,
        })
    }

    async fn role_of(&self, org: OrgId, person: UserId) -> Result<Option<Role>> {
        Ok(self.store().member_get(org, person).await?.map(|member| member.role))
    }

    fn access(&self, org: OrgId, person: UserId, kind: AccessKind) -> (AccessRow, SignedIn) {
        let token = Secret::new(generate(PERSONAL, self.rng()));
        let now = self.clock().now();
        let life = match kind {
            AccessKind::Browser => BROWSER,
            AccessKind::Cli => CLI,
        };
        let row = AccessRow {
            id: PersonalAccessId::new(self.clock(), self.rng()),
            org,
            person,
            kind,
            digest: self.keyring().digest_key(token.expose()),
            created_at: now,
            expires_at: now.plus(life),
        };
        (row, SignedIn { token, expires_in: life.as_secs() })
    }
}

fn person_in(org: OrgId, person: UserId, role: Role, origin: Origin) -> Principal {
    Principal {
        org,
        actor: Actor::User(person),
        scopes: role.scopes(),
        role: Some(role),
        project: None,
        restriction: None,
        origin,
    }
}

fn user_code(rng: &dyn Rng) -> String {
    let mut code = String::with_capacity(9);
    let mut byte = [0u8; 1];
    while code.len() < 9 {
        if code.len() == 4 {
            code.push('-');
        }
        rng.fill(&mut byte);
        // 240 is the largest multiple of 20 in a byte: above it some letters would come more often.
        if byte[0] < 240 {
            code.push(char::from(LETTERS[usize::from(byte[0] % 20)]));
        }
    }
    code
}
