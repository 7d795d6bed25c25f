//! Where a command's settings come from: flags, then the environment, then what a running server left in the data directory.
//!
//! Clap has merged flags and environment already; here the rest is filled in, so that commands see one resolved struct.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use karta_types::Secret;
use serde::{Deserialize, Serialize};

/// The file in the data directory by which a running `karta dev` or `karta serve` tells where it is.
pub(crate) const SERVER_FILE: &str = "dev.json";

/// The file in a folder that says what the platform needs to know of it.
pub(crate) const MANIFEST: &str = "karta.toml";

/// The data directory.
pub(crate) fn data_dir(given: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    given
        .or_else(|| set("XDG_DATA_HOME").map(|folder| folder.join("karta")))
        .or_else(|| set("HOME").map(|folder| folder.join(".local/share/karta")))
        .context("no data directory: neither `HOME` nor `XDG_DATA_HOME` is set; give one by `--data` or `KARTA_DATA`")
}

/// What a running server left.
#[derive(Deserialize)]
struct Running {
    url: String,
    key: Secret,
    #[serde(default)]
    project: Option<String>,
}

/// A server and a key for it.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    /// Its address.
    pub(crate) url: String,
    /// The key.
    pub(crate) key: Secret,
    /// The project that the server was started for.
    pub(crate) project: Option<String>,
}

/// Which server, and with which key.
pub(crate) fn connection(
    url: Option<String>,
    key: Option<String>,
    data: &Path,
) -> anyhow::Result<Connection> {
    let path = data.join(SERVER_FILE);
    let running: Option<Running> = match std::fs::read(&path) {
        Ok(text) => {
            let parsed = serde_json::from_slice(&text);
            Some(parsed.with_context(|| format!("reading `{}`, which a server wrote", path.display()))?)
        }
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => None,
        Err(why) => return Err(why).with_context(|| format!("reading `{}`", path.display())),
    };
    // The file's key belongs to the file's server; it must not travel to another.
    let own = |running: &Running| url.as_ref().is_none_or(|url| same(url, &running.url));
    let running = running.filter(own);
    let signed_in = if key.is_some() { Credentials::default() } else { Credentials::read()? };
    let here = running.as_ref().map(|running| running.url.clone());
    let Some(url) = url.or(here).or_else(|| signed_in.current.clone()) else {
        bail!(
            "no server is known: start one by `karta dev`, sign in to one by `karta login --url URL`, or name one by `--url` and \
             `--key` (or `KARTA_URL` and `KARTA_API_KEY`)"
        );
    };
    // Somebody who signed in acts as themselves, on their own machine too.
    let key = key.map(Secret::new).or_else(|| signed_in.token(&url));
    let key = key.or_else(|| running.as_ref().map(|running| running.key.clone()));
    // A data plane of its own makes no keys.
    let key = key.filter(|key| !key.expose().is_empty());
    let Some(key) = key else {
        bail!(
            "no key for {url}: sign in by `karta login --url {url}`, or give a key by `KARTA_API_KEY` or `--key`"
        );
    };
    Ok(Connection { url, key, project: running.and_then(|running| running.project) })
}

/// The key for a URL of git's, if it is of a server that is known: never somebody else's key, never to somewhere else.
pub(crate) fn key_for(origin: &str, url: Option<String>, key: Option<String>, data: &Path) -> Option<Secret> {
    let named = url.is_some();
    let of = |url: &str| origin_of(url).is_some_and(|of| of == origin);
    // The server that a command would use now.
    if let Ok(connection) = connection(url, key, data)
        && of(&connection.url)
    {
        return Some(connection.key);
    }
    if named {
        return None;
    }
    let signed_in = Credentials::read().ok()?;
    let there = signed_in.servers.keys().find(|url| of(url)).cloned();
    there.and_then(|url| signed_in.token(&url))
}

/// Scheme, host and port of an address, as git gives them.
pub(crate) fn origin_of(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    // A name and a password in it are no part of where it is.
    let host = host.rsplit('@').next().unwrap_or_default();
    (!host.is_empty()).then(|| format!("{scheme}://{host}").to_lowercase())
}

/// The project that is meant where none is named: that of `KARTA_PROJECT`, else the `project` of the `karta.toml` here, or in the
/// nearest folder above that has one.
pub(crate) fn project_here() -> anyhow::Result<Option<String>> {
    if let Some(set) = std::env::var("KARTA_PROJECT").ok().filter(|set| !set.is_empty()) {
        return Ok(Some(set));
    }
    let here = std::env::current_dir().context("finding the current folder")?;
    for folder in here.ancestors() {
        let path = folder.join(MANIFEST);
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                let manifest = karta_release::manifest::parse(&text);
                let manifest = manifest.map_err(|faults| {
                    let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
                    anyhow::anyhow!("reading `{}` for its `project`: {}", path.display(), faults.join("; "))
                })?;
                return Ok(manifest.project);
            }
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => {}
            Err(why) => return Err(why).with_context(|| format!("reading `{}`", path.display())),
        }
    }
    Ok(None)
}

/// Where this person signed in by `karta login`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Credentials {
    /// The server that was signed in to last.
    pub(crate) current: Option<String>,
    /// Tokens by the servers' addresses.
    servers: BTreeMap<String, String>,
}

impl Credentials {
    fn path() -> anyhow::Result<PathBuf> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        set("XDG_CONFIG_HOME")
            .or_else(|| set("HOME").map(|folder| folder.join(".config")))
            .map(|folder| folder.join("karta/credentials.json"))
            .context("no place for credentials: neither `HOME` nor `XDG_CONFIG_HOME` is set")
    }

    /// Reads them; there are none before the first sign-in.
    pub(crate) fn read() -> anyhow::Result<Self> {
        // Without a home there is nothing to read, and no need to complain before somebody signs in.
        let Ok(path) = Self::path() else { return Ok(Self::default()) };
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .with_context(|| format!("reading `{}`; remove it and sign in again", path.display())),
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(why) => Err(why).with_context(|| format!("reading `{}`", path.display())),
        }
    }

    /// The token for a server.
    pub(crate) fn token(&self, url: &str) -> Option<Secret> {
        self.servers.get(url.trim_end_matches('/')).cloned().map(Secret::new)
    }

    /// Keeps or, without a token, forgets the sign-in to a server.
    pub(crate) fn set(mut self, url: &str, token: Option<&Secret>) -> anyhow::Result<()> {
        let url = url.trim_end_matches('/').to_owned();
        if let Some(token) = token {
            self.servers.insert(url.clone(), token.expose().clone());
            self.current = Some(url);
        } else {
            self.servers.remove(&url);
            self.current = self.current.filter(|current| *current != url);
        }
        let path = Self::path()?;
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("making `{}`", folder.display()))?;
        }
        write_private(&path, &serde_json::to_string(&self)?)
    }
}

/// Writes a file that nobody else can read: whole, or not at all.
pub(crate) fn write_private(path: &Path, content: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let beside = path.with_extension("new");
    std::fs::File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&beside)
        .and_then(|mut file| file.write_all(content.as_bytes()))
        .and_then(|()| std::fs::rename(&beside, path))
        .with_context(|| format!("writing `{}`", path.display()))
}

/// The address of the server that runs on this machine, if one does.
pub(crate) fn running_url(data: &Path) -> Option<String> {
    let text = std::fs::read(data.join(SERVER_FILE)).ok()?;
    Some(serde_json::from_slice::<Running>(&text).ok()?.url)
}

/// The settings of a server: defaults, then the file, then the environment. Flags come last, by the command.
pub(crate) fn server(data: Option<PathBuf>, config: Option<&Path>) -> anyhow::Result<karta_engine::Settings> {
    let mut settings = match config {
        None => karta_engine::Settings { data: data_dir(None)?, ..karta_engine::Settings::default() },
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("reading the settings file `{}`", path.display()))?;
            karta_engine::Settings::parse(&text)
                .map_err(|why| anyhow::anyhow!("the settings file `{}`: {why}", path.display()))?
        }
    };
    let var = |name: &str| std::env::var(name).ok();
    settings.apply_env(&var).map_err(anyhow::Error::msg)?;
    if let Some(data) = data {
        settings.data = data;
    }
    if settings.data.is_relative() {
        settings.data = std::env::current_dir().context("finding the current folder")?.join(&settings.data);
    }
    Ok(settings)
}

fn same(one: &str, other: &str) -> bool {
    one.trim_end_matches('/') == other.trim_end_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(content: Option<&str>) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        if let Some(content) = content {
            std::fs::write(folder.path().join(SERVER_FILE), content).unwrap();
        }
        folder
    }

    #[test]
    fn what_is_given_wins_over_the_file_and_its_key_stays_with_its_server() {
        let folder = data(Some(
            r#"{"url": "http://127.0.0.1:4747", "key": "kt_test_file", "project": "p", "pid": 1}"#,
        ));
        let from_file = connection(None, None, folder.path()).unwrap();
        assert_eq!(
            (from_file.url.as_str(), from_file.key.expose().as_str()),
            ("http://127.0.0.1:4747", "kt_test_file")
        );
        assert_eq!(from_file.project.as_deref(), Some("p"));
        let same = connection(Some("http://127.0.0.1:4747/".into()), None, folder.path()).unwrap();
        assert_eq!(same.key.expose(), "kt_test_file");
        let own_key = connection(None, Some("kt_test_own".into()), folder.path()).unwrap();
        assert_eq!(own_key.key.expose(), "kt_test_own");
        let other = connection(Some("http://elsewhere:1".into()), None, folder.path()).unwrap_err();
        assert!(other.to_string().contains("no key for http://elsewhere:1"));
        let other = connection(Some("http://elsewhere:1".into()), Some("k".into()), folder.path()).unwrap();
        assert_eq!(other.project, None);
    }

    #[test]
    fn nothing_known_names_what_to_do() {
        let error = connection(None, None, data(None).path()).unwrap_err();
        assert!(error.to_string().contains("`karta dev`"));
        let error = connection(None, None, data(Some("{")).path()).unwrap_err();
        assert!(error.to_string().contains(SERVER_FILE));
    }
}
