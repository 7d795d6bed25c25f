//! A client of QEMU's control protocol over the one stream that the VMM was started with.
//!
//! QEMU answers commands in their order, and tells events in between. A guest that has broken out into its VMM speaks here too:
//! lines are bounded, and nothing of an answer is used but whether it is one and, of errors, their text for people.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;

/// The longest line that is read.
const LINE: usize = 256 << 10;
/// How much of an error's text is kept.
const TEXT: usize = 512;

/// What went wrong with the control stream.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The stream broke: the VMM has ended.
    #[error("the virtual machine monitor has ended")]
    Ended(#[source] io::Error),
    /// What was said is no answer.
    #[error("the virtual machine monitor says what is no answer")]
    Nonsense,
    /// The command was refused.
    #[error("{0}")]
    Refused(String),
}

/// The control stream of one VMM.
#[derive(Debug)]
pub(super) struct Qmp {
    stream: UnixStream,
    read: VecDeque<u8>,
    /// A command was begun and not answered.
    asked: bool,
    /// A copy of the machine's state was begun, and it is not over.
    copying: bool,
    /// How the last copy of the machine's state went, as told by events.
    migration: Option<String>,
}

/// The commands that begin every conversation, followed by `more`. They may be written before the VMM listens.
pub(super) fn opening(more: &[(&str, Value)]) -> Vec<u8> {
    let capabilities = json!({ "capabilities": [
        { "capability": "events", "state": true },
        { "capability": "x-ignore-shared", "state": true },
    ]});
    let first = [("qmp_capabilities", Value::Null), ("migrate-set-capabilities", capabilities)];
    first.iter().chain(more).flat_map(|(name, arguments)| line(name, arguments)).collect()
}

fn line(name: &str, arguments: &Value) -> Vec<u8> {
    let command = match arguments {
        Value::Null => json!({ "execute": name }),
        arguments => json!({ "execute": name, "arguments": arguments }),
    };
    let mut line = command.to_string().into_bytes();
    line.push(b'\n');
    line
}

impl Qmp {
    const fn new(stream: UnixStream) -> Self {
        Self { stream, read: VecDeque::new(), asked: false, copying: false, migration: None }
    }

    /// Whether it is known what state the VMM is in: all that was begun was answered, or told to be over.
    pub(super) const fn is_settled(&self) -> bool {
        !self.asked && !self.copying
    }

    /// Begins, with `more` commands at once; returns when all are answered.
    pub(super) async fn open(stream: UnixStream, more: &[(&str, Value)]) -> Result<Self, Error> {
        let mut qmp = Self::new(stream);
        qmp.stream.write_all(&opening(more)).await.map_err(Error::Ended)?;
        for _ in 0..more.len() + 2 {
            qmp.answer().await?;
        }
        Ok(qmp)
    }

    /// Runs a command.
    pub(super) async fn execute(&mut self, name: &str, arguments: &Value) -> Result<(), Error> {
        self.asked = true;
        self.stream.write_all(&line(name, arguments)).await.map_err(Error::Ended)?;
        self.answer().await
    }

    /// Gives the VMM a descriptor under a name, for the next command that speaks of it.
    pub(super) async fn give(&mut self, name: &str, descriptor: BorrowedFd<'_>) -> Result<(), Error> {
        let bytes = line("getfd", &json!({ "fdname": name }));
        let mut sent = 0;
        self.asked = true;
        let give = || {
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let descriptors = [descriptor];
            ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
            let slices = [IoSlice::new(&bytes)];
            Ok(rustix::net::sendmsg(self.stream.as_fd(), &slices, &mut ancillary, SendFlags::NOSIGNAL)?)
        };
        sent += self.stream.async_io(Interest::WRITABLE, give).await.map_err(Error::Ended)?;
        let rest = bytes.get(sent..).unwrap_or_default();
        self.stream.write_all(rest).await.map_err(Error::Ended)?;
        self.answer().await
    }

    /// Waits until a copy of the machine's state, coming in or going out, is whole.
    pub(super) async fn copied(&mut self) -> Result<(), Error> {
        loop {
            match self.migration.as_deref() {
                Some("completed") => {
                    self.copying = false;
                    return Ok(());
                }
                Some("failed" | "cancelled") => {
                    self.copying = false;
                    return Err(Error::Refused("the state could not be copied".to_owned()));
                }
                _ => {}
            }
            let line = self.line().await?;
            self.event(&line);
        }
    }

    /// Begins a copy of the machine's state.
    pub(super) async fn copy(&mut self, name: &str, arguments: &Value) -> Result<(), Error> {
        // How the last one went is of no interest any more.
        self.migration = None;
        self.copying = true;
        let begun = self.execute(name, arguments).await;
        // One that was refused is none.
        self.copying = !matches!(begun, Err(Error::Refused(_)));
        begun
    }

    /// Reads up to the next answer.
    async fn answer(&mut self) -> Result<(), Error> {
        loop {
            let line = self.line().await?;
            if line.get("return").is_some() {
                self.asked = false;
                return Ok(());
            }
            if let Some(error) = line.get("error") {
                self.asked = false;
                let text = error.get("desc").and_then(Value::as_str).unwrap_or("no reason");
                let plain = text.chars().filter(|letter| !letter.is_control()).take(TEXT).collect();
                return Err(Error::Refused(plain));
            }
            self.event(&line);
        }
    }

    fn event(&mut self, line: &Value) {
        if line.get("event").and_then(Value::as_str) == Some("MIGRATION") {
            let status = line.pointer("/data/status").and_then(Value::as_str);
            self.migration = status.map(|status| status.chars().take(32).collect());
        }
    }

    /// One line as a value.
    async fn line(&mut self) -> Result<Value, Error> {
        let mut looked = 0;
        loop {
            if let Some(end) = self.read.iter().skip(looked).position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=looked + end).collect();
                return serde_json::from_slice(&line).map_err(|_| Error::Nonsense);
            }
            looked = self.read.len();
            if looked > LINE {
                return Err(Error::Nonsense);
            }
            let mut buffer = [0; 4096];
            let read = self.stream.read(&mut buffer).await.map_err(Error::Ended)?;
            if read == 0 {
                return Err(Error::Ended(io::ErrorKind::UnexpectedEof.into()));
            }
            self.read.extend(&buffer[..read]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    async fn talk(said: &'static str) -> Result<Qmp, Error> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(said.as_bytes()).await.unwrap();
        theirs.shutdown().await.unwrap();
        Qmp::open(ours, &[]).await
    }

    #[tokio::test]
    async fn answers_count_and_events_do_not() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let said = "{\"QMP\":{}}\n{\"return\":{}}\n{\"event\":\"STOP\"}\n{\"return\":{}}\n\
            {\"event\":\"MIGRATION\",\"data\":{\"status\":\"active\"}}\n{\"return\":{}}\n\
            {\"event\":\"MIGRATION\",\"data\":{\"status\":\"completed\"}}\n";
        theirs.write_all(said.as_bytes()).await.unwrap();
        let mut qmp = Qmp::open(ours, &[("migrate-incoming", json!({ "uri": "fd:9" }))]).await.unwrap();
        qmp.copied().await.unwrap();
        qmp.migration = None;
        theirs.write_all(b"{\"error\":{\"desc\":\"no\\u001b such\"}}\n").await.unwrap();
        let refused = qmp.execute("cont", &Value::Null).await.unwrap_err();
        assert_eq!(refused.to_string(), "no such");
        let mut heard = vec![0; 4096];
        let length = theirs.read(&mut heard).await.unwrap();
        let lines: Vec<Value> = heard[..length]
            .split(|byte| *byte == b'\n')
            .filter_map(|line| serde_json::from_slice(line).ok())
            .collect();
        let names: Vec<_> = lines.iter().map(|line| line["execute"].as_str().unwrap()).collect();
        assert_eq!(names, ["qmp_capabilities", "migrate-set-capabilities", "migrate-incoming", "cont"]);
    }

    #[tokio::test]
    async fn a_descriptor_goes_with_its_name() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut qmp = Qmp::new(ours);
        let file = tempfile::tempfile().unwrap();
        let give = async { qmp.give("state", file.as_fd()).await };
        let hear = async {
            theirs.readable().await.unwrap();
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = rustix::net::RecvAncillaryBuffer::new(&mut space);
            let mut bytes = [0; 512];
            let mut slices = [std::io::IoSliceMut::new(&mut bytes)];
            let flags = rustix::net::RecvFlags::CMSG_CLOEXEC;
            let got = rustix::net::recvmsg(&theirs, &mut slices, &mut ancillary, flags).unwrap();
            let descriptors = ancillary.drain().count();
            theirs.try_write(b"{\"return\":{}}\n").unwrap();
            (got.bytes, descriptors)
        };
        let (given, (length, descriptors)) = tokio::join!(give, hear);
        given.unwrap();
        assert_eq!(descriptors, 1);
        assert!(length > 20);
    }

    #[tokio::test]
    async fn nonsense_and_endless_lines_end_it() {
        assert!(matches!(talk("hello\n").await, Err(Error::Nonsense)));
        assert!(matches!(talk("").await, Err(Error::Ended(_))));
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let flood = async { while theirs.write_all(&[b' '; 4096]).await.is_ok() {} };
        let read = async { Qmp::open(ours, &[]).await.map(drop) };
        let ((), ended) = tokio::join!(flood, read);
        assert!(matches!(ended, Err(Error::Nonsense)));
    }
}
