//! A guest that lies.

use std::sync::Arc;
use std::time::Duration;

use karta_guest::proto::frame::{self, Decoder, Frame, Kind};
use karta_guest::proto::message::{Accepted, Answer, Ended, Hello, Request};
use karta_guest::proto::record::{self, Item};
use karta_guest::proto::{CHUNK, GUEST_STREAMS, VERSION, WINDOW};
use karta_sandbox::guest::{GuestSandbox, Link, Setup};
use karta_sandbox::uplink::Nowhere;
use karta_sandbox::{Error, Place, Sandbox};
use karta_types::SandboxId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::{PATIENCE, Taken};
use crate::support::{clock, command, rng};

const GENERATION: u64 = 7;

/// The guest's side of a channel.
struct Liar {
    channel: DuplexStream,
    decoder: Decoder,
}

impl Liar {
    async fn say(&mut self, kind: Kind, stream: u32, payload: &[u8]) {
        self.say_as(GENERATION, kind, stream, payload).await;
    }

    async fn say_as(&mut self, generation: u64, kind: Kind, stream: u32, payload: &[u8]) {
        let mut bytes = Vec::new();
        frame::encode(&mut bytes, kind, stream, generation, payload).unwrap();
        let _ = self.channel.write_all(&bytes).await;
    }

    async fn hear(&mut self) -> Frame {
        let mut buffer = [0; 4096];
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return frame;
            }
            let length = self.channel.read(&mut buffer).await.unwrap();
            assert!(length > 0, "the host is gone");
            self.decoder.push(&buffer[..length]);
        }
    }

    /// Waits for a request and says yes to it.
    async fn yes(&mut self) -> u32 {
        loop {
            let frame = self.hear().await;
            if frame.kind == Kind::Open {
                self.say(Kind::Answer, frame.stream, &Answer::Done(Vec::new()).encode()).await;
                return frame.stream;
            }
        }
    }
}

struct Nothing;

#[async_trait::async_trait]
impl karta_sandbox::guest::Machine for Nothing {
    async fn pause(&self) -> Result<(), Error> {
        Ok(())
    }
    async fn wake(&self) -> Result<(), Error> {
        Ok(())
    }
    async fn close(&self) -> Result<(), Error> {
        Ok(())
    }
}

fn pair(uplink: Arc<dyn karta_sandbox::uplink::Uplink>) -> (GuestSandbox, Liar) {
    let (host, channel) = tokio::io::duplex(4096);
    let sandbox = GuestSandbox::new(Setup {
        id: SandboxId::new(&*clock(), &*rng()),
        place: Place { workspace: "/w".into(), home: "/h".into(), temp: "/t".into(), harness: None },
        link: Link::start(host, GENERATION, uplink),
        machine: Box::new(Nothing),
        kept: Vec::new(),
        fresh: true,
        services: std::net::Ipv4Addr::LOCALHOST,
    });
    (sandbox, Liar { channel, decoder: Decoder::default() })
}

/// What the link says when a guest said this.
async fn caught(kind: Kind, stream: u32, payload: &[u8]) -> String {
    let (sandbox, mut liar) = pair(Arc::new(Nowhere));
    liar.say(kind, stream, payload).await;
    let ended = tokio::time::timeout(PATIENCE, sandbox.link().ended()).await.unwrap();
    assert!(sandbox.spawn(&command(&sandbox, "x")).await.is_err());
    ended.to_string()
}

#[tokio::test]
async fn what_no_guest_may_say_ends_the_link() {
    let open = |port| Accepted { port }.encode();
    for (kind, stream, payload, what) in [
        (Kind::Data, 1, vec![0], "never such a stream"),
        (Kind::Data, 2, vec![0], "never such a stream"),
        (Kind::Answer, 1, vec![0, 0, 0, 0, 0], "never such a stream"),
        (Kind::Open, 1, open(4180), "opened twice"),
        (Kind::Open, 0, open(4180), "opened twice"),
        (Kind::Open, 2, open(22), "no such service"),
        (Kind::Open, 2, vec![1], "ends too early"),
        (Kind::Signal, 2, vec![9], "never such a stream"),
    ] {
        let said = caught(kind, stream, &payload).await;
        assert!(said.contains("broke the protocol") && said.contains(what), "{kind:?} {stream}: {said}");
    }
    let (sandbox, mut liar) = pair(Arc::new(Nowhere));
    liar.channel.write_all(&[255; 17]).await.unwrap();
    assert!(sandbox.link().ended().await.contains("no known kind"));
    let (sandbox, mut liar) = pair(Arc::new(Nowhere));
    liar.say(Kind::Hello, 0, &Hello { version: VERSION + 1 }.encode()).await;
    assert!(sandbox.link().ended().await.contains("another version"));
}

#[tokio::test]
async fn an_older_generation_is_not_heard_and_a_later_one_ends_the_link() {
    let (sandbox, mut liar) = pair(Arc::new(Nowhere));
    for generation in [0, GENERATION - 1] {
        liar.say_as(generation, Kind::Data, 99, &[0]).await;
        liar.say_as(generation, Kind::Exit, 1, &Ended::Status(0).encode()).await;
    }
    liar.say_as(0, Kind::Hello, 0, &Hello { version: VERSION }.encode()).await;
    sandbox.link().hello(PATIENCE).await.unwrap();
    let (answered, _) = tokio::join!(sandbox.link().request(&Request::Ping, PATIENCE), liar.yes());
    answered.unwrap();
    liar.say_as(GENERATION + 1, Kind::Data, 1, &[0]).await;
    assert!(sandbox.link().ended().await.contains("later generation"));
}

#[tokio::test]
async fn more_than_the_window_ends_the_link_and_no_more_is_held() {
    let (sandbox, mut liar) = pair(Arc::new(Nowhere));
    let cat = command(&sandbox, "x");
    let (process, id) = tokio::join!(sandbox.spawn(&cat), liar.yes());
    let _process = process.unwrap();
    let pieces = WINDOW as usize / CHUNK;
    for _ in 0..=pieces {
        liar.say(Kind::Data, id, &vec![0; CHUNK]).await;
    }
    assert!(sandbox.link().ended().await.contains("more than it was granted"));
}

#[tokio::test]
async fn lies_about_programs_end_the_link() {
    for (kind, payload, what) in [
        (Kind::Exit, vec![0, 0, 1, 0, 0], "ended as none can"),
        (Kind::Answer, Answer::Done(Vec::new()).encode(), "answers twice"),
        (Kind::Credit, 1u32.to_le_bytes().to_vec(), "grants more than there is"),
        (Kind::Signal, vec![9], "only a host may send"),
    ] {
        let (sandbox, mut liar) = pair(Arc::new(Nowhere));
        let cat = command(&sandbox, "x");
        let (process, id) = tokio::join!(sandbox.spawn(&cat), liar.yes());
        let mut process = process.unwrap();
        liar.say(kind, id, &payload).await;
        let said = sandbox.link().ended().await;
        assert!(said.contains(what), "{kind:?}: {said}");
        assert_eq!(process.control.wait().await.signal, Some(9));
    }
    let (sandbox, mut liar) = pair(Arc::new(Nowhere));
    let cat = command(&sandbox, "x");
    let (process, id) = tokio::join!(sandbox.spawn(&cat), liar.yes());
    let mut process = process.unwrap();
    liar.say(Kind::Exit, id, &Ended::Status(0).encode()).await;
    assert_eq!(process.control.wait().await.status, Some(0));
    liar.say(Kind::Exit, id, &Ended::Status(1).encode()).await;
    assert!(sandbox.link().ended().await.contains("no program"));
}

#[tokio::test]
async fn too_many_streams_end_the_link() {
    let (uplink, mut taken) = Taken::new();
    let (sandbox, mut liar) = pair(uplink);
    for number in 0..=u32::try_from(GUEST_STREAMS).unwrap() {
        liar.say(Kind::Open, 2 + 2 * number, &Accepted { port: 4180 }.encode()).await;
    }
    assert!(sandbox.link().ended().await.contains("too many streams"));
    let mut held = Vec::new();
    while let Ok(one) = taken.try_recv() {
        held.push(one);
    }
    assert_eq!(held.len(), GUEST_STREAMS);
}

#[tokio::test]
async fn streams_that_end_at_once_pile_up_nowhere() {
    let (uplink, mut taken) = Taken::new();
    let (sandbox, mut liar) = pair(uplink);
    // It opens and ends one after the other; the host's side keeps them all.
    let mut held = Vec::new();
    for number in 0..3000 {
        let id = 2 + 2 * number;
        liar.say(Kind::Open, id, &Accepted { port: 4181 }.encode()).await;
        liar.say(Kind::Eof, id, &[0]).await;
        liar.say(Kind::Stop, id, &[]).await;
        // The host answers with its own end.
        while !matches!(liar.hear().await, Frame { kind: Kind::Eof, stream, .. } if stream == id) {}
        while let Ok(one) = taken.try_recv() {
            held.push(one);
        }
    }
    assert!(held.len() <= 1024, "{}", held.len());
    drop(held);
    let (answered, _) = tokio::join!(sandbox.link().request(&Request::Ping, PATIENCE), liar.yes());
    answered.unwrap();
}

#[tokio::test]
async fn a_guest_that_says_nothing_is_given_up() {
    let (sandbox, _liar) = pair(Arc::new(Nowhere));
    let soon = Duration::from_millis(1);
    let error = sandbox.link().request(&Request::Sync, soon).await.unwrap_err().to_string();
    assert!(error.contains("writing the disks") && error.contains("longer"), "{error}");
    assert!(sandbox.link().hello(soon).await.is_err());
}

#[tokio::test]
async fn lies_about_files_end_the_link() {
    let entry = |path: &str, size| {
        Item::Entry(record::Entry {
            path: path.as_bytes().to_vec(),
            kind: record::Kind::File { size },
            mode: 0o600,
            stamp: 0,
            modified: 0,
        })
    };
    let removed = Item::Entry(record::Entry {
        path: b"x".to_vec(),
        kind: record::Kind::Removed,
        mode: 0,
        stamp: 0,
        modified: 0,
    });
    let data = || Item::Data(vec![0; 10]);
    // What is asked for, what the guest says, what the host says to that.
    let cases: Vec<(&str, Vec<Item>, &str)> = vec![
        ("survey", vec![entry("../etc/passwd", 1)], "not plain"),
        ("survey", vec![entry("home/b", 1), entry("home/a", 1)], "out of order"),
        ("survey", vec![entry("home/a/b", 1)], "out of order"),
        ("survey", vec![data()], "not asked"),
        ("take", vec![entry("home/b", 1)], "not asked for"),
        ("take", vec![entry("home/a", 9), data()], "more bytes than it said"),
        ("find", vec![entry("../../etc/passwd", 1)], "not looked for"),
        ("find", vec![entry("h/a", 101)], "more than was asked for"),
        ("find", vec![entry("h/a", 9), data()], "more bytes than it said"),
        ("find", vec![data()], "more bytes than it said"),
        ("export", vec![entry("../x", 1)], "not plain"),
        ("export", vec![removed], "was removed"),
        ("export", vec![entry("x", 9), data()], "more bytes than it said"),
        ("put", vec![data()], "not asked"),
    ];
    for (asked, says, what) in cases {
        let (sandbox, mut liar) = pair(Arc::new(Nowhere));
        let mut bytes = Vec::new();
        for item in &says {
            item.encode(&mut bytes);
        }
        let into = tempfile::tempdir().unwrap();
        let (done, ()) = tokio::join!(
            async {
                match asked {
                    "survey" => sandbox.survey().await.map(drop),
                    "find" => sandbox.find("h/*", 100).await.map(drop),
                    "export" => sandbox.export(into.path()).await,
                    "put" => sandbox.put("x".as_ref(), b"x").await,
                    _ => {
                        use futures_util::TryStreamExt as _;
                        sandbox
                            .take(vec!["home/a".into()])
                            .await
                            .unwrap()
                            .try_collect::<Vec<_>>()
                            .await
                            .map(drop)
                    }
                }
            },
            async {
                let id = liar.yes().await;
                liar.say(Kind::Data, id, &bytes).await;
            }
        );
        let error = done.unwrap_err();
        assert!(matches!(error, Error::Unavailable(_)), "{asked}: {error:?}");
        let said = sandbox.link().ended().await;
        assert!(said.contains("broke the protocol") && said.contains(what), "{asked}: {said}");
    }
}
