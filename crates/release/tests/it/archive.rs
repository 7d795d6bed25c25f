//! Archives there and back.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use karta_release::archive::{self, Error, Known, Limits, Nothing};
use karta_release::{Files, Hash, folder};
use tempfile::TempDir;

pub(crate) fn sample() -> TempDir {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    let root = tempfile::tempdir().unwrap();
    let put = |path: &str, content: &str| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    };
    put("CLAUDE.md", "be kind");
    put(".claude/agents/a.md", "---\nname: a\n---\n");
    put("bin/run", "#!/bin/sh\n");
    put("same/one", "same");
    put("same/two", "same");
    put(&format!("{}/deep.txt", ["long"; 40].join("/")), "deep");
    put("empty", "");
    put("big", &"0123456789".repeat(50_000));
    fs::set_permissions(root.path().join("bin/run"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("../CLAUDE.md", root.path().join("bin/link")).unwrap();
    root
}

fn unpacked(bytes: &[u8], known: &dyn Known) -> Result<(TempDir, Files), Error> {
    let into = tempfile::tempdir().unwrap();
    let files = archive::unpack(bytes, into.path(), &Limits::default(), known)?;
    assert_eq!(files, Files::read(into.path()).unwrap(), "what is told is what is there");
    Ok((into, files))
}

/// What lies in another folder.
struct Kept<'a>(&'a Path, Files);

impl Known for Kept<'_> {
    fn fetch(&self, hash: &Hash, to: &mut fs::File) -> std::io::Result<bool> {
        use std::io::Write as _;

        let found = self.1.iter().find(
            |(_, entry)| matches!(entry, karta_release::Entry::File { hash: other, .. } if other == hash),
        );
        let Some((path, _)) = found else { return Ok(false) };
        to.write_all(&fs::read(self.0.join(path))?)?;
        Ok(true)
    }
}

#[test]
fn whole_archives_come_back_as_they_went() {
    let root = sample();
    let files = Files::read(root.path()).unwrap();
    let picked = folder::pick(root.path(), &folder::Choice::default()).unwrap();
    assert_eq!(picked.files, files);
    let (mut zstd, mut again, mut gzip) = (Vec::new(), Vec::new(), Vec::new());
    archive::pack(root.path(), &files, None, &mut zstd).unwrap();
    archive::pack(root.path(), &files, None, &mut again).unwrap();
    assert_eq!(zstd, again, "the same files become the same bytes");
    archive::pack_gzip(root.path(), &files, &mut gzip).unwrap();
    for bytes in [&zstd, &gzip, &zstd::decode_all(&zstd[..]).unwrap()] {
        assert_eq!(unpacked(bytes, &Nothing).unwrap().1, files);
    }
}

#[test]
fn what_is_packed_here_never_unpacks_to_too_much() {
    let root = tempfile::tempdir().unwrap();
    // Mostly zeros, as an empty database is; and nothing but the same, file after file.
    fs::write(root.path().join("a"), vec![0; 9 << 20]).unwrap();
    for number in 0..3000 {
        fs::write(root.path().join(format!("{number}")), "").unwrap();
    }
    let files = Files::read(root.path()).unwrap();
    let mut bytes = Vec::new();
    archive::pack(root.path(), &files, None, &mut bytes).unwrap();
    assert!(bytes.len() < 300_000, "{}", bytes.len());
    assert_eq!(unpacked(&bytes, &Nothing).unwrap().1, files);
    assert_eq!(zstd::decode_all(&bytes[..]).unwrap().len() % 512, 0, "every reader of zstd reads it");
}

#[test]
fn a_partial_archive_brings_what_lacks() {
    let root = sample();
    let files = Files::read(root.path()).unwrap();
    let none = BTreeSet::new();
    let mut bytes = Vec::new();
    archive::pack(root.path(), &files, Some(&none), &mut bytes).unwrap();
    let Err(Error::Lacking(lacking)) = unpacked(&bytes, &Nothing) else { panic!("nothing was there") };
    assert_eq!(lacking.iter().copied().collect::<BTreeSet<_>>(), files.hashes());
    let kept = Kept(root.path(), files.clone());
    assert_eq!(unpacked(&bytes, &kept).unwrap().1, files);
    let mut bytes = Vec::new();
    archive::pack(root.path(), &files, Some(&files.hashes()), &mut bytes).unwrap();
    assert_eq!(unpacked(&bytes, &Nothing).unwrap().1, files);
}
