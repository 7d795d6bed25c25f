//! What the person does: lines typed, Ctrl-C, Ctrl-D.

use std::io::{BufRead as _, Read as _};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// The longest line, in bytes.
const MAX_LINE: u64 = 1 << 20;

/// One thing the person did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Line {
    /// A line, without its end.
    Text(String),
    /// Ctrl-C.
    Interrupt,
    /// Ctrl-D, or the terminal went away.
    End,
}

/// The person's hands. While this exists Ctrl-C doesn't end the program.
pub(super) struct Lines {
    typed: mpsc::Receiver<String>,
    interrupts: Signal,
}

impl Lines {
    /// Starts to listen.
    pub(super) fn start() -> anyhow::Result<Self> {
        let (sender, typed) = mpsc::channel(16);
        // A thread of its own, and not one of the runtime's: nobody waits for it when the program ends, because a read from a
        // terminal can't be called back.
        std::thread::spawn(move || {
            let mut stdin = std::io::stdin().lock();
            loop {
                let mut line = Vec::new();
                match (&mut stdin).take(MAX_LINE).read_until(b'\n', &mut line) {
                    Ok(0) | Err(_) => return,
                    Ok(_) => {}
                }
                let line = String::from_utf8_lossy(&line);
                if sender.blocking_send(line.trim_end_matches(['\r', '\n']).to_owned()).is_err() {
                    return;
                }
            }
        });
        Ok(Self { typed, interrupts: signal(SignalKind::interrupt())? })
    }

    /// The next thing. Safe to cancel.
    pub(super) async fn next(&mut self) -> Line {
        tokio::select! {
            biased;
            _ = self.interrupts.recv() => Line::Interrupt,
            line = self.typed.recv() => line.map_or(Line::End, Line::Text),
        }
    }
}
