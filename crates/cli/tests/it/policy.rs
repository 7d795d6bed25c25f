//! The rules of the house that a machine can hold: who imports whom, how long files are, what is never named.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("../..").canonicalize().unwrap()
}

fn metadata() -> serde_json::Value {
    // For this platform only: what others need was never fetched.
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", &platform])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What each crate may name in its `[dependencies]`.
const ALLOWED: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("harness", &["types"]),
    ("release", &["harness", "types"]),
    ("guest", &[]),
    ("sandbox", &["guest", "types"]),
    ("store", &["types"]),
    ("model", &[]),
    ("engine", &["harness", "release", "sandbox", "store", "types"]),
    ("server", &["engine", "types"]),
    ("client", &["types"]),
    ("cli", &["client", "engine", "model", "release", "server", "types"]),
];

#[test]
fn crates_import_in_one_direction() {
    let metadata = metadata();
    let allowed: BTreeMap<_, BTreeSet<_>> =
        ALLOWED.iter().map(|(name, to)| (*name, to.iter().copied().collect())).collect();
    let mut seen = 0;
    for package in metadata["packages"].as_array().unwrap() {
        let Some(name) = package["name"].as_str().unwrap().strip_prefix("karta-") else { continue };
        let may =
            allowed.get(name).unwrap_or_else(|| panic!("`karta-{name}` is new: say here what it may import"));
        seen += 1;
        for dependency in package["dependencies"].as_array().unwrap() {
            let normal = dependency["kind"].is_null();
            if let Some(to) = dependency["name"].as_str().unwrap().strip_prefix("karta-").filter(|_| normal) {
                assert!(may.contains(to), "karta-{name} must not import karta-{to}");
            }
        }
    }
    assert_eq!(seen, ALLOWED.len());
}

/// What must not be anywhere below a crate.
const KEPT_OUT: &[(&str, &[&str])] = &[
    ("karta-types", &["tokio", "sqlx", "rusqlite", "hyper", "axum", "reqwest"]),
    ("karta-harness", &["tokio", "sqlx", "rusqlite", "hyper", "axum", "reqwest"]),
    ("karta-release", &["tokio", "sqlx", "rusqlite", "hyper", "axum", "reqwest"]),
    ("karta-guest", &["tokio", "sqlx", "rusqlite", "hyper", "axum", "reqwest", "serde"]),
    ("karta-client", &["sqlx", "rusqlite", "axum"]),
];

/// Everything that is built into a crate, its dependencies' dependencies too.
fn below(package: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--package",
            package,
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--locked",
            "--offline",
        ])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| line.split(' ').next().map(str::to_owned)).collect()
}

#[test]
fn pure_crates_stay_pure_and_one_crypto_is_enough() {
    for (from, banned) in KEPT_OUT {
        let known = below(from);
        for one in *banned {
            assert!(!known.contains(*one), "{one} has come into the tree of {from}");
        }
    }
    let binary = below("karta-cli");
    assert!(binary.contains("aws-lc-rs"), "the tree is read right");
    for banned in ["openssl", "ring", "rsa"] {
        assert!(!binary.contains(banned), "{banned} has come into the tree");
    }
    // The blob store's library brings it, for its own times; ours are jiff's.
    let metadata = metadata();
    for package in metadata["packages"].as_array().unwrap() {
        let uses = |name: &str| {
            package["dependencies"].as_array().unwrap().iter().any(|dependency| dependency["name"] == name)
        };
        let ours = package["name"].as_str().unwrap().starts_with("karta-");
        assert!(!ours || !uses("chrono"), "{} uses chrono", package["name"]);
    }
}

fn tracked() -> Vec<PathBuf> {
    let output = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "these tests run in a checkout");
    let list = String::from_utf8(output.stdout).unwrap();
    list.split('\0').filter(|path| !path.is_empty()).map(|path| root().join(path)).collect()
}

/// A file is one idea: 400 lines where it can be, 800 at most, its own tests apart.
#[test]
fn files_are_short() {
    for path in tracked().iter().filter(|path| path.extension().is_some_and(|end| end == "rs")) {
        let Ok(text) = std::fs::read_to_string(path) else { continue };
        let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or(&text);
        let lines = code.lines().count();
        assert!(lines <= 800, "{} has {lines} lines: split it", path.display());
    }
}

#[test]
fn nothing_names_a_registry_or_a_private_path() {
    // Put together here, so that this file doesn't name them itself.
    let hosts = [
        ["registry.npm", "js.org"],
        ["static.crates", ".io"],
        ["files.python", "hosted.org"],
        ["deb.deb", "ian.org"],
    ];
    let mut banned: Vec<String> = hosts.iter().map(|parts| parts.concat()).collect();
    banned.push(root().display().to_string());
    for path in tracked() {
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        // Cargo's own lock file names its index; that is cargo's form.
        if path.ends_with("Cargo.lock") {
            continue;
        }
        for word in &banned {
            assert!(!text.contains(word.as_str()), "{} names `{word}`", path.display());
        }
    }
}
