//! A machine that another host takes over.

use karta_guest::proto::frame::Kind;
use karta_guest::proto::message::Answer;

use super::core::{Agent, failure};

impl Agent {
    /// Everything of an older generation ends: its host is not there any more.
    pub(super) fn forget(&mut self) {
        // The keepers see their channels close, and end what they watch over.
        self.streams.clear();
        self.thaw();
        self.host_last = 0;
        self.guest_next = 2;
        self.parked = false;
    }

    /// Programs stay, under new numbers; every other stream's host is not there any more.
    pub(super) fn adopt(&mut self) {
        let mut old = std::mem::take(&mut self.streams);
        let programs: Vec<u32> =
            old.iter().filter(|(_, stream)| stream.keeper.is_some()).map(|(id, _)| *id).collect();
        for (before, number) in programs.into_iter().zip((3..).step_by(4)) {
            // What is over already is told as over.
            let mut main = old.remove(&before).unwrap_or_default();
            let mut errors = old.remove(&(before + 2)).unwrap_or_default();
            main.renew();
            errors.renew();
            self.streams.insert(number, main);
            self.streams.insert(number + 2, errors);
        }
        self.host_last = 0;
        self.guest_next = 2;
        self.parked = false;
    }

    pub(super) fn adopted(&mut self, id: u32, nanos: i64) {
        if nanos != 0
            && let Err(error) = super::configure::clock(nanos)
        {
            return self.answer(id, Err(failure(&error, "setting the clock")));
        }
        let programs = self.streams.len() / 2;
        self.host_last = self.streams.keys().copied().max().unwrap_or(id).max(id);
        let told = Answer::Adopted(u16::try_from(programs).unwrap_or(u16::MAX));
        self.channel.send(Kind::Answer, id, &told.encode());
        let ids: Vec<u32> = self.streams.keys().copied().collect();
        for id in ids {
            let Some(stream) = self.streams.get(&id) else { continue };
            // The first of a program's two numbers has both directions, the second only one.
            let (deaf, mute) = (stream.sink.is_none() && id % 4 == 3, stream.source.is_none());
            if deaf {
                self.channel.send(Kind::Stop, id, &[]);
            }
            if mute {
                self.channel.send(Kind::Eof, id, &[0]);
            }
            self.settle(id);
        }
    }
}
