//! The task that stands for a process.

use std::sync::atomic::{AtomicI32, Ordering};

use async_trait::async_trait;
use tokio::task::{AbortHandle, JoinHandle};

use crate::{Control, Exit};

const KILL: i32 = 9;
const TERM: i32 = 15;
/// What Rust's own programs answer when they panic.
const PANICKED: i32 = 101;

/// A program that runs as a task. Dropping it ends the program.
pub(super) struct Task {
    handle: JoinHandle<Exit>,
    /// The first signal sent; 0 for none.
    signal: AtomicI32,
    exit: Option<Exit>,
}

impl Task {
    pub(super) fn start(program: impl Future<Output = Exit> + Send + 'static) -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "the task stands for a process: its control, not the server, ends it"
        )]
        let handle = tokio::spawn(program);
        Self { handle, signal: AtomicI32::new(0), exit: None }
    }

    pub(super) fn abort_handle(&self) -> AbortHandle {
        self.handle.abort_handle()
    }

    fn end(&self, signal: i32) {
        let _ = self.signal.compare_exchange(0, signal, Ordering::Relaxed, Ordering::Relaxed);
        self.handle.abort();
    }
}

#[async_trait]
impl Control for Task {
    async fn wait(&mut self) -> Exit {
        if let Some(exit) = self.exit {
            return exit;
        }
        let exit = match (&mut self.handle).await {
            Ok(exit) => exit,
            Err(error) if error.is_panic() => Exit { status: Some(PANICKED), signal: None },
            Err(_) => {
                // No signal of ours: the session was erased, or the runtime ends.
                let signal = self.signal.load(Ordering::Relaxed);
                Exit { status: None, signal: Some(if signal == 0 { KILL } else { signal }) }
            }
        };
        *self.exit.insert(exit)
    }

    fn terminate(&self) {
        self.end(TERM);
    }

    fn kill(&self) {
        self.end(KILL);
    }

    fn pid(&self) -> Option<u32> {
        None
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}
