//! What of a folder is picked, what is left out and why, and what looks like a secret. One test needs `git`.

use std::fs;
use std::path::Path;

use karta_release::folder::{Choice, Error, Picked, fingerprint, pick};
use karta_release::{Files, Rule};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::others::run;

fn folder(files: &[(&str, &str)]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    put(root.path(), files);
    root
}

fn put(root: &Path, files: &[(&str, &str)]) {
    for (path, content) in files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

fn paths(files: &Files) -> Vec<&str> {
    files.iter().map(|(path, _)| path).collect()
}

fn picked(root: &Path) -> Picked {
    pick(root, &Choice::default()).unwrap()
}

fn left_out(picked: &Picked) -> Vec<(&str, &str)> {
    picked.left_out.iter().map(|out| (out.path.as_str(), out.why.as_str())).collect()
}

#[test]
fn what_is_ignored_is_left_out_and_told_once() {
    let root = folder(&[
        (".gitignore", "node_modules/\n*.log\n!keep.log\n/build\n"),
        ("CLAUDE.md", "x"),
        ("node_modules/a/index.js", "x"),
        ("node_modules/b/index.js", "x"),
        ("x.log", "x"),
        ("keep.log", "x"),
        ("build", "x"),
        ("sub/build", "x"),
        ("sub/.gitignore", "secret.txt\n!x.log\n"),
        ("sub/secret.txt", "x"),
        ("sub/x.log", "x"),
        (".git/config", "x"),
        ("sub/.git/config", "x"),
        (".karta/state", "x"),
        (".hg/x", "x"),
    ]);
    let all = picked(root.path());
    assert_eq!(
        paths(&all.files),
        [".gitignore", "CLAUDE.md", "keep.log", "sub/.gitignore", "sub/build", "sub/x.log"]
    );
    assert_eq!(
        left_out(&all),
        [
            ("build", "`/build` in .gitignore"),
            ("node_modules/", "`node_modules/` in .gitignore"),
            ("x.log", "`*.log` in .gitignore"),
            ("sub/secret.txt", "`secret.txt` in sub/.gitignore"),
        ]
    );
}

#[test]
fn the_platforms_own_ignore_file_wins() {
    let root = folder(&[
        (".gitignore", "dist/\n*.md\n"),
        (".kartaignore", "!dist/\ntests/\n!CLAUDE.md\n"),
        ("dist/app.js", "x"),
        ("tests/a", "x"),
        ("CLAUDE.md", "x"),
        ("b.md", "x"),
        ("sub/.gitignore", "!b.md\n"),
        ("sub/b.md", "x"),
    ]);
    let all = picked(root.path());
    assert_eq!(
        paths(&all.files),
        [".gitignore", ".kartaignore", "CLAUDE.md", "dist/app.js", "sub/.gitignore", "sub/b.md"]
    );
    assert_eq!(left_out(&all), [("b.md", "`*.md` in .gitignore"), ("tests/", "`tests/` in .kartaignore")]);
}

#[test]
fn the_working_copy_around_the_folder_counts() {
    let root = folder(&[
        (".git/info/exclude", "private\n"),
        (".gitignore", "*.log\n/apps/shop/cache\n"),
        ("apps/.gitignore", "*.tmp\n"),
        ("apps/shop/CLAUDE.md", "x"),
        ("apps/shop/a.log", "x"),
        ("apps/shop/a.tmp", "x"),
        ("apps/shop/cache/x", "x"),
        ("apps/shop/private", "x"),
        ("apps/shop/.gitignore", "!b.log\n"),
        ("apps/shop/b.log", "x"),
    ]);
    let all = picked(&root.path().join("apps/shop"));
    assert_eq!(paths(&all.files), [".gitignore", "CLAUDE.md", "b.log"]);
    let outs: Vec<_> = all.left_out.iter().map(|out| out.path.as_str()).collect();
    assert_eq!(outs, ["a.log", "a.tmp", "cache/", "private"]);
    assert_eq!(all.left_out[3].why, "`private` in .git/info/exclude");
    // A folder that is ignored itself has only its own rules.
    put(
        root.path(),
        &[("dist/.gitignore", "b\n"), ("dist/a.log", "x"), ("dist/b", "x"), (".gitignore", "*.log\ndist/\n")],
    );
    assert_eq!(paths(&picked(&root.path().join("dist")).files), [".gitignore", "a.log"]);
    // Without a working copy nothing above counts.
    fs::remove_dir_all(root.path().join(".git")).unwrap();
    assert_eq!(picked(&root.path().join("apps/shop")).files.len(), 7);
}

#[test]
fn links_are_entries_and_never_followed() {
    use std::os::unix::fs::symlink;

    let outside = folder(&[("x", "x"), (".gitignore", "*\n")]);
    let root = folder(&[("a/b", "x")]);
    symlink("a", root.path().join("l")).unwrap();
    symlink("a/b", root.path().join("m")).unwrap();
    symlink(outside.path().join(".gitignore"), root.path().join(".gitignore")).unwrap();
    match pick(root.path(), &Choice::default()) {
        Err(Error::Refused { path, rule: Rule::LeavingLink(_) }) => assert_eq!(path, ".gitignore"),
        other => panic!("{other:?}"),
    }
    fs::remove_file(root.path().join(".gitignore")).unwrap();
    assert_eq!(paths(&picked(root.path()).files), ["a/b", "l", "m"]);
    // The folder itself may be reached by a link.
    let by = outside.path().join("by");
    symlink(root.path(), &by).unwrap();
    assert_eq!(picked(&by).files, picked(root.path()).files);
}

#[test]
fn what_no_release_can_carry_is_refused_by_name() {
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::net::UnixListener;

    let root = folder(&[("a", "x"), ("A", "x")]);
    let refused = |root: &Path| match pick(root, &Choice::default()) {
        Err(Error::Refused { path, rule }) => (path, rule),
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(root.path()), ("a".into(), Rule::Case("A".into())));
    let root = folder(&[("a\nb", "x")]);
    assert_eq!(refused(root.path()).1, Rule::Control);
    let root = folder(&[(&["d"; 65].join("/"), "x")]);
    assert_eq!(refused(root.path()).1, Rule::Deep);
    let root = folder(&[]);
    fs::write(root.path().join(std::ffi::OsStr::from_bytes(b"a\xff")), "x").unwrap();
    assert_eq!(refused(root.path()).1, Rule::NotUtf8);
    // A socket is left out, as git does; where the platform reads its own folder it is a fault.
    let root = folder(&[("a", "x")]);
    let _listener = UnixListener::bind(root.path().join("s")).unwrap();
    assert_eq!(left_out(&picked(root.path())), [("s", "it is neither file, folder nor link")]);
    assert!(matches!(Files::read(root.path()), Err(Error::Refused { rule: Rule::Special, .. })));
    assert!(matches!(
        pick(&root.path().join("a"), &Choice::default()),
        Err(Error::NoFolder(_) | Error::File { .. })
    ));
    let missing = pick(&root.path().join("none"), &Choice::default()).unwrap_err();
    assert!(missing.to_string().contains("none"), "{missing}");
}

#[test]
fn what_looks_like_a_secret_is_told_unless_it_is_allowed() {
    let key = ["sk-ant-", "Zq7Xk2Wm9Tb4Vn6Rc8Yd3Hf5"].concat();
    let root = folder(&[
        (".gitignore", "local/\n"),
        (".env", "A=b"),
        (".env.example", "A="),
        ("local/.env", "A=b"),
        ("notes/a.md", &format!("one\nuse {key}\n")),
    ]);
    let secrets = |allow: &[&str]| -> Vec<(String, Option<u64>)> {
        let choice = Choice { allow_secrets: allow.iter().map(|pattern| (*pattern).to_owned()).collect() };
        let picked = pick(root.path(), &choice).unwrap();
        assert_eq!(picked.files.len(), 4, "they are picked all the same: whether to go on is the caller's");
        assert!(!format!("{:?}", picked.secrets).contains(&key));
        picked.secrets.into_iter().map(|suspect| (suspect.path, suspect.line)).collect()
    };
    assert_eq!(secrets(&[]), [(".env".into(), None), ("notes/a.md".into(), Some(2))]);
    assert_eq!(secrets(&[".env"]), [("notes/a.md".into(), Some(2))]);
    assert_eq!(secrets(&["notes/"]), [(".env".into(), None)]);
    assert_eq!(secrets(&["*"]), []);
}

#[test]
fn a_fingerprint_changes_with_what_would_be_picked() {
    let root = folder(&[(".gitignore", "*.log\n"), ("a", "x"), ("b/c", "x")]);
    let one = fingerprint(root.path()).unwrap();
    put(root.path(), &[("x.log", "x"), (".git/index", "x")]);
    assert_eq!(fingerprint(root.path()), Some(one));
    put(root.path(), &[("b/c", "longer")]);
    let two = fingerprint(root.path()).unwrap();
    assert_ne!(one, two);
    put(root.path(), &[("d", "")]);
    assert_ne!(fingerprint(root.path()), Some(two));
    assert_eq!(fingerprint(&root.path().join("none")), None);
}

fn pattern() -> impl Strategy<Value = String> {
    prop_oneof![
        "[!]?[/]?[a-c*?]{1,2}[/]?",
        "[!]?[/]?[a-c]{1,2}/[a-c*]{1,2}",
        "[!]?(\\*\\*/)?[a-c]{1,2}(/\\*\\*)?",
        "\\[a-b\\][a-c]?",
        "\\{[a-c],b\\}",
        "\\\\?#?[a-c] ?",
        Just(String::new()),
        Just("# a comment".to_owned()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The same files as git itself would take.
    #[test]
    fn git_picks_the_same(
        top in prop::collection::vec(pattern(), 0..5),
        below in prop::collection::vec(pattern(), 0..3),
        files in prop::collection::btree_set("([a-c]{1,2}|\\{a,b\\})(/([a-c]{1,2})){0,2}", 1..12),
    ) {
        let root = tempfile::tempdir().unwrap();
        let (top, below) = (top.join("\n"), below.join("\n"));
        put(root.path(), &[(".gitignore", &top), ("a/.gitignore", &below)]);
        for path in &files {
            // One may be a folder where another is a file: then it is not made.
            let path = root.path().join(path);
            if fs::create_dir_all(path.parent().unwrap()).is_ok() && !path.is_dir() {
                fs::write(path, "x").unwrap();
            }
        }
        run("git", &["init", "--quiet"], root.path());
        let listed = run("git", &["ls-files", "-z", "--others", "--exclude-standard"], root.path());
        let listed = String::from_utf8(listed).unwrap();
        let mut theirs: Vec<&str> = listed.split('\0').filter(|path| !path.is_empty()).collect();
        theirs.sort_unstable();
        let ours = picked(root.path());
        prop_assert_eq!(paths(&ours.files), theirs, "{} and {}", top, below);
    }
}
