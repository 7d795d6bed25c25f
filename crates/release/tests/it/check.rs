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

#[test]
fn what_the_harness_would_refuse_is_refused_for_the_version_that_is_known() {
    let settings = (".claude/settings.json", "{\n  \"permissions\": {\"deny\": [\"Bash(\"]}\n}");
    let faults = checked(&[settings]).unwrap_err();
    let told = ".claude/settings.json:2:28: the rule `Bash(` must end with `)`; Claude Code would go on without it, and say nothing";
    assert_eq!(faults, [told]);
    // Of another version only what is broken in any is a fault.
    let older = ("karta.toml", "harness.version = '2.0.1'");
    let sound = checked(&[settings, older]).unwrap();
    assert_eq!(sound.warnings, [format!("{told}, if it is as the version that this Karta is made for")]);
    let faults = checked(&[(".claude/settings.json", "{\n  \"model\": }"), older]).unwrap_err();
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(
        faults[0].starts_with(".claude/settings.json:2:12: expected value; Claude Code would leave"),
        "{faults:?}"
    );
    let faults =
        checked(&[("opencode.json", "{\n  \"model\": 5,\n}"), ("karta.toml", "[env]\nPATH = 'x'\n")])
            .unwrap_err();
    assert_eq!(faults.len(), 2, "{faults:?}");
    assert_eq!(
        faults[1],
        "opencode.json:2:12: `model` must be a text, not 5; OpenCode would refuse to work in this folder"
    );
}

#[test]
fn what_a_link_leads_to_is_read_as_the_harness_reads_it() {
    use std::os::unix::fs::symlink;

    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("shared/agents")).unwrap();
    fs::create_dir_all(root.path().join(".claude")).unwrap();
    fs::write(root.path().join("shared/agents/a.md"), "---\nname: a\ndescription: b\n---\nc").unwrap();
    fs::write(root.path().join("shared/settings.json"), r#"{"model": 5}"#).unwrap();
    symlink("../shared/agents", root.path().join(".claude/agents")).unwrap();
    let of = || {
        let files = Files::read(root.path()).unwrap();
        let tree = files.tree(root.path()).unwrap();
        check(&files, &tree, &|_: &dyn Harness| Others::Unknown)
    };
    let sound = of().unwrap();
    assert_eq!(sound.found.agents[0].file, ".claude/agents/a.md");
    symlink("../shared/settings.json", root.path().join(".claude/settings.json")).unwrap();
    let faults: Vec<_> = of().unwrap_err().iter().map(Fault::to_string).collect();
    assert!(faults[0].starts_with(".claude/settings.json:1:11: `model` must be a text"), "{faults:?}");
}
