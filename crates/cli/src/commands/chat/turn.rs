//! One turn, followed to its end: events shown, questions asked, Ctrl-C passed on.

use std::collections::VecDeque;

use anyhow::Context as _;
use karta_client::{Client, EventStream};
use karta_types::event::{Answerer, AskKind, InputRequired};
use karta_types::message::Answer;
use karta_types::session::TurnState;
use karta_types::{Body, ErrorCode, Event, RequestId, SessionId, TurnId};

use super::ask::{Asking, Step, unattended};
use super::lines::{Line, Lines};
use super::screen::Screen;
use crate::args::Approve;
use crate::printer::FRAME;

/// Who answers questions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Who {
    /// There is a person at the terminal. Otherwise questions are denied.
    pub(super) here: bool,
    /// Approvals are given beforehand, so far.
    pub(super) approve: Option<Approve>,
}

/// How following ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// By the turn's `done`.
    Done(TurnState),
    /// The person left; the turn goes on without them.
    Left,
}

/// What happens next.
enum Next {
    Event(Option<Box<Result<Event, karta_client::Error>>>),
    Line(Line),
    Tick,
}

/// The turn as this side sees it.
struct Turn<'a> {
    client: &'a Client,
    session: SessionId,
    who: Who,
    asking: VecDeque<Asking>,
    interrupted: bool,
    screen: &'a mut Screen,
}

/// Follows a turn to its end. Without `lines` there is no hand at the terminal, and Ctrl-C ends the program as it always does.
pub(super) async fn follow(
    client: &Client,
    session: SessionId,
    mut events: EventStream,
    who: Who,
    mut lines: Option<&mut Lines>,
    screen: &mut Screen,
) -> anyhow::Result<Ended> {
    let mut turn = Turn { client, session, who, asking: VecDeque::new(), interrupted: false, screen };
    let mut interrupts = match &lines {
        Some(_) => None,
        None => Some(tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?),
    };
    let mut tick = tokio::time::interval(FRAME);
    loop {
        let next = tokio::select! {
            biased;
            line = hand(lines.as_deref_mut(), interrupts.as_mut()) => Next::Line(line),
            event = events.next() => Next::Event(event.map(Box::new)),
            _ = tick.tick() => Next::Tick,
        };
        match next {
            Next::Tick => {
                if turn.asking.is_empty() {
                    turn.screen.tick(events.reconnecting());
                }
            }
            Next::Line(line) => {
                if turn.line(line).await? {
                    return Ok(Ended::Left);
                }
            }
            Next::Event(None) => anyhow::bail!("the events ended before the turn did"),
            Next::Event(Some(event)) => {
                let event = event.inspect_err(|_| turn.screen.settle())?;
                turn.screen.event(&event)?;
                if let Some(ended) = turn.event(event, events.turn()).await? {
                    return Ok(ended);
                }
            }
        }
    }
}

/// What the person does next; without a terminal only Ctrl-C.
async fn hand(lines: Option<&mut Lines>, interrupts: Option<&mut tokio::signal::unix::Signal>) -> Line {
    match (lines, interrupts) {
        (Some(lines), _) => lines.next().await,
        (None, Some(interrupts)) => {
            interrupts.recv().await;
            Line::Interrupt
        }
        (None, None) => std::future::pending().await,
    }
}

impl Turn<'_> {
    async fn event(&mut self, event: Event, turn: Option<TurnId>) -> anyhow::Result<Option<Ended>> {
        match event.body {
            Body::InputRequired(required) => self.required(required).await?,
            Body::InputResolved { request_id, by, .. } => self.resolved(request_id, &by),
            Body::Gap { .. } => {
                // The turn's end may be among what is gone.
                let turn = match turn {
                    Some(turn) => Some(self.client.turn(self.session, turn).await?),
                    None => None,
                };
                return Ok(turn.filter(|turn| turn.state.ended()).map(|turn| Ended::Done(turn.state)));
            }
            Body::Done { status, .. } => return Ok(Some(Ended::Done(status))),
            _ => {}
        }
        Ok(None)
    }

    async fn required(&mut self, required: InputRequired) -> anyhow::Result<()> {
        let decided = self.who.approve.is_some() && required.kind != AskKind::Question;
        if decided || !self.who.here {
            let answer = unattended(&required, self.who.approve);
            self.screen.decided(&required, answer.decision);
            return self.answer(required.request_id, &answer).await.map(drop);
        }
        self.asking.push_back(Asking::new(required));
        if self.asking.len() == 1 {
            self.ask();
        }
        Ok(())
    }

    /// A question is off the table: answered by us or by somebody else, or withdrawn.
    fn resolved(&mut self, request: RequestId, by: &Answerer) {
        let first = self.asking.front().is_some_and(|asking| asking.required.request_id == request);
        self.asking.retain(|asking| asking.required.request_id != request);
        if first {
            self.screen.newline();
            // The server itself answers when time is up, or when it had to stop.
            self.screen.note(if by.kind == "karta" { "No longer asked" } else { "Answered elsewhere" });
            self.ask();
        }
    }

    /// Puts the first question to the person.
    fn ask(&mut self) {
        if let Some(asking) = self.asking.front() {
            self.screen.question(&asking.title());
            self.screen.prompt(&asking.prompt());
        }
    }

    /// Takes what the person did. Whether they left.
    async fn line(&mut self, line: Line) -> anyhow::Result<bool> {
        match line {
            Line::Interrupt if self.interrupted => {
                self.screen.note("Left; the turn goes on at the server until it is interrupted there");
                return Ok(true);
            }
            Line::Interrupt => {
                self.interrupted = true;
                self.asking.clear();
                self.screen.newline();
                self.screen.note("Interrupting the turn (Ctrl-C again leaves)");
                match self.client.interrupt(self.session).await {
                    Ok(true) => {}
                    Ok(false) => self.screen.note("Nothing was running at the server"),
                    Err(error) => self.screen.error(&error.into()),
                }
            }
            Line::End => {
                self.screen.note("Left; the turn goes on at the server");
                return Ok(true);
            }
            Line::Text(text) => self.typed(text).await?,
        }
        Ok(false)
    }

    async fn typed(&mut self, text: String) -> anyhow::Result<()> {
        self.screen.entered();
        let Some(asking) = self.asking.front_mut() else {
            if !text.trim().is_empty() {
                self.screen
                    .note("A turn is running; type this again after it, or press Ctrl-C to interrupt it");
            }
            return Ok(());
        };
        match asking.line(&text) {
            Step::More(said) => {
                let prompt = asking.prompt();
                if !said.is_empty() {
                    self.screen.note(&said);
                }
                self.screen.prompt(&prompt);
            }
            Step::Answer(answer) => {
                let request = asking.required.request_id;
                if self.answer(request, &answer).await? {
                    self.asking.pop_front();
                }
                self.ask();
            }
        }
        Ok(())
    }

    /// Gives the answer. Whether the question is off the table; if not, the person may try again.
    async fn answer(&mut self, request: RequestId, answer: &Answer) -> anyhow::Result<bool> {
        match self.client.answer(self.session, request, answer).await {
            Ok(()) => Ok(true),
            Err(error) if error.code() == Some(ErrorCode::InputAlreadyResolved) => {
                self.screen.note("Answered elsewhere already");
                Ok(true)
            }
            Err(error) if self.who.here => {
                self.screen.error(&error.into());
                Ok(false)
            }
            Err(error) => Err(error).context("nobody could answer the agent's question"),
        }
    }
}
