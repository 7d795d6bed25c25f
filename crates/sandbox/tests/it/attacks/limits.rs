//! Against the host's room: processes, memory, disks, files, output, time.

use karta_sandbox::Driver;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{apart, perl, said};
use crate::isolated::machines;
use crate::support::{World, acquire, line, script};

pub(super) async fn start_processes_without_end(driver: &dyn Driver, world: &World) {
    let sandbox = acquire(driver, &world.spec(1, "a")).await;
    let text = perl(
        "for my $n (1 .. 5000) { my $child = fork(); \
             if (!defined $child) { print \"refused after $n\\n\"; sleep 1000; exit } \
             if (!$child) { sleep 1000; exit } } \
         print \"ALL STARTED\\n\";",
    );
    let mut process = sandbox.spawn(&script(&*sandbox, &text)).await.unwrap();
    let output = line(&mut process).await;
    let started: u32 =
        output.strip_prefix("refused after ").and_then(|rest| rest.parse().ok()).expect(&output);
    assert!(started <= machines(world).processes, "{started}");
    process.control.kill();
    process.control.wait().await;
    assert_eq!(said(&*sandbox, "echo alive").await.0, "alive\n");
    // Those that multiply faster than they are seen.
    let mut bomb =
        sandbox.spawn(&script(&*sandbox, "bomb() { bomb | bomb & }; echo up; bomb; wait")).await.unwrap();
    assert_eq!(line(&mut bomb).await, "up");
    sandbox.close().await.unwrap();
    assert!(bomb.control.wait().await.status.is_none());
}

/// Processes of which each makes another and ends at once, in a group of its own: whoever looks for them finds those that are gone.
/// The kernel wakes the stopped ones of a group that loses its last relative, and tells them by a signal that these don't heed.
/// `first` is done before they are more than one.
pub(crate) fn fleeing(first: &str) -> String {
    let flee = perl(&format!(
        "$SIG{{HUP}} = \"IGNORE\"; setpgrp(0, 0); print \"up\\n\"; {first} fork() for 1 .. 3; \
         while (1) {{ setpgrp(0, 0); my $child = fork(); exit if $child; }}",
    ));
    format!("{flee}exec sleep 1000")
}

pub(super) async fn flee_from_a_pause_and_from_the_end(driver: &dyn Driver, world: &World) {
    let sandbox = acquire(driver, &world.spec(1, "a")).await;
    let mut other = sandbox.spawn(&script(&*sandbox, "echo up; read word; echo $word")).await.unwrap();
    assert_eq!(line(&mut other).await, "up");
    let mut programs = Vec::new();
    for _ in 0..2 {
        let mut fleeing = sandbox.spawn(&script(&*sandbox, &fleeing("<STDIN>;"))).await.unwrap();
        assert_eq!(line(&mut fleeing).await, "up");
        programs.push(fleeing);
    }
    // Once one flees there may be no room for another.
    for fleeing in &mut programs {
        fleeing.stdin.write_all(b"go\n").await.unwrap();
    }
    for _ in 0..3 {
        sandbox.pause().await.unwrap();
        sandbox.wake().await.unwrap();
    }
    // The end of each is the end of all of its own, and of nobody else; what ends them does not get into each other's way.
    for fleeing in &mut programs {
        fleeing.control.kill();
    }
    for fleeing in &mut programs {
        fleeing.control.wait().await;
    }
    // Somebody may be gone before it is looked at.
    let look = "exec 2> /dev/null; for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done | grep -c 'setpgr[p]'";
    assert_eq!(said(&*sandbox, look).await.0, "0\n");
    other.stdin.write_all(b"alive\n").await.unwrap();
    assert_eq!(line(&mut other).await, "alive");
    sandbox.close().await.unwrap();
}

pub(super) async fn use_memory_without_end(driver: &dyn Driver, world: &World) {
    let sandbox = acquire(driver, &world.spec(1, "a")).await;
    let text = perl("my @all; while (1) { push @all, \"x\" x (16 << 20); }");
    let (output, _) = said(&*sandbox, &format!("{text}echo ended $?")).await;
    // Killed, or told that there is no more.
    assert!(output.contains("ended 137") || output.contains("ended 1\n") || output.is_empty(), "{output}");
    assert_eq!(said(&*sandbox, "echo alive").await.0, "alive\n");
}

/// Makes files until there is no room for another, in Perl.
fn many_files(folder: &str) -> String {
    format!(
        "my $n = 0; while ($n < 200000 && open(my $f, \">\", \"{folder}/n$n\")) {{ $n++ }} print \"files $n\\n\";"
    )
}

pub(super) async fn fill_the_temporary_folders(driver: &dyn Driver, world: &World) {
    let sandbox = acquire(driver, &world.spec(1, "a")).await;
    let text = "for folder in /tmp /dev/shm /run; do dd if=/dev/zero of=$folder/big bs=1M count=1024 2>&1 | tail -1; rm -f $folder/big; done\n\
                echo";
    let files = perl(&many_files("/tmp"));
    let output = said(&*sandbox, &format!("{text}\n{files}")).await.0;
    assert!(!output.contains("1073741824") && output.contains("files "), "{output}");
    let files: u32 = output.lines().last().unwrap().strip_prefix("files ").unwrap().parse().unwrap();
    assert!(files < 200_000, "{files}");
    assert_eq!(said(&*sandbox, "echo alive").await.0, "alive\n");
}

pub(super) async fn fill_the_disk(driver: &dyn Driver, world: &World) {
    if !apart(driver) {
        let sandbox = acquire(driver, &world.spec(1, "a")).await;
        let text = "dd if=/dev/zero of=/workspace/big bs=1M count=1024; stat -c %s /workspace/big";
        let (output, _) = said(&*sandbox, text).await;
        assert!(output.ends_with(&format!("\n{}\n", machines(world).disk_bytes)), "{output}");
        return;
    }
    let sandbox = acquire(driver, &world.spec(1, "a")).await;
    let text = "dd if=/dev/zero of=/workspace/big bs=1M; dd if=/dev/zero of=/home/agent/big bs=64k; \
                fallocate -l 1G /workspace/huge && echo TAKEN; truncate -s 1T /workspace/holes; \
                du -sm /workspace | cut -f 1";
    let files = perl(&many_files("/workspace"));
    let output = said(&*sandbox, &format!("{files}\n{text}")).await.0;
    assert!(output.matches("No space left on device").count() >= 2 && !output.contains("TAKEN"), "{output}");
    let used: u64 = output.lines().last().unwrap().parse().unwrap();
    assert!(used << 20 <= machines(world).disk_bytes, "{output}");
    // The session can go on once it has made room.
    assert_eq!(
        said(
            &*sandbox,
            "rm -rf /workspace/big /workspace/n* && echo room > /workspace/x && cat /workspace/x"
        )
        .await
        .0,
        "room\n"
    );
}

pub(super) async fn open_files_without_end(driver: &dyn Driver, world: &World) {
    let sandbox = acquire(driver, &world.spec(1, "a")).await;
    let text = perl(
        "my @all; while (open(my $f, \"<\", \"/dev/null\")) { push @all, $f; last if @all > 100000; } \
         print scalar(@all), \" $!\\n\";",
    );
    let output = said(&*sandbox, &format!("{text}ulimit -n 100000 || echo not raised")).await.0;
    let opened: u64 = output.split(' ').next().unwrap().parse().unwrap();
    assert!(opened < machines(world).open_files && output.contains("Too many open files"), "{output}");
    assert!(output.ends_with("not raised\n"), "{output}");
}

/// How much memory this process has in use, in MiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().trim().parse::<u64>().unwrap() / 1024
}

pub(super) async fn write_without_end(driver: &dyn Driver, world: &World) {
    let sandbox = acquire(driver, &world.spec(1, "a")).await;
    // Of both outputs; it is one line without an end.
    let endless = perl(
        "if (!fork()) { open(STDOUT, \">&STDERR\") } my $x = \"x\" x 65536; while (1) { print STDOUT $x }",
    );
    let before = resident();
    let mut floods = Vec::new();
    for _ in 0..4 {
        let mut flood = sandbox.spawn(&script(&*sandbox, &endless)).await.unwrap();
        // Read from, and then left: what is written on must wait inside.
        let mut some = vec![0; 1 << 20];
        flood.stdout.read_exact(&mut some).await.unwrap();
        floods.push(flood);
    }
    // All that while others are served.
    for _ in 0..20 {
        assert_eq!(said(&*sandbox, "echo alive").await.0, "alive\n");
    }
    assert!(resident() < before + 64, "{before} MiB before, {} MiB after", resident());
}

pub(super) async fn use_all_processors(driver: &dyn Driver, world: &World) {
    let sandbox = acquire(driver, &world.spec(1, "a")).await;
    let text = "for i in 1 2 3 4 5 6 7 8; do (while :; do :; done) & done; echo up; wait";
    let mut busy = sandbox.spawn(&script(&*sandbox, text)).await.unwrap();
    assert_eq!(line(&mut busy).await, "up");
    assert_eq!(said(&*sandbox, "echo alive").await.0, "alive\n");
    // Another session is served beside it.
    let other = acquire(driver, &world.spec(2, "a")).await;
    assert_eq!(said(&*other, "echo alive").await.0, "alive\n");
    sandbox.close().await.unwrap();
}
