//! Programs that are saved while they run, and go on elsewhere: in memory, for as long as the freezer lives.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinHandle};

use super::control::Task;
use super::{PIPE, Space, lock};
use crate::{Control, Exit, ParkKey, Process};

/// What is saved, by its folder. Clones are the same freezer; drivers that share it can go on with each other's.
#[derive(Clone)]
pub struct Freezer(Arc<Inner>);

struct Inner {
    saved: Mutex<HashMap<PathBuf, Saved>>,
    /// What saving says that it takes.
    weight: AtomicU64,
    /// Whether what is to be saved may come in, and how much of it waits for that.
    door: watch::Sender<bool>,
    waiting: AtomicUsize,
}

/// A place and what ran in it.
struct Saved {
    key: [u8; 32],
    space: Arc<Space>,
    programs: Vec<Frozen>,
}

/// A place and what runs in it again.
pub(super) struct Thawed {
    pub(super) space: Arc<Space>,
    pub(super) programs: Vec<(Held, Process)>,
}

/// The platform's ends of a program's pipes.
pub(super) struct Pipes {
    pub(super) stdin: DuplexStream,
    pub(super) stdout: DuplexStream,
    pub(super) stderr: DuplexStream,
}

/// A program that runs, and how it ends.
#[derive(Clone)]
pub(super) struct Program {
    abort: AbortHandle,
    exit: watch::Receiver<Option<Exit>>,
    frozen: Arc<AtomicBool>,
}

struct Frozen {
    program: Program,
    pipes: Pipes,
}

/// A program whose pipes can be taken away from those who hold its process.
pub(super) struct Held {
    program: Program,
    stop: Arc<Notify>,
    relay: JoinHandle<Pipes>,
}

impl std::fmt::Debug for Freezer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Freezer").finish_non_exhaustive()
    }
}

impl Default for Freezer {
    fn default() -> Self {
        Self(Arc::new(Inner {
            saved: Mutex::default(),
            weight: AtomicU64::new(0),
            door: watch::Sender::new(true),
            waiting: AtomicUsize::new(0),
        }))
    }
}

impl Freezer {
    /// How many programs are in it.
    pub fn count(&self) -> usize {
        lock(&self.0.saved).values().map(|saved| saved.programs.len()).sum()
    }

    /// A file of a place that is in it.
    pub fn file(&self, path: &Path) -> Option<Vec<u8>> {
        lock(&self.0.saved).values().find_map(|saved| saved.space.files.get(path))
    }

    /// From now on a sandbox says that it takes so many bytes to be saved.
    pub fn set_weight(&self, bytes: u64) {
        self.0.weight.store(bytes, Ordering::SeqCst);
    }

    pub(super) fn weight(&self) -> u64 {
        self.0.weight.load(Ordering::SeqCst)
    }

    /// Whether saving goes on, or waits before it has begun.
    pub fn set_open(&self, open: bool) {
        self.0.door.send_replace(open);
    }

    /// How many sandboxes wait to be saved.
    pub fn waiting(&self) -> usize {
        self.0.waiting.load(Ordering::SeqCst)
    }

    /// Saves programs under a folder, which is made.
    pub(super) async fn put(
        &self,
        into: &Path,
        key: &ParkKey,
        space: Arc<Space>,
        held: Vec<Held>,
    ) -> io::Result<()> {
        self.0.waiting.fetch_add(1, Ordering::SeqCst);
        // Its sender is in here too.
        let _ = self.0.door.subscribe().wait_for(|open| *open).await;
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
        tokio::fs::create_dir(into).await?;
        let mut programs = Vec::new();
        for Held { program, stop, relay } in held {
            if program.exit.borrow().is_some() {
                continue;
            }
            program.frozen.store(true, Ordering::SeqCst);
            stop.notify_one();
            let pipes = relay.await.map_err(io::Error::other)?;
            programs.push(Frozen { program, pipes });
        }
        lock(&self.0.saved).insert(into.to_owned(), Saved { key: *key.expose(), space, programs });
        Ok(())
    }

    /// Takes programs out again. A folder may have been moved since: its last name and its session tell.
    pub(super) fn take(&self, from: &Path, key: &ParkKey) -> Option<Thawed> {
        let mut saved = lock(&self.0.saved);
        // Who saves puts the folder in its place afterwards and takes it away before it is used: one session has one.
        let session = |path: &Path| {
            let parent = path.parent()?.file_name()?.to_str()?;
            Some(parent.trim_start_matches(".part-").trim_start_matches(".going-").to_owned())
        };
        let place = saved.keys().find(|path| session(path) == session(from))?.clone();
        let Saved { space, programs, .. } =
            saved.remove(&place).filter(|saved| saved.key == *key.expose())?;
        let programs = programs.into_iter().map(|Frozen { program, pipes }| hold(program, pipes)).collect();
        Some(Thawed { space, programs })
    }
}

impl From<Task> for Program {
    fn from(mut task: Task) -> Self {
        let abort = task.abort_handle();
        let (told, exit) = watch::channel(None);
        #[expect(clippy::disallowed_methods, reason = "the task waits for the program, and ends with it")]
        tokio::spawn(async move {
            let ended = task.wait().await;
            // Nobody may care any more.
            let _ = told.send(Some(ended));
        });
        Self { abort, exit, frozen: Arc::default() }
    }
}

/// The process of a program, and the handle by which it is saved.
pub(super) fn hold(program: Program, pipes: Pipes) -> (Held, Process) {
    program.frozen.store(false, Ordering::SeqCst);
    let (stdin, stdin_inside) = tokio::io::duplex(PIPE);
    let (stdout_inside, stdout) = tokio::io::duplex(PIPE);
    let (stderr_inside, stderr) = tokio::io::duplex(PIPE);
    let stop = Arc::new(Notify::new());
    let stopped = Arc::clone(&stop);
    #[expect(clippy::disallowed_methods, reason = "the task is a pipe of the process: it ends with it")]
    let relay = tokio::spawn(async move {
        let Pipes { mut stdin, mut stdout, mut stderr } = pipes;
        let all = Arc::new(tokio::sync::Semaphore::new(0));
        {
            let (one, two, three) = tokio::join!(
                pass(stdin_inside, &mut stdin, &all),
                pass(&mut stdout, stdout_inside, &all),
                async {
                    let errors = pass(&mut stderr, stderr_inside, &all);
                    let told = async {
                        stopped.notified().await;
                        all.close();
                    };
                    let ((), done) = tokio::join!(told, errors);
                    done
                }
            );
            // A pipe that broke is its owner's to notice.
            let _ = (one, two, three);
        }
        Pipes { stdin, stdout, stderr }
    });
    let control = Leash { program: program.clone(), stop: Arc::clone(&stop) };
    let process = Process {
        stdin: Box::new(stdin),
        stdout: Box::new(stdout),
        stderr: Box::new(stderr),
        control: Box::new(control),
    };
    (Held { program, stop, relay }, process)
}

/// Passes bytes on until the gate is closed. What was taken is delivered.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    gate: &tokio::sync::Semaphore,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let read = tokio::select! {
            // What is there already goes before the end.
            biased;
            read = from.read(&mut buffer) => read?,
            _ = gate.acquire() => return Ok(()),
        };
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
    }
}

/// The control of a program that can be saved: once it is, it does nothing any more.
struct Leash {
    program: Program,
    stop: Arc<Notify>,
}

impl Leash {
    fn end(&self) {
        if !self.program.frozen.load(Ordering::SeqCst) {
            self.program.abort.abort();
        }
    }
}

#[async_trait]
impl Control for Leash {
    async fn wait(&mut self) -> Exit {
        let ended = self.program.exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
        ended.unwrap_or(Exit { status: None, signal: Some(9) })
    }

    fn terminate(&self) {
        self.end();
    }

    fn kill(&self) {
        self.end();
    }

    fn pid(&self) -> Option<u32> {
        None
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        self.end();
        self.stop.notify_one();
    }
}
