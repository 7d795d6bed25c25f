//! The link and the program inside, without machines: the program is an ordinary process with an ordinary folder.

mod basics;
mod driver;
mod fuzz;
mod hostile;
mod parked;
pub(crate) mod state;

pub(crate) use driver::Plain;

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as NativeStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use karta_guest::proto::message::{Configure, Request, Workspace};
use karta_sandbox::guest::{GuestSandbox, Link, Machine, Setup};
use karta_sandbox::uplink::{Nowhere, Service, Uplink};
use karta_sandbox::{Duplex, Error, Place};
use karta_types::SandboxId;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use crate::support::{World, clock, rng};

pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// What came out, in order.
pub(crate) type Streams = tokio::sync::mpsc::UnboundedReceiver<(Service, Box<dyn Duplex>)>;

/// Takes the streams that come out.
pub(crate) struct Taken(Mutex<tokio::sync::mpsc::UnboundedSender<(Service, Box<dyn Duplex>)>>);

impl Taken {
    pub(crate) fn new() -> (Arc<Self>, Streams) {
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        (Arc::new(Self(Mutex::new(sender))), receiver)
    }
}

impl Uplink for Taken {
    fn accept(&self, service: Service, stream: Box<dyn Duplex>) {
        let _ = self.0.lock().unwrap().send((service, stream));
    }
}

/// A child process in the machine's place.
pub(crate) struct Agent(tokio::sync::Mutex<Child>);

#[async_trait]
impl Machine for Agent {
    async fn pause(&self) -> Result<(), Error> {
        Err(Error::Unavailable("a child process is not paused".to_owned()))
    }

    async fn wake(&self) -> Result<(), Error> {
        Ok(())
    }

    async fn close(&self) -> Result<(), Error> {
        // Its channel is closed: it ends what it started and then itself.
        self.0.lock().await.wait().await.unwrap();
        Ok(())
    }
}

/// What makes a machine a session's, for tests.
pub(crate) fn configure() -> Configure {
    Configure {
        entropy: vec![7; 64],
        machine: [1; 16],
        name: "karta-test".to_owned(),
        clock: 0,
        release: None,
        state: None,
        workspace: Workspace::Overlay,
        temp: 0,
        files: 1024,
        processes: 0,
        filter: Vec::new(),
        landlock: false,
    }
}

/// Starts the program as an ordinary process whose place is in this folder.
pub(crate) fn agent(root: &Path) -> (UnixStream, Agent, Ipv4Addr) {
    let (host, inside) = NativeStream::pair().unwrap();
    host.set_nonblocking(true).unwrap();
    // The services have fixed ports: each test has a loopback address of its own.
    let mut bytes = [0; 3];
    rng().fill(&mut bytes);
    let address = Ipv4Addr::new(127, bytes[0] | 1, bytes[1], bytes[2].clamp(1, 254));
    let child = Command::new(env!("KARTA_GUEST"))
        .args([
            "serve".as_ref(),
            "0".as_ref(),
            root.as_os_str(),
            address.to_string().as_ref() as &std::ffi::OsStr,
        ])
        .env_clear()
        .stdin(Stdio::from(OwnedFd::from(inside)))
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    (UnixStream::from_std(host).unwrap(), Agent(tokio::sync::Mutex::new(child)), address)
}

/// A sandbox with such a program.
pub(crate) async fn sandbox_with(world: &World, uplink: Arc<dyn Uplink>) -> GuestSandbox {
    sandbox_in(world.folder.path(), uplink).await
}

/// A sandbox in this folder, which holds the release.
pub(crate) async fn sandbox_in(root: &Path, uplink: Arc<dyn Uplink>) -> GuestSandbox {
    sandbox_as(root, uplink, configure()).await
}

/// The same, configured so.
pub(crate) async fn sandbox_as(root: &Path, uplink: Arc<dyn Uplink>, configure: Configure) -> GuestSandbox {
    let (channel, machine, services) = agent(root);
    let link = Link::start(channel, 1, uplink);
    link.hello(PATIENCE).await.unwrap();
    let notes = link.request(&Request::Configure(configure), PATIENCE).await.unwrap();
    assert!(notes.is_empty(), "{notes:?}");
    let at = |path: &str| -> PathBuf { root.join(path) };
    GuestSandbox::new(Setup {
        id: SandboxId::new(&*clock(), &*rng()),
        place: Place { workspace: at("workspace"), home: at("home/agent"), temp: at("tmp"), harness: None },
        link,
        machine: Box::new(machine),
        kept: Vec::new(),
        fresh: true,
        services,
    })
}

pub(crate) async fn sandbox(world: &World) -> GuestSandbox {
    sandbox_with(world, Arc::new(Nowhere)).await
}
