//! Installing harnesses, with an npm that does what the test says.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Mutex;

use karta_engine::harnesses::{Error, Harnesses, Missing, Npm, Progress};
use karta_harness::{Capabilities, Codec, Command, Harness, HistorySource, Launch, Package, Pinned, Tree};
use karta_types::message::Message;
use karta_types::release::Discovery;

struct Packaged;

static PACKAGE: Package = Package {
    default_version: "1.2.3",
    pinned: &[Pinned {
        arch: std::env::consts::ARCH,
        name: "@maker/tool-linux",
        program: "bin/tool",
        integrity: "sha512-pinned",
    }],
    licence: "of the maker",
};
static KNOWN: &[&dyn Harness] = &[&Packaged];

impl Harness for Packaged {
    fn id(&self) -> &'static str {
        "tool"
    }
    fn capabilities(&self) -> Capabilities {
        unreachable!("installing asks a harness for its package and its id only")
    }
    fn package(&self) -> Option<&'static Package> {
        Some(&PACKAGE)
    }
    fn signals(&self) -> &'static [&'static str] {
        &[]
    }
    fn discover(&self, _: &Tree) -> Result<Discovery, karta_harness::Error> {
        unreachable!("installing asks a harness for its package and its id only")
    }
    fn command(&self, _: &Launch<'_>) -> Result<Command, karta_harness::Error> {
        unreachable!("installing asks a harness for its package and its id only")
    }
    fn codec(&self, _: &Launch<'_>) -> Result<Box<dyn Codec>, karta_harness::Error> {
        unreachable!("installing asks a harness for its package and its id only")
    }
    fn history_source(&self, _: &str) -> HistorySource {
        unreachable!("installing asks a harness for its package and its id only")
    }
    fn read_history(&self, _: &[u8]) -> Result<Vec<Message>, karta_harness::Error> {
        unreachable!("installing asks a harness for its package and its id only")
    }
}

/// Writes down how it was called; does to the folder what npm would.
const NPM: &str = r#"#!/bin/sh
[ "$1" = --version ] && { echo 11.0.0; exit 0; }
echo "$@" >> "$LOG"
env >> "$LOG.env"
case "$1" in
ci) version=$(sed -n 's/.*tool-linux": "\(.*\)"/\1/p' package.json); cp package-lock.json "$LOG.lock" ;;
install) for last; do :; done; version=${last##*@}
  echo '{"packages":{"node_modules/@maker/tool-linux":{"version":"'$version'","integrity":"sha512-said"}}}' > package-lock.json ;;
esac
[ "$MISBEHAVE" = fail ] && { echo "npm error EINTEGRITY sha512-pinned" >&2; exit 1; }
[ "$MISBEHAVE" = older ] && version=0.0.1
[ "$MISBEHAVE" = empty ] && exit 0
mkdir -p node_modules/@maker/tool-linux/bin
printf '#!/bin/sh\necho "%s (Tool)"\n' "$version" > node_modules/@maker/tool-linux/bin/tool
chmod +x node_modules/@maker/tool-linux/bin/tool
"#;

struct Place {
    folder: tempfile::TempDir,
    harnesses: Harnesses,
}

impl Place {
    fn new(misbehave: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let npm = folder.path().join("npm");
        std::fs::write(&npm, NPM).unwrap();
        std::fs::set_permissions(&npm, std::fs::Permissions::from_mode(0o755)).unwrap();
        let log = folder.path().join("log");
        let environment = vec![
            ("PATH".into(), "/usr/bin:/bin".into()),
            ("LOG".into(), log.into()),
            ("MISBEHAVE".into(), misbehave.into()),
        ];
        let harnesses = Harnesses::new(folder.path().join("harnesses"))
            .with_npm(Npm::at(Some(npm), environment))
            .with_known(KNOWN);
        Self { folder, harnesses }
    }

    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default()
    }
}

fn silent(_: Progress) {}

#[tokio::test]
async fn the_default_version_is_installed_by_its_pin_and_found() {
    let place = Place::new("");
    let missing = place.harnesses.program(&Packaged, None).unwrap_err();
    assert_eq!(missing.to_string(), "tool 1.2.3 is not installed; run `karta harness install tool@1.2.3`");
    let stages = Mutex::new(Vec::new());
    let installed =
        place.harnesses.install("tool", None, &|stage| stages.lock().unwrap().push(stage)).await.unwrap();
    assert_eq!(stages.into_inner().unwrap(), [Progress::Fetching, Progress::Trying]);
    assert_eq!(installed, place.harnesses.program(&Packaged, None).unwrap());
    assert!(installed.program.ends_with("tool/1.2.3/node_modules/@maker/tool-linux/bin/tool"));
    let called = place.file("log");
    assert!(called.starts_with("ci --ignore-scripts --global=false"), "{called}");
    let lock: serde_json::Value = serde_json::from_str(&place.file("log.lock")).unwrap();
    let entry = &lock["packages"]["node_modules/@maker/tool-linux"];
    assert_eq!(entry, &serde_json::json!({"version": "1.2.3", "integrity": "sha512-pinned"}));
    let status = place.harnesses.list().remove(0);
    assert_eq!((status.id, status.default_version, status.licence), ("tool", "1.2.3", "of the maker"));
    assert!(status.available && status.installed[0].record.pinned && status.installed[0].size > 0);
    assert!(place.harnesses.doctor("tool").await.unwrap().iter().all(|check| check.ok));
    let left: Vec<_> = std::fs::read_dir(place.folder.path().join("harnesses/tool")).unwrap().collect();
    assert_eq!(left.len(), 2, "the version and the lock: {left:?}");
}

#[tokio::test]
async fn another_version_is_recorded_as_not_pinned() {
    let place = Place::new("");
    place.harnesses.install("tool", None, &silent).await.unwrap();
    place.harnesses.install("tool", Some("1.10.0"), &silent).await.unwrap();
    let status = place.harnesses.list().remove(0);
    let versions: Vec<_> = status.installed.iter().map(|version| &version.record).collect();
    assert_eq!((versions[0].version.as_str(), versions[1].version.as_str()), ("1.2.3", "1.10.0"));
    assert_eq!((versions[1].integrity.as_str(), versions[1].pinned), ("sha512-said", false));
    assert!(place.file("log").lines().last().unwrap().ends_with("--save-exact @maker/tool-linux@1.10.0"));
    assert!(place.harnesses.program(&Packaged, Some("1.10.0")).is_ok());
}

#[tokio::test]
async fn installing_twice_at_once_fetches_once() {
    let place = Place::new("");
    let stages = Mutex::new(Vec::new());
    let tell = |stage| stages.lock().unwrap().push(stage);
    let (one, two) = tokio::join!(
        place.harnesses.install("tool", None, &tell),
        place.harnesses.install("tool", Some("1.2.3"), &tell)
    );
    assert_eq!(one.unwrap(), two.unwrap());
    assert_eq!(place.file("log").lines().count(), 1);
    assert_eq!(stages.lock().unwrap().iter().filter(|stage| **stage == Progress::Waiting).count(), 1);
}

#[tokio::test]
async fn what_fails_leaves_nothing_that_counts_as_installed() {
    for (misbehave, says) in [
        ("fail", "EINTEGRITY"),
        ("older", "`--version` printed \"0.0.1 (Tool)\""),
        ("empty", "no such file in the package"),
    ] {
        let place = Place::new(misbehave);
        let error = place.harnesses.install("tool", None, &silent).await.unwrap_err();
        assert!(error.to_string().contains(says), "{misbehave}: {error}");
        assert!(place.harnesses.program(&Packaged, None).is_err());
        assert!(!place.folder.path().join("harnesses/tool/.partial").exists());
    }
}

#[tokio::test]
async fn what_a_killed_installer_left_is_cleared_away() {
    let place = Place::new("");
    let home = place.folder.path().join("harnesses/tool");
    for left in [".partial/node_modules", "1.2.3/node_modules"] {
        std::fs::create_dir_all(home.join(left)).unwrap();
    }
    std::fs::write(home.join(".partial/installed.json"), "{").unwrap();
    assert!(place.harnesses.program(&Packaged, None).is_err());
    place.harnesses.install("tool", None, &silent).await.unwrap();
    assert!(place.harnesses.program(&Packaged, None).is_ok());
    assert!(!home.join(".partial").exists());
}

#[tokio::test]
async fn the_doctor_names_what_is_wrong() {
    let place = Place::new("");
    let bare = place.harnesses.clone().with_npm(Npm::at(None, Vec::new()));
    let checks = bare.doctor("tool").await.unwrap();
    let wrong: Vec<_> = checks.iter().filter(|check| !check.ok).map(|check| check.name).collect();
    assert_eq!(wrong, ["npm", "installed"]);
    assert!(checks[0].detail.contains("Node.js"), "{}", checks[0].detail);
    let installed = place.harnesses.install("tool", None, &silent).await.unwrap();
    std::fs::write(&installed.program, "#!/bin/sh\nexit 3\n").unwrap();
    let checks = place.harnesses.doctor("tool").await.unwrap();
    let wrong: Vec<_> = checks.iter().filter(|check| !check.ok).map(|check| check.name).collect();
    assert_eq!(wrong, ["starts"]);
}

#[tokio::test]
async fn bad_names_and_versions_are_refused_before_anything_runs() {
    let place = Place::new("");
    let error = place.harnesses.install("toll", None, &silent).await.unwrap_err();
    assert_eq!(error.to_string(), "there is no harness `toll`; there are: tool");
    for bad in ["latest", "../1.2.3", "1.2"] {
        let error = place.harnesses.install("tool", Some(bad), &silent).await.unwrap_err();
        assert!(matches!(error, Error::Missing(Missing::Version { .. })), "{error}");
        assert!(place.harnesses.program(&Packaged, Some(bad)).is_err());
    }
    let bare = place.harnesses.clone().with_npm(Npm::at(None, Vec::new()));
    let error = bare.install("tool", None, &silent).await.unwrap_err();
    assert!(matches!(error, Error::NoNpm));
    assert!(!Path::new(&place.folder.path().join("log")).exists());
}
