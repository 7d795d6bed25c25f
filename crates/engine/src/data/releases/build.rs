//! A release's setup: `[build] setup` of `karta.toml`, run once in a sandbox of the platform before the release can run.
//!
//! What it leaves in the files is kept as the release's own. A release with the same inputs takes over what the setup made for the one
//! before, without running it. A setup that fails leaves the release failed, and everything else as it was.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use karta_release::archive::{self, Limits};
use karta_release::{Files, Hash, inputs_digest};
use karta_sandbox::uplink::Service;
use karta_sandbox::{Command, Sandbox, Spec};
use karta_store::{BuildLine, Built, PackRow, ProjectRow, ReleaseRow};
use karta_types::egress::Decision;
use karta_types::release::{Line, LogLine, ReleaseState};
use karta_types::{ErrorCode, ReleaseId, SessionId};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::sync::mpsc;

use super::logs::build_cursor;
use super::shelf::{Incoming, Library, off_runtime, place, settle, unpacked, unread};
use crate::data::egress::{Egress, Listening, told};
use crate::data::uplink::WayOut;
use crate::gateway::Way;
use crate::{Engine, Error, Principal, Result};

/// The longest line that is kept, in bytes.
const LINE: usize = 4 << 10;
/// The most lines that are kept.
const LINES: u64 = 20_000;
/// Lines that wait to be written.
const WAITING: usize = 256;
/// How long a listener may keep a build from going on.
const UNHEARD: Duration = Duration::from_secs(2);
/// How often what was printed is written, so that those who follow the log see it.
const WRITING: Duration = Duration::from_millis(200);
/// The file in a build's temporary folder with the certificates to trust.
const BUNDLE: &str = "karta-certificates.pem";
/// Where programs are found.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How a setup ended that did not do what it should.
enum Unbuilt {
    /// It failed, or what it left can't be a release: the publisher's doing.
    Failed(String),
    /// The platform failed.
    Broken(Error),
}

impl From<Error> for Unbuilt {
    fn from(error: Error) -> Self {
        match error.code() {
            ErrorCode::InvalidRelease => Self::Failed(error.to_string()),
            _ => Self::Broken(error),
        }
    }
}

impl Engine {
    /// Runs the setup of a release that was just recorded as building. Answers it as it can run.
    ///
    /// # Errors
    /// `build_failed`, with the release recorded as failed.
    pub(super) async fn build(
        &self,
        who: &Principal,
        project: &ProjectRow,
        row: ReleaseRow,
        files: &Files,
        preview: bool,
        heard: Option<mpsc::Sender<LogLine>>,
    ) -> Result<ReleaseRow> {
        let mut log = Log::new(self, &row, heard);
        let state = if preview { ReleaseState::Preview } else { ReleaseState::Ready };
        let (built, why) = match self.built(project, &row, files, &mut log).await {
            Ok((pack, layer)) => (Built::Well { pack, layer, state }, None),
            Err(Unbuilt::Failed(why)) => {
                (Built::Failed(why.clone()), Some(Error::told(ErrorCode::BuildFailed, why)))
            }
            Err(Unbuilt::Broken(error)) => {
                (Built::Failed("the platform failed: publish again".to_owned()), Some(error))
            }
        };
        match &why {
            None => log.keep("the setup is done").await,
            Some(error) => log.keep(&format!("failed: {error}")).await,
        }
        log.write().await;
        let told = why.as_ref().map(|error| {
            let mut told = self.told(who, "release.fail", format!("{}/{}", row.project, row.version));
            told.reason = Some(error.to_string());
            told
        });
        let ended = self.store().release_built(&row, built, told).await?;
        match (why, ended) {
            (Some(error), _) => Err(error),
            (None, Some(row)) => Ok(row),
            (None, None) => {
                Err(Error::told(ErrorCode::ReleaseNotReady, "the release was taken away while it was built"))
            }
        }
    }

    /// Ends builds that a crash left.
    pub(crate) async fn end_lost_builds(&self) -> Result<()> {
        for row in self.store().releases_building().await? {
            let who = Principal::system(row.org);
            let why = "the server ended while it was built: publish again";
            let mut told = self.told(&who, "release.fail", format!("{}/{}", row.project, row.version));
            told.reason = Some(why.to_owned());
            self.store().release_built(&row, Built::Failed(why.to_owned()), Some(told)).await?;
        }
        Ok(())
    }

    /// The pack of the built files, and what they were built of.
    async fn built(
        &self,
        project: &ProjectRow,
        row: &ReleaseRow,
        files: &Files,
        log: &mut Log,
    ) -> Result<(PackRow, String), Unbuilt> {
        let layer = inputs_digest(files, &row.harness, "", &row.recipe).map_err(|error| unread(&error))?;
        let layer = layer.to_string();
        let data = self.data_dir().to_owned();
        let incoming = off_runtime("making room for a build", move || {
            let incoming = Incoming::make(&data)?;
            incoming.folder("built")?;
            Ok(Arc::new(incoming))
        })
        .await?;
        let tree = incoming.join("built");
        let taken_over = self.layer(project, row, files, &layer, &incoming).await?;
        let made = if let Some((version, made)) = taken_over {
            log.say(&format!("the setup's inputs are those of v{version}: what it made is taken over")).await;
            made
        } else {
            self.run_setup(row, tree.clone(), log).await?;
            let root = tree.clone();
            off_runtime("reading what the setup made", move || {
                Ok(Files::read(&root).map_err(|error| unread(&error))?)
            })
            .await?
        };
        let (bytes, files) = (self.settings().releases.max_bytes, Limits::default().members);
        if made.bytes() > bytes || made.len() as u64 > files {
            return Err(Unbuilt::Failed(format!(
                "the setup left {} files of {} bytes; a release has at most {files} of {bytes}",
                made.len(),
                made.bytes()
            )));
        }
        let name = ReleaseId::new(self.clock(), self.rng()).to_string();
        let pack = self.put_pack(project, &name, tree.clone(), made, incoming.clone()).await?;
        let served = ReleaseRow { built: Some(name), ..row.clone() };
        let place = place(self.data_dir(), &served);
        off_runtime("putting the release on the shelf", move || {
            settle(&tree, &place)?;
            drop(incoming);
            Ok(())
        })
        .await?;
        Ok((pack, layer))
    }

    /// The files with what a setup with the same inputs made before, laid out in the incoming folder.
    async fn layer(
        &self,
        project: &ProjectRow,
        row: &ReleaseRow,
        files: &Files,
        layer: &str,
        incoming: &Arc<Incoming>,
    ) -> Result<Option<(u64, Files)>> {
        let Some(version) = self.store().layer_find(row.org, row.project, layer).await? else {
            return Ok(None);
        };
        let before = self.store().release_get(row.org, row.project, version).await?;
        let Some(before) = before.filter(ReleaseRow::can_run) else { return Ok(None) };
        let (Some(source), Some(built)) = (&before.files, &before.built) else { return Ok(None) };
        let source = self.packs().get(row.project, source).await?;
        let built = self.packs().get(row.project, built).await?;
        let library = Library::new(self, project.org, project.id, incoming.join("contents"));
        let (incoming, files) = (incoming.clone(), files.clone());
        off_runtime("taking a layer over", move || {
            let limits = Limits::own();
            let source = archive::listing(source, &limits).map_err(|error| unpacked(&error))?;
            let built = archive::listing(built, &limits).map_err(|error| unpacked(&error))?;
            let made = files.with_changes(&source, &built).map_err(|error| unread(&error))?;
            // Packed without contents, it is unpacked from what is kept: the same way as everything else gets on the shelf.
            let path = incoming.join("layer");
            archive::pack(
                &incoming.join("built"),
                &made,
                Some(&BTreeSet::<Hash>::new()),
                std::fs::File::create(&path)?,
            )?;
            let made =
                archive::unpack(std::fs::File::open(&path)?, &incoming.join("built"), &limits, &library)
                    .map_err(|error| unpacked(&error))?;
            Ok(Some((version, made)))
        })
        .await
    }

    /// Runs the setup and copies what is there afterwards into `into`.
    async fn run_setup(&self, row: &ReleaseRow, into: PathBuf, log: &mut Log) -> Result<(), Unbuilt> {
        let [driver] = self.drivers();
        // A place of its own, gone afterwards; after a crash it is removed like any that belongs to no session.
        let session = SessionId::new(self.clock(), self.rng());
        let source = ReleaseRow { built: None, ..row.clone() };
        // No token is good for this way: a setup calls no models.
        let way_out = WayOut::new(self.clone(), Way::Sandbox(self.rng().next_u128()));
        let spec = Spec {
            uplink: Arc::new(way_out.clone()),
            ..Spec::new(session, place(self.data_dir(), &source), format!("{} source", row.digest))
        };
        let sandbox = driver.acquire(&spec).await.map_err(Error::from)?;
        let done = match self.setup(row, &*sandbox, &way_out, log).await {
            Ok(()) => sandbox.export(&into).await.map_err(|error| Unbuilt::from(Error::from(error))),
            Err(failed) => Err(failed),
        };
        if let Err(error) = sandbox.close().await {
            tracing::error!(error = crate::error::chain(&error), "closing the sandbox of a build");
        }
        drop(sandbox);
        if let Err(error) = driver.erase(session).await {
            tracing::error!(error = crate::error::chain(&error), "removing the place of a build");
        }
        done
    }

    async fn setup(
        &self,
        row: &ReleaseRow,
        sandbox: &dyn Sandbox,
        way_out: &WayOut,
        log: &mut Log,
    ) -> Result<(), Unbuilt> {
        let build = &row.recipe.build;
        let setup = build.setup.clone().unwrap_or_default();
        let (egress, mut decisions) = self.build_egress(build).await?;
        let hosts = if build.egress.is_empty() { "none".to_owned() } else { build.egress.join(", ") };
        log.say(&format!("running the setup; it may reach: {hosts}")).await;
        let place = sandbox.place();
        let bundle = place.temp.join(BUNDLE);
        let looks = egress.looks();
        if looks {
            sandbox.put(&bundle, egress.bundle().as_bytes()).await.map_err(Error::from)?;
        }
        let (proxy, _listening) = if let Some(address) = sandbox.service(Service::Egress) {
            way_out.lead(Some(Arc::new(egress)));
            (format!("http://{address}"), None)
        } else {
            let listening = Listening::open(self, egress).await?;
            (listening.url(), Some(listening))
        };
        let mut env: Vec<(String, String)> = [
            ("PATH", PATH.to_owned()),
            ("HOME", place.home.display().to_string()),
            ("TMPDIR", place.temp.display().to_string()),
            ("LANG", "C.UTF-8".to_owned()),
            ("TERM", "dumb".to_owned()),
            ("CI", "1".to_owned()),
            ("KARTA_BUILD", "1".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
            env.push((name.to_owned(), proxy.clone()));
        }
        if looks {
            env.extend(Egress::trust(&bundle.display().to_string()));
        }
        env.extend(row.recipe.env.iter().map(|(name, value)| (name.clone(), value.clone())));
        let command = Command {
            program: "/bin/sh".to_owned(),
            args: vec!["-euc".to_owned(), setup],
            env,
            cwd: place.workspace.clone(),
        };
        let process = sandbox.spawn(&command).await.map_err(Error::from)?;
        let (to, mut lines) = mpsc::channel(WAITING);
        let reading = async {
            // The setup asks nobody anything.
            drop(process.stdin);
            tokio::join!(read(process.stdout, to.clone()), read(process.stderr, to));
        };
        let mut control = process.control;
        let limit = Duration::from_secs(self.settings().releases.build_seconds);
        let deadline = tokio::time::sleep(limit);
        tokio::pin!(reading, deadline);
        let mut writing = tokio::time::interval(WRITING);
        let mut open = true;
        let status = loop {
            tokio::select! {
                biased;
                () = &mut deadline => {
                    control.kill();
                    let seconds = limit.as_secs();
                    return Err(Unbuilt::Failed(format!("the setup took longer than {seconds} seconds")));
                }
                () = self.tasks().stopping() => {
                    control.kill();
                    return Err(Unbuilt::Failed("the server is stopping: publish again".to_owned()));
                }
                _ = writing.tick() => log.write().await,
                () = &mut reading, if open => open = false,
                Some(line) = lines.recv() => log.say(&line).await,
                Some(decided) = decisions.next() => say_refused(&decided, log).await,
                exit = control.wait() => break exit,
            }
        };
        // What it left running in the background ends with it, and must not hold its output open.
        control.kill();
        let rest = async {
            while open {
                tokio::select! {
                    () = &mut reading => open = false,
                    Some(line) = lines.recv() => log.say(&line).await,
                }
            }
        };
        // What still holds it after that has left the setup's group: it is not listened to.
        let _ = tokio::time::timeout(UNHEARD, rest).await;
        while let Ok(line) = lines.try_recv() {
            log.say(&line).await;
        }
        say_refused(&decisions.take(), log).await;
        match (status.status, status.signal) {
            (Some(0), _) => Ok(()),
            (Some(status), _) => Err(Unbuilt::Failed(format!("the setup ended with status {status}"))),
            (None, signal) => {
                Err(Unbuilt::Failed(format!("the setup was ended by signal {}", signal.unwrap_or_default())))
            }
        }
    }
}

/// Says what the way out kept back.
async fn say_refused(decided: &[Decision], log: &mut Log) {
    for one in decided.iter().filter(|one| !one.allowed) {
        let times = if one.count > 1 { format!(" ({} times)", one.count) } else { String::new() };
        log.say(&format!("{}{times}", told::refusal(one))).await;
    }
}

/// Hands on a stream's lines; a longer one is cut.
async fn read(stream: impl AsyncRead + Unpin, to: mpsc::Sender<String>) {
    let mut stream = BufReader::new(stream);
    let (mut line, mut cut) = (Vec::new(), false);
    loop {
        let (used, ended) = match stream.fill_buf().await {
            Ok([]) | Err(_) => break,
            Ok(bytes) => {
                let end = bytes.iter().position(|byte| *byte == b'\n');
                let part = &bytes[..end.unwrap_or(bytes.len())];
                let room = LINE.saturating_sub(line.len());
                cut |= part.len() > room;
                line.extend_from_slice(&part[..part.len().min(room)]);
                (end.map_or(bytes.len(), |end| end + 1), end.is_some())
            }
        };
        stream.consume(used);
        if ended && to.send(shown(&mut line, &mut cut)).await.is_err() {
            return;
        }
    }
    if !line.is_empty() {
        // Nobody listens any more: the build is over.
        let _ = to.send(shown(&mut line, &mut cut)).await;
    }
}

/// A line for people: text, without what would move a terminal's cursor.
fn shown(line: &mut Vec<u8>, cut: &mut bool) -> String {
    let text = crate::terminal::tame(&String::from_utf8_lossy(&std::mem::take(line)));
    if std::mem::take(cut) { format!("{text} …") } else { text }
}

/// What a build prints: kept, and told to who listens, in order.
struct Log {
    engine: Engine,
    row: ReleaseRow,
    heard: Option<mpsc::Sender<LogLine>>,
    said: u64,
    waiting: Vec<BuildLine>,
}

impl Log {
    fn new(engine: &Engine, row: &ReleaseRow, heard: Option<mpsc::Sender<LogLine>>) -> Self {
        Self { engine: engine.clone(), row: row.clone(), heard, said: 0, waiting: Vec::new() }
    }

    /// A line, unless there are too many.
    async fn say(&mut self, text: &str) {
        match self.said + 1 {
            said if said < LINES => self.keep(text).await,
            LINES => self.keep("… more was printed than is kept").await,
            _ => {}
        }
    }

    async fn keep(&mut self, text: &str) {
        self.said += 1;
        let line = BuildLine {
            version: self.row.version,
            seq: self.said,
            text: text.to_owned(),
            at: self.engine.clock().now(),
        };
        if let Some(heard) = &self.heard {
            let told = LogLine {
                cursor: build_cursor(&line),
                at: line.at,
                version: Some(line.version),
                line: Line::Build { text: line.text.clone() },
            };
            // Whoever does not read on is not waited for: it is all in the log.
            if !matches!(tokio::time::timeout(UNHEARD, heard.send(told)).await, Ok(Ok(()))) {
                self.heard = None;
            }
        }
        self.waiting.push(line);
        if self.waiting.len() >= WAITING {
            self.write().await;
        }
    }

    async fn write(&mut self) {
        let lines = std::mem::take(&mut self.waiting);
        if lines.is_empty() {
            return;
        }
        if let Err(error) = self.engine.store().build_lines_add(self.row.org, self.row.project, lines).await {
            tracing::error!(error = crate::error::chain(&error), "keeping what a build printed");
        }
    }
}
