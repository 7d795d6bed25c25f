//! What an archive is refused for, rule by rule.

use std::fs;
use std::path::Path;

use karta_release::archive::{self, Error, Known, Limits, Nothing};
use karta_release::{Files, Hash, Rule};

use crate::raw::{Raw, gzip, pax, tar, zstd};

fn unpack(bytes: &[u8]) -> Result<Files, Error> {
    within(bytes, &Limits::default())
}

fn within(bytes: &[u8], limits: &Limits) -> Result<Files, Error> {
    let into = tempfile::tempdir().unwrap();
    archive::unpack(bytes, into.path(), limits, &Nothing)
}

/// The members, of which one must be refused: which, and why.
fn refused(members: &[Raw]) -> (String, Rule) {
    match unpack(&tar(members)) {
        Err(Error::Refused { member, rule }) => (member, rule),
        other => panic!("{members:?}: {other:?}"),
    }
}

#[test]
fn names_that_lead_elsewhere() {
    for (name, rule) in [
        ("/etc/passwd", Rule::Absolute),
        (".//etc/passwd", Rule::Absolute),
        ("../a", Rule::Parent),
        ("a/../../b", Rule::Parent),
        ("./../a", Rule::Parent),
        ("a/..", Rule::Parent),
        ("a//b", Rule::Hollow),
        ("a/./b", Rule::Hollow),
        ("././a", Rule::Hollow),
        ("a\\..\\b", Rule::Backslash),
        ("C:\\a", Rule::Backslash),
        ("", Rule::Nameless),
    ] {
        assert_eq!(refused(&[Raw::file(name, "x")]), (name.to_owned(), rule), "{name}");
    }
    assert_eq!(refused(&[Raw::folder("../a/")]).1, Rule::Parent);
    assert_eq!(refused(&[Raw::folder("a//")]).1, Rule::Hollow);
    assert_eq!(refused(&[Raw::link("/a", "b")]).1, Rule::Absolute);
    assert_eq!(
        refused(&[Raw { kind: b'L', ..Raw::file("x", "../a\0") }, Raw::file("x", "x")]).1,
        Rule::Parent
    );
    assert_eq!(refused(&[pax(b'x', &[("path", "/a")]), Raw::file("x", "x")]).1, Rule::Absolute);
}

#[test]
fn names_that_are_no_text() {
    assert_eq!(refused(&[Raw::file(b"a\xff", "x")]), ("a\u{fffd}".to_owned(), Rule::NotUtf8));
    assert_eq!(refused(&[Raw::file("a\nb", "x")]), ("a\\nb".to_owned(), Rule::Control));
    assert_eq!(refused(&[Raw::file("a\u{1b}[31m", "x")]).0, "a\\u{1b}[31m");
    let long = Raw { kind: b'L', ..Raw::file("x", "a\0b\0") };
    assert_eq!(refused(&[long, Raw::file("x", "x")]).1, Rule::Control);
}

#[test]
fn names_that_are_too_long_or_too_deep() {
    let named = |name: String| refused(&[pax(b'x', &[("path", &name)]), Raw::file("x", "x")]).1;
    assert_eq!(named("a/".repeat(512) + "a"), Rule::LongPath);
    assert_eq!(named("a".repeat(256)), Rule::LongPart);
    assert_eq!(named("a/".repeat(64) + "a"), Rule::Deep);
    let shown = refused(&[pax(b'x', &[("path", &"é".repeat(5000))]), Raw::file("x", "x")]).0;
    assert_eq!(shown, "é".repeat(200) + "…");
    let long = Raw::new(b'L', "x").size(2 << 20);
    assert_eq!(refused(&[long]).1, Rule::LongHeader(1 << 20));
}

#[test]
fn names_that_are_not_the_releases_own() {
    for name in [".git/config", ".GIT/hooks/post-checkout", ".karta/x", ".karta/files.json"] {
        let first = Raw::file("a", "x");
        assert!(matches!(refused(&[first, Raw::file(name, "x")]).1, Rule::Reserved(_)), "{name}");
    }
    assert!(matches!(refused(&[Raw::folder(".git/")]).1, Rule::Reserved(_)));
    assert!(unpack(&tar(&[Raw::file("a/.git/config", "x"), Raw::file(".gitignore", "x")])).is_ok());
}

#[test]
fn names_that_hide_each_other() {
    let pair = |one: &Raw, other: &Raw| refused(&[one.clone(), other.clone()]).1;
    let file = |name: &str| Raw::file(name, "x");
    assert_eq!(pair(&file("a"), &file("a")), Rule::Twice);
    assert_eq!(pair(&file("a"), &Raw::link("a", "b")), Rule::Twice);
    assert_eq!(pair(&file("README"), &file("readme")), Rule::Case("README".into()));
    assert_eq!(pair(&file("É"), &file("é")), Rule::Case("É".into()));
    assert_eq!(pair(&file("a/x"), &file("A/y")), Rule::Case("a".into()));
    assert_eq!(pair(&Raw::folder("a/"), &file("A")), Rule::Case("a".into()));
    assert_eq!(pair(&file("a"), &file("a/b")), Rule::UnderFile("a".into()));
    assert_eq!(pair(&Raw::link("l", "."), &file("l/b")), Rule::UnderFile("l".into()));
    assert_eq!(pair(&Raw::link("l", "."), &Raw::link("l/m", ".")), Rule::UnderFile("l".into()));
    assert_eq!(pair(&Raw::folder("a/"), &file("a")), Rule::Twice);
    assert_eq!(pair(&Raw::folder("a/"), &Raw::link("a", "b")), Rule::Twice);
    assert_eq!(pair(&Raw::link("a", "b"), &Raw::folder("a/")), Rule::UnderFile("a".into()));
}

#[test]
fn links_that_lead_out() {
    for target in ["/etc/passwd", "..", "../x", "a/../..", "a/..", "./../x"] {
        let (member, rule) = refused(&[Raw::link("l", target)]);
        assert_eq!((member.as_str(), rule), ("l", Rule::LeavingLink(target.into())), "{target}");
    }
    for target in ["", "a\nb"] {
        assert_eq!(refused(&[Raw::link("l", target)]).1, Rule::BadTarget);
    }
    assert_eq!(refused(&[Raw::link("l", b"\xff")]).1, Rule::BadTarget);
    assert_eq!(
        refused(&[pax(b'x', &[("linkpath", "../../x")]), Raw::link("a/l", "x")]).1,
        Rule::LeavingLink("../../x".into())
    );
    assert_eq!(unpack(&tar(&[Raw::link("a/l", "../b"), Raw::file("b", "x")])).unwrap().len(), 2);
}

#[test]
fn members_that_are_no_files() {
    for (kind, rule) in [
        (b'1', Rule::HardLink),
        (b'3', Rule::Device),
        (b'4', Rule::Device),
        (b'6', Rule::Pipe),
        (b'S', Rule::Sparse),
        (b'V', Rule::Unknown('V')),
        (b'M', Rule::Unknown('M')),
        (b'D', Rule::Unknown('D')),
        (b'N', Rule::Unknown('N')),
        (b'9', Rule::Unknown('9')),
        (0xff, Rule::Unknown('ÿ')),
    ] {
        assert_eq!(refused(&[Raw { link: b"b".to_vec(), ..Raw::new(kind, "a") }]), ("a".to_owned(), rule));
    }
    for key in ["GNU.sparse.major", "GNU.sparse.map", "SCHILY.realsize"] {
        assert_eq!(refused(&[pax(b'x', &[(key, "1")]), Raw::file("a", "x")]).1, Rule::Sparse, "{key}");
    }
}

#[test]
fn modes_and_contents_that_no_release_has() {
    for mode in [0o4755, 0o2755, 0o1755, 0o7777] {
        assert_eq!(refused(&[Raw::file("a", "x").mode(mode)]).1, Rule::SpecialMode);
        assert_eq!(refused(&[Raw::folder("a/").mode(mode)]).1, Rule::SpecialMode);
    }
    assert_eq!(refused(&[Raw { content: b"x".to_vec(), ..Raw::folder("a/") }]).1, Rule::Content);
    assert_eq!(refused(&[Raw { content: b"x".to_vec(), ..Raw::link("a", "b") }]).1, Rule::Content);
    assert_eq!(refused(&[Raw::file("a/", "x")]).1, Rule::Content);
}

#[test]
fn more_than_the_limits() {
    let limits = Limits { members: 3, bytes: 1000, file: 600, ..Limits::default() };
    let over = |members: &[Raw]| match within(&tar(members), &limits) {
        Err(Error::Refused { rule, .. }) => rule,
        other => panic!("{other:?}"),
    };
    let many: Vec<_> = (0..4).map(|number| Raw::file(format!("{number}"), "")).collect();
    assert_eq!(over(&many), Rule::TooMany(3));
    let folders: Vec<_> = (0..4).map(|number| Raw::folder(format!("{number}/"))).collect();
    assert_eq!(over(&folders), Rule::TooMany(3));
    assert_eq!(over(&[Raw::file("a", [0; 601])]), Rule::LargeFile(600));
    assert_eq!(over(&[Raw::file("a", [0; 600]), Raw::file("b", [0; 401])]), Rule::TooLarge(1000));
    // By what it says, before anything of it is read.
    assert_eq!(over(&[Raw::file("a", "").size(u64::MAX >> 1)]), Rule::LargeFile(600));
    let sized = pax(b'x', &[("size", "18446744073709551615")]);
    assert_eq!(over(&[sized, Raw::file("a", "")]), Rule::LargeFile(600));
    assert!(within(&tar(&[Raw::file("a", [0; 600]), Raw::file("b", [0; 400])]), &limits).is_ok());
}

#[test]
fn what_unpacks_to_far_more_than_it_is() {
    let bomb = tar(&[Raw::file("a", vec![0; 8 << 20])]);
    for packed in [gzip(&bomb), zstd(&bomb)] {
        assert!(packed.len() < 64 << 10);
        match unpack(&packed) {
            Err(Error::Refused { member, rule }) => {
                assert_eq!((member.as_str(), rule), ("a", Rule::Ratio(200)));
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(unpack(&bomb).is_ok());
    // Little is never too much.
    assert!(unpack(&zstd(&tar(&[Raw::file("a", vec![0; 1 << 19])]))).is_ok());
    // A window of the sender's choice would be memory of the sender's choice.
    let mut packed = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    packed.window_log(27).unwrap();
    std::io::Write::write_all(&mut packed, &tar(&[Raw::file("a", "x")])).unwrap();
    assert!(matches!(unpack(&packed.finish().unwrap()), Err(Error::Broken(_))));
}

#[test]
fn archives_that_end_early_wherever_they_are_cut() {
    let whole = tar(&[Raw::file("a", [7; 700]), Raw::link("l", "a"), Raw::file("b", "")]);
    for packed in [whole.clone(), gzip(&whole), zstd(&whole)] {
        assert!(unpack(&packed).is_ok());
        assert!(matches!(unpack(&[]), Err(Error::Empty)));
        for length in (1..packed.len()).filter(|length| length % 7 == 0 || length % 512 < 2) {
            match unpack(&packed[..length]) {
                Err(Error::Truncated) => {}
                // A zstd frame of which a part of the checksum is gone.
                Err(Error::Broken(_)) if length < 18 => {}
                other => panic!("cut at {length} of {}: {other:?}", packed.len()),
            }
        }
    }
}

#[test]
fn archives_that_hold_nothing_or_too_much_at_their_end() {
    assert!(matches!(unpack(&tar(&[])), Err(Error::Empty)));
    assert!(matches!(unpack(&tar(&[Raw::folder("./"), Raw::folder("a/")])), Err(Error::Empty)));
    let whole = tar(&[Raw::file("a", "x")]);
    assert!(unpack(&[&whole[..], &[0; 10_000]].concat()).is_ok());
    assert!(matches!(unpack(&[&whole[..], b"x"].concat()), Err(Error::Broken(_))));
    assert!(matches!(unpack(&[&whole[..], &vec![0; 5 << 20]].concat()), Err(Error::Broken(_))));
    assert!(matches!(unpack(&[&gzip(&whole)[..], &[b'x'; 20]].concat()), Err(Error::Broken(_))));
    assert!(unpack(&[&zstd(&whole)[..], b"more"].concat()).is_err());
    // Another archive behind the first would be one that some programs see and others don't.
    assert!(matches!(unpack(&[&whole[..], &whole].concat()), Err(Error::Broken(_))));
}

#[test]
fn what_is_no_archive() {
    for bytes in [
        &b"hello"[..],
        b"PK\x03\x04 a zip",
        b"\xfd7zXZ\0 xz",
        b"BZh9 bzip2",
        b"\x1f\x8b\x00 no gzip at all, though it begins so",
        b"\x28\xb5\x2f\xfd no zstd at all, though it begins so",
        &[b'x'; 2048],
    ] {
        assert!(matches!(unpack(bytes), Err(Error::Broken(_) | Error::Truncated)), "{bytes:?}");
    }
    let mut wrong = tar(&[Raw::file("a", "x")]);
    wrong[0] = b'b';
    assert!(matches!(unpack(&wrong), Err(Error::Broken(text)) if text.contains("checksum")));
}

#[test]
fn pax_headers_that_are_none() {
    for text in [
        "x",
        "5 a=b\n",
        "99 a=b\n",
        "0 a=b\n",
        "6 a=b",
        "5 ab\n",
        "-1 a=b\n",
        "18446744073709551616 a=b\n",
        "7 size=\n",
    ] {
        let header = Raw { content: text.as_bytes().to_vec(), ..Raw::new(b'x', "p") };
        assert!(matches!(unpack(&tar(&[header, Raw::file("a", "x")])), Err(Error::Broken(_))), "{text:?}");
    }
    // One for all members must not name one.
    let all = pax(b'g', &[("path", "b")]);
    assert!(matches!(unpack(&tar(&[all, Raw::file("a", "x")])), Err(Error::Broken(_))));
    // git writes the commit so.
    let commit = pax(b'g', &[("comment", "0123456789")]);
    assert!(unpack(&tar(&[commit, Raw::file("a", "x")])).is_ok());
    // A description of nothing.
    assert!(matches!(unpack(&tar(&[pax(b'x', &[("path", "b")])])), Err(Error::Truncated)));
}

#[test]
fn a_folder_that_is_not_empty_is_left_alone() {
    let into = tempfile::tempdir().unwrap();
    fs::write(into.path().join("a"), "mine").unwrap();
    let bytes = tar(&[Raw::file("b", "x")]);
    assert!(archive::unpack(&bytes[..], into.path(), &Limits::default(), &Nothing).is_err());
    assert_eq!(fs::read_dir(into.path()).unwrap().count(), 1);
}

#[test]
fn a_full_disk_is_told_apart() {
    let error = |kind: std::io::ErrorKind| Error::File {
        doing: "writing",
        path: "a".into(),
        source: std::io::Error::from(kind),
    };
    assert!(error(std::io::ErrorKind::StorageFull).is_full());
    assert!(error(std::io::ErrorKind::QuotaExceeded).is_full());
    assert!(!error(std::io::ErrorKind::PermissionDenied).is_full());
    assert!(!Error::Reading(std::io::ErrorKind::StorageFull.into()).is_full());
}

/// What is kept here says it has everything, and gives this.
struct Damaged(&'static str);

impl Known for Damaged {
    fn fetch(&self, _hash: &Hash, to: &mut fs::File) -> std::io::Result<bool> {
        std::io::Write::write_all(to, self.0.as_bytes())?;
        Ok(true)
    }
}

fn entry(path: &str, hash: &Hash, size: u64) -> String {
    format!(r#""{path}":{{"file":{{"hash":"{hash}","size":{size},"executable":false}}}}"#)
}

fn partial(listing: &str, contents: &[Raw]) -> Vec<u8> {
    let mut members = vec![Raw::file(archive::LISTING, listing)];
    members.extend_from_slice(contents);
    tar(&members)
}

#[test]
fn partial_archives_that_lie() {
    let hash = Hash::of(b"abc");
    let other = Hash::of(b"other");
    let listing = format!("{{{}}}", entry("a", &hash, 3));
    let content = |hash: &Hash, content: &str| Raw::file(format!("{}{hash}", archive::CONTENT), content);
    let rule = |bytes: &[u8]| match unpack(bytes) {
        Err(Error::Refused { rule, .. }) => rule,
        other => panic!("{other:?}"),
    };
    assert!(unpack(&partial(&listing, &[content(&hash, "abc")])).is_ok());
    assert_eq!(rule(&partial(&listing, &[content(&hash, "abd")])), Rule::OtherContent);
    assert_eq!(rule(&partial(&listing, &[content(&hash, "abcd")])), Rule::OtherSize);
    assert_eq!(rule(&partial(&listing, &[content(&other, "other")])), Rule::Unlisted);
    assert_eq!(rule(&partial(&listing, &[content(&hash, "abc"), content(&hash, "abc")])), Rule::Twice);
    assert_eq!(rule(&partial(&listing, &[Raw::file("a", "abc")])), Rule::Unlisted);
    assert_eq!(rule(&partial(&listing, &[Raw::link("a", "b")])), Rule::Unlisted);
    assert_eq!(
        rule(&partial(&listing, &[Raw::file(format!("{}abc", archive::CONTENT), "abc")])),
        Rule::Unlisted
    );
    assert_eq!(rule(&partial(&listing, &[Raw::file(archive::LISTING, "{}")])), Rule::Unlisted);
    let twice = format!("{{{},{}}}", entry("a", &hash, 3), entry("b", &hash, 4));
    assert_eq!(rule(&partial(&twice, &[])), Rule::OtherSize);
    let lie = format!("{{{}}}", entry("a", &hash, 4));
    assert_eq!(rule(&partial(&lie, &[content(&hash, "abc")])), Rule::OtherSize);
    assert!(matches!(unpack(&partial(&listing, &[])), Err(Error::Lacking(lacking)) if lacking == [hash]));
    assert!(matches!(unpack(&partial("{}", &[])), Err(Error::Empty)));

    for bad in [
        "",
        "[]",
        "{",
        r#"{"a":1}"#,
        r#"{"../a":{"link":{"target":"b"}}}"#,
        r#"{"a":{"link":{"target":"/b"}}}"#,
    ] {
        assert!(matches!(rule(&partial(bad, &[])), Rule::Listing(_)), "{bad}");
    }
    let rule = |bytes: &[u8], limits: &Limits| match within(bytes, limits) {
        Err(Error::Refused { rule, .. }) => rule,
        other => panic!("{other:?}"),
    };
    let limits = Limits { listing: 20, ..Limits::default() };
    assert_eq!(rule(&partial(&listing, &[]), &limits), Rule::LargeFile(20));
    let limits = Limits { members: 2, bytes: 10, file: 8, ..Limits::default() };
    let names = |names: &[&str], size| {
        let all: Vec<_> = names.iter().map(|name| entry(name, &hash, size)).collect();
        partial(&format!("{{{}}}", all.join(",")), &[])
    };
    assert_eq!(rule(&names(&["a", "b", "c"], 1), &limits), Rule::TooMany(2));
    // A content that is sent once is written as often as it is named.
    assert_eq!(rule(&names(&["a", "b"], 6), &limits), Rule::TooLarge(10));
    assert_eq!(rule(&names(&["a"], 9), &limits), Rule::LargeFile(8));
}

#[test]
fn what_is_kept_here_is_not_believed_either() {
    let hash = Hash::of(b"abc");
    let with = |size: u64, kept: &'static str| {
        let into = tempfile::tempdir().unwrap();
        let bytes = partial(&format!("{{{}}}", entry("a", &hash, size)), &[]);
        archive::unpack(&bytes[..], into.path(), &Limits::default(), &Damaged(kept))
    };
    assert!(with(3, "abc").is_ok());
    assert!(matches!(with(3, "abd"), Err(Error::File { .. })));
    assert!(matches!(with(4, "abc"), Err(Error::Refused { rule: Rule::OtherSize, .. })));
}

/// Gives so many bytes, then fails.
struct Failing<'a>(&'a [u8]);

impl std::io::Read for Failing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self.0.read(buffer)? {
            0 => Err(std::io::ErrorKind::ConnectionReset.into()),
            length => Ok(length),
        }
    }
}

fn everything(root: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                open.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found
}

#[test]
fn whatever_breaks_off_leaves_nothing_but_what_lies_below_its_folder() {
    let whole = tar(&[
        Raw::file("a/b", [7; 700]),
        Raw::link("a/l", "../c"),
        Raw::file("c", [8; 10]),
        Raw::file("d/e/f", "x"),
    ]);
    for packed in [whole.clone(), gzip(&whole), zstd(&whole)] {
        for length in (0..packed.len()).step_by(61) {
            let outer = tempfile::tempdir().unwrap();
            let into = outer.path().join("into");
            fs::create_dir(&into).unwrap();
            let unpacked = archive::unpack(Failing(&packed[..length]), &into, &Limits::default(), &Nothing);
            assert!(matches!(unpacked, Err(Error::Reading(_))), "cut at {length}: {unpacked:?}");
            for path in everything(outer.path()) {
                assert!(path.starts_with(&into), "{}", path.display());
            }
        }
    }
}
