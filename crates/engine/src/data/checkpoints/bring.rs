//! Checkpoints put back into sandboxes, and read without one.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use karta_sandbox::Sandbox;
use karta_sandbox::paths::{self, Pattern};
use karta_sandbox::state::HOME;
use karta_store::CheckpointRow;
use karta_types::{OrgId, SessionId};

use super::error::CheckpointError;
use super::load::Source;
use super::pack::off_runtime;
use super::save::{self, Seen};
use super::tree::{Item, Kind};
use super::{Checkpoints, Held, Loaded, Newest, Owner};

impl Checkpoints {
    /// Puts what was kept into a new sandbox: the newest checkpoint, or with `back` one that is so many older. None if there is none.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`]: that one can't be read, and the sandbox may hold half of it: close it, and try with another and
    /// one more `back`. The sandbox or a store failed.
    pub async fn load(
        &self,
        owner: Owner,
        back: usize,
        sandbox: &dyn Sandbox,
    ) -> Result<Option<Loaded>, CheckpointError> {
        let Owner { org, session, .. } = owner;
        let held = self.held(session);
        let mut held = held.lock().await;
        let rows = self.store.checkpoint_list(org, session).await?;
        if back > 0 {
            held.newest = None;
            held.distrusted = rows.first().map(|row| row.seq);
        }
        let Some(row) = rows.get(back) else { return Ok(None) };
        let Some(key) = self.keys.get(org, session).await? else { return Err(CheckpointError::Shredded) };
        let source = self.source(org, session, &Arc::new(key), row.seq);
        let loading = Box::pin(self.load_row(&mut held, row, source, sandbox));
        let loaded = tokio::time::timeout(Duration::from_secs(self.limits.seconds), loading).await;
        loaded.unwrap_or(Err(CheckpointError::Late("putting a checkpoint back")))?;
        Ok(Some(Loaded { seq: row.seq, turn: row.turn, files: row.files }))
    }

    async fn load_row(
        &self,
        held: &mut Held,
        row: &CheckpointRow,
        source: Source,
        sandbox: &dyn Sandbox,
    ) -> Result<(), CheckpointError> {
        let listed = source.listed(row).await?;
        let newest = Newest::new(row.clone(), listed);
        let failed: Arc<Mutex<Option<CheckpointError>>> = Arc::default();
        let (base, failing) = (newest.base.clone(), failed.clone());
        let records = off_runtime(&self.cpu, move || source.records(&base.tree, failing)).await?;
        if let Err(error) = sandbox.restore(records).await {
            let ours = failed.lock().unwrap_or_else(PoisonError::into_inner).take();
            return Err(ours.unwrap_or(CheckpointError::Sandbox(error)));
        }
        // What the machine calls the state that it has now: only what changes from here on is taken out again.
        let now = self.keys.clock.now();
        let survey = save::survey(sandbox, &self.limits).await?;
        let (machine, base) = (sandbox.id(), newest.base.clone());
        let seen = off_runtime(&self.cpu, move || Seen::new(machine, &survey, &base.tree, now)).await?;
        held.seen = Some(Arc::new(seen));
        if held.distrusted.is_none() {
            held.newest = Some(newest);
        }
        Ok(())
    }

    /// Reads files of the home out of the newest checkpoint, without a machine: those that match `pattern` (relative to the home, one
    /// `*` for one folder level), newest first, each at most `limit` bytes. The paths are relative to the home.
    ///
    /// # Errors
    /// The pattern leads out of the home; the checkpoint can't be read; a store failed.
    pub async fn find(
        &self,
        org: OrgId,
        session: SessionId,
        pattern: &str,
        limit: u64,
    ) -> Result<Vec<(PathBuf, Vec<u8>)>, CheckpointError> {
        let pattern = paths::pattern(pattern)?;
        // A checkpoint that is added meanwhile may take the packs of this one with it: then the next one is read.
        let mut tries = 3;
        loop {
            tries -= 1;
            let rows = self.store.checkpoint_list(org, session).await?;
            let Some(row) = rows.first() else { return Ok(Vec::new()) };
            match self.find_in(row, &pattern, limit).await {
                Err(CheckpointError::Damaged { .. }) if tries > 0 => {}
                found => return found,
            }
        }
    }

    async fn find_in(
        &self,
        row: &CheckpointRow,
        pattern: &Pattern,
        limit: u64,
    ) -> Result<Vec<(PathBuf, Vec<u8>)>, CheckpointError> {
        let Some(key) = self.keys.get(row.org, row.session).await? else {
            return Err(CheckpointError::Shredded);
        };
        let source = self.source(row.org, row.session, &Arc::new(key), row.seq);
        let tree = source.listed(row).await?.tree;
        let file = |(path, item): (&PathBuf, &Item)| {
            let path = path.strip_prefix(HOME).ok()?;
            let file = matches!(item.kind, Kind::File(_)) && pattern.matches(path);
            file.then(|| (path.to_owned(), item.clone()))
        };
        let mut found: Vec<_> = tree.iter().filter_map(file).collect();
        found.sort_by_key(|(_, item)| std::cmp::Reverse(item.modified));
        let mut read = Vec::with_capacity(found.len());
        for (path, item) in found {
            read.push((path, source.read(&item, limit).await?));
        }
        Ok(read)
    }
}
