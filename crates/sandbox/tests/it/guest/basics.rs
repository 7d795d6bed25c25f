//! Programs, ports, services and files.

use std::path::Path;
use std::sync::Arc;

use karta_guest::proto::frame::{self, Decoder, Kind};
use karta_guest::proto::message::{Configure, Request};
use karta_guest::proto::{GUEST_STREAMS, HOST_STREAMS};
use karta_sandbox::uplink::{Nowhere, Service};
use karta_sandbox::{Command, Error, Exit, Process, Sandbox};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{PATIENCE, Taken, agent, configure, sandbox, sandbox_as, sandbox_with};
use crate::support::{Watched, World, command, line, run, script};

#[tokio::test]
async fn what_goes_in_comes_out() {
    let world = World::new();
    let sandbox = sandbox(&world).await;
    let text = "line\n".repeat(200_000);
    let Process { mut stdin, mut stdout, mut control, .. } =
        sandbox.spawn(&command(&sandbox, "cat")).await.unwrap();
    let mut output = String::new();
    let (written, read) = tokio::join!(
        async {
            let written = stdin.write_all(text.as_bytes()).await;
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

#[tokio::test]
async fn the_status_and_the_signals_are_told() {
    let world = World::new();
    let sandbox = sandbox(&world).await;
    let mut process = sandbox.spawn(&script(&sandbox, "echo no >&2; exit 7")).await.unwrap();
    let mut errors = String::new();
    process.stderr.read_to_string(&mut errors).await.unwrap();
    assert_eq!(errors, "no\n");
    for _ in 0..3 {
        assert_eq!(process.control.wait().await, Exit { status: Some(7), signal: None });
        process.control.kill();
        process.control.terminate();
    }
    let mut process = sandbox.spawn(&script(&sandbox, "exec sleep 1000")).await.unwrap();
    process.control.terminate();
    assert_eq!(process.control.wait().await, Exit { status: None, signal: Some(15) });
    let mut process =
        sandbox.spawn(&script(&sandbox, "trap '' TERM; echo; while :; do sleep 1; done")).await.unwrap();
    line(&mut process).await;
    process.control.terminate();
    process.control.kill();
    assert_eq!(process.control.wait().await, Exit { status: None, signal: Some(9) });
}

#[tokio::test]
async fn the_process_is_alone_and_has_what_it_was_given() {
    let world = World::new();
    let sandbox = sandbox(&world).await;
    let text = "pwd; env | sort; ls /proc/self/fd | wc -l; ulimit -c; ulimit -n; umask; \
                grep -E '^(Cap(Prm|Eff|Inh|Amb)|NoNewPrivs)' /proc/self/status | cut -f2 | sort -u";
    let mut command = script(&sandbox, text);
    command.env.push(("ONE".to_owned(), "a=b c".to_owned()));
    let (output, exit) = run(&sandbox, &command, "").await;
    assert_eq!(exit.status, Some(0));
    let expected = format!(
        "{0}\nONE=a=b c\nPATH=/usr/bin:/bin\nPWD={0}\n4\n0\n1024\n0077\n0000000000000000\n1\n",
        sandbox.place().workspace.display()
    );
    assert_eq!(output, expected);
}

#[tokio::test]
async fn dropping_the_control_ends_everything_below() {
    let world = World::new();
    let sandbox = sandbox(&world).await;
    // One that left the session, whose parent is gone, and that has cleared its environment.
    let text = "(setsid env -i /bin/sh -c 'echo $$; exec sleep 1000' &); exec sleep 1000";
    let mut process = sandbox.spawn(&script(&sandbox, text)).await.unwrap();
    let escaped = Watched::new(&line(&mut process).await);
    assert!(!escaped.ended());
    let Process { mut stdout, control, .. } = process;
    drop(control);
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).await.unwrap();
    escaped.wait();
}

#[tokio::test]
async fn the_end_of_a_leader_is_the_end_of_all() {
    let world = World::new();
    let sandbox = sandbox(&world).await;
    let mut process = sandbox.spawn(&script(&sandbox, "setsid sleep 1000 & echo $!; exit 3")).await.unwrap();
    let left = Watched::new(&line(&mut process).await);
    assert_eq!(process.control.wait().await.status, Some(3));
    assert!(left.ended(), "the end is told when nothing is left");
}

#[tokio::test]
async fn whoever_kills_what_watches_over_it_ends_with_it() {
    let world = World::new();
    let sandbox = sandbox(&world).await;
    let mut other = sandbox.spawn(&command(&sandbox, "cat")).await.unwrap();
    let text = "(setsid env -i sleep 1000 & echo $!); read go; kill -9 $PPID; sleep 1000";
    let mut process = sandbox.spawn(&script(&sandbox, text)).await.unwrap();
    let left = Watched::new(&line(&mut process).await);
    // Not before the start was told: else it is the start that failed.
    process.stdin.write_all(b"go\n").await.unwrap();
    assert_eq!(process.control.wait().await, Exit { status: None, signal: Some(9) });
    left.wait();
    other.stdin.write_all(b"still here\n").await.unwrap();
    assert_eq!(line(&mut other).await, "still here", "what others have started goes on");
}

#[tokio::test]
async fn the_end_of_the_link_is_the_end_of_all() {
    let world = World::new();
    let sandbox = sandbox(&world).await;
    let mut process =
        sandbox.spawn(&script(&sandbox, "setsid sleep 1000 & echo $!; sleep 1000")).await.unwrap();
    let left = Watched::new(&line(&mut process).await);
    sandbox.close().await.unwrap();
    assert_eq!(process.control.wait().await, Exit { status: None, signal: Some(9) });
    left.wait();
    let error = sandbox.spawn(&command(&sandbox, "cat")).await.unwrap_err().to_string();
    assert!(error.contains("closed"), "{error}");
}

#[tokio::test]
async fn what_can_not_start_is_told_apart() {
    let world = World::new();
    let sandbox = sandbox(&world).await;
    let error = sandbox.spawn(&command(&sandbox, "no-such-program")).await.unwrap_err();
    assert!(error.to_string().contains("no-such-program"), "{error}");
    assert!(matches!(error, Error::Spawn { source, .. } if source.kind() == std::io::ErrorKind::NotFound));
    let cwd = sandbox.place().workspace.join("none");
    let error = sandbox.spawn(&Command { cwd, ..command(&sandbox, "cat") }).await.unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("working directory"), "{source}");
}

#[tokio::test]
async fn a_program_that_reads_nothing_stops_nobody() {
    let world = World::new();
    let sandbox = sandbox(&world).await;
    let mut deaf = sandbox.spawn(&script(&sandbox, "exec sleep 1000")).await.unwrap();
    let mut loud = sandbox.spawn(&script(&sandbox, "exec cat /dev/zero")).await.unwrap();
    // As much goes in as there is room for; nobody reads what the other writes.
    let filled = async {
        loop {
            deaf.stdin.write_all(&[0; 4096]).await.unwrap();
        }
    };
    let copy = command(&sandbox, "cat");
    tokio::select! {
        () = filled => {}
        (output, _) = run(&sandbox, &copy, "through") => assert_eq!(output, "through"),
    }
    let mut some = vec![0; 100_000];
    loud.stdout.read_exact(&mut some).await.unwrap();
    drop(loud.stdout);
    assert_eq!(loud.control.wait().await.signal, Some(13), "it writes for nobody");
    deaf.control.kill();
    assert_eq!(deaf.control.wait().await.signal, Some(9));
}

/// A filter that refuses one system call, `mkdir` or `mkdirat`, as instructions.
#[cfg(target_arch = "x86_64")]
fn no_folders() -> Vec<u8> {
    let mut code = Vec::new();
    let mut one = |operation: u16, yes: u8, no: u8, value: u32| {
        code.extend(operation.to_le_bytes());
        code.extend([yes, no]);
        code.extend(value.to_le_bytes());
    };
    one(0x20, 0, 0, 0);
    one(0x15, 1, 0, 83);
    one(0x15, 0, 1, 258);
    one(0x06, 0, 0, 0x0005_0000 | 1);
    one(0x06, 0, 0, 0x7fff_0000);
    code
}

/// Whether this kernel has Landlock: it is tried on a thread that does nothing else.
#[cfg(target_arch = "x86_64")]
fn has_landlock() -> bool {
    use landlock::{AccessFs, Ruleset, RulesetAttr as _, RulesetStatus};
    let tried = std::thread::spawn(|| {
        let rules = Ruleset::default().handle_access(AccessFs::Execute).unwrap().create().unwrap();
        rules.restrict_self().unwrap().ruleset
    });
    tried.join().unwrap() != RulesetStatus::NotEnforced
}

#[cfg(target_arch = "x86_64")]
#[tokio::test]
async fn a_filter_and_landlock_hold_what_is_started() {
    let world = World::new();
    let configure = Configure { filter: no_folders(), landlock: true, ..configure() };
    let sandbox = sandbox_as(world.folder.path(), Arc::new(Nowhere), configure).await;
    let outside = world.folder.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let text = format!("exec 2>&1; mkdir x; echo a > f && cat f; echo b > {}/f; true", outside.display());
    let (output, _) = run(&sandbox, &script(&sandbox, &text), "").await;
    assert!(output.contains("mkdir") && output.contains("not permitted"), "{output}");
    assert!(output.contains("\na\n"), "the rest goes on: {output}");
    assert_eq!(outside.join("f").exists(), !has_landlock(), "{output}");
    // The program inside itself is not held: it still makes folders.
    sandbox.put(Path::new("a/b"), b"x").await.unwrap();
}

#[tokio::test]
async fn ports_and_services_lead_both_ways() {
    let world = World::new();
    let (uplink, mut taken) = Taken::new();
    let sandbox = sandbox_with(&world, uplink).await;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut stream = sandbox.connect(port).await.unwrap();
    let (mut inside, _) = listener.accept().await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut text = String::new();
    inside.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello");
    inside.write_all(b"and back").await.unwrap();
    drop((listener, inside));
    text.clear();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "and back");
    assert!(matches!(sandbox.connect(port).await, Err(Error::Connect { .. })));

    for service in Service::ALL {
        let address = sandbox.service(service).unwrap();
        let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
        let (known, mut stream) = taken.recv().await.unwrap();
        assert_eq!(known, service);
        client.write_all(b"GET /").await.unwrap();
        client.shutdown().await.unwrap();
        text.clear();
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "GET /");
        stream.write_all(&vec![b'x'; 1 << 20]).await.unwrap();
        drop(stream);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer.len(), 1 << 20);
    }
}

#[tokio::test]
async fn more_connections_than_are_let_through_wait_for_their_turn() {
    let world = World::new();
    let (uplink, mut taken) = Taken::new();
    let sandbox = sandbox_with(&world, uplink).await;
    let address = sandbox.service(Service::Egress).unwrap();
    let mut clients = Vec::new();
    for _ in 0..GUEST_STREAMS + 50 {
        clients.push(tokio::net::TcpStream::connect(address).await.unwrap());
    }
    let mut streams = Vec::new();
    for _ in 0..GUEST_STREAMS {
        streams.push(taken.recv().await.unwrap().1);
    }
    // The guest answers, so it has seen the others, and let none of them through.
    sandbox.link().request(&Request::Ping, PATIENCE).await.unwrap();
    assert!(taken.try_recv().is_err());
    drop(clients.drain(..50));
    drop(streams.drain(..50));
    for _ in 0..50 {
        streams.push(taken.recv().await.unwrap().1);
    }
    for mut stream in streams {
        stream.write_all(b"x").await.unwrap();
    }
    for client in &mut clients {
        assert_eq!(client.read_u8().await.unwrap(), b'x');
    }
}

#[tokio::test]
async fn more_streams_than_there_may_be_are_refused() {
    let world = World::new();
    let sandbox = sandbox(&world).await;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut streams = Vec::new();
    let error = loop {
        match sandbox.connect(port).await {
            Ok(stream) => streams.push((stream, listener.accept().await.unwrap())),
            Err(error) => break error.to_string(),
        }
    };
    assert!(error.contains("streams lead into the sandbox"), "{error}");
    assert!(streams.len() + 2 >= HOST_STREAMS, "{}", streams.len());
    drop(streams);
    sandbox.link().request(&Request::Ping, PATIENCE).await.unwrap();
    sandbox.connect(port).await.unwrap();
}

/// What the program inside says to requests of these generations.
#[tokio::test]
async fn an_older_host_is_not_heard_by_the_program_inside() {
    let world = World::new();
    let (mut channel, _machine, _) = agent(world.folder.path());
    let mut decoder = Decoder::default();
    let mut said = Vec::new();
    let mut ask = |stream, generation, request: &Request| {
        frame::encode(&mut said, Kind::Open, stream, generation, &request.encode()).unwrap();
    };
    ask(1, 5, &Request::Configure(configure()));
    ask(99, 4, &Request::Shutdown);
    ask(3, 5, &Request::Ping);
    // It woke up elsewhere: what was there stays, and a new count begins.
    ask(1, 6, &Request::Configure(configure()));
    ask(99, 5, &Request::Shutdown);
    ask(3, 6, &Request::Ping);
    // A later one must say what it is first.
    ask(5, 7, &Request::Ping);
    channel.write_all(&said).await.unwrap();
    let mut heard = Vec::new();
    let mut buffer = [0; 4096];
    while let length @ 1.. = channel.read(&mut buffer).await.unwrap() {
        decoder.push(&buffer[..length]);
        while let Some(frame) = decoder.next_frame().unwrap() {
            heard.push((frame.kind, frame.stream, frame.generation));
        }
    }
    let answer = |stream, generation| (Kind::Answer, stream, generation);
    assert_eq!(heard, [(Kind::Hello, 0, 0), answer(1, 5), answer(3, 5), answer(1, 6), answer(3, 6)]);
}

#[tokio::test]
async fn files_are_put_whole_and_nowhere_else() {
    let world = World::new();
    let sandbox = sandbox(&world).await;
    let place = sandbox.place().clone();
    let long = vec![b'x'; 3 << 20];
    sandbox.put(Path::new("./a/b/one"), b"old").await.unwrap();
    sandbox.put(&place.home.join("a/b/one"), &long).await.unwrap();
    sandbox.put(&place.workspace.join("agents/two"), b"").await.unwrap();
    assert_eq!(std::fs::read(place.home.join("a/b/one")).unwrap(), long);
    assert_eq!(std::fs::read(place.workspace.join("agents/two")).unwrap(), b"");
    assert_eq!(std::fs::read(place.workspace.join("CLAUDE.md")).unwrap(), b"be brief\n");
    let other = place.home.with_file_name("place");
    for path in [Path::new("../x"), Path::new("/etc/x"), &place.home.join("../../x"), &place.home, &other] {
        let error = sandbox.put(path, b"x").await.unwrap_err();
        assert!(matches!(error, Error::Escape(_)), "{}: {error}", path.display());
    }
    let outside = world.folder.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::os::unix::fs::symlink(&outside, place.home.join("way")).unwrap();
    std::os::unix::fs::symlink(outside.join("file"), place.home.join("link")).unwrap();
    let error = sandbox.put(Path::new("way/x"), b"x").await.unwrap_err();
    assert!(matches!(error, Error::Escape(_)), "{error}");
    sandbox.put(Path::new("link"), b"x").await.unwrap();
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
}
