//! What machines cost here: measured beside a bare VMM that does the same.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use karta_guest::proto::frame::{self, Kind as Frame};
use karta_guest::proto::message::Request;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::boot::{self, FIRST, Parts};
use super::command::{self, Start, number};
use super::keys::{self, Kind};
use super::qmp;
use super::snapshot::Snapshot;
use super::vm::Drives;
use super::{Driver, blocking, disks};
use crate::Error;
use crate::image::find_program;

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// A number of a stream that the guest has not heard of.
const STREAM: u32 = 1001;

/// Figures of machines on this host.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct Figures {
    /// What runs the guest's instructions: `kvm` or `tcg`.
    pub accelerator: &'static str,
    /// From the kernel to a snapshot, in microseconds.
    pub boot: u64,
    /// A VMM without any confinement, its disks and memory ready, from its start to the guest's answer, in microseconds.
    pub bare: Vec<u64>,
    /// The same with everything that is done for a machine: disks, ids, namespaces, control group, filters.
    pub restore: Vec<u64>,
    /// Bytes of memory that only one waiting machine has, and those that it has together with others.
    pub own: u64,
    /// See `own`.
    pub shared: u64,
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> Error {
    Error::Unavailable(format!("{what} ({error})"))
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Asks a guest whether it is there, as the host that made its snapshot, and waits for the first of its answer.
async fn answered(stream: &mut UnixStream) -> Result<(), Error> {
    let mut asked = Vec::new();
    frame::encode(&mut asked, Frame::Open, STREAM, FIRST, &Request::Ping.encode())
        .map_err(|error| failed("a question can't be put", &error.0))?;
    let answer = async {
        stream.write_all(&asked).await?;
        stream.read_u8().await
    };
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(failed("the guest does not answer", &error)),
        Err(_) => Err(failed("the guest does not answer", &"it takes too long")),
    }
}

impl Driver {
    /// Measures: one machine after the other, `rounds` of each kind in turn, with this harness in them or none.
    ///
    /// # Errors
    /// Something does not work here.
    pub async fn figures(&self, harness: Option<PathBuf>, rounds: usize) -> Result<Figures, Error> {
        let shared = &self.shared;
        let kind = keys::kind(shared, harness.as_deref()).await?;
        let began = Instant::now();
        let snapshot = Arc::new(boot::booted_snapshot(shared, &kind).await?);
        let mut figures =
            Figures { accelerator: kind.shape.accelerator.name(), boot: micros(began), ..Figures::default() };
        for _ in 0..rounds {
            figures.bare.push(self.bare(&kind, &snapshot).await?);
            let began = Instant::now();
            let mut spare = boot::restore(shared, &kind, &snapshot).await?;
            let mut stream = spare.vm.take_guest()?;
            answered(&mut stream).await?;
            figures.restore.push(micros(began));
            (figures.own, figures.shared) = memory(spare.vm.pid());
            spare.vm.end().await;
        }
        Ok(figures)
    }

    /// One bare VMM, in microseconds.
    async fn bare(&self, kind: &Kind, snapshot: &Snapshot) -> Result<u64, Error> {
        let missing = |error: std::io::Error| failed("a bare machine can't be made", &error);
        let base = self.shared.base().await?;
        let (folder, kind) = (self.shared.disks.root().to_owned(), kind.clone());
        let shape = kind.shape;
        let parts = blocking(move || {
            let session = disks::unnamed(&folder)?;
            kind.session.copy(&session)?;
            boot::parts(&base, &folder, &kind, session)
        })
        .await?;
        let Parts { drives: Drives { base, harness, release, session }, .. } = parts;
        let (memory, state) = (snapshot.memory().map_err(missing)?, snapshot.state().map_err(missing)?);
        let pair = || -> Result<(UnixStream, OwnedFd), Error> {
            let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(missing)?;
            ours.set_nonblocking(true).map_err(missing)?;
            Ok((UnixStream::from_std(ours).map_err(missing)?, theirs.into()))
        };
        let (mut control, theirs) = pair()?;
        let (mut guest, inside) = pair()?;
        // A shell opens the descriptors under their numbers and becomes the VMM.
        // What it has inherited itself must not be in the way.
        let taken = number::CONTROL..number::DISKS + 4;
        let mut parts: Vec<_> = taken.map(|number| format!("exec {number}>&-;")).collect();
        parts.push(format!("exec {}<&0 {}<&1", number::CONTROL, number::GUEST));
        let given = [
            (number::MEMORY, "<>", &memory),
            (number::STATE, "<", &state),
            (number::DISKS, "<", &base),
            (number::DISKS + 1, "<", &harness),
            (number::DISKS + 2, "<", &release),
            (number::DISKS + 3, "<>", &session),
        ];
        for (number, how, descriptor) in given {
            parts.push(format!("{number}{how}/proc/$PPID/fd/{}", descriptor.as_raw_fd()));
        }
        parts.push("&& exec \"$@\"".to_owned());
        let script = parts.join(" ");
        let program = find_program("qemu-system-x86_64").unwrap_or_default();
        let uri = format!("fd:{}", number::STATE);
        let first = qmp::opening(&[("migrate-incoming", json!({ "uri": uri }))]);
        let began = Instant::now();
        let mut child = tokio::process::Command::new("bash")
            .args(["-c", &script, "bash"])
            .arg(program)
            .args(command::arguments(shape, Start::Restore))
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::from(inside))
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(missing)?;
        control.write_all(&first).await.map_err(missing)?;
        answered(&mut guest).await?;
        let took = micros(began);
        child.kill().await.map_err(missing)?;
        Ok(took)
    }
}

/// What memory the VMM below this process has alone, and what it has together with others, in bytes.
fn memory(jail: u32) -> (u64, u64) {
    let below = std::fs::read_to_string(format!("/proc/{jail}/task/{jail}/children")).unwrap_or_default();
    let pid = below.split_whitespace().next().unwrap_or_default().to_owned();
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
    };
    (field("Private_Clean:") + field("Private_Dirty:"), field("Shared_Clean:") + field("Shared_Dirty:"))
}
