//! Archives of other programs, and ours in their hands. These tests need GNU `tar` and `git`, which every machine that builds Karta has.

use std::fs;
use std::path::Path;
use std::process::Command;

use karta_release::archive::{self, Limits, Nothing};
use karta_release::{Files, folder};

use crate::archive::sample;

pub(crate) fn run(program: &str, arguments: &[&str], at: &Path) -> Vec<u8> {
    let done = Command::new(program)
        .args(arguments)
        .current_dir(at)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .output()
        .unwrap_or_else(|error| panic!("this test needs `{program}`: {error}"));
    assert!(done.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    done.stdout
}

fn unpack(bytes: &[u8]) -> Files {
    let into = tempfile::tempdir().unwrap();
    let files = archive::unpack(bytes, into.path(), &Limits::default(), &Nothing).unwrap();
    assert_eq!(files, Files::read(into.path()).unwrap());
    files
}

#[test]
fn what_tar_packs_is_unpacked() {
    let root = sample();
    fs::write(root.path().join("größe.md"), "x").unwrap();
    fs::create_dir(root.path().join("hollow")).unwrap();
    let files = Files::read(root.path()).unwrap();
    for format in ["gnu", "oldgnu", "posix", "pax"] {
        for packing in ["--no-auto-compress", "--gzip"] {
            let format = format!("--format={format}");
            assert_eq!(
                unpack(&run("tar", &[&format, packing, "-cf", "-", "."], root.path())),
                files,
                "{format}"
            );
        }
    }
    let named = run("sh", &["-c", "tar -cf - -- * .claude"], root.path());
    assert_eq!(unpack(&named), files);
    // ustar has no room for the deep one.
    fs::remove_dir_all(root.path().join("long")).unwrap();
    let files = Files::read(root.path()).unwrap();
    for format in ["ustar", "v7"] {
        let format = format!("--format={format}");
        assert_eq!(unpack(&run("tar", &[&format, "-cf", "-", "."], root.path())), files, "{format}");
    }
}

#[test]
fn what_git_packs_is_unpacked() {
    let root = sample();
    let files = Files::read(root.path()).unwrap();
    run("git", &["init", "--quiet"], root.path());
    run("git", &["add", "."], root.path());
    let author = ["-c", "user.name=n", "-c", "user.email=e@localhost", "commit", "--quiet", "-m", "m"];
    run("git", &author, root.path());
    assert_eq!(unpack(&run("git", &["archive", "HEAD"], root.path())), files);
    assert_eq!(unpack(&run("git", &["archive", "--format=tar.gz", "HEAD"], root.path())), files);
    assert_eq!(folder::pick(root.path(), &folder::Choice::default()).unwrap().files, files);
}

#[test]
fn what_is_packed_here_tar_unpacks() {
    let root = sample();
    let files = Files::read(root.path()).unwrap();
    let mut packed = Vec::new();
    archive::pack_gzip(root.path(), &files, &mut packed).unwrap();
    let there = tempfile::tempdir().unwrap();
    let archive = there.path().join("it.tar.gz");
    fs::write(&archive, &packed).unwrap();
    let into = there.path().join("into");
    fs::create_dir(&into).unwrap();
    run("tar", &["-xzf", archive.to_str().unwrap()], &into);
    assert_eq!(Files::read(&into).unwrap(), files);

    let mut names = Vec::new();
    let mut reader = tar::Archive::new(flate2::read::GzDecoder::new(&packed[..]));
    for entry in reader.entries().unwrap() {
        let entry = entry.unwrap();
        assert_eq!((entry.header().mtime().unwrap(), entry.header().uid().unwrap()), (0, 0));
        names.push(entry.path().unwrap().to_str().unwrap().to_owned());
    }
    assert_eq!(names, files.iter().map(|(path, _)| path.to_owned()).collect::<Vec<_>>());
}
