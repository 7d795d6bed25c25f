//! Random trees with random edits.

use std::sync::atomic::Ordering;

use karta_sandbox::state::Kind;
use proptest::prelude::*;

use super::support::*;
use crate::data::checkpoints::Pace;

#[derive(Debug, Clone)]
enum Edit {
    File(u8, u32, u8),
    Append(u8, u32, u8),
    Remove(u8),
    Link(u8),
    Folder(u8),
    Gone(u8),
    Save,
    Rest,
    Crash,
    Elsewhere,
}

fn edit() -> impl Strategy<Value = Edit> {
    let size = prop_oneof![4 => 0u32..2000, 1 => 0u32..3_000_000];
    prop_oneof![
        4 => (0u8..30, size.clone(), any::<u8>()).prop_map(|(at, size, byte)| Edit::File(at, size, byte)),
        3 => (0u8..30, size, any::<u8>()).prop_map(|(at, size, byte)| Edit::Append(at, size, byte)),
        2 => (0u8..30).prop_map(Edit::Remove),
        1 => (0u8..30).prop_map(Edit::Link),
        1 => (0u8..30).prop_map(Edit::Folder),
        1 => (0u8..30).prop_map(Edit::Gone),
        6 => Just(Edit::Save),
        3 => Just(Edit::Rest),
        1 => Just(Edit::Crash),
        1 => Just(Edit::Elsewhere),
    ]
}

fn name(at: u8) -> String {
    // Some in the home, some in the workspace; no two one below the other.
    if at.is_multiple_of(2) { format!("home/d{}/f{at}", at % 7) } else { format!("work/f{at}") }
}

async fn run(edits: Vec<Edit>) {
    let world = World::new().await;
    let org = world.org(1).await;
    let mut owner = world.session(org, 5).await;
    let mut checkpoints = world.checkpoints();
    let mut machine = Machine::new(1);
    let mut number = 1;
    let (mut edited, mut clean) = (0_u64, None);
    for edit in edits {
        let put = world.blobs.put_bytes.load(Ordering::Relaxed);
        match edit {
            Edit::File(at, size, byte) => {
                machine.file(&name(at), &content(size, u32::from(byte)));
                edited += u64::from(size);
            }
            Edit::Append(at, size, byte) => {
                let before = machine.state().remove(std::path::Path::new(&name(at)));
                let mut whole = before.map(|(_, bytes)| bytes.to_vec()).unwrap_or_default();
                // The last piece is new too.
                edited += u64::from(size) + (1 << 20).min(whole.len() as u64);
                whole.extend(content(size, u32::from(byte)));
                machine.file(&name(at), &whole);
            }
            Edit::Remove(at) => machine.remove(&name(at)),
            Edit::Link(at) => machine.set(&name(at), Kind::Link { target: "../../etc/passwd".into() }, b""),
            Edit::Folder(at) => machine.set(&name(at), Kind::Folder { opaque: at % 2 == 1 }, b""),
            Edit::Gone(at) => machine.set(&format!("work/f{}", at | 1), Kind::Removed, b""),
            Edit::Save | Edit::Rest => {
                let pace = if matches!(edit, Edit::Save) { Pace::Turn } else { Pace::Rest };
                let saved = checkpoints.save(owner, turn(number), pace, &machine).await.unwrap();
                number += 1;
                let state = machine.state();
                if pace == Pace::Turn {
                    let put = world.blobs.put_bytes.load(Ordering::Relaxed) - put;
                    // What was edited, and the list of some thirty things.
                    assert!(
                        put <= edited + edited / 100 + 20_000,
                        "{put} bytes were put for {edited} edited"
                    );
                }
                if clean.as_ref() == Some(&state) && pace == Pace::Turn {
                    assert!(!saved.changed, "nothing is put when nothing has changed");
                }
                (edited, clean) = (0, Some(state.clone()));
                let (loaded, there) = load(&world.checkpoints(), owner).await;
                assert_eq!((loaded.seq, there.state()), (saved.seq, state));
                let rows = world.store.checkpoint_list(org, owner.session).await.unwrap();
                assert!(rows.len() <= 3, "history is bounded");
                if pace == Pace::Rest {
                    world.check_packs(owner).await;
                }
            }
            Edit::Crash => checkpoints = world.checkpoints(),
            Edit::Elsewhere => {
                let Some(clean) = &clean else { continue };
                // What was not kept is lost with the machine.
                checkpoints = world.checkpoints();
                owner = world.own(owner).await;
                machine = Machine::new(number + 1000);
                checkpoints.load(owner, 0, &machine).await.unwrap();
                assert_eq!(machine.state(), *clean);
                edited = 0;
            }
        }
    }
    // Every checkpoint that is kept can be put back, not the newest alone.
    checkpoints.save(owner, None, Pace::Rest, &machine).await.unwrap();
    let rows = world.store.checkpoint_list(org, owner.session).await.unwrap();
    for (back, row) in rows.iter().enumerate() {
        let there = Machine::new(7);
        let loaded = world.checkpoints().load(owner, back, &there).await.unwrap().unwrap();
        assert_eq!(loaded.seq, row.seq);
        assert_eq!(there.state().len() as u64, row.files);
    }
    world.check_packs(owner).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]
    #[test]
    fn what_was_kept_comes_back_and_only_changes_are_put(edits in prop::collection::vec(edit(), 1..40)) {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(run(edits));
    }
}

#[tokio::test]
async fn a_thousand_small_files_are_few_objects_and_one_change_is_small() {
    let world = World::new().await;
    let owner = world.session(world.org(1).await, 5).await;
    let checkpoints = world.checkpoints();
    let machine = Machine::new(1);
    for number in 0..1000_u32 {
        machine.file(&format!("home/{number:04}"), &content(3000, number));
    }
    let first = save(&checkpoints, owner, &machine).await;
    assert_eq!(first.taken, 3_000_000);
    assert!(world.blobs.objects().await.len() <= 2, "{:?}", world.blobs.objects().await);
    let taken = machine.taken.load(Ordering::Relaxed);
    machine.file("home/0500", b"another");
    let second = save(&checkpoints, owner, &machine).await;
    assert_eq!(machine.taken.load(Ordering::Relaxed) - taken, 1, "one file is read");
    assert!(second.changed && second.stored < 80_000, "{second:?}");
    let third = save(&checkpoints, owner, &machine).await;
    assert!(!third.changed && third.seq == second.seq && third.stored == 0, "{third:?}");
}

#[tokio::test]
async fn a_long_session_keeps_few_packs() {
    let world = World::new().await;
    let owner = world.session(world.org(1).await, 5).await;
    let checkpoints = world.checkpoints();
    let machine = Machine::new(1);
    let mut history = Vec::new();
    let mut most = (0, 0);
    for number in 0..120_u32 {
        history.extend(content(9000, number));
        machine.file("home/history", &history);
        machine.file(&format!("home/file{number}"), &content(500, number));
        for pace in [Pace::Turn, Pace::Rest] {
            checkpoints.save(owner, turn(u128::from(number)), pace, &machine).await.unwrap();
        }
        let objects = world.blobs.objects().await;
        most = (most.0.max(objects.len()), most.1.max(objects.values().sum::<u64>()));
    }
    let live = 120 * 9500;
    assert!(most.0 <= 40, "{} objects", most.0);
    assert!(most.1 <= live * 8, "{} bytes for {live}", most.1);
    world.check_packs(owner).await;
    assert_eq!(load(&checkpoints, owner).await.1.state(), machine.state());
}
