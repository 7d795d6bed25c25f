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

use crate::addresses::{Guarded, Lookup};
use crate::control::budgets::RENEWAL;
use crate::control::encryption::LocalKeys;
use crate::control::keys::{Environment, NewKey};
use crate::control::local::Local;
use crate::control::oidc::OidcProvider;
use crate::control::webhooks::send;
use crate::data::channels::Channels;
use crate::data::hub::Hub;
use crate::data::places::{Place, Places};
use crate::data::projects::{Catalogue, Loaded};
use crate::data::turn::too_many_processes;
use crate::gate::Gate;
use crate::gateway::{self, Gateway};
use crate::harnesses::Harnesses;
use crate::settings::{Scripted, Settings};
use crate::tasks::Tasks;
use crate::{Error, Principal, Result};

/// How often the house is kept: old journal, old replies, the ballast.
const KEEPING: Duration = Duration::from_mins(1);
/// How often keys that another node changed are looked for.
const KEYS: Duration = Duration::from_millis(500);
/// How often what happened is told to webhook endpoints.
const DELIVERING: Duration = Duration::from_millis(500);
/// How often the ends of the audit log's chains are signed.
const SEALING: Duration = Duration::from_hours(1);
/// How long a free place among the processes is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

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
    hub: Hub,
    catalogue: Catalogue,
    oidc: Option<OidcProvider>,
    webhooks: reqwest::Client,
    channels: Arc<Channels>,
    gateway: Gateway,
    harnesses: Harnesses,
    driver: Arc<dyn Driver>,
    scripted: Arc<dyn Driver>,
    places: Arc<Places>,
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
        }
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

    /// Looks whether an engine could be opened, without opening one: nothing is recovered or served, so that a server which runs on
    /// the same data is not disturbed. Answers each part's state by name.
    ///
    /// # Errors
    /// The data directory can't be written.
    pub async fn check(self) -> Result<Vec<(&'static str, Result<(), String>)>> {
        let Self { settings, clock, rng, program, .. } = self;
        prepare(&settings.data)?;
        let driver = build_driver(&settings, program, clock, rng);
        let state = match driver {
            Ok(driver) => driver.check().await.map_err(|error| crate::error::chain(&error)),
            Err(error) => Err(error.chain()),
        };
        Ok(vec![("sandbox", state)])
    }

    /// Opens the store, recovers what a crash left, starts the model gateway.
    ///
    /// # Errors
    /// The data directory can't be written, the store can't be opened, the isolation asked for is not available, a port is taken.
    pub async fn open(self) -> Result<Engine> {
        let Self { settings, clock, rng, program, env, lookup } = self;
        prepare(&settings.data)?;
        let keyring = Keyring::load_or_create(&settings.data.join("keys"), &*rng)?;
        let store = Store::open(settings.store_options(keyring.clone())).await?;
        let encryption =
            Arc::new(LocalKeys::open(&settings.data.join("keys").join("kek"), clock.clone(), rng.clone())?);
        let control =
            Arc::new(Local::new(store.clone(), keyring.clone(), clock.clone(), rng.clone(), encryption));
        let gate: Arc<dyn Gate> = control.clone();
        let channels = Arc::new(Channels::new(keyring.clone()));
        let config = gateway::Config::from_settings(&settings)
            .map_err(|why| Error::told(ErrorCode::InvalidRequest, why))?;
        let gateway = Gateway::start(config, channels.clone(), clock.clone(), rng.clone())
            .await
            .map_err(|error| Error::internal("starting the model gateway", error))?;
        let driver = build_driver(&settings, program, clock.clone(), rng.clone())?;
        driver.check().await?;
        let scripted = match settings.scripted {
            Scripted::Process => driver.clone(),
            Scripted::Memory => crate::data::player::driver(clock.clone(), rng.clone()),
        };
        let places = Places::new(settings.limits.processes);
        let webhooks = send::client(Guarded::new(lookup, settings.webhooks.loopback))?;
        let oidc = OidcProvider::from_settings(&settings)?;
        let engine = Engine(Arc::new(Inner {
            harnesses: Harnesses::new(settings.data.join("harnesses")),
            settings,
            store,
            keyring,
            clock,
            rng,
            gate,
            control,
            hub: Hub::default(),
            catalogue: Catalogue::default(),
            oidc,
            webhooks,
            channels,
            gateway,
            driver,
            scripted,
            places,
            short_of_space: AtomicBool::new(false),
            passed_env: env,
            tasks: Tasks::default(),
        }));
        engine.recover().await?;
        let keeper = engine.clone();
        engine.keep_budgets().await;
        engine.keep_keys().await;
        let budgets = engine.clone();
        engine.tasks().every(RENEWAL, move || {
            let engine = budgets.clone();
            async move { engine.keep_budgets().await }
        });
        let keys = engine.clone();
        engine.tasks().every(KEYS, move || {
            let engine = keys.clone();
            async move { engine.keep_keys().await }
        });
        let webhooks = engine.clone();
        engine.tasks().every(DELIVERING, move || {
            let engine = webhooks.clone();
            async move {
                // As long as much waits, the next ones go at once.
                loop {
                    match engine.deliver().await {
                        Ok(0) => break,
                        Ok(_) if engine.tasks().is_stopping() => break,
                        Ok(_) => {}
                        Err(error) => {
                            tracing::error!(error = error.chain(), "delivering webhooks");
                            break;
                        }
                    }
                }
            }
        });
        let audit = engine.clone();
        engine.tasks().every(SEALING, move || {
            let engine = audit.clone();
            async move {
                if let Err(error) = engine.forget_happenings().await {
                    tracing::error!(error = error.chain(), "erasing old webhook deliveries");
                }
                if let Err(error) = engine.audit_seal().await {
                    tracing::error!(error = error.chain(), "signing the audit log");
                }
                if engine.control().encryption().is_due() {
                    match engine.rotate_key_encryption().await {
                        Ok(keys) => tracing::info!(keys, "a new key-encryption key wraps provider keys"),
                        Err(error) => tracing::error!(error = error.chain(), "wrapping provider keys anew"),
                    }
                }
            }
        });
        engine.tasks().every(KEEPING, move || {
            let engine = keeper.clone();
            async move { engine.keep_house().await }
        });
        Ok(engine)
    }
}

/// The driver that the settings ask for.
fn build_driver(
    settings: &Settings,
    program: Option<PathBuf>,
    clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
) -> Result<Arc<dyn Driver>> {
    let programs: HashMap<_, _> =
        program.map(|program| (PLAYER.to_owned(), (program, vec!["play".to_owned()]))).into_iter().collect();
    let config = karta_sandbox::registry::Config {
        root: settings.data.join("sessions"),
        programs,
        functions: HashMap::default(),
        clock,
        rng,
    };
    Ok(karta_sandbox::registry::build(&settings.isolation, config)?)
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
    // Failing to set aside room is no reason not to start: it is tried again while the server runs.
    let _ = set_ballast(data);
    Ok(())
}

fn set_ballast(data: &Path) -> std::io::Result<()> {
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
        let driver = self.0.driver.check().await.map_err(|error| crate::error::chain(&error));
        let space = self.check_space().map_err(|error| error.to_string());
        vec![("store", store), ("sandbox", driver), ("space", space)]
    }

    /// Holds of calls that run go on; those that nobody has any more are settled.
    async fn keep_budgets(&self) {
        if let Err(error) = self.control().budgets().keep(self.clock().now()).await {
            tracing::error!(error = error.chain(), "keeping holds");
        }
    }

    /// Ends every turn in writing, then everything else.
    pub async fn shutdown(&self) {
        if !self.tasks().shutdown(Duration::from_secs(15)).await {
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

    /// The control plane.
    pub fn gate(&self) -> &Arc<dyn Gate> {
        &self.0.gate
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

    /// The program of a release's harness.
    pub(crate) fn program(&self, release: &Loaded) -> Result<String> {
        if release.harness.package().is_none() {
            return Ok(PLAYER.to_owned());
        }
        self.0
            .harnesses
            .program(release.harness, Some(&release.row.harness.version))
            .map(|installed| installed.program.display().to_string())
            .map_err(|missing| Error::told(ErrorCode::HarnessNotInstalled, missing.to_string()))
    }

    pub(crate) fn places(&self) -> &Arc<Places> {
        &self.0.places
    }

    /// A place among the processes that may run at once, and how many waited before it. Scripted ones in memory need none.
    pub(crate) async fn process_place(&self, harness: &str, org: OrgId) -> Result<(usize, Option<Place>)> {
        if harness == "scripted" && self.0.settings.scripted == Scripted::Memory {
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

    /// # Errors
    /// `storage_full` while the disk is.
    pub(crate) fn check_space(&self) -> Result<()> {
        if self.0.short_of_space.load(Ordering::SeqCst) {
            return Err(Error::told(ErrorCode::StorageFull, "the disk under the data directory is full"));
        }
        Ok(())
    }

    /// Erases what is past its time, and puts the ballast back. Runs by itself every minute.
    pub async fn keep_house(&self) {
        let now = self.clock().now();
        let before = crate::data::sessions::expired_before(now, self.settings().journal_retention());
        let kept = async {
            while self.store().journal_expire(before, 1000).await? >= 1000 {}
            self.store().idem_expire(now).await?;
            self.store().sign_ins_expire(now).await?;
            Ok::<_, karta_store::Error>(())
        };
        if let Err(error) = kept.await {
            tracing::error!(error = crate::error::chain(&error), "erasing what is past its time");
        }
        let data = self.data_dir().to_owned();
        let room = tokio::task::spawn_blocking(move || set_ballast(&data)).await;
        if matches!(room, Ok(Ok(()))) {
            self.0.short_of_space.store(false, Ordering::SeqCst);
        }
    }
}
