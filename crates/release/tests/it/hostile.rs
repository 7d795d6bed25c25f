//! Generated hostile archives: none writes outside of its folder, none makes unpacking panic, and what is accepted is what is told,
//! and comes back the same.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use karta_release::archive::{self, Error, Limits, Nothing};
use karta_release::{Files, Hash};
use proptest::prelude::*;

use crate::raw::{Raw, gzip, pax, tar, zstd};

/// What stands for the outer folder's own path, which only the test knows.
const OUTER: &str = "OUTER";

fn part() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "a",
        "b",
        "A",
        "l",
        "l",
        "m",
        "..",
        "..",
        ".",
        "",
        ".git",
        ".karta",
        ".claude",
        "É",
        "é",
        "x\\y",
        "c\u{7}",
        "files.json",
    ])
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => prop::collection::vec(part(), 1..5).prop_map(|parts| parts.join("/")),
        2 => "[a-c]{1,3}(/[a-c]{1,3}){0,3}/?",
        1 => prop::collection::vec(part(), 1..4).prop_map(|parts| format!("{OUTER}/{}", parts.join("/"))),
        1 => Just("../canary".to_owned()),
        1 => Just(format!("{OUTER}/canary")),
    ]
}

fn kind() -> impl Strategy<Value = u8> {
    prop_oneof![
        10 => Just(b'0'),
        6 => Just(b'2'),
        3 => Just(b'5'),
        1 => prop::sample::select(b"\x001346789LKxgSVMDN\xff".to_vec()),
    ]
}

fn member() -> impl Strategy<Value = Raw> {
    let size =
        prop_oneof![12 => Just(None), 1 => any::<u64>().prop_map(Some), 1 => (0u64..2000).prop_map(Some)];
    let mode = prop_oneof![9 => Just(0o644), 3 => Just(0o755), 1 => any::<u64>()];
    let content = prop::collection::vec(any::<u8>(), 0..700);
    (kind(), name(), name(), mode, content, size).prop_map(|(kind, name, link, mode, content, size)| {
        let carries = !matches!(kind, b'2' | b'5');
        Raw {
            name: name.into_bytes(),
            kind,
            mode,
            link: link.into_bytes(),
            content: if carries { content } else { Vec::new() },
            size,
        }
    })
}

/// A member with what describes it before it.
fn described() -> impl Strategy<Value = Vec<Raw>> {
    let header = prop_oneof![
        6 => Just(None),
        1 => name().prop_map(|name| Some(pax(b'x', &[("path", &name)]))),
        1 => name().prop_map(|name| Some(pax(b'x', &[("linkpath", &name)]))),
        1 => name().prop_map(|name| Some(Raw { content: name.into_bytes(), ..Raw::new(b'L', "././@LongLink") })),
        1 => name().prop_map(|name| Some(Raw { content: name.into_bytes(), ..Raw::new(b'K', "././@LongLink") })),
    ];
    (header, member()).prop_map(|(header, member)| header.into_iter().chain([member]).collect())
}

/// What is done to the bytes when they are whole.
#[derive(Debug, Clone)]
enum Harm {
    None,
    Cut(prop::sample::Index),
    Change(Vec<(prop::sample::Index, u8)>),
}

fn harm() -> impl Strategy<Value = Harm> {
    prop_oneof![
        4 => Just(Harm::None),
        1 => any::<prop::sample::Index>().prop_map(Harm::Cut),
        1 => prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6).prop_map(Harm::Change),
    ]
}

fn harmed(mut bytes: Vec<u8>, harm: &Harm) -> Vec<u8> {
    match harm {
        Harm::None => {}
        Harm::Cut(at) => bytes.truncate(at.index(bytes.len())),
        Harm::Change(changes) => {
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
        }
    }
    bytes
}

/// Puts the real path where `OUTER` stands.
fn aimed(members: &[Raw], outer: &Path) -> Vec<Raw> {
    let real = outer.to_str().unwrap();
    let aim = |text: &[u8]| match std::str::from_utf8(text) {
        Ok(text) => text.replace(OUTER, real).into_bytes(),
        Err(_) => text.to_vec(),
    };
    let member = |raw: &Raw| {
        let described = matches!(raw.kind, b'L' | b'K');
        let content = if described { aim(&raw.content) } else { raw.content.clone() };
        Raw { name: aim(&raw.name), link: aim(&raw.link), content, ..raw.clone() }
    };
    members.iter().map(member).collect()
}

/// Unpacks in a folder beside a canary, sees that nothing else was touched, and what was accepted is what is there.
fn holds(bytes: impl Fn(&Path) -> Vec<u8>) -> Result<Files, Error> {
    let outer = tempfile::tempdir().unwrap();
    let canary = outer.path().join("canary");
    fs::write(&canary, "sings").unwrap();
    let into = outer.path().join("into");
    fs::create_dir(&into).unwrap();
    let bytes = bytes(outer.path());
    let limits = Limits { bytes: 1 << 20, file: 1 << 19, members: 40, ..Limits::default() };
    let unpacked = archive::unpack(&bytes[..], &into, &limits, &Nothing);

    let mut beside: Vec<_> =
        fs::read_dir(outer.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    beside.sort();
    assert_eq!(beside, ["canary", "into"]);
    assert_eq!(fs::read_to_string(&canary).unwrap(), "sings");
    if let Ok(files) = &unpacked {
        assert_eq!(&Files::read(&into).unwrap(), files);
        for (path, entry) in files.iter() {
            let inside = into.join(path).canonicalize();
            assert!(
                inside.is_err() || inside.unwrap().starts_with(into.canonicalize().unwrap()),
                "{path} {entry:?}"
            );
        }
        let mut packed = Vec::new();
        archive::pack(&into, files, None, &mut packed).unwrap();
        let again = outer.path().join("again");
        fs::create_dir(&again).unwrap();
        assert_eq!(&archive::unpack(&packed[..], &again, &Limits::default(), &Nothing).unwrap(), files);
    }
    unpacked
}

proptest! {
    #[test]
    fn no_archive_writes_outside(
        groups in prop::collection::vec(described(), 1..7),
        packing in 0usize..3,
        before in harm(),
        after in harm(),
    ) {
        let members = groups.concat();
        let _ = holds(|outer| {
            let bytes = harmed(tar(&aimed(&members, outer)), &before);
            match packing {
                0 => bytes,
                1 => harmed(gzip(&bytes), &after),
                _ => harmed(zstd(&bytes), &after),
            }
        });
    }

    #[test]
    fn no_listing_writes_outside(entries in prop::collection::vec((name(), name(), 0..3, 0u64..5), 0..6), sent in 0usize..6) {
        let _ = holds(|outer| {
            let mut listing = serde_json::Map::new();
            let mut contents = Vec::new();
            for (path, target, kind, lie) in &entries {
                let content = target.as_bytes();
                let hash = Hash::of(content).to_string();
                let size = content.len() as u64 + lie / 4;
                let entry = match kind {
                    0 => serde_json::json!({"link": {"target": target}}),
                    _ => serde_json::json!({"file": {"hash": hash, "size": size, "executable": *kind == 1}}),
                };
                listing.insert(path.replace(OUTER, outer.to_str().unwrap()), entry);
                contents.push(Raw::file(format!("{}{hash}", archive::CONTENT), content));
            }
            contents.truncate(sent);
            contents.insert(0, Raw::file(archive::LISTING, serde_json::to_vec(&listing).unwrap()));
            tar(&contents)
        });
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..3000), magic in 0usize..3) {
        let start: &[u8] = [&b""[..], b"\x1f\x8b\x08\0", b"\x28\xb5\x2f\xfd"][magic];
        let _ = holds(|_| [start, &bytes].concat());
    }
}

proptest! {
    // Each of these is put on the disk, twice.
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn tame_archives_are_taken(names in prop::collection::btree_set("[a-c]{1,3}[xyz]/[d-f]{1,3}", 1..8), packing in 0usize..3, mode in prop::sample::select(vec![0o600, 0o644, 0o700, 0o755])) {
        let members: Vec<_> = names.iter().map(|name| Raw::file(name, name).mode(mode)).collect();
        let files = holds(|_| {
            let bytes = tar(&members);
            [bytes.clone(), gzip(&bytes), zstd(&bytes)][packing].clone()
        });
        let paths: Vec<String> = files.unwrap().iter().map(|(path, _)| path.to_owned()).collect();
        prop_assert_eq!(paths, names.into_iter().collect::<Vec<_>>());
    }
}

/// How often the generated archives are taken: a generator that makes nothing but nonsense would prove nothing.
#[test]
fn the_generator_reaches_beyond_the_first_refusal() {
    use proptest::strategy::ValueTree as _;

    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let strategy = prop::collection::vec(described(), 1..7);
    let (mut taken, mut refused) = (0, std::collections::HashSet::new());
    for _ in 0..300 {
        let members = strategy.new_tree(&mut runner).unwrap().current().concat();
        match holds(|outer| tar(&aimed(&members, outer))) {
            Ok(_) => taken += 1,
            Err(Error::Refused { rule, .. }) => {
                refused.insert(std::mem::discriminant(&rule));
            }
            Err(_) => {}
        }
    }
    assert!(taken > 10, "{taken}");
    assert!(refused.len() > 12, "{}", refused.len());
}

/// A reader that gives one byte at a time: nothing depends on how the bytes come.
struct Dripping<'a>(&'a [u8]);

impl std::io::Read for Dripping<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let most = buffer.len().min(1);
        self.0.read(&mut buffer[..most])
    }
}

#[test]
fn bytes_may_come_one_by_one() {
    let bytes = tar(&[Raw::file("a/b", [7; 700]), Raw::link("l", "a"), Raw::file("c", "")]);
    for packed in [bytes.clone(), gzip(&bytes), zstd(&bytes)] {
        let into = tempfile::tempdir().unwrap();
        let mut drip = Dripping(&packed);
        let files = archive::unpack(drip.by_ref(), into.path(), &Limits::default(), &Nothing).unwrap();
        assert_eq!(files.len(), 3);
    }
}
