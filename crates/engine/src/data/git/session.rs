//! One `git receive-pack`: fed with what the pusher sends, heard, and asked by its hook. Whatever ends it, nothing of it is left.

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::process::Stdio;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use karta_types::ErrorCode;
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::ChildStdout;
use tokio::sync::mpsc;

use super::hook::{self, Question};
use super::program::Group;
use super::push::Push;
use super::repositories::Turn;
use crate::{Engine, Error, Principal, Result};

/// What a pusher sends, as it comes.
pub type Incoming =
    Pin<Box<dyn Stream<Item = Result<Bytes, Box<dyn std::error::Error + Send + Sync>>> + Send>>;

/// The longest that a pusher may send nothing.
const SILENCE: Duration = Duration::from_mins(2);
/// How long git may take to end once its hook was told to refuse.
const FAREWELL: Duration = Duration::from_secs(30);
/// How long a push that waits for another one of the same project does.
const PATIENCE: Duration = Duration::from_mins(10);
/// Bytes that are taken beyond the pack's own limit, so that git is the one that refuses: the list of refs, and what is on its way.
const SLACK: u64 = 64 << 20;
/// Bytes of git's answer that are on their way at once, in blocks.
const BLOCK: usize = 16 << 10;
const BLOCKS: usize = 16;

/// What git answers, as it does.
#[derive(Debug)]
pub struct Said {
    first: Option<Bytes>,
    rest: mpsc::Receiver<Result<Bytes>>,
}

impl Stream for Said {
    type Item = io::Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        this.rest.poll_recv(context).map(|next| next.map(|next| next.map_err(io::Error::other)))
    }
}

/// Why a session did not come to its own end.
enum Cut {
    /// The pusher is gone.
    Gone,
    /// The pusher sends nothing any more.
    Silent,
    /// It sent more than it may.
    TooMuch,
    /// It took too long.
    Late,
    /// git can't be spoken to.
    Broken(io::Error),
}

impl Engine {
    /// The branches that a project has, in the words of `git receive-pack`. A project that does not exist yet has none: the first push
    /// makes it.
    ///
    /// # Errors
    /// `not_found`; git is not installed.
    pub async fn push_refs(&self, who: &Principal, reference: &str) -> Result<Vec<u8>> {
        let repositories = self.repositories();
        let (slug, project) = self.push_target(who, reference).await?;
        let known = match project {
            Some(project) => repositories.find(project).await?,
            None => None,
        };
        let repository = match known {
            Some(repository) => {
                self.forget_ended_previews(who, &slug, &repository).await?;
                repository
            }
            None => repositories.empty(self.rng()).await?,
        };
        let advertise = ["receive-pack", "--stateless-rpc", "--advertise-refs", "."];
        repository.git.ask(&repository.path, advertise, 4 << 20).await
    }

    /// Takes a push: publishes what was pushed, and keeps it if all of it was published. `base` is where the pusher reaches this server.
    ///
    /// # Errors
    /// `not_found`; git is not installed; what was sent is not a push; no answer was begun yet and something failed.
    pub async fn push(&self, who: &Principal, reference: &str, base: String, body: Incoming) -> Result<Said> {
        self.check_space()?;
        let (slug, _) = self.push_target(who, reference).await?;
        let turn = tokio::time::timeout(PATIENCE, self.repositories().turn(who.org, &slug)).await;
        let turn = turn.map_err(|_| {
            Error::told(
                ErrorCode::Overloaded,
                "another push to this project is still running; push again later",
            )
        })?;
        // Whoever was before may have made it.
        let (slug, project) = self.push_target(who, reference).await?;
        let repository = match project {
            Some(project) => self.repositories().of(project, self.rng()).await?,
            None => self.repositories().fresh(self.rng()).await?,
        };
        let push = Push { engine: self.clone(), who: who.clone(), slug, base, repository, project };
        let (say, mut said) = mpsc::channel(BLOCKS);
        self.tasks().spawn(push.session(body, say, turn));
        match said.recv().await {
            None => Ok(Said { first: None, rest: said }),
            Some(Err(error)) => Err(error),
            Some(Ok(first)) => Ok(Said { first: Some(first), rest: said }),
        }
    }
}

impl Push {
    /// Runs git to its end and leaves the repository in order.
    async fn session(mut self, body: Incoming, say: mpsc::Sender<Result<Bytes>>, turn: Turn) {
        let ended = Box::pin(self.receive(body, &say)).await;
        // Before the pusher hears of the end: the next push finds everything in its place.
        if let Err(error) = self.settle().await {
            tracing::error!(error = error.chain(), "putting a repository in order after a push");
        }
        if let Err(error) = ended {
            // Whoever is gone hears nothing.
            let _ = say.send(Err(error)).await;
        }
        drop(say);
        if self.project.is_some()
            && let Err(error) = self.repository.pack().await
        {
            tracing::warn!(error = error.chain(), "packing a repository");
        }
        drop(turn);
    }

    /// One `receive-pack`, from its start until it is gone.
    async fn receive(&self, body: Incoming, say: &mpsc::Sender<Result<Bytes>>) -> Result<()> {
        let failed = |why: io::Error| Error::internal("running git receive-pack", why);
        let settings = &self.engine.settings().git;
        let (mut group, channel) = self.start(settings.push_bytes).map_err(failed)?;
        let (stdin, stdout) = (group.child.stdin.take(), group.child.stdout.take());
        let (Some(stdin), Some(stdout)) = (stdin, stdout) else { return Ok(()) };
        let late = Duration::from_secs(settings.push_seconds) + FAREWELL;
        // When git is gone its hook is not answered any more: nothing is published for a push that nobody takes.
        let served = async {
            tokio::select! {
                heard = hear(stdout, say) => heard,
                never = self.answer(channel) => match never {},
            }
        };
        let work = async {
            tokio::try_join!(feed(body, stdin, settings.push_bytes), served).map(|((), heard)| heard)
        };
        let cut = tokio::select! {
            done = work => done,
            () = say.closed() => Err(Cut::Gone),
            () = tokio::time::sleep(late) => Err(Cut::Late),
            () = self.stopped() => Err(Cut::Late),
        };
        if cut.is_err() || tokio::time::timeout(FAREWELL, group.child.wait()).await.is_err() {
            group.kill();
        }
        let status = group.child.wait().await.map_err(failed)?;
        match cut {
            // A refusal is no failure of git's.
            Ok(_) if status.success() => Ok(()),
            // The answer is broken off: one that ended in order would leave the pusher's git waiting for the rest of it.
            Ok(true) => Err(failed(io::Error::other(status.to_string()))),
            Ok(false) => {
                Err(Error::told(ErrorCode::InvalidRequest, "git can't read the request: it is not a push"))
            }
            Err(Cut::Gone) => Ok(()),
            Err(Cut::Silent) => Err(Error::told(
                ErrorCode::InvalidRequest,
                format!("nothing more came of the push for {} seconds", SILENCE.as_secs()),
            )),
            Err(Cut::TooMuch) => Err(Error::told(
                ErrorCode::PayloadTooLarge,
                format!("a push has at most {} bytes (`git.push_bytes`)", settings.push_bytes),
            )),
            Err(Cut::Late) => {
                Err(Error::told(ErrorCode::Overloaded, "the push was stopped; what runs stays as it is"))
            }
            Err(Cut::Broken(why)) => Err(failed(why)),
        }
    }

    fn start(&self, most: u64) -> io::Result<(Group, UnixStream)> {
        let (ours, its) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut hooks = std::ffi::OsString::from("core.hooksPath=");
        hooks.push(self.engine.repositories().hooks());
        let limit = format!("receive.maxInputSize={most}");
        let args = ["-c".into(), hooks, "-c".into(), limit.into()];
        let args = args.into_iter().chain(["receive-pack", "--stateless-rpc", "."].map(Into::into));
        let mut command = self.repository.git.command_with_channel(&self.repository.path, args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(OwnedFd::from(its));
        Ok((Group::start(command)?, UnixStream::from_std(ours)?))
    }

    /// Resolves some time after the platform was asked to stop: the hook refuses first, by itself.
    async fn stopped(&self) {
        self.engine.tasks().stopping().await;
        tokio::time::sleep(Duration::from_secs(5)).await;
    }

    /// Answers the hook, if there comes a question, and then has nothing more to do. The hook hears of this future's end.
    async fn answer(&self, channel: UnixStream) -> Infallible {
        let (read, mut write) = channel.into_split();
        let mut read = BufReader::new(read);
        let verdict = match hook::question(&mut read).await {
            Ok(Some(question)) => self.verdict(&question, &mut read, &mut write).await,
            Err(refusal) => Some(Err(refusal)),
            Ok(None) => None,
        };
        let last = match verdict {
            // There is no hook, or it is gone: git has refused by itself.
            None => String::new(),
            Some(Ok(())) => "ok\n".to_owned(),
            Some(Err(refusal)) => {
                let lines = refusal.lines().fold(String::new(), |lines, line| lines + "+" + line + "\n");
                lines + "no\n"
            }
        };
        // A hook that is gone has been refused by git.
        let _ = write.write_all(last.as_bytes()).await;
        std::future::pending().await
    }

    /// What becomes of the push; `None` if the hook ends before that is clear.
    async fn verdict(
        &self,
        question: &Question,
        read: &mut BufReader<OwnedReadHalf>,
        write: &mut OwnedWriteHalf,
    ) -> Option<Result<(), String>> {
        let seconds = self.engine.settings().git.push_seconds;
        let (say, mut said) = mpsc::channel::<String>(64);
        let printed = async {
            while let Some(line) = said.recv().await {
                if write.write_all(format!("+{line}\n").as_bytes()).await.is_err() {
                    return;
                }
            }
        };
        let judged = async {
            let (verdict, ()) = tokio::join!(self.judge(question, say), printed);
            verdict
        };
        tokio::select! {
            verdict = judged => Some(verdict),
            _ = read.read_u8() => None,
            () = tokio::time::sleep(Duration::from_secs(seconds)) =>
                Some(Err(format!("The push took longer than {seconds} seconds and was stopped. What runs stays as it is."))),
            () = self.engine.tasks().stopping() =>
                Some(Err("The server is stopping: push again when it is back. What runs stays as it is.".to_owned())),
        }
    }
}

/// Sends git what the pusher sends. When git wants no more, the rest is taken and let go, so that the pusher gets to read why.
async fn feed(mut body: Incoming, to: impl AsyncWrite + Unpin, most: u64) -> Result<(), Cut> {
    let mut to = Some(to);
    let mut taken = 0;
    loop {
        let next = tokio::time::timeout(SILENCE, body.next()).await;
        let chunk = match next {
            Ok(None) => return Ok(()),
            Ok(Some(Ok(chunk))) => chunk,
            Ok(Some(Err(_))) => return Err(Cut::Gone),
            Err(_) => return Err(Cut::Silent),
        };
        taken += chunk.len() as u64;
        if taken > most.saturating_add(SLACK) {
            return Err(Cut::TooMuch);
        }
        if let Some(open) = &mut to
            && open.write_all(&chunk).await.is_err()
        {
            to = None;
        }
    }
}

/// Passes on what git says. Answers whether it said anything.
async fn hear(mut from: ChildStdout, say: &mpsc::Sender<Result<Bytes>>) -> Result<bool, Cut> {
    let mut any = false;
    loop {
        let mut block = bytes::BytesMut::with_capacity(BLOCK);
        if from.read_buf(&mut block).await.map_err(Cut::Broken)? == 0 {
            return Ok(any);
        }
        any = true;
        if say.send(Ok(block.freeze())).await.is_err() {
            return Err(Cut::Gone);
        }
    }
}
