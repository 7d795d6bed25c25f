//! What the process driver holds about places.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use karta_sandbox::{Driver as _, Error};

use crate::support::{World, acquire, run, script, session, tree};

#[tokio::test]
async fn a_place_is_private_and_whole() {
    let world = World::new();
    world.write("bin/tool", "#!/bin/sh\necho tool\n");
    fs::set_permissions(world.release().join("bin/tool"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(world.release().join("empty")).unwrap();
    symlink("../CLAUDE.md", world.release().join("agents/link")).unwrap();
    symlink("/etc/passwd", world.release().join("agents/absolute")).unwrap();
    symlink("../../outside", world.release().join("agents/climbs")).unwrap();
    let before = tree(&world.release());
    let sandbox = acquire(&world.process(), &world.spec(1, "a")).await;
    let place = sandbox.place().clone();
    for folder in
        [&world.place(1), &place.home, &place.temp, &place.workspace, &place.workspace.join("agents")]
    {
        assert_eq!(fs::metadata(folder).unwrap().permissions().mode() & 0o777, 0o700, "{}", folder.display());
    }
    let copied = tree(&place.workspace);
    let mut expected = before.clone();
    expected.retain(|(path, _)| !path.ends_with("absolute") && !path.ends_with("climbs"));
    assert_eq!(copied, expected);
    let mode = |path| fs::metadata(place.workspace.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("bin/tool"), mode("CLAUDE.md")), (0o700, 0o600));
    let text = "bin/tool; echo mine > CLAUDE.md; echo mine >> agents/link; rm -r agents; echo new > new";
    assert_eq!(run(&*sandbox, &script(&*sandbox, text), "").await.0, "tool\n");
    assert_eq!(tree(&world.release()), before, "the release is never written");
    assert_eq!(fs::metadata(world.release().join("CLAUDE.md")).unwrap().nlink(), 1);
}

#[tokio::test]
async fn a_place_left_half_made_is_made_anew() {
    let world = World::new();
    let driver = world.process();
    // What a crash leaves at one step or another: all but the record.
    let work = world.place(1).join("work");
    fs::create_dir_all(work.join("agents")).unwrap();
    fs::write(work.join("CLAUDE.md"), "be br").unwrap();
    fs::write(world.place(1).join("record"), "karta place 1").unwrap();
    let sandbox = acquire(&driver, &world.spec(1, "a")).await;
    assert_eq!(tree(&sandbox.place().workspace), tree(&world.release()));
    let mut names: Vec<_> =
        fs::read_dir(world.place(1)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["home", "place", "tmp", "work"]);
    assert_eq!(fs::read_dir(world.root()).unwrap().count(), 1);
}

#[tokio::test]
async fn a_release_that_is_missing_leaves_nothing() {
    let world = World::new();
    let driver = world.process();
    let mut spec = world.spec(1, "a");
    spec.release = world.folder.path().join("none");
    let error = driver.acquire(&spec).await.err().unwrap();
    assert!(error.to_string().contains("none"), "{error}");
    assert_eq!(fs::read_dir(world.root()).unwrap().count(), 0);
    acquire(&driver, &world.spec(1, "a")).await;
}

#[tokio::test]
async fn a_damaged_record_loses_nothing() {
    let world = World::new();
    let driver = world.process();
    let sandbox = acquire(&driver, &world.spec(1, "a")).await;
    sandbox.put(Path::new("history"), b"words").await.unwrap();
    fs::write(world.place(1).join("place"), "karta pl").unwrap();
    let error = driver.acquire(&world.spec(1, "a")).await.err().unwrap();
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("damaged"), "{error}");
    assert_eq!(fs::read(sandbox.place().home.join("history")).unwrap(), b"words");
}

#[tokio::test]
async fn links_of_the_session_lead_nowhere() {
    let world = World::new();
    let outside = world.folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "s").unwrap();
    let sandbox = acquire(&world.process(), &world.spec(1, "a")).await;
    let home = &sandbox.place().home;
    symlink(&outside, home.join("folder")).unwrap();
    symlink(outside.join("secret"), home.join("file")).unwrap();
    assert!(matches!(sandbox.put(&home.join("folder/x"), b"x").await, Err(Error::Escape(_))));
    assert!(matches!(sandbox.put(&home.join("folder/deep/x"), b"x").await, Err(Error::Escape(_))));
    sandbox.put(&home.join("file"), b"mine").await.unwrap();
    assert_eq!(fs::read_to_string(home.join("file")).unwrap(), "mine", "the link was replaced, not followed");
    assert_eq!(tree(&outside), [("secret".into(), "s".to_owned())]);
    symlink(outside.join("secret"), home.join("other")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        home.join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    assert!(sandbox.find("folder/*", 9).await.unwrap().is_empty());
    assert!(sandbox.find("*/secret", 9).await.unwrap().is_empty());
    let found = sandbox.find("*", 9).await.unwrap();
    assert_eq!(found, [(home.join("file"), b"mine".to_vec())]);
    // The home itself turned into a link.
    fs::rename(home, home.with_file_name("moved")).unwrap();
    symlink(&outside, home).unwrap();
    assert!(matches!(sandbox.put(&home.join("x"), b"x").await, Err(Error::Escape(_))));
    assert!(sandbox.find("*", 9).await.is_err());
}

#[tokio::test]
async fn a_find_answers_the_newest_first() {
    let world = World::new();
    let sandbox = acquire(&world.process(), &world.spec(1, "a")).await;
    for (name, age) in [("b", 20), ("c", 10), ("a", 30)] {
        sandbox.put(Path::new(name), b"x").await.unwrap();
        let file = fs::File::options().write(true).open(sandbox.place().home.join(name)).unwrap();
        file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1000 - age)).unwrap();
    }
    let found = sandbox.find("*", 9).await.unwrap();
    let names: Vec<_> = found.iter().map(|(path, _)| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["c", "b", "a"]);
}

#[tokio::test]
async fn erasing_removes_whatever_the_session_made() {
    let world = World::new();
    let driver = world.process();
    let outside = world.folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("mine"), "m").unwrap();
    let sandbox = acquire(&driver, &world.spec(1, "a")).await;
    let text = format!(
        "mkdir -p locked/in deep-1/x; echo x > locked/in/f; ln -s {} out; mkfifo pipe; \
         i=0; while [ $i -lt 300 ]; do mkdir d; cd d; echo x > f; i=$((i+1)); done; cd {}; \
         chmod 400 locked/in/f; chmod 000 locked/in locked",
        outside.display(),
        sandbox.place().workspace.display()
    );
    assert_eq!(run(&*sandbox, &script(&*sandbox, &text), "").await.1.status, Some(0));
    driver.erase(session(1)).await.unwrap();
    assert_eq!(fs::read_dir(world.root()).unwrap().count(), 0);
    assert_eq!(tree(&outside).len(), 1, "a link is removed, not followed");
}

#[tokio::test]
async fn an_erasure_that_was_cut_off_is_finished_by_reap() {
    let world = World::new();
    let driver = world.process();
    drop(acquire(&driver, &world.spec(1, "a")).await);
    fs::rename(world.place(1), world.root().join(format!(".gone-{}-0", session(1)))).unwrap();
    fs::write(world.root().join("note"), "not ours").unwrap();
    assert_eq!(driver.reap(&|_| true).await.unwrap(), 0);
    assert_eq!(tree(&world.root()), [("note".into(), "not ours".to_owned())]);
}
