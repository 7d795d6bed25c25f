//! `karta chat`: a conversation in the terminal, or one turn for a script, on the same API as everybody's.

mod ask;
mod lines;
mod screen;
mod show;
mod turn;

use std::io::{IsTerminal as _, Read as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use karta_client::{Client, CreateSession, Retry, SendMessage};
use karta_types::session::{Session, SessionStatus, TurnState};
use karta_types::{Seq, SessionId};

use self::lines::{Line, Lines};
use self::screen::Screen;
pub(super) use self::show::usage;
use self::turn::{Ended, Who};
use super::project;
use crate::args::Approve;
use crate::printer::Printer;
use crate::settings::Connection;

/// The longest message that is read from standard input, in bytes.
const MAX_MESSAGE: u64 = 8 << 20;
/// A person at a terminal waits longer for a server to come back than a script does: about five minutes.
const PATIENT: Retry = Retry {
    attempts: 60,
    first: Duration::from_millis(250),
    most: Duration::from_secs(5),
    silence: Duration::from_secs(50),
};

const HELP: &str = "\
A line is a message; end it with \\ to go on in the next line. Commands of the agent (/…) go through to it.
  :new           begin a new session
  :agent NAME    let another agent take the next messages
  :session       show the session's id
  :help          show this
  :quit          leave (also Ctrl-D, or Ctrl-C twice)
While a turn runs, Ctrl-C interrupts it.";

/// What a chat needs to know.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) connection: Connection,
    pub(crate) message: Option<String>,
    pub(crate) session: Option<SessionId>,
    pub(crate) project: Option<String>,
    pub(crate) agent: Option<String>,
    pub(crate) approve: Option<Approve>,
    pub(crate) json: bool,
}

pub(super) async fn run(mut settings: Settings, printer: &Printer) -> anyhow::Result<ExitCode> {
    let Connection { url, key, .. } = &settings.connection;
    let client = Client::new(url, key.clone())?;
    let here = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    if settings.message.is_none() && !std::io::stdin().is_terminal() {
        settings.message = Some(read_message()?);
    }
    let mut screen = Screen::new(printer, settings.json);
    let who = Who { here, approve: settings.approve };
    match settings.message.take() {
        Some(text) => once(&client, &settings, text, who, &mut screen).await,
        None if here => talk(&client.with_retry(PATIENT), &settings, who, &mut screen).await,
        None => bail!("a conversation needs a terminal; give a message by `--message` or on standard input"),
    }
}

/// One message, one turn.
async fn once(
    client: &Client,
    settings: &Settings,
    text: String,
    who: Who,
    screen: &mut Screen,
) -> anyhow::Result<ExitCode> {
    let mut lines = who.here.then(Lines::start).transpose()?;
    let session = open(client, settings).await?;
    let message = SendMessage { agent: settings.agent.clone(), ..SendMessage::text(text) };
    let events = client.send_streaming(session.id, &message)?;
    let ended = turn::follow(client, session.id, events, who, lines.as_mut(), screen).await?;
    Ok(match ended {
        Ended::Done(TurnState::Completed) => ExitCode::SUCCESS,
        Ended::Done(_) => ExitCode::FAILURE,
        // As a shell tells of a program that Ctrl-C ended.
        Ended::Left => ExitCode::from(130),
    })
}

/// A conversation.
async fn talk(
    client: &Client,
    settings: &Settings,
    who: Who,
    screen: &mut Screen,
) -> anyhow::Result<ExitCode> {
    let mut lines = Lines::start()?;
    let mut agent = settings.agent.clone();
    let mut session = open(client, settings).await?;
    screen.note(&greeting(&session));
    if matches!(session.status, SessionStatus::Running | SessionStatus::Waiting) {
        let turns = client.turns(session.id, None).await?;
        if let Some(running) = turns.data.iter().find(|turn| !turn.state.ended()) {
            screen.note("A turn is running; here it is from its beginning");
            let events = client.turn_events(session.id, running.id, Seq::START);
            if tell(turn::follow(client, session.id, events, who, Some(&mut lines), screen).await, screen) {
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
    loop {
        let Some(text) = message(&mut lines, screen).await else {
            screen.note(&format!("Go on later by `karta chat --session {}`", session.id));
            return Ok(ExitCode::SUCCESS);
        };
        match text.split_once(' ').map_or((text.as_str(), ""), |(word, rest)| (word, rest.trim())) {
            ("", _) => {}
            (":quit" | ":q" | ":exit", _) => return Ok(ExitCode::SUCCESS),
            (":help", _) => screen.note(HELP),
            (":session", _) => screen.note(&session.id.to_string()),
            (":agent", name) => {
                agent = (!name.is_empty()).then(|| name.to_owned());
                screen.note(&format!(
                    "Next messages go to {}",
                    agent.as_deref().unwrap_or("the default agent")
                ));
            }
            (":new", _) => {
                // In the same project, whatever the old session was named by.
                let create = CreateSession {
                    project: Some(session.project.id.to_string()),
                    ..CreateSession::default()
                };
                match client.create_session(&create).await {
                    Ok(new) => session = new,
                    Err(error) => screen.error(&error.into()),
                }
                screen.note(&greeting(&session));
            }
            (word, _) if word.starts_with(':') => {
                screen.note(&format!("There is no command `{word}`; `:help` lists them"));
            }
            _ => {
                let message = SendMessage { agent: agent.clone(), ..SendMessage::text(text) };
                let events = client.send_streaming(session.id, &message)?;
                let followed = turn::follow(client, session.id, events, who, Some(&mut lines), screen).await;
                if tell(followed, screen) {
                    return Ok(ExitCode::SUCCESS);
                }
            }
        }
    }
}

/// Tells what went wrong with a turn; a conversation survives it. Whether the person left.
fn tell(ended: anyhow::Result<Ended>, screen: &mut Screen) -> bool {
    match ended {
        Ok(ended) => matches!(ended, Ended::Left),
        Err(error) => {
            screen.error(&error);
            false
        }
    }
}

/// The next message the person types; `None` when they leave.
async fn message(lines: &mut Lines, screen: &mut Screen) -> Option<String> {
    let mut text = String::new();
    let mut asked_to_leave = false;
    loop {
        screen.prompt(if text.is_empty() { "› " } else { "… " });
        match lines.next().await {
            Line::Text(line) => {
                screen.entered();
                asked_to_leave = false;
                if let Some(more) = line.strip_suffix('\\') {
                    text += more;
                    text.push('\n');
                    continue;
                }
                text += &line;
                return Some(text.trim().to_owned());
            }
            Line::Interrupt if asked_to_leave => {
                screen.newline();
                return None;
            }
            Line::Interrupt => {
                asked_to_leave = true;
                text.clear();
                screen.newline();
                screen.note("Ctrl-C again, or Ctrl-D, leaves");
            }
            Line::End => {
                screen.newline();
                return None;
            }
        }
    }
}

/// The session to talk in.
async fn open(client: &Client, settings: &Settings) -> anyhow::Result<Session> {
    if let Some(session) = settings.session {
        return Ok(client.session(session).await?);
    }
    let project = match &settings.project {
        Some(project) => project.clone(),
        None => project::meant(client, settings.connection.project.clone()).await?,
    };
    let create =
        CreateSession { project: Some(project), agent: settings.agent.clone(), ..CreateSession::default() };
    Ok(client.create_session(&create).await?)
}

fn greeting(session: &Session) -> String {
    let version = session.project.version.map(|version| format!(" v{version}")).unwrap_or_default();
    let agent = session.current_agent.as_deref().map(|agent| format!(", agent {agent}")).unwrap_or_default();
    let name = show::line(&session.project.slug, 100);
    format!("{name}{version}{agent} · {} · `:help` helps, Ctrl-D leaves", session.id)
}

fn read_message() -> anyhow::Result<String> {
    let mut text = String::new();
    std::io::stdin()
        .take(MAX_MESSAGE + 1)
        .read_to_string(&mut text)
        .context("reading the message from standard input")?;
    if text.len() as u64 > MAX_MESSAGE {
        bail!("the message on standard input is longer than {MAX_MESSAGE} bytes");
    }
    if text.trim().is_empty() {
        bail!("there is no message: standard input is empty and `--message` is not given");
    }
    Ok(text)
}
