//! The conversation, read on demand from where the harness keeps it. No copy of it is kept.

use karta_harness::HistorySource;
use karta_sandbox::Spec;
use karta_types::SessionId;
use karta_types::message::Message;

use crate::data::turn::run::Order;
use crate::{Engine, Error, Principal, Result};

/// The largest history file that is read.
const LIMIT: u64 = 256 << 20;

impl Engine {
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
        let sandbox = self.driver(release.harness.id()).acquire(&spec).await?;
        let files = sandbox.find(&pattern, LIMIT).await?;
        let Some((_, bytes)) = files.into_iter().next() else { return Ok(Vec::new()) };
        let harness = release.harness;
        tokio::task::spawn_blocking(move || harness.read_history(&bytes))
            .await
            .map_err(|error| Error::internal("reading the history", error))?
            .map_err(Error::from)
    }
}
