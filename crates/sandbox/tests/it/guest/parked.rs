//! A guest that falls silent and goes on with another host.

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream as NativeStream;
use std::path::Path;

use async_trait::async_trait;
use karta_sandbox::guest::{Machine, adopt};
use karta_sandbox::{ParkKey, Process, Sandbox as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::support::{line, script};

static KEY: ParkKey = ParkKey::new([1; 32]);

/// A child process that is "saved" by leaving it alone, when it is let.
struct Left(Arc<Agent>, Option<Arc<Held>>);

/// What holds a saving up.
#[derive(Default)]
struct Held {
    began: tokio::sync::Notify,
    let_go: tokio::sync::Notify,
}

#[async_trait]
impl Machine for Left {
    async fn pause(&self) -> Result<(), Error> {
        self.0.pause().await
    }

    async fn wake(&self) -> Result<(), Error> {
        self.0.wake().await
    }

    fn saves(&self) -> bool {
        true
    }

    async fn save(&self, into: &Path, _key: &ParkKey) -> Result<(), Error> {
        if let Some(held) = &self.1 {
            held.began.notify_one();
            held.let_go.notified().await;
        }
        if into.exists() {
            return Err(Error::Unavailable("it is there already".to_owned()));
        }
        std::fs::create_dir(into).unwrap();
        Ok(())
    }

    async fn close(&self) -> Result<(), Error> {
        self.0.close().await
    }
}

async fn begin(sandbox: &GuestSandbox, text: &str) -> Process {
    sandbox.spawn(&script(sandbox, text)).await.unwrap()
}

/// A sandbox that can be "saved", its agent, and its channel for the next host.
async fn whole(
    world: &World,
    uplink: Arc<Taken>,
    held: Option<Arc<Held>>,
) -> (GuestSandbox, Arc<Agent>, OwnedFd, Ipv4Addr) {
    let (channel, machine, services) = agent(world.folder.path());
    let machine = Arc::new(machine);
    let again = channel.as_fd().try_clone_to_owned().unwrap();
    let link = Link::start(channel, 1, uplink);
    link.hello(PATIENCE).await.unwrap();
    link.request(&Request::Configure(configure()), PATIENCE).await.unwrap();
    let at = |path: &str| -> PathBuf { world.folder.path().join(path) };
    let sandbox = GuestSandbox::new(Setup {
        id: SandboxId::new(&*clock(), &*rng()),
        place: Place { workspace: at("workspace"), home: at("home/agent"), temp: at("tmp"), harness: None },
        link,
        machine: Box::new(Left(Arc::clone(&machine), held)),
        kept: Vec::new(),
        fresh: true,
        services,
    });
    (sandbox, machine, again, services)
}

#[tokio::test]
async fn while_it_is_saved_nothing_is_sent() {
    let world = World::new();
    let held = Arc::<Held>::default();
    let (sandbox, machine, _, _) = whole(&world, Taken::new().0, Some(Arc::clone(&held))).await;
    let mut echo = begin(&sandbox, "exec cat").await;
    // It can't be saved there.
    let saving = sandbox.park(world.folder.path(), &KEY);
    let meanwhile = async {
        held.began.notified().await;
        echo.stdin.write_all(b"meanwhile\n").await.unwrap();
        // What a guest that falls silent must not be asked is not asked.
        assert!(sandbox.spawn(&script(&sandbox, "true")).await.is_err());
        assert!(sandbox.put(Path::new("a"), b"a").await.is_err());
        assert!(sandbox.park(&world.folder.path().join("twice"), &KEY).await.is_err());
        held.let_go.notify_one();
    };
    let (saved, ()) = tokio::join!(saving, meanwhile);
    assert!(saved.unwrap_err().to_string().contains("already"));
    assert_eq!(line(&mut echo).await, "meanwhile", "it waited");
    sandbox.put(Path::new("a"), b"a").await.unwrap();
    drop(echo);
    sandbox.close().await.unwrap();
    drop((sandbox, machine));
}

#[tokio::test]
async fn programs_go_on_with_another_host() {
    let world = World::new();
    let (uplink, mut taken) = Taken::new();
    let (sandbox, machine, again, services) = whole(&world, uplink, None).await;
    let mut echo = begin(&sandbox, "exec cat").await;
    let mut asks = begin(&sandbox, "echo early; read x; echo got $x; exec >&-; exit 3").await;
    let mut gone = begin(&sandbox, "echo over").await;
    assert_eq!(line(&mut gone).await, "over");
    gone.control.wait().await;
    drop(gone);
    echo.stdin.write_all(b"one\n").await.unwrap();
    assert_eq!(line(&mut echo).await, "one");
    // A connection to a service does not outlive its host.
    let call = format!(
        "exec perl -MIO::Socket -e '$|=1; $s=IO::Socket::INET->new(\"{services}:4180\") or die; <$s>; print \"cut\\n\"'"
    );
    let calls = begin(&sandbox, &call).await;
    let stream = tokio::time::timeout(PATIENCE, taken.recv()).await.expect("it connects").unwrap();
    // Nor does one of the host to a program inside; the program goes on and takes others.
    let serve = "exec perl -MIO::Socket -e '$|=1; $l=IO::Socket::INET->new(Listen=>1,LocalAddr=>\"127.0.0.1\") or die; \
                 print $l->sockport,\"\\n\"; while($c=$l->accept){while(<$c>){print; print $c $_} print \"hung up\\n\"}'";
    let mut serves = begin(&sandbox, serve).await;
    let port: u16 = line(&mut serves).await.parse().unwrap();
    let mut asks_it = sandbox.connect(port).await.unwrap();
    asks_it.write_all(b"one\n").await.unwrap();
    assert_eq!(line(&mut serves).await, "one");
    let mut answer = [0; 4];
    asks_it.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"one\n");

    // What can't be saved goes on.
    assert!(sandbox.park(world.folder.path(), &KEY).await.is_err());
    echo.stdin.write_all(b"still\n").await.unwrap();
    assert_eq!(line(&mut echo).await, "still");

    assert!(sandbox.parks());
    sandbox.park(&world.folder.path().join("saved"), &KEY).await.unwrap();
    assert_eq!(line(&mut asks).await, "early", "what was said before is heard");
    assert!(sandbox.spawn(&script(&sandbox, "true")).await.is_err(), "there is nothing to start it in");
    drop((echo, asks, calls, serves, asks_it, sandbox, stream));

    let channel = UnixStream::from_std(NativeStream::from(again)).unwrap();
    let (uplink, mut taken) = Taken::new();
    let (link, processes) = adopt(channel, 2, uplink, 0).await.unwrap();
    let [mut echo, mut asks, mut calls, mut serves]: [Process; 4] = processes.try_into().expect("four ran");
    echo.stdin.write_all(b"two\n").await.unwrap();
    assert_eq!(line(&mut echo).await, "two");
    asks.stdin.write_all(b"late\n").await.unwrap();
    assert_eq!(line(&mut asks).await, "got late");
    assert_eq!(asks.control.wait().await.status, Some(3));
    while line(&mut calls).await != "cut" {}
    assert!(taken.try_recv().is_err());
    assert_eq!(line(&mut serves).await, "hung up");
    // Much in both directions: what was granted before is not counted twice.
    let many = format!("{}\n", "x".repeat(1 << 20));
    let Process { mut stdin, mut stdout, .. } = echo;
    let mut back = vec![0; many.len()];
    let (sent, read) = tokio::join!(stdin.write_all(many.as_bytes()), stdout.read_exact(&mut back));
    sent.unwrap();
    read.unwrap();
    assert!(back == many.as_bytes());
    link.close("the test is over");
    machine.close().await.unwrap();
}
