//! The conversation, read on demand from where the harness keeps it. No copy of it is kept.

use std::path::PathBuf;

use karta_harness::HistorySource;
use karta_sandbox::Spec;
use karta_types::message::Message;
use karta_types::{OrgId, SessionId};
use tokio::sync::oneshot;

use crate::data::turn::run::Order;
use crate::{Engine, Error, Principal, Result};

/// The largest history file that is read.
const LIMIT: u64 = 256 << 20;

impl Engine {
    /// Files of a session whose place does not outlive its machine: out of the machine if it runs, else out of the newest checkpoint.
    async fn find_kept(
        &self,
        org: OrgId,
        session: SessionId,
        pattern: &str,
    ) -> Result<Vec<(PathBuf, Vec<u8>)>> {
        if let Some(runner) = self.hub().running(session) {
            let (reply, answer) = oneshot::channel();
            // A runner that retires now has kept everything.
            let asked = runner.send(Order::Machine { reply }).await;
            if asked.is_ok()
                && let Ok(Some(machine)) = answer.await
            {
                return Ok(machine.sandbox.find(pattern, LIMIT).await?);
            }
        }
        Ok(self.checkpoints().find(org, session, pattern, LIMIT).await?)
    }

    /// The conversation so far, oldest first.
    ///
    /// # Errors
    /// `not_found`; the harness can't be asked.
    pub async fn history(&self, who: &Principal, session: SessionId) -> Result<Vec<Message>> {
        let row = self.session_row(who, session).await?;
        // Before its first turn a session has nothing and needs nothing.
        let Some(version) = row.last_version else { return Ok(Vec::new()) };
        let project = self.project_known(row.org, row.project).await?;
        let release = self.load(&project, version).await?;
        let Some(native) = &row.native else { return Ok(Vec::new()) };
        let HistorySource::File(pattern) = release.harness.history_source(native) else {
            return self.order(who, session, |reply| Order::History { reply }).await?;
        };
        let spec = Spec::new(session, release.path.clone(), release.row.digest.clone());
        let driver = self.driver(release.harness.id());
        let files = if driver.keeps() {
            driver.acquire(&spec).await?.find(&pattern, LIMIT).await?
        } else {
            self.find_kept(row.org, session, &pattern).await?
        };
        let Some((_, bytes)) = files.into_iter().next() else { return Ok(Vec::new()) };
        let harness = release.harness;
        tokio::task::spawn_blocking(move || harness.read_history(&bytes))
            .await
            .map_err(|error| Error::internal("reading the history", error))?
            .map_err(Error::from)
    }
}
