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
