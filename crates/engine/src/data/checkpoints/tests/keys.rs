//! Keys: whose, wrapped by which, and gone.

use std::sync::Arc;

use futures_util::StreamExt as _;
use karta_types::rng::Seeded;
use object_store::{ObjectStore as _, ObjectStoreExt as _};

use super::support::*;
use crate::control::encryption::KeyEncryption as _;
use crate::data::checkpoints::{CheckpointError, Checkpoints, Pace};

#[tokio::test]
async fn files_are_found_without_a_machine() {
    let world = World::new().await;
    let owner = world.session(world.org(1).await, 5).await;
    let checkpoints = world.checkpoints();
    let find = async |pattern: &str, limit| checkpoints.find(owner.org, owner.session, pattern, limit).await;
    assert!(find(".claude/projects/*/a.jsonl", 100).await.unwrap().is_empty(), "before the first turn");
    let machine = Machine::new(1);
    machine.file("home/.claude/projects/x/a.jsonl", b"older");
    machine.file("home/.claude/projects/y/a.jsonl", &vec![5; 3_000_000]);
    machine
        .things
        .lock()
        .unwrap()
        .get_mut(std::path::Path::new("home/.claude/projects/y/a.jsonl"))
        .unwrap()
        .0
        .modified += 1;
    machine.file("work/.claude/projects/z/a.jsonl", b"not in the home");
    save(&checkpoints, owner, &machine).await;
    let found = find(".claude/projects/*/a.jsonl", 2_500_000).await.unwrap();
    let shape: Vec<_> = found.iter().map(|(path, bytes)| (path.to_str().unwrap(), bytes.len())).collect();
    assert_eq!(shape, [(".claude/projects/y/a.jsonl", 2_500_000), (".claude/projects/x/a.jsonl", 5)]);
    assert!(find("../x", 1).await.is_err());
    assert!(find("nothing/*", 1).await.unwrap().is_empty());
}

#[tokio::test]
async fn nothing_readable_lies_in_the_blob_store_and_sessions_share_nothing() {
    let world = World::new().await;
    let one = world.session(world.org(1).await, 5).await;
    let two = world.session(world.org(2).await, 6).await;
    let checkpoints = world.checkpoints();
    let secret = "the-marked-words ".repeat(1000);
    for owner in [one, two] {
        let machine = Machine::new(owner.session.as_u128());
        machine.file("home/marked-name", secret.as_bytes());
        save(&checkpoints, owner, &machine).await;
    }
    let objects = world.blobs.objects().await;
    assert_eq!(objects.len(), 2);
    let mut all = Vec::new();
    for name in objects.keys() {
        world.blobs.change(name, |bytes| assert!(!bytes.windows(6).any(|part| part == b"marked"))).await;
        let key = object_store::path::Path::from(name.as_str());
        all.push((key.clone(), world.blobs.inner.get(&key).await.unwrap().bytes().await.unwrap()));
    }
    assert_ne!(all[0].1, all[1].1);
    // One session's pack in the place of another's does not open.
    world.blobs.inner.put(&all[0].0, all[1].1.clone().into()).await.unwrap();
    let owner = if all[0].0.as_ref().contains(&one.session.to_string()) { one } else { two };
    let refused = world.checkpoints().load(owner, 0, &Machine::new(3)).await.unwrap_err();
    assert!(matches!(refused, CheckpointError::Damaged { .. }), "{refused}");
}

#[tokio::test]
async fn a_new_wrapping_key_wraps_every_data_key_and_the_old_one_may_go() {
    let world = World::new().await;
    let owner = world.session(world.org(1).await, 5).await;
    let checkpoints = world.checkpoints();
    let machine = Machine::new(1);
    machine.file("home/a", b"a");
    save(&checkpoints, owner, &machine).await;
    let old = world.keys.current();
    world.clock.advance(std::time::Duration::from_secs(1));
    assert_eq!(checkpoints.rotate().await.unwrap(), 1);
    std::fs::remove_file(world.folder.path().join("keys").join(&old)).unwrap();
    let keys = crate::control::encryption::LocalKeys::open(
        &world.folder.path().join("keys"),
        world.clock.clone(),
        Arc::new(Seeded::new(1)),
    );
    let rng = Arc::new(Seeded::new(2));
    let next = Checkpoints::new(
        world.store.clone(),
        world.blobs.clone(),
        None,
        Arc::new(keys.unwrap()),
        world.clock.clone(),
        rng,
        LIMITS,
    );
    assert_eq!(load(&next, owner).await.1.state(), machine.state());
}

#[tokio::test]
async fn a_destroyed_key_makes_every_copy_unreadable() {
    let world = World::new().await;
    let org = world.org(1).await;
    let owner = world.session(org, 5).await;
    let bystander = world.session(world.org(2).await, 6).await;
    let checkpoints = world.checkpoints();
    let machine = Machine::new(1);
    machine.file("home/a", b"never again");
    save(&checkpoints, owner, &machine).await;
    save(&checkpoints, bystander, &machine).await;
    // Copies that an attacker has from before: the blob store whole, and the database but for the key's row.
    let copy = world.blobs.inner.fork();
    let old = world.store.checkpoint_list(org, owner.session).await.unwrap();
    assert_eq!(checkpoints.destroy_key(org, world.told(org)).await.unwrap(), 1);
    let top = format!("state/{org}");
    assert!(!world.blobs.objects().await.keys().any(|name| name.starts_with(&top)), "it is erased here");

    // The rows of the copy, and all its packs, put back; a key of the organisation that is made anew opens none of them.
    let again = world.checkpoints();
    let other = Machine::new(2);
    other.file("home/b", b"b");
    let saved = again.save(owner, turn(2), Pace::Turn, &other).await.unwrap();
    let objects: Vec<_> = copy.list(None).collect().await;
    for object in objects {
        let at = object.unwrap().location;
        let bytes = copy.get(&at).await.unwrap().bytes().await.unwrap();
        world.blobs.inner.put(&at, bytes.into()).await.unwrap();
    }
    for forged in [old[0].key.clone(), world.store.state_key_get(org, "").await.unwrap().unwrap().id] {
        let mut row = old[0].clone();
        row.seq = saved.seq + 1;
        row.key = forged;
        let database = rusqlite::Connection::open(world.folder.path().join("karta.db")).unwrap();
        let number = |number: u64| i64::try_from(number).unwrap();
        let values = rusqlite::params![
            row.session.to_string(),
            number(row.seq),
            row.org.to_string(),
            row.key,
            row.pack,
            number(row.place),
            number(row.length),
            serde_json::to_string(&row.packs).unwrap(),
            number(row.files),
            number(row.bytes),
        ];
        database
            .execute(
                "INSERT OR REPLACE INTO checkpoint (session, seq, org, state_key, pack, place, length, packs, files, bytes, at) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, 0)",
                values,
            )
            .unwrap();
        let refused = world.checkpoints().load(owner, 0, &Machine::new(3)).await.unwrap_err();
        assert!(matches!(refused, CheckpointError::Shredded | CheckpointError::Damaged { .. }), "{refused}");
    }
    assert_eq!(load(&world.checkpoints(), bystander).await.1.state(), machine.state(), "others lose nothing");
}

#[tokio::test]
async fn what_is_erased_is_gone_and_a_sweep_finds_what_a_crash_left() {
    let world = World::new().await;
    let org = world.org(1).await;
    let (one, two) = (world.session(org, 5).await, world.session(org, 6).await);
    let checkpoints = world.checkpoints();
    let machine = Machine::new(1);
    machine.file("home/a", b"a");
    save(&checkpoints, one, &machine).await;
    save(&checkpoints, two, &machine).await;
    checkpoints.erase(org, one.session).await.unwrap();
    assert!(!checkpoints.has(org, one.session).await.unwrap());
    assert!(checkpoints.load(one, 0, &Machine::new(2)).await.unwrap().is_none());
    assert_eq!(world.blobs.objects().await.len(), 1);
    // The other session goes, but its packs stay: the server ended in between.
    world.store.session_erase(org, two.session, world.told(org)).await.unwrap();
    assert_eq!(checkpoints.sweep().await.unwrap(), 1);
    assert!(world.blobs.objects().await.is_empty());
    assert_eq!(checkpoints.sweep().await.unwrap(), 0);
    let late = checkpoints.save(two, turn(1), Pace::Turn, &machine).await.unwrap_err();
    assert!(matches!(late, CheckpointError::Fenced), "a session that is gone keeps nothing: {late}");
}
