//! Ended at every step; a full disk; damage.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::support::*;
use crate::data::checkpoints::{CheckpointError, Pace};

fn first(machine: &Machine) {
    machine.file("home/.claude/history.jsonl", &[b'a'; 5000]);
    machine.file("work/big", &content(9_000_000, 1));
}

fn second(machine: &Machine) {
    machine.file("home/.claude/history.jsonl", &[b'b'; 9000]);
    machine.file("work/more", &content(5_000_000, 2));
    machine.remove("work/big");
}

#[tokio::test]
async fn an_end_at_any_step_leaves_the_old_or_the_new_and_loses_or_leaks_nothing() {
    for after in [false, true] {
        let deaths = Box::pin(ends(after)).await;
        assert!(deaths >= 5, "reading the list, putting several packs, removing old ones: {deaths}");
    }
}

/// Ends at one step after the other, before it is taken or after. Answers how many there are.
async fn ends(after_it: bool) -> u32 {
    let mut deaths = 0;
    for step in 1.. {
        let world = World::new().await;
        let owner = world.session(world.org(1).await, 5).await;
        let machine = Machine::new(1);
        first(&machine);
        let checkpoints = world.checkpoints();
        for round in 0..4_u32 {
            machine.file("home/round", &content(5000, round));
            checkpoints.save(owner, turn(u128::from(round)), Pace::Rest, &machine).await.unwrap();
        }
        let before = machine.state();
        second(&machine);
        let after = machine.state();
        let checkpoints = world.checkpoints();
        world.blobs.steps.store(0, Ordering::SeqCst);
        world.blobs.dies_at.store(step, Ordering::SeqCst);
        world.blobs.dies_after.store(after_it, Ordering::SeqCst);
        let saving = async { checkpoints.save(owner, turn(9), Pace::Rest, &machine).await.map(drop) };
        let died = until_death(&world.blobs, saving).await;
        world.blobs.dies_at.store(0, Ordering::SeqCst);

        // Somebody else goes on.
        let owner = world.own(owner).await;
        let next = world.checkpoints();
        let (loaded, there) = load(&next, owner).await;
        let state = there.state();
        let whole = if loaded.seq == 5 { state == after } else { loaded.seq == 4 && state == before };
        assert!(whole, "at step {step}: {loaded:?}");
        there.file("home/next", b"more");
        next.save(owner, turn(10), Pace::Rest, &there).await.unwrap();
        world.check_packs(owner).await;
        assert_eq!(load(&world.checkpoints(), owner).await.1.state(), there.state());
        if !died {
            break;
        }
        deaths += 1;
    }
    deaths
}

#[tokio::test]
async fn an_end_while_a_sandbox_gives_leaves_what_was_there() {
    let world = World::new().await;
    let owner = world.session(world.org(1).await, 5).await;
    let machine = Machine::new(1);
    first(&machine);
    let checkpoints = world.checkpoints();
    save(&checkpoints, owner, &machine).await;
    let kept = machine.state();
    machine.file("home/x", b"x");
    *machine.lie.lock().unwrap() = Some(std::sync::Arc::new(|_| Box::pin(futures_util::stream::pending())));
    let saving = checkpoints.save(owner, turn(2), Pace::Turn, &machine);
    assert!(tokio::time::timeout(Duration::from_millis(20), saving).await.is_err());
    *machine.lie.lock().unwrap() = None;
    assert_eq!(load(&world.checkpoints(), owner).await.1.state(), kept);
    assert!(save(&checkpoints, owner, &machine).await.changed);
    assert_eq!(load(&world.checkpoints(), owner).await.1.state(), machine.state());
}

#[tokio::test]
async fn a_full_blob_store_is_told_and_what_was_kept_stays() {
    let world = World::new().await;
    let owner = world.session(world.org(1).await, 5).await;
    let machine = Machine::new(1);
    first(&machine);
    let checkpoints = world.checkpoints();
    save(&checkpoints, owner, &machine).await;
    let kept = machine.state();
    second(&machine);
    world.blobs.steps.store(0, Ordering::SeqCst);
    world.blobs.full_at.store(2, Ordering::SeqCst);
    let full = checkpoints.save(owner, turn(2), Pace::Turn, &machine).await.unwrap_err();
    assert!(matches!(full, CheckpointError::Full), "{full}");
    assert_eq!(load(&world.checkpoints(), owner).await.1.state(), kept);
    // There is room again: everything is kept, and nothing of the failed try is left.
    checkpoints.save(owner, turn(2), Pace::Rest, &machine).await.unwrap();
    assert_eq!(load(&world.checkpoints(), owner).await.1.state(), machine.state());
    world.check_packs(owner).await;
}

#[tokio::test]
async fn an_owner_that_lost_the_session_adds_nothing_and_removes_nothing() {
    let world = World::new().await;
    let old = world.session(world.org(1).await, 5).await;
    let (here, there) = (world.checkpoints(), world.checkpoints());
    let machine = Machine::new(1);
    first(&machine);
    save(&here, old, &machine).await;
    let new = world.own(old).await;
    let moved = Machine::new(2);
    there.load(new, 0, &moved).await.unwrap().unwrap();
    second(&moved);
    save(&there, new, &moved).await;
    machine.file("home/late", b"late");
    let fenced = here.save(old, turn(2), Pace::Rest, &machine).await.unwrap_err();
    assert!(matches!(fenced, CheckpointError::Fenced), "{fenced}");
    assert_eq!(load(&there, new).await.1.state(), moved.state());
    // What the old one had put is removed by the new one.
    let again = world.checkpoints();
    moved.file("home/more", b"more");
    again.save(new, turn(3), Pace::Rest, &moved).await.unwrap();
    world.check_packs(new).await;
}

#[tokio::test]
async fn an_owner_that_lost_the_session_leaves_the_next_ones_packs_alone() {
    let world = World::new().await;
    let old = world.session(world.org(1).await, 5).await;
    let (here, there) = (world.checkpoints(), world.checkpoints());
    let machine = Machine::new(1);
    first(&machine);
    save(&here, old, &machine).await;
    let new = world.own(old).await;
    let moved = Machine::new(2);
    there.load(new, 0, &moved).await.unwrap().unwrap();
    second(&moved);
    // The new one has put its packs, and is about to add its checkpoint.
    world.blobs.steps.store(0, Ordering::SeqCst);
    world.blobs.dies_after.store(true, Ordering::SeqCst);
    world.blobs.dies_at.store(2, Ordering::SeqCst);
    let saving = async { there.save(new, turn(2), Pace::Turn, &moved).await.map(drop) };
    assert!(until_death(&world.blobs, saving).await);
    let before = world.blobs.objects().await;
    // The old one still looks after its own, and has nothing new to add by which it would learn.
    let saved = here.save(old, turn(1), Pace::Rest, &machine).await.unwrap();
    assert!(!saved.changed);
    assert_eq!(world.blobs.objects().await, before);
}

#[tokio::test]
async fn a_damaged_checkpoint_is_found_out_and_the_one_before_is_there() {
    for (what, cut) in [("changed", false), ("cut", true)] {
        let world = World::new().await;
        let owner = world.session(world.org(1).await, 5).await;
        let machine = Machine::new(1);
        first(&machine);
        let checkpoints = world.checkpoints();
        save(&checkpoints, owner, &machine).await;
        let kept = machine.state();
        let before: Vec<String> = world.blobs.objects().await.into_keys().collect();
        second(&machine);
        save(&checkpoints, owner, &machine).await;
        for name in world.blobs.objects().await.into_keys().filter(|name| !before.contains(name)) {
            let change = |bytes: &mut Vec<u8>| if cut { bytes.truncate(100) } else { bytes[50] ^= 1 };
            world.blobs.change(&name, change).await;
        }
        let next = world.checkpoints();
        let damaged = next.load(owner, 0, &Machine::new(2)).await.unwrap_err();
        assert!(matches!(damaged, CheckpointError::Damaged { seq: 2, .. }), "{what}: {damaged}");
        let there = Machine::new(3);
        let loaded = next.load(owner, 1, &there).await.unwrap().unwrap();
        assert_eq!((loaded.seq, there.state()), (1, kept), "{what}");
        // Nothing of what is damaged is built upon.
        there.file("home/on", b"on");
        next.save(owner, turn(3), Pace::Rest, &there).await.unwrap();
        assert_eq!(load(&world.checkpoints(), owner).await.1.state(), there.state(), "{what}");
    }
}
