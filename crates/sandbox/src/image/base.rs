//! The base system: a small Debian made by mmdebstrap from the host's own package sources, stripped of everything that differs
//! from one making to the next.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::build::blocking;
use super::tool::{Need, Tool};
use super::{Error, at, erofs};

/// What makes base systems.
const MMDEBSTRAP: Need =
    Need { program: "mmdebstrap", purpose: "base systems are made by it", package: "mmdebstrap" };
/// What unpacks them.
const TAR: Need = Need { program: "tar", purpose: "base systems are unpacked by it", package: "tar" };
/// What tells the host's settings of apt.
const APT: Need =
    Need { program: "apt-config", purpose: "it says how packages are fetched here", package: "apt" };
/// A few hundred packages on a slow line.
const PATIENCE: Duration = Duration::from_mins(40);
/// The time that every file gets that package managers write: the start of 2026.
const EPOCH: &str = "1767225600";
/// Counts up when this file makes another tree of the same packages.
pub(super) const FORM: u32 = 1;
/// Where Debian and its descendants say which packages they take from where, the likeliest first.
const SOURCES: &[&str] = &[
    "/etc/apt/sources.list.d/debian.sources",
    "/etc/apt/sources.list.d/ubuntu.sources",
    "/etc/apt/sources.list",
];
/// Of the host's settings of apt, those that say how to reach packages; whom to trust stays as it is.
const SETTINGS: &[&str] =
    &["Acquire::Check-Valid-Until ", "Acquire::Retries ", "Acquire::http::Proxy", "Acquire::https::Proxy"];
/// What is not unpacked: documentation but licences, and other languages.
const LEFT_OUT: &[&str] = &[
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/i18n/locales/*",
];
/// What is emptied or removed: logs, caches, where packages came from, and what names one machine.
const EMPTIED: &[&str] = &["dev", "run", "tmp", "var/log", "var/cache", "var/lib/apt/lists", "var/tmp"];
const REMOVED: &[&str] = &[
    "etc/apt/sources.list",
    "etc/apt/sources.list.d",
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/.pwd.lock",
    "var/lib/dbus/machine-id",
    "var/lib/systemd/random-seed",
];
/// Where a sandbox mounts things.
const MOUNTED: &[&str] =
    &["dev", "home/agent", "opt/harness", "proc", "release", "run", "state", "sys", "tmp", "workspace"];

/// The release of Debian that the host is.
pub(super) fn suite() -> Result<String, Error> {
    let path = Path::new("/etc/os-release");
    let text = std::fs::read_to_string(path).map_err(at("reading", path))?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    name.map(|name| name.trim_matches('"').to_owned()).filter(|name| is_name(name)).ok_or_else(|| Error::Tool {
        doing: "finding which Debian to take the base from".to_owned(),
        said: "`/etc/os-release` names none: give one by `--suite`, with `--sources` for where its packages are".to_owned(),
    })
}

/// Whether this can be the name of a suite or a package: nothing that a program could take for an option or a path.
pub(super) fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.');
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.len() <= 64
        && text.bytes().all(plain)
}

/// Where packages are taken from.
fn sources(own: Option<&Path>) -> Result<PathBuf, Error> {
    let found = match own {
        Some(path) => std::path::absolute(path).ok().filter(|path| path.is_file()),
        None => SOURCES.iter().map(PathBuf::from).find(|path| path.is_file()),
    };
    found.ok_or_else(|| Error::Tool {
        doing: "finding where packages are taken from".to_owned(),
        said: "there is no such file: give apt's list of sources of a Debian by `--sources`".to_owned(),
    })
}

/// Makes the tree `root`, with `work` for what is only needed on the way.
pub(super) async fn make(
    suite: &str,
    packages: &[String],
    own: Option<&Path>,
    work: &Path,
    root: &Path,
) -> Result<(), Error> {
    let sources = sources(own)?;
    let archive = work.join("base.tar");
    let settings = work.join("apt.conf");
    let dump = Tool::new(APT)?.args(["dump", "--format", "%F \"%v\";%n", "Acquire"]);
    let dump = dump.run("asking apt for its settings", Duration::from_mins(1)).await?;
    let kept: String = dump
        .lines()
        .filter(|line| SETTINGS.iter().any(|start| line.starts_with(start)))
        .fold(String::new(), |text, line| text + line + "\n");
    tokio::fs::write(&settings, kept).await.map_err(at("writing", &settings))?;
    let debootstrap = Tool::new(MMDEBSTRAP)?
        .args(["--variant=minbase", "--format=tar", "--quiet"])
        .arg(format!("--include={}", packages.join(",")))
        .arg(format!("--aptopt={}", settings.display()))
        .args(LEFT_OUT.iter().map(|rule| format!("--dpkgopt={rule}")))
        .arg(suite)
        .arg(&archive)
        .arg(sources)
        .env("SOURCE_DATE_EPOCH", EPOCH);
    debootstrap.run("making the base system by mmdebstrap", PATIENCE).await?;
    tokio::fs::create_dir(root).await.map_err(at("making", root))?;
    // Devices need rights that not everybody has, and owners mean nothing: in a sandbox all of it is root's and read-only.
    let tar = Tool::new(TAR)?
        .args(["--extract", "--no-same-owner", "--preserve-permissions", "--exclude=./dev/*", "--file"])
        .arg(&archive)
        .arg("--directory")
        .arg(root);
    tar.run("unpacking the base system", PATIENCE).await?;
    let root = root.to_owned();
    blocking(move || {
        erofs::remove(&archive)?;
        settle(&root)
    })
    .await
}

/// Makes a tree that packages have made one for sandboxes.
fn settle(root: &Path) -> Result<(), Error> {
    for folder in EMPTIED {
        let path = root.join(folder);
        erofs::remove(&path)?;
        std::fs::create_dir_all(&path).map_err(at("making", &path))?;
    }
    for path in REMOVED {
        erofs::remove(&root.join(path))?;
    }
    for folder in MOUNTED {
        let path = root.join(folder);
        std::fs::create_dir_all(&path).map_err(at("making", &path))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
            .map_err(at("making", &path))?;
    }
    // What names a machine is put there when a sandbox starts; on a read-only base the files must be there for that.
    for (name, content) in [
        ("etc/hostname", "karta\n"),
        ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
        ("etc/machine-id", ""),
        ("etc/resolv.conf", ""),
    ] {
        let path = root.join(name);
        erofs::remove(&path)?;
        std::fs::write(&path, content).map_err(at("writing", &path))?;
    }
    append(&root.join("etc/passwd"), "agent:x:1000:1000::/home/agent:/bin/bash\n")?;
    append(&root.join("etc/group"), "agent:x:1000:\n")?;
    // No process in a sandbox gains rights by starting a program.
    plain(root)
}

fn append(path: &Path, line: &str) -> Result<(), Error> {
    let file = std::fs::OpenOptions::new().append(true).open(path);
    file.and_then(|mut file| file.write_all(line.as_bytes())).map_err(at("writing", path))
}

/// Takes away the bits that give a program its owner's rights.
fn plain(folder: &Path) -> Result<(), Error> {
    for entry in std::fs::read_dir(folder).map_err(at("reading", folder))? {
        let path = entry.map_err(at("reading", folder))?.path();
        let meta = std::fs::symlink_metadata(&path).map_err(at("reading", &path))?;
        let mode = meta.permissions().mode();
        if meta.is_dir() {
            plain(&path)?;
        } else if meta.is_file() && mode & 0o6000 != 0 {
            let plain = std::fs::Permissions::from_mode(mode & 0o1777);
            std::fs::set_permissions(&path, plain).map_err(at("changing", &path))?;
        }
    }
    Ok(())
}
