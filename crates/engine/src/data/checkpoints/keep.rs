//! A checkpoint from its survey to its row, and what nobody names any more after it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use karta_sandbox::Sandbox;
use karta_store::CheckpointRow;
use karta_types::TurnId;

use super::error::CheckpointError;
use super::load::Listed;
use super::pack::{Packer, Packing, off_runtime};
use super::save::{self, Plan, Seen};
use super::seal::{Role, SessionKey};
use super::tree::{self, Item, PackId, Root};
use super::{Checkpoints, Held, Newest, Owner, Pace, Saved};

impl Checkpoints {
    /// Keeps what the sandbox has now.
    ///
    /// # Errors
    /// The session has more than it may; the sandbox failed, or gave what can't be kept; another owner has the session; a store failed.
    /// What was kept before is kept still.
    pub async fn save(
        &self,
        owner: Owner,
        turn: Option<TurnId>,
        pace: Pace,
        sandbox: &dyn Sandbox,
    ) -> Result<Saved, CheckpointError> {
        let held = self.held(owner.session);
        let mut held = held.lock().await;
        let saving = self.save_held(&mut held, owner, turn, pace, sandbox);
        let saved = tokio::time::timeout(Duration::from_secs(self.limits.seconds), Box::pin(saving)).await;
        let saved = saved.unwrap_or(Err(CheckpointError::Late("taking a checkpoint")));
        match &saved {
            // Packs of it may lie there that nobody names.
            Err(_) => held.swept = false,
            Ok(_) if pace == Pace::Rest => self.collect(&mut held, owner).await,
            Ok(_) => {}
        }
        saved
    }

    async fn save_held(
        &self,
        held: &mut Held,
        owner: Owner,
        turn: Option<TurnId>,
        pace: Pace,
        sandbox: &dyn Sandbox,
    ) -> Result<Saved, CheckpointError> {
        let Owner { org, session, generation } = owner;
        let key = Arc::new(self.keys.get_or_make(org, session).await?);
        let rows = self.store.checkpoint_list(org, session).await?;
        let last = rows.first().map_or(0, |row| row.seq);
        self.refresh(held, &key, rows.first()).await?;
        let before = held.newest.as_ref().map(|newest| newest.base.clone());
        let machine = sandbox.id();
        let seen = held.seen.clone().filter(|seen| seen.machine == machine);

        // From here on changes are the next survey's.
        let now = self.keys.clock.now();
        let survey = Arc::new(save::survey(sandbox, &self.limits).await?);
        let (surveyed, base) = (survey.clone(), before.clone());
        let Plan { changed, mut tree, worn, known } =
            off_runtime(&self.cpu, move || save::plan(&surveyed, seen.as_deref(), base.as_deref(), pace))
                .await?;
        let packing = Packing {
            blobs: self.blobs.clone(),
            key: key.clone(),
            cpu: self.cpu.clone(),
            rng: self.keys.rng.clone(),
            org,
            session,
            generation,
        };
        let mut packer = Packer::new(packing, known);
        let taken = save::take(sandbox, changed, &mut tree, &self.limits, &mut packer).await?;
        if !worn.is_empty() {
            save::relocate(&mut tree, &worn, &self.source(org, session, &key, last), &mut packer).await?;
        }
        let (tree, parts, bytes, seen) = off_runtime(&self.cpu, move || {
            let (parts, bytes) = (tree::parts(&tree), tree.values().map(Item::size).sum());
            let seen = Seen::new(machine, &survey, &tree, now);
            (tree, parts, bytes, seen)
        })
        .await?;
        if bytes > self.limits.bytes {
            return Err(CheckpointError::Refused { what: "bytes", have: bytes, most: self.limits.bytes });
        }
        for part in parts {
            packer.add(Role::List, part.into()).await?;
        }
        let lists = packer.collect().await?;
        if before.as_ref().is_some_and(|base| base.lists == lists) {
            held.seen = Some(Arc::new(seen));
            return Ok(Saved { seq: last, changed: false, taken, stored: 0 });
        }

        let seq = last + 1;
        let (into, at) = packer.open();
        let (sealing, lengths) = (key.clone(), packer.put.clone());
        let (tree, root, sealed) = off_runtime(&self.cpu, move || {
            let mut packs: BTreeMap<PackId, u64> = BTreeMap::new();
            for used in tree::packs_of(&tree, &lists) {
                let length = lengths.get(&used).or_else(|| before.as_ref()?.packs.get(&used)).copied();
                packs.extend(length.map(|length| (used, length)));
            }
            let root = Root { lists, packs };
            let mut sealed = Vec::new();
            let done = sealing.seal(Role::Root, &seq.to_be_bytes(), &root.write(), &mut sealed);
            done.map(|()| (tree, root, sealed))
        })
        .await??;
        let length = sealed.len() as u64;
        packer.finish(&sealed).await?;
        let stored = packer.put.values().sum();
        let row = CheckpointRow {
            org,
            session,
            seq,
            turn,
            key: key.id.clone(),
            pack: into.to_string(),
            place: at,
            length,
            packs: root.packs.keys().chain([&into]).map(PackId::to_string).collect(),
            files: tree.len() as u64,
            bytes,
            at: now,
        };
        let left = self.store.checkpoint_add(row.clone(), generation, self.limits.keep).await?;
        note_unused(held, &rows, &left);
        held.seen = Some(Arc::new(seen));
        held.newest = Some(Newest::new(row, Listed { tree, root }));
        held.distrusted = None;
        Ok(Saved { seq, changed: true, taken, stored })
    }

    /// Makes what is remembered of the newest checkpoint that of this row.
    async fn refresh(
        &self,
        held: &mut Held,
        key: &Arc<SessionKey>,
        row: Option<&CheckpointRow>,
    ) -> Result<(), CheckpointError> {
        if held.newest.as_ref().map(|newest| &newest.row) == row {
            return Ok(());
        }
        held.newest = None;
        held.seen = None;
        let Some(row) = row else { return Ok(()) };
        if held.distrusted.is_some_and(|seq| seq >= row.seq) {
            return Ok(());
        }
        match self.source(row.org, row.session, key, row.seq).listed(row).await {
            Ok(listed) => held.newest = Some(Newest::new(row.clone(), listed)),
            // Then everything is put anew: what is in the machine is all that there is.
            Err(error @ (CheckpointError::Damaged { .. } | CheckpointError::Shredded)) => {
                tracing::error!(session = %row.session, %error, "the newest checkpoint");
                held.distrusted = Some(row.seq);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Removes packs that no checkpoint names. Failing is no reason for anything else to fail: it is tried again.
    async fn collect(&self, held: &mut Held, owner: Owner) {
        let Owner { org, session, generation } = owner;
        let done = async {
            if !held.swept {
                // What lies there first, then what is named: a checkpoint that is added in between is not lost.
                let lying = self.blobs.list(org, session).await?;
                let rows = self.store.checkpoint_list(org, session).await?;
                let named: HashSet<PackId> = names(&rows);
                held.unused = lying.into_iter().filter(|pack| !named.contains(pack)).collect();
                // An owner after this one may have put packs whose checkpoint is not added yet.
                held.unused.retain(save::mine(generation));
                self.blobs.remove_partial(org, session).await?;
                held.swept = true;
            }
            while let Some(pack) = held.unused.first().copied() {
                self.blobs.remove(org, session, pack).await?;
                held.unused.remove(&pack);
            }
            Ok::<_, CheckpointError>(())
        };
        if let Err(error) = done.await {
            tracing::warn!(%session, error = crate::error::chain(&error), "removing old checkpoints");
        }
    }
}

/// The packs that these name.
fn names(rows: &[CheckpointRow]) -> HashSet<PackId> {
    rows.iter().flat_map(|row| &row.packs).filter_map(|name| name.parse().ok()).collect()
}

/// Notes packs that were named before and are named no more.
fn note_unused(held: &mut Held, before: &[CheckpointRow], after: &[CheckpointRow]) {
    let (before, after) = (names(before), names(after));
    held.unused.extend(before.difference(&after));
}
