//! Folders checked without a server.

use std::fs;

use karta_harness::Harness;
use karta_release::check::{Checked, Others, check};
use karta_release::{Fault, Files};

fn checked(entries: &[(&str, &str)]) -> Result<Checked, Vec<String>> {
    let root = tempfile::tempdir().unwrap();
    for (path, content) in entries {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let files = Files::read(root.path()).unwrap();
    let tree = files.tree(root.path()).unwrap();
    let others = |harness: &dyn Harness| match harness.id() {
        "claude-code" => Others::Only(vec!["2.0.1".to_owned(), "2.1.9".to_owned()]),
        _ => Others::Unknown,
    };
    check(&files, &tree, &others).map_err(|faults| faults.iter().map(Fault::to_string).collect())
}

#[test]
fn a_sound_folder_is_what_it_says() {
    let manifest =
        "project = \"shop\"\n[harness]\nversion = \"2.0\"\n[policy]\nhooks = false\n[env]\nSHOP = \"x\"\n";
    let settings = "{ // how sessions are\n \"permission_mode\": \"plan\", }";
    let sound = checked(&[("CLAUDE.md", "x"), ("karta.toml", manifest), ("karta.jsonc", settings)]).unwrap();
    assert_eq!(sound.project.as_deref(), Some("shop"));
    assert_eq!((sound.pin.kind.as_str(), sound.pin.version.as_str()), ("claude-code", "2.0.1"));
    assert!(!sound.recipe.policy.hooks && sound.recipe.policy.mcp);
    assert_eq!(sound.recipe.env["SHOP"], "x");
    assert_eq!(sound.recipe.defaults.permission_mode, Some(karta_types::session::PermissionMode::Plan));
}

#[test]
fn every_fault_is_told_at_once_with_its_place() {
    let manifest = "[harnes]\ntype = \"claude-code\"\n[policy]\nhooks = 1\n";
    let settings = "{\n  \"permision_mode\": \"plan\"\n}";
    let faults =
        checked(&[("CLAUDE.md", "x"), ("karta.toml", manifest), ("karta.jsonc", settings)]).unwrap_err();
    assert_eq!(
        faults,
        [
            "karta.toml:1:2: unknown key `harnes`; did you mean `harness`?",
            "karta.toml:4:9: `policy.hooks` must be true or false, not a whole number",
            "karta.jsonc:2:3: unknown key `permision_mode`; did you mean `permission_mode`?",
        ]
    );
}

fn version(harness: &str, file: &str, wanted: &str) -> Result<(String, usize), Vec<String>> {
    let manifest = format!("[harness]\ntype = \"{harness}\"\nversion = \"{wanted}\"\n");
    let sound = checked(&[(file, "{}"), ("karta.toml", &manifest)])?;
    Ok((sound.pin.version, sound.warnings.len()))
}

#[test]
fn the_newest_version_that_fits_is_recorded() {
    let claude = |wanted: &str| version("claude-code", "CLAUDE.md", wanted);
    assert_eq!(claude("2.1.9"), Ok(("2.1.9".into(), 0)));
    assert_eq!(claude("2.1"), Ok(("2.1.330".into(), 0)));
    assert_eq!(claude(">=2.0, <2.1"), Ok(("2.0.1".into(), 0)));
    assert_eq!(
        claude("3"),
        Err(vec![
            "karta.toml:3:11: no known version of claude-code is `3`; known are: 2.1.330, 2.0.1, 2.1.9"
                .to_owned()
        ])
    );
    assert!(
        claude("2.1.8").unwrap_err()[0]
            .starts_with("karta.toml:3:11: no known version of claude-code is `2.1.8`")
    );
    // Where it can't be told which versions there are, an exact one is believed and told.
    let open = |wanted: &str| version("opencode", "opencode.json", wanted);
    assert_eq!(open("1.0.7"), Ok(("1.0.7".into(), 1)));
    assert_eq!(open("1.18"), Ok(("1.18.33".into(), 0)));
    assert!(open("~1.0").is_err());
}

#[test]
fn what_is_no_application_is_refused() {
    assert_eq!(checked(&[]).unwrap_err(), ["the folder is empty: there is nothing to publish"]);
    let nothing = checked(&[("a.txt", "x")]).unwrap_err();
    assert!(nothing[0].starts_with("no harness recognised: looked for"), "{nothing:?}");
    let other =
        checked(&[("opencode.json", "{}"), ("karta.toml", "harness.type = 'claude-code'")]).unwrap_err();
    assert!(other[0].starts_with("karta.toml:1:16: karta.toml declares harness `claude-code`"), "{other:?}");
}

#[test]
fn the_harnesss_own_files_are_looked_at_with_a_broken_manifest_too() {
    let faults = checked(&[(".claude/settings.json", "{"), ("karta.toml", "x = 1"), ("karta.jsonc", "[]")])
        .unwrap_err();
    assert_eq!(faults.len(), 3, "{faults:?}");
    assert!(faults[2].starts_with(".claude/settings.json"), "{faults:?}");
}

#[test]
fn the_platforms_own_files_are_files_and_text() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("CLAUDE.md"), "x").unwrap();
    fs::write(root.path().join("karta.toml"), b"\xff").unwrap();
    std::os::unix::fs::symlink("CLAUDE.md", root.path().join("karta.jsonc")).unwrap();
    let files = Files::read(root.path()).unwrap();
    let tree = files.tree(root.path()).unwrap();
    let faults = check(&files, &tree, &|_: &dyn Harness| Others::Unknown).unwrap_err();
    let faults: Vec<_> = faults.iter().map(Fault::to_string).collect();
    assert_eq!(
        faults,
        ["karta.toml: it is not UTF-8 text, or too large", "karta.jsonc: it must be a file, not a link"]
    );
}
