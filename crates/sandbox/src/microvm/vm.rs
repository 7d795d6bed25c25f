//! One virtual machine: its VMM, the stream to its guest, and the task that keeps it once a session has it.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream as Stream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use karta_guest::proto::message::Request;
use karta_types::Clock;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use super::command::{self, Shape, Start, number};
use super::launch::{Host, Launch, Room, Running};
use super::park;
use super::qmp::{self, Qmp};
use crate::guest::{Link, Machine};
use crate::{Error, ParkKey};

/// How long a VMM may take to answer a command, and to take over a state.
pub(super) const ANSWER: Duration = Duration::from_secs(20);
/// How long reading a machine's state may take, with its whole memory if it was parked.
pub(super) const READ: Duration = Duration::from_mins(2);
/// How long writing a machine may take, with its whole memory and disk.
pub(super) const SAVE: Duration = Duration::from_mins(5);
/// How long a VMM that was killed may take to be gone.
const END: Duration = Duration::from_secs(10);
/// How long a guest may take to set its clock.
const CLOCK: Duration = Duration::from_secs(20);

/// The disks of a machine. The last one is the only one that is written.
#[derive(Debug)]
pub(super) struct Drives {
    pub(super) base: OwnedFd,
    pub(super) harness: OwnedFd,
    pub(super) release: OwnedFd,
    pub(super) session: OwnedFd,
}

/// Where a machine begins.
#[derive(Debug)]
pub(super) enum Origin {
    /// From its kernel.
    Boot {
        /// The kernel.
        kernel: OwnedFd,
        /// Its first root.
        initramfs: OwnedFd,
    },
    /// From a state.
    State(OwnedFd),
}

/// A machine that nobody keeps yet. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Vm {
    running: Running,
    control: Qmp,
    guest: Option<UnixStream>,
}

impl Vm {
    /// Starts a machine. From a state it runs when this returns, if it ran when the state was taken.
    pub(super) async fn start(
        host: &Host,
        room: Room,
        shape: Shape,
        origin: Origin,
        memory: OwnedFd,
        drives: Drives,
    ) -> Result<Self, Error> {
        let (control, theirs) = pair()?;
        let (guest, inside) = pair()?;
        let mut descriptors =
            vec![(number::CONTROL, theirs), (number::GUEST, inside), (number::MEMORY, memory)];
        let Drives { base, harness, release, session } = drives;
        descriptors.extend((number::DISKS..).zip([base, harness, release, session]));
        let (start, first) = match origin {
            Origin::Boot { kernel, initramfs } => {
                descriptors.extend([(number::KERNEL, kernel), (number::INITRAMFS, initramfs)]);
                (Start::Boot, Vec::new())
            }
            Origin::State(state) => {
                descriptors.push((number::STATE, state));
                let uri = format!("fd:{}", number::STATE);
                (Start::Restore, vec![("migrate-incoming", json!({ "uri": uri }))])
            }
        };
        let launch = Launch { arguments: command::arguments(shape, start), descriptors };
        let mut running = host.start(room, launch).await?;
        let patience = if start == Start::Restore { READ } else { ANSWER };
        let begun = tokio::time::timeout(patience, async {
            let mut control = Qmp::open(control, &first).await?;
            if start == Start::Restore {
                control.copied().await?;
            }
            Ok(control)
        });
        match begun.await {
            Ok(Ok(control)) => Ok(Self { running, control, guest: Some(guest) }),
            Ok(Err(error)) => Err(broken(&mut running, &error).await),
            Err(_) => Err(late("the virtual machine monitor did not begin", patience)),
        }
    }

    /// Writes the machine's state beside its shared memory to a file and ends it.
    pub(super) async fn freeze(mut self, state: &File) -> Result<(), Error> {
        let saved = save(&mut self.control, state).await;
        if let Err(error) = saved {
            return Err(self.failed(error).await);
        }
        self.end().await;
        Ok(())
    }

    /// Kills it and waits until it is gone.
    pub(super) async fn end(&mut self) {
        self.running.kill();
        // It was told; whether it takes its time changes nothing for the caller.
        let _ = tokio::time::timeout(END, self.running.ended()).await;
    }

    /// What a VMM said before it ended, or what went wrong.
    pub(super) async fn failed(&mut self, error: Error) -> Error {
        match tokio::time::timeout(Duration::from_secs(1), self.running.ended()).await {
            Ok(said) => Error::Unavailable(format!("the virtual machine ended ({said}): {error}")),
            Err(_) => error,
        }
    }

    /// Lets it go on where it stood still.
    pub(super) async fn go_on(&mut self) -> Result<(), Error> {
        command(&mut self.control, "cont").await
    }

    /// The first process of its jail, as the host counts.
    pub(super) fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Whether it has not ended.
    pub(super) fn is_alive(&self) -> bool {
        self.running.is_alive()
    }

    /// The stream to the guest: it can be taken once.
    pub(super) fn take_guest(&mut self) -> Result<UnixStream, Error> {
        self.guest.take().ok_or_else(ended)
    }
}

/// Two ends of a stream: ours, and one to give away.
fn pair() -> Result<(UnixStream, OwnedFd), Error> {
    let made = Stream::pair().and_then(|(ours, theirs)| {
        ours.set_nonblocking(true)?;
        Ok((UnixStream::from_std(ours)?, OwnedFd::from(theirs)))
    });
    made.map_err(|error| Error::Unavailable(format!("a stream to a virtual machine can't be made ({error})")))
}

pub(super) fn late(what: &str, patience: Duration) -> Error {
    Error::Unavailable(format!("{what} within {} s", patience.as_secs()))
}

async fn broken(running: &mut Running, error: &qmp::Error) -> Error {
    let said = match tokio::time::timeout(Duration::from_secs(1), running.ended()).await {
        Ok(said) => format!(" ({said})"),
        Err(_) => String::new(),
    };
    Error::Unavailable(format!("the virtual machine could not be started{said}: {error}"))
}

/// Writes the state of a machine, and its memory where nobody else has it, to a descriptor. Its other end, if it has one, sees the end of
/// it as soon as the VMM has written all.
pub(super) async fn copy_out(control: &mut Qmp, to: OwnedFd) -> Result<(), qmp::Error> {
    control.give("state", to.as_fd()).await?;
    drop(to);
    control.copy("migrate", &json!({ "uri": "fd:state" })).await?;
    control.copied().await
}

async fn save(control: &mut Qmp, to: &File) -> Result<(), Error> {
    let to =
        to.try_clone().map_err(|error| Error::Unavailable(format!("saving the machine failed: {error}")))?;
    match tokio::time::timeout(SAVE, copy_out(control, to.into())).await {
        Ok(done) => done.map_err(|error| unsaved(&error)),
        Err(_) => Err(late("the machine was not saved", SAVE)),
    }
}

pub(super) fn unsaved(error: &qmp::Error) -> Error {
    Error::Unavailable(format!("saving the machine failed: {error}"))
}

type Reply = oneshot::Sender<Result<(), Error>>;

enum Order {
    Pause(Reply),
    Wake(Reply),
    Save(PathBuf, ParkKey, Reply),
    Close(Reply),
}

/// A machine that a session has. Dropping it kills it.
pub(super) struct Kept {
    orders: mpsc::Sender<Order>,
    link: Link,
    clock: Arc<dyn Clock>,
    what: Arc<park::What>,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").finish_non_exhaustive()
    }
}

impl Kept {
    /// Keeps a machine from now on; `kept` is what it takes to save it.
    pub(super) fn new(
        running: Running,
        control: Qmp,
        link: Link,
        clock: Arc<dyn Clock>,
        kept: park::What,
    ) -> Self {
        let (orders, received) = mpsc::channel(4);
        let what = Arc::new(kept);
        task(keep(running, control, received, Arc::clone(&what)));
        Self { orders, link, clock, what }
    }

    async fn order(&self, order: impl FnOnce(Reply) -> Order + Send) -> Option<Result<(), Error>> {
        let (reply, answer) = oneshot::channel();
        self.orders.send(order(reply)).await.ok()?;
        answer.await.ok()
    }
}

impl Vm {
    /// Its parts: the process, the control stream, the stream to the guest.
    pub(super) fn into_parts(self) -> Result<(Running, Qmp, UnixStream), Error> {
        let guest = self.guest.ok_or_else(ended)?;
        Ok((self.running, self.control, guest))
    }
}

fn ended() -> Error {
    Error::Unavailable("the virtual machine has ended".to_owned())
}

#[async_trait]
impl Machine for Kept {
    async fn pause(&self) -> Result<(), Error> {
        self.order(Order::Pause).await.unwrap_or_else(|| Err(ended()))
    }

    async fn wake(&self) -> Result<(), Error> {
        self.order(Order::Wake).await.unwrap_or_else(|| Err(ended()))?;
        // No time has passed inside.
        let now = self.clock.now().as_micros().saturating_mul(1000);
        self.link.request(&Request::Clock(now), CLOCK).await.map(drop)
    }

    fn saves(&self) -> bool {
        true
    }

    fn save_bytes(&self) -> u64 {
        self.what.bytes()
    }

    async fn save(&self, into: &Path, key: &ParkKey) -> Result<(), Error> {
        let (into, key) = (into.to_owned(), key.clone());
        self.order(|reply| Order::Save(into, key, reply)).await.unwrap_or_else(|| Err(ended()))
    }

    async fn close(&self) -> Result<(), Error> {
        self.order(Order::Close).await.unwrap_or(Ok(()))
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the task ends with its machine, which ends with its last handle"
)]
pub(super) fn task(future: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(future);
}

/// Does what is ordered until the machine ends, by order, by itself, because nobody has it any more, or because it is not known any more
/// what state it is in.
async fn keep(
    mut running: Running,
    mut control: Qmp,
    mut orders: mpsc::Receiver<Order>,
    kept: Arc<park::What>,
) {
    let closing = loop {
        let order = tokio::select! {
            order = orders.recv() => order,
            said = running.ended() => {
                tracing::warn!(said, "a virtual machine has ended by itself");
                break None;
            }
        };
        let (reply, done) = match order {
            None => break None,
            Some(Order::Close(reply)) => break Some((reply, Ok(()))),
            Some(Order::Pause(reply)) => (reply, command(&mut control, "stop").await),
            Some(Order::Wake(reply)) => (reply, command(&mut control, "cont").await),
            Some(Order::Save(into, key, reply)) => {
                let saved = park::save(&mut control, &kept, &into, &key).await;
                if saved.is_ok() {
                    break Some((reply, Ok(())));
                }
                // It goes on here, if it is known to stand still.
                let goes_on = control.is_settled() && command(&mut control, "cont").await.is_ok();
                if !goes_on {
                    break Some((reply, saved));
                }
                (reply, saved)
            }
        };
        if !control.is_settled() {
            // The next answer would be taken for that of the next command.
            break Some((reply, done));
        }
        answer(reply, done);
    };
    if let Some((_, Err(error))) = &closing {
        tracing::error!(error = crate::chain(error), "a virtual machine is ended: nobody knows what it does");
    }
    running.kill();
    let gone = tokio::time::timeout(END, running.ended()).await;
    drop(kept);
    if let Some((reply, done)) = closing {
        let gone = gone.map(drop).map_err(|_| late("the virtual machine was killed but is not gone", END));
        answer(reply, done.and(gone));
    }
}

/// Whoever asked may have gone away.
fn answer(reply: Reply, result: Result<(), Error>) {
    drop(reply.send(result));
}

pub(super) async fn command(control: &mut Qmp, name: &str) -> Result<(), Error> {
    match tokio::time::timeout(ANSWER, control.execute(name, &Value::Null)).await {
        Ok(done) => {
            done.map_err(|error| Error::Unavailable(format!("`{name}` of the machine failed: {error}")))
        }
        Err(_) => Err(late(&format!("`{name}` of the machine was not answered"), ANSWER)),
    }
}
