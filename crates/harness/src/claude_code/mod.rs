//! stub

use crate::*;
use karta_types::{message::Message, release::Discovery};

/// stub
#[derive(Debug)]
pub struct ClaudeCode;

impl Harness for ClaudeCode {
    fn id(&self) -> &'static str {
        "claude-code"
    }
    fn capabilities(&self) -> Capabilities {
        todo!()
    }
    fn package(&self) -> Option<&'static Package> {
        todo!()
    }
    fn signals(&self) -> &'static [&'static str] {
        todo!()
    }
    fn discover(&self, _tree: &Tree) -> Result<Discovery, Error> {
        todo!()
    }
    fn command(&self, _launch: &Launch<'_>) -> Result<Command, Error> {
        todo!()
    }
    fn codec(&self, _launch: &Launch<'_>) -> Result<Box<dyn Codec>, Error> {
        todo!()
    }
    fn history_source(&self, _native: &str) -> HistorySource {
        todo!()
    }
    fn read_history(&self, _bytes: &[u8]) -> Result<Vec<Message>, Error> {
        todo!()
    }
}
