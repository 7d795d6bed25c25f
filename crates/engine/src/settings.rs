//! Settings: defaults, then the file, then `KARTA_*`, then flags. The file's tables are these structs; an unknown key is an error.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use karta_types::budget::Caps;
use karta_types::{OrgId, Secret};
use serde::Deserialize;

/// Everything that can be set.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where everything is kept. Made if it does not exist.
    pub data: PathBuf,
    /// Where the API listens.
    pub listen: SocketAddr,
    /// Where people and clients reach this server, like `https://karta.example.com`: for links and sign-in. Absent is where it listens.
    pub public_url: Option<String>,
    /// Sign-in by a provider of identities (`OpenID` Connect).
    pub oidc: Option<Oidc>,
    /// Where the model gateway listens; port 0 takes any. Loopback, because only harnesses on this machine call it.
    pub gateway_listen: SocketAddr,
    /// The database: `sqlite:PATH`; absent is `karta.db` in the data directory.
    pub database: Option<String>,
    /// `process`: acknowledged means it survives the end of the process. `power`: also the end of power; slower.
    pub durability: Durability,
    /// How sessions are kept apart: `process`, `namespace` or `microvm`. Unset, it is `process` for whoever embeds the engine and for
    /// local development, and `microvm` for `karta serve`.
    pub isolation: Option<String>,
    /// Seconds that finished events stay replayable.
    pub journal_retention_seconds: u64,
    /// Model providers.
    pub providers: Providers,
    /// Models used where a folder names none.
    pub model: Model,
    /// Limits of turns and sessions.
    pub limits: Limits,
    /// Caps of the organisation for all time. More caps are set by the API.
    pub budget: Caps,
    /// What folders may start by themselves.
    pub folder: Folder,
    /// Releases.
    pub releases: Releases,
    /// What sessions have made, kept beyond their machines.
    pub state: State,
    /// What each isolated sandbox may use of the host.
    pub sandbox: SandboxSettings,
    /// The way out of sandboxes.
    pub egress: EgressSettings,
    /// `git push` to this server.
    pub git: Git,
    /// Which planes this server is.
    pub plane: Plane,
    /// How a data plane of its own reaches the control plane.
    pub authority: Authority,
    /// What organisations pay.
    pub billing: Billing,
    /// Webhooks.
    pub webhooks: Webhooks,
    /// Environment variables let through to harnesses, by name. Never put secrets of the platform here.
    pub pass_env: Vec<String>,
    /// Where pages come from that browsers may read our answers on, beside the origins of session tokens: `https://app.example.com`.
    pub cors_origins: Vec<String>,
    /// Prices that differ from the list, by model.
    pub prices: BTreeMap<String, karta_types::money::Price>,
    /// Prices of single organisations, by the organisation's id and model: they win over all others.
    pub org_prices: BTreeMap<OrgId, BTreeMap<String, karta_types::money::Price>>,
    /// How the scripted harness runs: in memory, or as a real child process.
    pub scripted: Scripted,
}

/// When a write counts as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// It survives the end of the process.
    #[default]
    Process,
    /// It survives the end of power.
    Power,
}

/// How the scripted harness runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scripted {
    /// Inside the server.
    #[default]
    Memory,
    /// As a child process, like a real one.
    Process,
    /// Inside the server, as if in a machine of its own: when that ends, what the session has made is in its checkpoint alone.
    Machine,
}

/// Model providers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Providers {
    /// Whether organisations without a key of their own use the platform's.
    pub platform_keys: bool,
    /// Anthropic.
    pub anthropic: Option<Provider>,
    /// `OpenAI`.
    pub openai: Option<Provider>,
}

impl Default for Providers {
    fn default() -> Self {
        Self { platform_keys: true, anthropic: None, openai: None }
    }
}

/// How to reach a provider.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    /// The key. Better given by the environment than in the file.
    pub key: Secret,
    /// The base URL, if not the provider's own.
    #[serde(default)]
    pub base_url: Option<String>,
}

/// Models used where a folder names none.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// `anthropic` or `openai`; absent is the one that has a key, Anthropic first.
    pub provider: Option<String>,
    /// The model.
    pub name: Option<String>,
    /// The small model for helper calls.
    pub small: Option<String>,
}

/// A provider of identities: anything that speaks `OpenID` Connect Discovery.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Oidc {
    /// Its issuer, exactly as it names itself: `https://accounts.example.com`.
    pub issuer: String,
    /// What this server is called there.
    pub client_id: String,
    /// The secret that goes with it, if the provider gave one.
    #[serde(default)]
    pub client_secret: Option<Secret>,
    /// What people know it as.
    #[serde(default = "oidc_name")]
    pub name: String,
}

fn oidc_name() -> String {
    "single sign-on".to_owned()
}

/// Limits, in whole seconds unless said.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// From start of a harness to its first sign of life.
    pub start_seconds: u64,
    /// Without a word from the harness during a turn.
    pub silence_seconds: u64,
    /// Retries of one model call by the harness, all together.
    pub retry_seconds: u64,
    /// A question without an answer; then it is refused.
    pub approval_seconds: u64,
    /// A whole turn, waiting for people apart.
    pub turn_seconds: u64,
    /// A harness without a turn keeps running this long.
    pub idle_seconds: u64,
    /// A harness without a turn is stopped where it stands after this long, until it is spoken to, where the isolation can.
    pub pause_seconds: u64,
    /// A turn that waits for a person is saved and costs no memory after this long without a sign of life, where the isolation can.
    pub park_seconds: u64,
    /// Messages that may wait in one session.
    pub queue: usize,
    /// Requests a second by one key or person; 0 is no limit. Bursts of two seconds' worth pass.
    pub key_requests_per_second: u32,
    /// Requests a second by one organisation; 0 is no limit.
    pub org_requests_per_second: u32,
    /// Turns of one key at once, those that wait included; 0 is no limit.
    pub key_turns: u32,
    /// Turns of one organisation at once, those that wait included; 0 is no limit.
    pub org_turns: u32,
    /// Sessions that may wait for a place among the processes; more are turned away at once.
    pub waiting: usize,
    /// Harness processes at once. Organisations are served in turn: the one that holds fewest first.
    pub processes: usize,
    /// Bytes of one request body.
    pub body_bytes: usize,
    /// Bytes of one tool's output kept in the journal; the rest is cut.
    pub output_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            start_seconds: 60,
            silence_seconds: 600,
            retry_seconds: 180,
            approval_seconds: 86_400,
            turn_seconds: 7200,
            idle_seconds: 600,
            pause_seconds: 5,
            park_seconds: 60,
            queue: 16,
            key_requests_per_second: 0,
            org_requests_per_second: 0,
            key_turns: 0,
            org_turns: 0,
            waiting: 1000,
            processes: 64,
            body_bytes: 16 << 20,
            output_bytes: 256 << 10,
        }
    }
}

/// Which planes a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Plane {
    /// Both.
    #[default]
    All,
    /// The system of record: people, keys, budgets, usage. It runs no agent.
    Control,
    /// Sessions and agents. It has no key of the control plane's, and no right on its tables.
    Data,
}

/// How a data plane of its own reaches the control plane.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Authority {
    /// Where a control plane of its own listens for data planes.
    pub listen: SocketAddr,
    /// Where a data plane finds it.
    pub url: String,
    /// The file with the service tokens, one a line: a control plane takes each of them, a data plane shows the first. Read again when
    /// it changes. Absent is `service-tokens` in the data directory, which a control plane makes.
    pub tokens: Option<PathBuf>,
}

impl Default for Authority {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 4748)),
            url: "http://127.0.0.1:4748".to_owned(),
            tokens: None,
        }
    }
}

/// What organisations pay.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Billing {
    /// Payments by Stripe. Without it everything works, and nobody pays.
    pub stripe: Option<Stripe>,
}

/// Payments by Stripe.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stripe {
    /// The secret key. Better given by `KARTA_STRIPE_KEY`.
    #[serde(default = "no_secret")]
    pub key: Secret,
    /// What signs its webhooks (`whsec_…`). Better given by `KARTA_STRIPE_WEBHOOK_SECRET`.
    #[serde(default = "no_secret")]
    pub webhook_secret: Secret,
    /// Plans by name, each a price's id.
    pub plans: BTreeMap<String, String>,
    /// The price of usage, if usage is paid: its meter sums micro-dollars.
    #[serde(default)]
    pub usage_price: Option<String>,
    /// The meter's event name.
    #[serde(default = "meter")]
    pub meter: String,
    /// Where Stripe is, if not at its own address.
    #[serde(default = "stripe")]
    pub base_url: String,
}

fn no_secret() -> Secret {
    Secret::new(String::new())
}

fn meter() -> String {
    "karta_usage_micros".to_owned()
}

fn stripe() -> String {
    "https://api.stripe.com".to_owned()
}

/// Webhooks.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Webhooks {
    /// Whether endpoints may be on this machine, by plain HTTP: for development only.
    pub loopback: bool,
}

/// `git push` to this server.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Git {
    /// Bytes of what one push sends.
    pub push_bytes: u64,
    /// Seconds that one push may take, its build included.
    pub push_seconds: u64,
    /// Pushes of one organisation at once; more wait. Those to one project are always one after the other.
    pub pushes: usize,
}

impl Default for Git {
    fn default() -> Self {
        Self { push_bytes: 1 << 30, push_seconds: 3600, pushes: 4 }
    }
}

/// What folders may start by themselves.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Folder {
    /// Hook commands.
    pub hooks: bool,
    /// MCP servers.
    pub mcp: bool,
}

impl Default for Folder {
    fn default() -> Self {
        Self { hooks: true, mcp: true }
    }
}

/// Releases.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Releases {
    /// The folder where their content is kept. Absent is `blobs` in the data directory.
    pub blobs: Option<PathBuf>,
    /// How many of a project are kept, beside those that something refers to.
    pub keep: u32,
    /// How long a preview lives after it was last published for.
    pub preview_seconds: u64,
    /// How long a setup may take.
    pub build_seconds: u64,
    /// The most bytes of a release's files.
    pub max_bytes: u64,
    /// Whether setups may reach this machine where they declare it: for tests and development only.
    pub loopback: bool,
}

impl Default for Releases {
    fn default() -> Self {
        Self {
            blobs: None,
            keep: 20,
            preview_seconds: 7 * 86_400,
            build_seconds: 1800,
            max_bytes: 2 << 30,
            loopback: false,
        }
    }
}

/// What sessions have made, kept beyond their machines.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct State {
    /// The most bytes that one session may have made.
    pub session_bytes: u64,
    /// The most files, folders and links that one session may have made.
    pub session_files: u64,
    /// How many checkpoints of a session are kept.
    pub keep: u32,
    /// How long taking a checkpoint, or putting one back, may last.
    pub seconds: u64,
}

impl Default for State {
    fn default() -> Self {
        Self { session_bytes: 4 << 30, session_files: 200_000, keep: 3, seconds: 120 }
    }
}

/// What each isolated sandbox may use of the host: `microvm` and `namespace`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SandboxSettings {
    /// The image that sandboxes begin with, a folder; absent is the newest of `<data>/images`.
    pub image: Option<PathBuf>,
    /// Memory in bytes; in namespaces swap counts too.
    pub memory_bytes: u64,
    /// Processes and threads at once.
    pub processes: u32,
    /// The most bytes on the session's disk.
    pub disk_bytes: u64,
    /// The most bytes in `/tmp`; they count as memory.
    pub temp_bytes: u64,
    /// Processors in hundredths: 150 is one and a half.
    pub cpu_hundredths: u32,
    /// Open files of one process.
    pub open_files: u64,
    /// Sandboxes at once.
    pub sandboxes: u32,
    /// The first user id of the host that sandboxes use where the server runs as root; each takes 65,536 of its own.
    pub first_id: u32,
    /// Virtual machines of each kind in use that wait, restored, for their session.
    pub warm: u32,
    /// How many may wait altogether.
    pub warm_ceiling: u32,
}

impl Default for SandboxSettings {
    fn default() -> Self {
        Self::from(karta_sandbox::limits::Machines::new(PathBuf::new()))
    }
}

impl From<karta_sandbox::limits::Machines> for SandboxSettings {
    fn from(limits: karta_sandbox::limits::Machines) -> Self {
        Self {
            image: limits.image,
            memory_bytes: limits.memory_bytes,
            processes: limits.processes,
            disk_bytes: limits.disk_bytes,
            temp_bytes: limits.temp_bytes,
            cpu_hundredths: limits.cpu_hundredths,
            open_files: limits.open_files,
            sandboxes: limits.sandboxes,
            first_id: limits.first_id,
            warm: limits.warm,
            warm_ceiling: limits.warm_ceiling,
        }
    }
}

impl SandboxSettings {
    /// The drivers' limits, with their places in this data directory.
    pub(crate) fn machines(&self, data: &std::path::Path) -> karta_sandbox::limits::Machines {
        karta_sandbox::limits::Machines {
            image: self.image.clone(),
            memory_bytes: self.memory_bytes,
            processes: self.processes,
            disk_bytes: self.disk_bytes,
            temp_bytes: self.temp_bytes,
            cpu_hundredths: self.cpu_hundredths,
            open_files: self.open_files,
            sandboxes: self.sandboxes,
            first_id: self.first_id,
            warm: self.warm,
            warm_ceiling: self.warm_ceiling,
            ..karta_sandbox::limits::Machines::new(data.join("machines"))
        }
    }
}

/// The way out of sandboxes.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EgressSettings {
    /// Whether everything public is let through, and only told: for development, to find the rules that a folder needs.
    pub observe: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            data: PathBuf::from("karta-data"),
            listen: SocketAddr::from(([127, 0, 0, 1], 4747)),
            public_url: None,
            oidc: None,
            gateway_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            database: None,
            durability: Durability::default(),
            isolation: None,
            journal_retention_seconds: 86_400,
            providers: Providers::default(),
            model: Model::default(),
            limits: Limits::default(),
            budget: Caps::default(),
            folder: Folder::default(),
            releases: Releases::default(),
            state: State::default(),
            sandbox: SandboxSettings::default(),
            egress: EgressSettings::default(),
            git: Git::default(),
            plane: Plane::default(),
            authority: Authority::default(),
            billing: Billing::default(),
            webhooks: Webhooks::default(),
            pass_env: Vec::new(),
            cors_origins: Vec::new(),
            prices: BTreeMap::new(),
            org_prices: BTreeMap::new(),
            scripted: Scripted::default(),
        }
    }
}

impl Settings {
    /// Reads a settings file's text.
    ///
    /// # Errors
    /// Not TOML, an unknown key, a value of the wrong type: with line and column.
    pub fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    /// Takes what the environment sets: `KARTA_DATA`, `KARTA_LISTEN`, `KARTA_PUBLIC_URL`, `KARTA_DATABASE`, `KARTA_ISOLATION`,
    /// `KARTA_OIDC_CLIENT_SECRET`, `KARTA_STRIPE_KEY`, `KARTA_STRIPE_WEBHOOK_SECRET`, and the providers' own variables `ANTHROPIC_API_KEY`, `ANTHROPIC_BASE_URL`, `OPENAI_API_KEY`, `OPENAI_BASE_URL`.
    ///
    /// # Errors
    /// A value that can't be read, with the variable's name.
    pub fn apply_env(&mut self, var: &dyn Fn(&str) -> Option<String>) -> Result<(), String> {
        if let Some(data) = var("KARTA_DATA") {
            self.data = data.into();
        }
        if let Some(listen) = var("KARTA_LISTEN") {
            self.listen = listen
                .parse()
                .map_err(|_| format!("KARTA_LISTEN: `{listen}` is not an address like 127.0.0.1:4747"))?;
        }
        if let Some(url) = var("KARTA_PUBLIC_URL") {
            self.public_url = Some(url);
        }
        if let Some(secret) = var("KARTA_OIDC_CLIENT_SECRET")
            && let Some(oidc) = &mut self.oidc
        {
            oidc.client_secret = Some(Secret::new(secret));
        }
        if let Some(stripe) = &mut self.billing.stripe {
            if let Some(key) = var("KARTA_STRIPE_KEY") {
                stripe.key = Secret::new(key);
            }
            if let Some(secret) = var("KARTA_STRIPE_WEBHOOK_SECRET") {
                stripe.webhook_secret = Secret::new(secret);
            }
        }
        if let Some(database) = var("KARTA_DATABASE") {
            self.database = Some(database);
        }
        if let Some(isolation) = var("KARTA_ISOLATION") {
            self.isolation = Some(isolation);
        }
        let provider = |key: &str, base: &str, known: &mut Option<Provider>| {
            if let Some(value) = var(key).filter(|value| !value.is_empty()) {
                *known = Some(Provider {
                    key: Secret::new(value),
                    base_url: known.take().and_then(|known| known.base_url),
                });
            }
            if let (Some(url), Some(known)) = (var(base).filter(|url| !url.is_empty()), known.as_mut()) {
                known.base_url = Some(url);
            }
        };
        provider("ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", &mut self.providers.anthropic);
        provider("OPENAI_API_KEY", "OPENAI_BASE_URL", &mut self.providers.openai);
        Ok(())
    }

    /// The provider, model and small model used where a folder names none.
    pub fn default_model(&self) -> (String, String, String) {
        let provider = self.model.provider.clone().unwrap_or_else(|| {
            let openai = self.providers.anthropic.is_none() && self.providers.openai.is_some();
            if openai { "openai" } else { "anthropic" }.to_owned()
        });
        let (name, small) = if provider == "openai" {
            ("gpt-5", "gpt-5-mini")
        } else {
            ("claude-sonnet-4-5", "claude-haiku-4-5")
        };
        let name = self.model.name.clone().unwrap_or_else(|| name.to_owned());
        let small = self.model.small.clone().unwrap_or_else(|| small.to_owned());
        (provider, name, small)
    }

    /// The name of the driver that sessions run with.
    pub fn driver(&self) -> &str {
        self.isolation.as_deref().unwrap_or("process")
    }

    /// The file of service tokens.
    pub fn service_tokens(&self) -> PathBuf {
        self.authority.tokens.clone().unwrap_or_else(|| self.data.join("service-tokens"))
    }

    /// How the store is opened.
    pub(crate) fn store_options(&self, keys: karta_store::Keyring) -> karta_store::Options {
        let url = self
            .database
            .clone()
            .unwrap_or_else(|| format!("sqlite:{}", self.data.join("karta.db").display()));
        let durability = match self.durability {
            Durability::Process => karta_store::Durability::Process,
            Durability::Power => karta_store::Durability::Power,
        };
        karta_store::Options { url, durability, keys, data_plane: self.plane == Plane::Data }
    }

    /// How long finished events stay replayable.
    pub const fn journal_retention(&self) -> Duration {
        Duration::from_secs(self.journal_retention_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_says_the_defaults() {
        let example = Settings::parse(include_str!("../../../karta.example.toml")).unwrap();
        assert_eq!(format!("{example:?}"), format!("{:?}", Settings::default()));
    }

    #[test]
    fn an_unknown_key_is_told_with_its_line() {
        let error = Settings::parse("listen = \"127.0.0.1:1\"\n[limits]\nqueeue = 3\n").unwrap_err();
        assert!(error.contains("queeue") && error.contains("line 3"), "{error}");
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let mut settings =
            Settings::parse("[providers.openai]\nkey = \"a\"\nbase_url = \"http://x\"\n").unwrap();
        let var = |name: &str| match name {
            "OPENAI_API_KEY" => Some("b".to_owned()),
            "KARTA_LISTEN" => Some("127.0.0.1:9".to_owned()),
            _ => None,
        };
        settings.apply_env(&var).unwrap();
        let openai = settings.providers.openai.as_ref().unwrap();
        assert_eq!((openai.key.expose().as_str(), openai.base_url.as_deref()), ("b", Some("http://x")));
        assert_eq!(settings.listen.port(), 9);
        assert_eq!(settings.default_model().0, "openai");
        let bad = |name: &str| (name == "KARTA_LISTEN").then(|| "nowhere".to_owned());
        assert!(settings.apply_env(&bad).unwrap_err().contains("KARTA_LISTEN"));
    }
}
