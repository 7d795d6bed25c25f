//! Builds the program that runs inside sandboxes, static and small, so that it can be part of this one.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    let root = PathBuf::from(var("CARGO_MANIFEST_DIR")).join("../..");
    let target = var("TARGET");
    let folder = PathBuf::from(var("OUT_DIR")).join("guest");
    for path in ["crates/guest/src", "crates/guest/Cargo.toml", "Cargo.lock", "Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }
    let mut cargo = Command::new(var("CARGO"));
    cargo
        .args([
            "build",
            "--quiet",
            "--locked",
            "--package",
            "karta-guest",
            "--bin",
            "karta-guest",
            "--profile",
            "guest",
        ])
        .arg("--target")
        .arg(&target)
        .arg("--target-dir")
        .arg(&folder)
        .current_dir(&root);
    // The outer build's wrappers, flags and folder are not this one's: it needs none of them, and would wait for itself.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PROFILE")
            || text.starts_with("RUSTC")
            || text == "CARGO_TARGET_DIR"
            || text == "CARGO_ENCODED_RUSTFLAGS"
        {
            cargo.env_remove(&name);
        }
    }
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static");
    let done = cargo.status();
    assert!(
        done.as_ref().is_ok_and(std::process::ExitStatus::success),
        "building the program that runs inside sandboxes failed ({done:?}): its errors are above"
    );
    let program = folder.join(&target).join("guest").join("karta-guest");
    println!("cargo::rustc-env=KARTA_GUEST={}", program.display());
}

fn var(name: &str) -> String {
    env::var(name).unwrap_or_default()
}
