//! The engine: everything that lives as long as the server.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use karta_sandbox::Driver;
use karta_store::{Keyring, OrgRow, Store};
use karta_types::scope::Scopes;
use karta_types::{Clock, ErrorCode, OrgId, Rng, Secret};
use tokio::sync::OnceCell;

use crate::addresses::{Guarded, Lookup};
use crate::authority::{Remote, ServiceTokens};
use crate::control::billing::stripe::Stripe;
use crate::control::encryption::{KeyEncryption, LocalKeys, NoKeys};
use crate::control::keys::{Environment, NewKey};
use crate::control::local::Local;
use crate::control::oidc::OidcProvider;
use crate::control::webhooks::send;
use crate::data::channels::Channels;
use crate::data::checkpoints::{self, Checkpoints};
use crate::data::egress::Outside;
use crate::data::git::Repositories;
use crate::data::health::Health;
use crate::data::hub::Hub;
use crate::data::places::{Place, Places};
use crate::data::releases::{Catalogue, Loaded, Packs, Publishing, Transfers};
use crate::data::seats::Seats;
use crate::data::turn::parked::ParkedTurns;
use crate::data::turn::too_many_processes;
use crate::gate::Gate;
use crate::gateway::{self, Gateway};
use crate::harnesses::Harnesses;
use crate::settings::{Plane, Scripted, Settings};
use crate::tasks::Tasks;
use crate::{Error, Principal, Result};

/// How long a free place among the processes is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long a server that stops waits for its sessions to end: those that wait for a person are saved, two at a time.
const LAST: Duration = Duration::from_mins(1);

/// Karta without HTTP. Cheap to clone.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    settings: Settings,
    store: Store,
    keyring: Keyring,
    clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
    gate: Arc<dyn Gate>,
    control: Arc<Local>,
    remote: Option<Arc<Remote>>,
    hub: Hub,
    catalogue: Catalogue,
    packs: Packs,
    checkpoints: Checkpoints,
    publishing: Publishing,
    transfers: Transfers,
    guarded: Guarded,
    outside: OnceCell<Arc<Outside>>,
    oidc: Option<OidcProvider>,
    webhooks: reqwest::Client,
    stripe: Option<Stripe>,
    channels: Arc<Channels>,
    gateway: Gateway,
    harnesses: Harnesses,
    repositories: Repositories,
    driver: Arc<dyn Driver>,
    parked: Arc<ParkedTurns>,
    health: Health,
    scripted: Arc<dyn Driver>,
    places: Arc<Places>,
    seats: Arc<Seats>,
    short_of_space: AtomicBool,
    passed_env: Vec<(String, String)>,
    tasks: Tasks,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("data", &self.0.settings.data).finish_non_exhaustive()
    }
}

/// Makes an engine.
pub struct Builder {
    settings: Settings,
    clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
    program: Option<PathBuf>,
    env: Vec<(String, String)>,
    lookup: Arc<dyn Lookup>,
    driver: Option<Arc<dyn Driver>>,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Builder {
    /// From these settings, with the machine's clock and randomness.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            clock: Arc::new(karta_types::time::System),
            rng: Arc::new(karta_types::rng::System),
            program: None,
            env: Vec::new(),
            lookup: Arc::new(crate::addresses::System),
            driver: None,
        }
    }

    /// With a sandbox driver of one's own, for every session of every harness.
    #[must_use]
    pub fn with_driver(mut self, driver: Arc<dyn Driver>) -> Self {
        self.driver = Some(driver);
        self
    }

    /// With another resolver of names, for what the platform goes to for others: for tests.
    #[must_use]
    pub fn with_lookup(mut self, lookup: Arc<dyn Lookup>) -> Self {
        self.lookup = lookup;
        self
    }

    /// With another clock and other randomness: for tests.
    #[must_use]
    pub fn with_world(mut self, clock: Arc<dyn Clock>, rng: Arc<dyn Rng>) -> Self {
        self.clock = clock;
        self.rng = rng;
        self
    }

    /// With the `karta` program, whose `play` command runs the scripted harness as a child process.
    #[must_use]
    pub fn with_program(mut self, program: PathBuf) -> Self {
        self.program = Some(program);
        self
    }

    /// With the environment that `pass_env` picks from.
    #[must_use]
    pub fn with_env(mut self, env: impl IntoIterator<Item = (String, String)>) -> Self {
        let wanted = &self.settings.pass_env;
        self.env = env.into_iter().filter(|(name, _)| wanted.contains(name)).collect();
        self
    }

    /// Looks whether an engine could be opened, with each of the drivers, without opening one: nothing is recovered or served, so that a server which runs on
    /// the same data is not disturbed. Answers each part's state by name.
    ///
    /// # Errors
    /// The data directory can't be written.
    pub async fn check(self) -> Result<Vec<(&'static str, Result<String, String>)>> {
        let Self { settings, clock, rng, program, .. } = self;
        prepare(&settings.data)?;
        let mut parts = Vec::new();
        for (part, name) in [
            ("isolation microvm", "microvm"),
            ("isolation namespace", "namespace"),
            ("isolation process", "process"),
        ] {
            let driver = build_driver(name, &settings, program.clone(), clock.clone(), rng.clone());
            let state = match driver {
                Ok(driver) => {
                    let state = driver.check().await.map_err(|error| crate::error::chain(&error));
                    let notes = driver.notes().await;
                    state.map(|()| {
                        if notes.is_empty() {
                            "ready".to_owned()
                        } else {
                            format!("ready; {}", notes.join("; "))
                        }
                    })
                }
                Err(error) => Err(error.chain()),
            };
            parts.push((part, state));
        }
        let git = crate::data::git::version().await.map_err(|error| error.problem().detail);
        parts.push(("git", git));
        Ok(parts)
    }

    /// Opens the store, recovers what a crash left, starts the model gateway.
    ///
    /// # Errors
    /// The data directory can't be written, the store can't be opened, the isolation asked for is not available, a port is taken.
    pub async fn open(self) -> Result<Engine> {
        let Self { settings, clock, rng, program, env, lookup, driver } = self;
        prepare(&settings.data)?;
        let keyring = Keyring::load_or_create(&settings.data.join("keys"), &*rng)?;
        let store = Store::open(settings.store_options(keyring.clone())).await?;
        let plane = settings.plane;
        let encryption: Arc<dyn KeyEncryption> = if plane == Plane::Data {
            Arc::new(NoKeys)
        } else {
            Arc::new(LocalKeys::open(&settings.data.join("keys").join("kek"), clock.clone(), rng.clone())?)
        };
        let control =
            Arc::new(Local::new(store.clone(), keyring.clone(), clock.clone(), rng.clone(), encryption));
        let remote = if plane == Plane::Data {
            let tokens = ServiceTokens::open(settings.service_tokens(), None)?;
            let url = &settings.authority.url;
            Some(Arc::new(Remote::new(url, tokens, store.clone(), clock.clone(), rng.clone())?))
        } else {
            None
        };
        let gate: Arc<dyn Gate> = match &remote {
            Some(remote) => remote.clone(),
            None => control.clone(),
        };
        let channels = Arc::new(Channels::new(keyring.clone()));
        let config = gateway::Config::from_settings(&settings)
            .map_err(|why| Error::told(ErrorCode::InvalidRequest, why))?;
        let gateway = Gateway::start(config, channels.clone(), clock.clone(), rng.clone())
            .await
            .map_err(|error| Error::internal("starting the model gateway", error))?;
        let given = driver.is_some();
        let driver = match driver {
            Some(driver) => driver,
            None => build_driver(settings.driver(), &settings, program, clock.clone(), rng.clone())?,
        };
        driver.check().await?;
        let scripted = match settings.scripted {
            Scripted::Process => driver.clone(),
            Scripted::Memory | Scripted::Machine if given => driver.clone(),
            Scripted::Memory => crate::data::player::driver(clock.clone(), rng.clone(), true),
            Scripted::Machine => crate::data::player::driver(clock.clone(), rng.clone(), false),
        };
        let places = Places::new(settings.limits.processes);
        let parked = Arc::new(ParkedTurns::new(settings.data.join("parked")));
        crate::data::releases::clear_incoming(&settings.data)
            .map_err(|error| Error::internal("removing what a crash left", error))?;
        let blobs = settings.releases.blobs.clone().unwrap_or_else(|| settings.data.join("blobs"));
        let packs = Packs::in_folder(&blobs)?;
        let checkpoints =
            checkpoints::open(&settings, &store, packs.store(), blobs, clock.clone(), rng.clone())?;
        let guarded = Guarded::new(lookup.clone(), settings.releases.loopback);
        let webhooks = send::client(Guarded::new(lookup, settings.webhooks.loopback))?;
        let stripe = Stripe::from_settings(&settings)?;
        let oidc = OidcProvider::from_settings(&settings)?;
        let engine = Engine(Arc::new(Inner {
            harnesses: Harnesses::new(settings.data.join("harnesses")),
            repositories: Repositories::new(settings.data.join("git"), settings.git.pushes),
            settings,
            store,
            keyring,
            clock,
            rng,
            gate,
            control,
            remote,
            hub: Hub::default(),
            catalogue: Catalogue::default(),
            packs,
            checkpoints,
            publishing: Publishing::default(),
            transfers: Transfers::default(),
            guarded,
            outside: OnceCell::new(),
            oidc,
            webhooks,
            stripe,
            channels,
            gateway,
            driver,
            parked,
            health: Health::default(),
            scripted,
            places,
            seats: Arc::default(),
            short_of_space: AtomicBool::new(false),
            passed_env: env,
            tasks: Tasks::default(),
        }));
        if plane == Plane::Control {
            let tokens = ServiceTokens::open(engine.settings().service_tokens(), Some(engine.rng()))?;
            crate::authority::serve(&engine, engine.settings().authority.listen, tokens).await?;
        }
        if plane != Plane::Control {
            engine.recover().await?;
        }
        if engine.settings().egress.observe {
            tracing::warn!(
                "`[egress] observe` is on: sandboxes reach everything public, whatever rules say; for development only"
            );
        }
        engine.keep().await;
        Ok(engine)
    }
}

/// The driver of this name, as the settings limit it.
fn build_driver(
    name: &str,
    settings: &Settings,
    program: Option<PathBuf>,
    clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
) -> Result<Arc<dyn Driver>> {
    let programs: HashMap<_, _> =
        program.map(|program| (PLAYER.to_owned(), (program, vec!["play".to_owned()]))).into_iter().collect();
    let config = karta_sandbox::registry::Config {
        root: settings.data.join("sessions"),
        machines: settings.sandbox.machines(&settings.data),
        programs,
        functions: HashMap::default(),
        clock,
        rng,
    };
    Ok(karta_sandbox::registry::build(name, config)?)
}

/// The name that the scripted harness gives its program.
const PLAYER: &str = karta_harness::scripted::PROGRAM;
/// A file that is given up when the disk is full, so that what runs can still be ended in writing.
const BALLAST: &str = "ballast";
const BALLAST_BYTES: u64 = 16 << 20;

fn prepare(data: &Path) -> Result<()> {
    let fail = |source: std::io::Error| {
        Error::told(
            ErrorCode::StorageFull,
            format!(
                "the data directory `{}` can't be written: {source}; choose another with --data or KARTA_DATA",
                data.display()
            ),
        )
    };
    std::fs::create_dir_all(data).map_err(fail)?;
    let probe = data.join(".probe");
    std::fs::write(&probe, b"karta").and_then(|()| std::fs::remove_file(&probe)).map_err(fail)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(data, std::fs::Permissions::from_mode(0o700)).map_err(fail)?;
    }
    // In a folder that is published or kept in git, the data directory with its keys must not come along.
    let ignore = data.join(".gitignore");
    if !ignore.exists() {
        std::fs::write(&ignore, "*\n").map_err(fail)?;
    }
    // Failing to set aside room is no reason not to start: it is tried again while the server runs.
    let _ = set_ballast(data);
    Ok(())
}

pub(crate) fn set_ballast(data: &Path) -> std::io::Result<()> {
    use std::io::Write as _;
    let path = data.join(BALLAST);
    if path.metadata().is_ok_and(|meta| meta.len() == BALLAST_BYTES) {
        return Ok(());
    }
    let written = std::fs::File::create(&path).and_then(|mut file| {
        // Real bytes: a hole would reserve nothing.
        let block = vec![0x6b; 1 << 20];
        for _ in 0..BALLAST_BYTES >> 20 {
            file.write_all(&block)?;
        }
        file.sync_all()
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&path);
    }
    written
}

impl Engine {
    /// Makes an engine from settings.
    ///
    /// # Errors
    /// As [`Builder::open`].
    pub async fn open(settings: Settings) -> Result<Self> {
        Builder::new(settings).open().await
    }

    /// The organisation with this slug, made if it does not exist.
    ///
    /// # Errors
    /// The store can't be written.
    pub async fn ensure_org(&self, slug: &str) -> Result<OrgId> {
        if let Some(remote) = self.remote() {
            return remote.ensure_org(slug).await;
        }
        if let Some(row) = self.store().org_by_slug(slug).await? {
            self.keep_configured_cap(row.id).await?;
            return Ok(row.id);
        }
        let row = OrgRow {
            id: OrgId::new(self.clock(), self.rng()),
            slug: slug.to_owned(),
            name: slug.to_owned(),
            created_at: self.clock().now(),
        };
        self.store().org_insert(&row).await?;
        self.keep_configured_cap(row.id).await?;
        Ok(row.id)
    }

    /// The organisation's record.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn org(&self, who: &Principal) -> Result<OrgRow> {
        self.store().org_get(who.org).await?.ok_or_else(|| Error::not_found("organisation"))
    }

    /// Mints a key with every scope for the organisation.
    ///
    /// # Errors
    /// The store can't be written.
    pub async fn bootstrap_key(&self, org: OrgId, environment: Environment, name: &str) -> Result<Secret> {
        let new = NewKey {
            name: name.to_owned(),
            environment,
            scopes: Scopes::all(),
            project: None,
            expires_at: None,
        };
        let made = self.create_key(&Principal::system(org), new).await?;
        Ok(Secret::new(made.key))
    }

    /// Whether store and sandbox driver work; what is down, by name.
    pub async fn ready(&self) -> Vec<(&'static str, Result<(), String>)> {
        let store = self.store().ping().await.map_err(|error| crate::error::chain(&error));
        let driver = match self.health().out() {
            Some(why) => Err(why),
            None => self.0.driver.check().await.map_err(|error| crate::error::chain(&error)),
        };
        let space = self.check_space().map_err(|error| error.to_string());
        let mut parts = vec![("store", store), ("sandbox", driver), ("space", space)];
        if self.remote().is_some() {
            parts.push(("control plane", self.gate().ready().await.map_err(|error| error.to_string())));
        }
        parts
    }

    /// What whoever runs the server should know of how sessions are kept here.
    pub async fn sandbox_notes(&self) -> Vec<String> {
        self.0.driver.notes().await
    }

    /// Ends every turn in writing, then everything else.
    pub async fn shutdown(&self) {
        if !self.tasks().shutdown(LAST).await {
            tracing::warn!("some sessions did not end in time; the next start finishes their turns");
        }
        self.0.gateway.shutdown().await;
        self.0.store.close().await;
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// Where everything is kept.
    pub fn data_dir(&self) -> &Path {
        &self.0.settings.data
    }

    /// Installed harnesses.
    pub fn harnesses(&self) -> &Harnesses {
        &self.0.harnesses
    }

    /// What was pushed by git.
    pub(crate) fn repositories(&self) -> &Repositories {
        &self.0.repositories
    }

    /// The control plane.
    pub fn gate(&self) -> &Arc<dyn Gate> {
        &self.0.gate
    }

    pub(crate) fn stripe(&self) -> Option<&Stripe> {
        self.0.stripe.as_ref()
    }

    /// The control plane, where it is elsewhere.
    pub(crate) fn remote(&self) -> Option<&Remote> {
        self.0.remote.as_deref()
    }

    pub(crate) fn webhook_client(&self) -> &reqwest::Client {
        &self.0.webhooks
    }

    /// The provider of identities, if one is configured.
    pub(crate) fn oidc(&self) -> Option<&OidcProvider> {
        self.0.oidc.as_ref()
    }

    pub(crate) fn control(&self) -> &Local {
        &self.0.control
    }

    pub(crate) fn keyring(&self) -> &Keyring {
        &self.0.keyring
    }

    pub(crate) fn shared_clock(&self) -> Arc<dyn Clock> {
        self.0.clock.clone()
    }

    /// The clock.
    pub fn clock(&self) -> &dyn Clock {
        &*self.0.clock
    }

    /// The source of randomness.
    pub fn rng(&self) -> &dyn Rng {
        &*self.0.rng
    }

    /// Where tasks are started.
    pub fn tasks(&self) -> &Tasks {
        &self.0.tasks
    }

    /// How many sessions are alive in this process.
    pub fn alive(&self) -> usize {
        self.hub().count()
    }

    /// Whether the session has a runner in this process: something may still be said.
    pub fn is_alive(&self, session: karta_types::SessionId) -> bool {
        self.hub().running(session).is_some()
    }

    pub(crate) fn store(&self) -> &Store {
        &self.0.store
    }

    pub(crate) fn hub(&self) -> &Hub {
        &self.0.hub
    }

    pub(crate) fn catalogue(&self) -> &Catalogue {
        &self.0.catalogue
    }

    /// Where the content of releases is kept.
    pub(crate) fn packs(&self) -> &Packs {
        &self.0.packs
    }

    /// What sessions have made, kept.
    pub(crate) fn checkpoints(&self) -> &Checkpoints {
        &self.0.checkpoints
    }

    /// Who publishes.
    pub(crate) fn publishing(&self) -> &Publishing {
        &self.0.publishing
    }

    /// Archives on their way.
    pub(crate) fn transfers(&self) -> &Transfers {
        &self.0.transfers
    }

    /// What sandboxes may go to, once a rule allows it.
    pub(crate) fn guarded(&self) -> Guarded {
        self.0.guarded.clone()
    }

    /// The world outside, once it was looked at.
    pub(crate) fn outside_cell(&self) -> &OnceCell<Arc<Outside>> {
        &self.0.outside
    }

    pub(crate) fn channels(&self) -> &Arc<Channels> {
        &self.0.channels
    }

    pub(crate) fn gateway(&self) -> &Gateway {
        &self.0.gateway
    }

    pub(crate) fn passed_env(&self) -> Vec<(String, String)> {
        self.0.passed_env.clone()
    }

    /// The driver for a harness's sessions.
    pub(crate) fn driver(&self, harness: &str) -> Arc<dyn Driver> {
        if harness == "scripted" { self.0.scripted.clone() } else { self.0.driver.clone() }
    }

    pub(crate) fn drivers(&self) -> [Arc<dyn Driver>; 1] {
        [self.0.driver.clone()]
    }

    /// As [`Engine::drivers`], and the scripted harness's, which may be the same.
    pub(crate) fn every_driver(&self) -> [Arc<dyn Driver>; 2] {
        [self.0.driver.clone(), self.0.scripted.clone()]
    }

    /// The program of a release's harness, and the folder that it is installed in.
    pub(crate) fn program(&self, release: &Loaded) -> Result<(String, Option<PathBuf>)> {
        if release.harness.package().is_none() {
            return Ok((PLAYER.to_owned(), None));
        }
        self.0
            .harnesses
            .program(release.harness, Some(&release.row.harness.version))
            .map(|installed| (installed.program.display().to_string(), Some(installed.folder)))
            .map_err(|missing| Error::told(ErrorCode::HarnessNotInstalled, missing.to_string()))
    }

    pub(crate) fn health(&self) -> &Health {
        &self.0.health
    }

    /// Turns that wait for a person with their sandbox saved.
    pub(crate) fn parked(&self) -> &Arc<ParkedTurns> {
        &self.0.parked
    }

    pub(crate) fn places(&self) -> &Arc<Places> {
        &self.0.places
    }

    /// A place among the processes that may run at once, and how many waited before it. Scripted ones in memory need none.
    pub(crate) async fn process_place(&self, harness: &str, org: OrgId) -> Result<(usize, Option<Place>)> {
        if harness == "scripted" && self.0.settings.scripted != Scripted::Process {
            return Ok((0, None));
        }
        let (before, place) = self.0.places.ask(org);
        match tokio::time::timeout(PATIENCE, place).await {
            Ok(Ok(place)) => Ok((before, Some(place))),
            _ => Err(too_many_processes(self.0.settings.limits.processes)),
        }
    }

    /// The disk is full: the ballast goes, and no new turn begins until it is back.
    pub(crate) fn space_is_short(&self) {
        if !self.0.short_of_space.swap(true, Ordering::SeqCst) {
            tracing::error!(data = %self.data_dir().display(), "the disk is full; no new turns until there is room");
        }
        let _ = std::fs::remove_file(self.data_dir().join(BALLAST));
    }

    pub(crate) fn seats(&self) -> &Arc<Seats> {
        &self.0.seats
    }

    /// There is room again.
    pub(crate) fn space_is_back(&self) {
        self.0.short_of_space.store(false, Ordering::SeqCst);
    }

    /// # Errors
    /// `storage_full` while the disk is.
    pub(crate) fn check_space(&self) -> Result<()> {
        if self.0.short_of_space.load(Ordering::SeqCst) {
            return Err(Error::told(ErrorCode::StorageFull, "the disk under the data directory is full"));
        }
        Ok(())
    }
}
