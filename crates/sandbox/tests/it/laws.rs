//! What every driver holds.

use std::path::Path;

use karta_sandbox::{Driver, Error, Exit, Process};
use tokio::io::AsyncReadExt as _;

use crate::isolated::namespace;
use crate::support::{World, acquire, command, fake, run, session};

/// One test for each law and driver.
macro_rules! laws {
    ($($law:ident)*) => {
        mod process {
            $(#[tokio::test]
            async fn $law() {
                let world = super::World::new();
                super::$law(&world.process(), &world).await;
            })*
        }
        mod guest {
            $(#[tokio::test]
            async fn $law() {
                let world = super::World::new();
                super::$law(&crate::guest::Plain::new(&world), &world).await;
            })*
        }
        mod namespace {
            $(#[tokio::test]
            async fn $law() {
                let world = super::World::new();
                super::$law(&super::namespace(&world), &world).await;
            })*
        }
        mod fake {
            $(#[tokio::test]
            async fn $law() {
                super::$law(&super::fake(), &super::World::new()).await;
            })*
        }
    };
}

laws! {
    what_goes_in_comes_out
    the_status_is_told
    a_kill_is_told_again_and_again
    a_termination_is_told
    a_wait_may_be_given_up
    dropping_the_control_ends_the_process
    a_missing_program_is_named
    a_put_can_be_found
    a_find_is_cut_at_its_limit
    nothing_is_written_outside
    an_erased_session_starts_nothing
    erasing_twice_is_fine
    reap_ends_what_nobody_keeps
    the_sandbox_is_the_same_when_acquired_again
}

async fn what_goes_in_comes_out(driver: &dyn Driver, world: &World) {
    driver.check().await.unwrap();
    let sandbox = acquire(driver, &world.spec(1, "a")).await;
    let text = "line\n".repeat(50_000);
    let process = sandbox.spawn(&command(&*sandbox, "copy")).await.unwrap();
    let Process { mut stdin, mut stdout, mut control, .. } = process;
    let mut output = String::new();
    let (written, read) = tokio::join!(
        async {
            let written = tokio::io::AsyncWriteExt::write_all(&mut stdin, text.as_bytes()).await;
            drop(stdin);
            written
        },
        stdout.read_to_string(&mut output),
    );
    written.unwrap();
    read.unwrap();
    assert!(output == text, "{} bytes came out of {}", output.len(), text.len());
    assert_eq!(control.wait().await, Exit { status: Some(0), signal: None });
}

async fn the_status_is_told(driver: &dyn Driver, world: &World) {
    let sandbox = acquire(driver, &world.spec(1, "a")).await;
    let mut process = sandbox.spawn(&command(&*sandbox, "seven")).await.unwrap();
    assert_eq!(process.control.wait().await, Exit { status: Some(7), signal: None });
    process.control.kill();
    process.control.terminate();
    assert_eq!(process.control.wait().await, Exit { status: Some(7), signal: None });
}

async fn a_kill_is_told_again_and_again(driver: &dyn Driver, world: &World) {
    let sandbox = acquire(driver, &world.spec(1, "a")).await;
    let mut process = sandbox.spawn(&command(&*sandbox, "forever")).await.unwrap();
    process.control.kill();
    for _ in 0..3 {
        assert_eq!(process.control.wait().await, Exit { status: None, signal: Some(9) });
    }
}

async fn a_termination_is_told(driver: &dyn Driver, world: &World) {
    let sandbox = acquire(driver, &world.spec(1, "a")).await;
    let mut process = sandbox.spawn(&command(&*sandbox, "forever")).await.unwrap();
    process.control.terminate();
    assert_eq!(process.control.wait().await, Exit { status: None, signal: Some(15) });
}

async fn a_wait_may_be_given_up(driver: &dyn Driver, world: &World) {
    let sandbox = acquire(driver, &world.spec(1, "a")).await;
    let mut process = sandbox.spawn(&command(&*sandbox, "forever")).await.unwrap();
    for _ in 0..3 {
        tokio::select! {
            biased;
            exit = process.control.wait() => panic!("it ended: {exit:?}"),
            () = tokio::task::yield_now() => {}
        }
    }
    process.control.kill();
    assert_eq!(process.control.wait().await.signal, Some(9));
}

async fn dropping_the_control_ends_the_process(driver: &dyn Driver, world: &World) {
    let sandbox = acquire(driver, &world.spec(1, "a")).await;
    let process = sandbox.spawn(&command(&*sandbox, "forever")).await.unwrap();
    let Process { stdin: _stdin, mut stdout, control, .. } = process;
    drop(control);
    let mut output = Vec::new();
    stdout.read_to_end(&mut output).await.unwrap();
    assert!(output.is_empty());
}

async fn a_missing_program_is_named(driver: &dyn Driver, world: &World) {
    let sandbox = acquire(driver, &world.spec(1, "a")).await;
    let error = sandbox.spawn(&command(&*sandbox, "no-such-program")).await.unwrap_err();
    assert!(error.to_string().contains("no-such-program"), "{error}");
    assert!(matches!(error, Error::Spawn { source, .. } if source.kind() == std::io::ErrorKind::NotFound));
}

async fn a_put_can_be_found(driver: &dyn Driver, world: &World) {
    let sandbox = acquire(driver, &world.spec(1, "a")).await;
    let home = sandbox.place().home.clone();
    sandbox.put(&home.join("h/a/one.jsonl"), b"old").await.unwrap();
    sandbox.put(Path::new("./h/a/one.jsonl"), b"new").await.unwrap();
    sandbox.put(&home.join("h/a/one.txt"), b"no").await.unwrap();
    sandbox.put(&home.join("h/a/b/one.jsonl"), b"deeper").await.unwrap();
    sandbox.put(&sandbox.place().temp.join("h/a/one.jsonl"), b"elsewhere").await.unwrap();
    let found = sandbox.find("h/*/one.jsonl", 100).await.unwrap();
    assert_eq!(found, [(home.join("h/a/one.jsonl"), b"new".to_vec())]);
    assert!(sandbox.find("none/*/x", 100).await.unwrap().is_empty());
}

async fn a_find_is_cut_at_its_limit(driver: &dyn Driver, world: &World) {
    let sandbox = acquire(driver, &world.spec(1, "a")).await;
    sandbox.put(Path::new("big"), &vec![b'x'; 10_000]).await.unwrap();
    assert_eq!(sandbox.find("b*", 100).await.unwrap()[0].1.len(), 100);
}

async fn nothing_is_written_outside(driver: &dyn Driver, world: &World) {
    let sandbox = acquire(driver, &world.spec(1, "a")).await;
    let home = sandbox.place().home.clone();
    let other = home.with_file_name("place");
    for path in [Path::new("../x"), Path::new("/etc/x"), &home.join("../../x"), &home, Path::new(""), &other]
    {
        let error = sandbox.put(path, b"x").await.unwrap_err();
        assert!(matches!(error, Error::Escape(_)), "{}: {error}", path.display());
    }
    for pattern in ["../*", "/etc/*", "a/../../*", "**"] {
        assert!(matches!(sandbox.find(pattern, 9).await, Err(Error::Escape(_))), "{pattern}");
    }
}

async fn an_erased_session_starts_nothing(driver: &dyn Driver, world: &World) {
    let sandbox = acquire(driver, &world.spec(1, "a")).await;
    sandbox.put(Path::new("secret"), b"x").await.unwrap();
    let mut process = sandbox.spawn(&command(&*sandbox, "forever")).await.unwrap();
    driver.erase(session(1)).await.unwrap();
    assert_eq!(process.control.wait().await.signal, Some(9));
    assert!(sandbox.spawn(&command(&*sandbox, "copy")).await.is_err());
    assert!(sandbox.put(Path::new("secret"), b"x").await.is_err());
    let again = acquire(driver, &world.spec(1, "a")).await;
    assert!(again.find("secret", 9).await.unwrap().is_empty());
    assert_eq!(run(&*again, &command(&*again, "copy"), "hi").await.0, "hi");
}

async fn erasing_twice_is_fine(driver: &dyn Driver, world: &World) {
    driver.erase(session(5)).await.unwrap();
    drop(acquire(driver, &world.spec(5, "a")).await);
    driver.erase(session(5)).await.unwrap();
    driver.erase(session(5)).await.unwrap();
    assert_eq!(driver.reap(&|_| false).await.unwrap(), 0);
}

async fn reap_ends_what_nobody_keeps(driver: &dyn Driver, world: &World) {
    let kept = acquire(driver, &world.spec(1, "a")).await;
    let lost = acquire(driver, &world.spec(2, "a")).await;
    kept.put(Path::new("f"), b"x").await.unwrap();
    let mut living = kept.spawn(&command(&*kept, "copy")).await.unwrap();
    let mut ending = lost.spawn(&command(&*lost, "forever")).await.unwrap();
    assert_eq!(driver.reap(&|known| *known == session(1)).await.unwrap(), 1);
    assert_eq!(ending.control.wait().await.signal, Some(9));
    assert_eq!(kept.find("f", 9).await.unwrap().len(), 1);
    drop(living.stdin);
    assert_eq!(living.control.wait().await.status, Some(0), "a process of a kept session lives on");
    assert_eq!(driver.reap(&|known| *known == session(1)).await.unwrap(), 0);
}

async fn the_sandbox_is_the_same_when_acquired_again(driver: &dyn Driver, world: &World) {
    let first = acquire(driver, &world.spec(1, "a")).await;
    let other = acquire(driver, &world.spec(2, "a")).await;
    let again = acquire(driver, &world.spec(1, "a")).await;
    assert_eq!((first.id(), first.place()), (again.id(), again.place()));
    assert_ne!(first.id(), other.id());
    assert!(again.kept().is_empty());
}

mod faults {
    use std::io::ErrorKind;

    use super::*;

    #[tokio::test]
    async fn happen_once() {
        let world = World::new();
        let driver = fake();
        let faults = driver.faults();
        faults.fail_acquire(ErrorKind::StorageFull);
        assert!(driver.acquire(&world.spec(1, "a")).await.err().unwrap().is_full());
        let sandbox = acquire(&driver, &world.spec(1, "a")).await;
        faults.fail_spawn(ErrorKind::PermissionDenied);
        assert!(sandbox.spawn(&command(&*sandbox, "copy")).await.is_err());
        faults.fail_put(ErrorKind::StorageFull);
        assert!(sandbox.put(Path::new("x"), b"").await.unwrap_err().is_full());
        sandbox.put(Path::new("x"), b"").await.unwrap();
        faults.cut_output(3);
        assert_eq!(run(&*sandbox, &command(&*sandbox, "copy"), "abcdef").await.0, "abc");
        assert_eq!(run(&*sandbox, &command(&*sandbox, "copy"), "abcdef").await.0, "abcdef");
    }
}

mod forgetful {
    use std::path::PathBuf;

    use futures_util::TryStreamExt as _;
    use karta_sandbox::Driver as _;
    use karta_sandbox::state::{Kind, Record};

    use super::*;

    #[tokio::test]
    async fn a_place_ends_with_its_last_handle_and_what_was_taken_is_put_into_the_next() {
        let world = World::new();
        let driver = fake().forgetful();
        assert!(!driver.keeps());
        let first = acquire(&driver, &world.spec(1, "a")).await;
        assert!(first.fresh());
        first.put(Path::new(".config/x"), &vec![5; 100_000]).await.unwrap();
        first.put(&first.place().workspace.join("uploads/y"), b"y").await.unwrap();
        first.put(&first.place().temp.join("z"), b"not kept").await.unwrap();
        let again = acquire(&driver, &world.spec(1, "a")).await;
        assert!(!again.fresh() && again.id() == first.id(), "another handle of the same");
        drop(first);
        let survey = again.survey().await.unwrap();
        let paths: Vec<_> = survey.iter().map(|entry| entry.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["home/.config", "home/.config/x", "work/uploads", "work/uploads/y"]);
        let files = survey.iter().filter(|entry| matches!(entry.kind, Kind::File { .. }));
        let wanted: Vec<PathBuf> =
            files.map(|entry| entry.path.clone()).chain(["home/gone".into()]).collect();
        let taken: Vec<Record> = again.take(wanted).await.unwrap().try_collect().await.unwrap();
        drop(again);
        let next = acquire(&driver, &world.spec(1, "a")).await;
        assert!(next.fresh());
        assert!(next.find(".config/x", 1).await.unwrap().is_empty(), "a new place holds nothing");
        next.restore(Box::pin(futures_util::stream::iter(taken.into_iter().map(Ok)))).await.unwrap();
        assert_eq!(next.find(".config/x", 200_000).await.unwrap()[0].1, vec![5; 100_000]);
        next.close().await.unwrap();
        assert!(next.survey().await.is_err() && next.put(Path::new("x"), b"").await.is_err());
        assert!(acquire(&driver, &world.spec(1, "a")).await.fresh());
    }
}
