//! The two threads behind all processes of a driver: one starts them, one sees them end.
//!
//! The parent-death signal fires when the *thread* that started a process ends, not the server. A worker of the runtime may end
//! at any time, so all processes are started by one thread that lives as long as any of them.
//!
//! The other thread waits for all processes at once. When one has ended it first kills what is left of its group (the number
//! can't be reused as long as the leader is not reaped), sweeps up what had left the group, and only then reaps the leader and
//! tells its end. So whoever sees the end of a process sees the end of everything it started.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use rustix::event::{EventfdFlags, epoll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use tokio::sync::{oneshot, watch};

use super::sweep::{Mark, sweep};
use crate::Exit;

/// The event that asks the thread to end when nothing runs any more. No birth is 0.
const STOP: u64 = 0;

/// How long the end of the driver waits for the last processes to be gone.
const PATIENCE: Duration = Duration::from_secs(5);

/// Starts processes and sees them end.
#[derive(Debug)]
pub(super) struct Keeper {
    shared: Arc<Shared>,
    starter: mpsc::Sender<Order>,
    /// Closes when the thread that sees processes end has ended itself.
    over: Mutex<mpsc::Receiver<()>>,
}

#[derive(Debug)]
struct Shared {
    events: OwnedFd,
    stop: OwnedFd,
    /// By birth. None while the process is being started.
    running: Mutex<HashMap<u64, Option<Arc<Watched>>>>,
}

#[derive(Debug)]
struct Watched {
    pid: Pid,
    handle: OwnedFd,
    mark: Mark,
    /// Whether the number may mean another process by now.
    reaped: Mutex<bool>,
    end: watch::Sender<Option<Exit>>,
}

struct Order {
    command: Command,
    mark: Mark,
    answer: oneshot::Sender<io::Result<Started>>,
}

/// A process that runs, with its pipes.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) stdin: ChildStdin,
    pub(super) stdout: ChildStdout,
    pub(super) stderr: ChildStderr,
    pub(super) running: Running,
}

/// A process that runs. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Running {
    watched: Arc<Watched>,
    end: watch::Receiver<Option<Exit>>,
    /// The starting thread must outlive the process.
    _keeper: Arc<Keeper>,
}

impl Keeper {
    /// Starts the two threads.
    pub(super) fn new() -> io::Result<Arc<Self>> {
        let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let stop = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&events, &stop, epoll::EventData::new_u64(STOP), epoll::EventFlags::IN)?;
        let shared = Arc::new(Shared { events, stop, running: Mutex::default() });
        let (starter, orders) = mpsc::channel::<Order>();
        let (watching, over) = mpsc::channel::<()>();
        let keeper = Arc::new(Self { shared: Arc::clone(&shared), starter, over: Mutex::new(over) });
        let weak = Arc::downgrade(&keeper);
        let starting = Arc::clone(&shared);
        std::thread::Builder::new().name("sandbox-start".to_owned()).spawn(move || {
            for Order { command, mark, answer } in orders {
                let birth = mark.birth;
                let process = weak
                    .upgrade()
                    .ok_or_else(|| io::Error::other("the driver is shutting down"))
                    .and_then(|keeper| starting.start(command, mark, keeper));
                if process.is_err() {
                    lock(&starting.running).remove(&birth);
                }
                // Nobody waits for it any more: dropping the answer kills the process.
                drop(answer.send(process));
            }
        })?;
        std::thread::Builder::new().name("sandbox-end".to_owned()).spawn(move || {
            shared.watch();
            drop(watching);
        })?;
        Ok(keeper)
    }

    /// Starts a process, its pipes and its confinement prepared in `command`.
    pub(super) async fn start(&self, command: Command, mark: Mark) -> io::Result<Started> {
        let gone = || io::Error::other("the thread that starts processes has ended");
        let (answer, started) = oneshot::channel();
        lock(&self.shared.running).insert(mark.birth, None);
        let birth = mark.birth;
        if self.starter.send(Order { command, mark, answer }).is_err() {
            lock(&self.shared.running).remove(&birth);
            return Err(gone());
        }
        started.await.map_err(|_| gone())?
    }

    /// Whether this spawn runs, or is just being started, here.
    pub(super) fn knows(&self, birth: u64) -> bool {
        lock(&self.shared.running).contains_key(&birth)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes());
        // No handle is left, so every process was killed and this takes a moment. Going on at once would let the server end before
        // the descendants that had left their groups are found.
        let over = self.over.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = over.recv_timeout(PATIENCE);
    }
}

impl Shared {
    fn start(&self, mut command: Command, mark: Mark, keeper: Arc<Keeper>) -> io::Result<Started> {
        let mut child = command.spawn()?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let watched = pid.ok_or_else(|| io::Error::other("the kernel gave no process id")).and_then(|pid| {
            let handle = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
            let (end, _) = watch::channel(None);
            Ok(Arc::new(Watched { pid, handle, mark, reaped: Mutex::new(false), end }))
        });
        let watched = match watched {
            Ok(watched) => watched,
            Err(error) => return Err(abandon(&mut child, error)),
        };
        let birth = watched.mark.birth;
        let (Some(stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(abandon(&mut child, io::Error::other("a pipe is missing")));
        };
        lock(&self.running).insert(birth, Some(Arc::clone(&watched)));
        let data = epoll::EventData::new_u64(birth);
        if let Err(error) = epoll::add(&self.events, &watched.handle, data, epoll::EventFlags::IN) {
            return Err(abandon(&mut child, error.into()));
        }
        let end = watched.end.subscribe();
        Ok(Started { stdin, stdout, stderr, running: Running { watched, end, _keeper: keeper } })
    }

    /// Sees processes end, until asked to stop and none is left.
    fn watch(&self) {
        let mut events = Vec::with_capacity(64);
        let mut stopping = false;
        while !(stopping && lock(&self.running).is_empty()) {
            events.clear();
            match epoll::wait(&self.events, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "waiting for processes failed: their ends will not be seen; restart the server");
                    return;
                }
            }
            let mut ended = Vec::new();
            for event in &events {
                match event.data.u64() {
                    STOP => {
                        stopping = true;
                        let _ = epoll::delete(&self.events, &self.stop);
                    }
                    birth => ended.extend(lock(&self.running).get(&birth).cloned().flatten()),
                }
            }
            self.bury(&ended);
        }
    }

    fn bury(&self, ended: &[Arc<Watched>]) {
        if ended.is_empty() {
            return;
        }
        for one in ended {
            one.signal(Signal::KILL);
        }
        // One look at all processes serves all that ended together.
        sweep(&|seen| {
            ended.iter().any(|one| {
                seen.leader == one.pid.as_raw_nonzero().get() || seen.mark.as_ref() == Some(&one.mark)
            })
        });
        for one in ended {
            let _ = epoll::delete(&self.events, &one.handle);
            let exit = one.reap();
            lock(&self.running).remove(&one.mark.birth);
            one.end.send_replace(Some(exit));
        }
    }
}

impl Watched {
    fn signal(&self, signal: Signal) {
        let reaped = lock(&self.reaped);
        if !*reaped {
            let _ = rustix::process::kill_process_group(self.pid, signal);
        }
    }

    fn reap(&self) -> Exit {
        let mut reaped = lock(&self.reaped);
        *reaped = true;
        let status = rustix::io::retry_on_intr(|| {
            rustix::process::waitid(WaitId::PidFd(self.handle.as_fd()), WaitIdOptions::EXITED)
        });
        match status {
            Ok(Some(status)) => Exit { status: status.exit_status(), signal: status.terminating_signal() },
            Ok(None) | Err(_) => Exit { status: None, signal: None },
        }
    }
}

impl Running {
    /// The process id.
    pub(super) fn pid(&self) -> u32 {
        self.watched.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Sends a signal to the whole group, if it is still there.
    pub(super) fn signal(&self, signal: Signal) {
        self.watched.signal(signal);
    }

    /// Waits for the end of the process and of everything it started.
    pub(super) async fn wait(&mut self) -> Exit {
        // The sender is in `watched`, which is held here: the channel can't close first.
        let none = Exit { status: None, signal: None };
        self.end.wait_for(Option::is_some).await.ok().and_then(|exit| *exit).unwrap_or(none)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// Ends a process that can't be watched.
fn abandon(child: &mut Child, error: io::Error) -> io::Error {
    let _ = child.kill();
    let _ = child.wait();
    error
}

/// A panic elsewhere leaves these plain tables whole, so a poisoned lock is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
