//! A new release for a session that has its own changes.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use crate::support::{World, acquire, tree};

fn world() -> World {
    let world = World::new();
    for name in ["changed-by-both", "changed-by-us", "changed-by-session", "removed-by-us", "removed-by-both"]
    {
        world.write(&format!("d/{name}"), "one\n");
    }
    world.write("d/removed-by-session", "one\n");
    world.write("d/removed-by-us-changed-by-session", "one\n");
    world.write("gone/file", "one\n");
    world.write("gone-but-used/file", "one\n");
    world.write("becomes-folder", "one\n");
    world.write("becomes-file/in", "one\n");
    world.write("becomes-file-but-used/in", "one\n");
    world.write("tool", "one\n");
    world.write("through-link/file", "one\n");
    world
}

/// The second release.
fn release(world: &World) {
    let folder = world.release();
    world.write("d/changed-by-both", "two, ours\n");
    world.write("d/changed-by-us", "two\n");
    for name in ["removed-by-us", "removed-by-both", "removed-by-us-changed-by-session"] {
        fs::remove_file(folder.join("d").join(name)).unwrap();
    }
    fs::remove_dir_all(folder.join("gone")).unwrap();
    fs::remove_dir_all(folder.join("gone-but-used")).unwrap();
    fs::remove_file(folder.join("becomes-folder")).unwrap();
    world.write("becomes-folder/in", "two\n");
    for name in ["becomes-file", "becomes-file-but-used"] {
        fs::remove_dir_all(folder.join(name)).unwrap();
        world.write(name, "two\n");
    }
    fs::set_permissions(folder.join("tool"), fs::Permissions::from_mode(0o755)).unwrap();
    world.write("added", "two\n");
    world.write("added-by-both", "two, ours\n");
    world.write("new/deep/file", "two\n");
    world.write("through-link/file", "two\n");
    symlink("added", folder.join("link")).unwrap();
}

#[tokio::test]
async fn what_the_session_changed_stays() {
    let world = world();
    let driver = world.process();
    let outside = world.folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "one\n").unwrap();
    let sandbox = acquire(&driver, &world.spec(1, "a")).await;
    let id = sandbox.id();
    let work = sandbox.place().workspace.clone();
    let write = |path: &str, text: &str| fs::write(work.join(path), text).unwrap();
    write("d/changed-by-both", "two, session's\n");
    write("d/changed-by-session", "two, session's\n");
    write("d/removed-by-us-changed-by-session", "two, session's\n");
    write("added-by-both", "two, session's\n");
    write("own", "session's\n");
    write("gone-but-used/own", "session's\n");
    write("becomes-file-but-used/own", "session's\n");
    fs::remove_file(work.join("d/removed-by-session")).unwrap();
    fs::remove_file(work.join("d/removed-by-both")).unwrap();
    fs::remove_dir_all(work.join("through-link")).unwrap();
    symlink(&outside, work.join("through-link")).unwrap();
    release(&world);

    let updated = acquire(&driver, &world.spec(1, "b")).await;
    let kept = [
        "added-by-both",
        "becomes-file-but-used",
        "d/changed-by-both",
        "d/changed-by-session",
        "d/removed-by-session",
        "d/removed-by-us-changed-by-session",
        "through-link/file",
    ];
    assert_eq!(updated.kept(), kept);
    assert_eq!(updated.id(), id);
    let read = |path: &str| fs::read_to_string(work.join(path)).unwrap();
    for path in
        ["d/changed-by-both", "d/changed-by-session", "d/removed-by-us-changed-by-session", "added-by-both"]
    {
        assert_eq!(read(path), "two, session's\n", "{path}");
    }
    for path in ["own", "gone-but-used/own", "becomes-file-but-used/own"] {
        assert_eq!(read(path), "session's\n", "{path}");
    }
    for path in ["d/changed-by-us", "becomes-folder/in", "becomes-file", "added", "new/deep/file", "link"] {
        assert_eq!(read(path), "two\n", "{path}");
    }
    for path in ["d/removed-by-us", "d/removed-by-both", "d/removed-by-session", "gone", "gone-but-used/file"]
    {
        assert!(!work.join(path).exists(), "{path}");
    }
    assert_eq!(fs::metadata(work.join("tool")).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(
        fs::read_to_string(outside.join("file")).unwrap(),
        "one\n",
        "nothing is written through a link"
    );

    let before = tree(&world.place(1));
    let again = acquire(&driver, &world.spec(1, "b")).await;
    assert_eq!(again.kept(), kept, "what was kept is remembered");
    assert_eq!(tree(&world.place(1)), before, "a second time changes nothing");
}

#[tokio::test]
async fn a_place_nobody_changed_is_the_release() {
    let world = world();
    let driver = world.process();
    drop(acquire(&driver, &world.spec(1, "a")).await);
    let first = tree(&world.release());
    release(&world);
    let sandbox = acquire(&driver, &world.spec(1, "b")).await;
    assert!(sandbox.kept().is_empty());
    assert_eq!(tree(&sandbox.place().workspace), tree(&world.release()));
    assert_ne!(tree(&world.release()), first);
}

#[tokio::test]
async fn an_update_cut_off_anywhere_can_be_run_again() {
    let world = world();
    let driver = world.process();
    drop(acquire(&driver, &world.spec(1, "a")).await);
    let record = fs::read(world.place(1).join("place")).unwrap();
    release(&world);
    drop(acquire(&driver, &world.spec(1, "b")).await);
    // As after a crash just before the record was written, with a change half prepared.
    fs::write(world.place(1).join("place"), record).unwrap();
    fs::create_dir_all(world.place(1).join("part/x")).unwrap();
    let sandbox = acquire(&driver, &world.spec(1, "b")).await;
    assert!(sandbox.kept().is_empty(), "{:?}", sandbox.kept());
    assert_eq!(tree(&sandbox.place().workspace), tree(&world.release()));
}

#[tokio::test]
async fn a_session_that_took_the_new_release_itself_keeps_nothing() {
    let world = world();
    let driver = world.process();
    let sandbox = acquire(&driver, &world.spec(1, "a")).await;
    fs::write(sandbox.place().workspace.join("added"), "two\n").unwrap();
    fs::write(sandbox.place().workspace.join("d/changed-by-us"), "two\n").unwrap();
    release(&world);
    assert!(acquire(&driver, &world.spec(1, "b")).await.kept().is_empty());
}
