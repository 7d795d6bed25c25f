//! Two releases compared, and a release as an archive.

use std::collections::BTreeMap;
use std::io::{self, BufWriter};

use bytes::Bytes;
use karta_release::archive;
use karta_types::policy::Policy;
use karta_types::release::{Changed, ReleaseDiff, ReleaseState, Started};
use serde_json::Value;
use tokio::sync::mpsc;

use super::shelf::off_runtime;
use super::transfers::Outward;
use crate::{Engine, Error, Principal, Result};

/// Bytes of a part of an archive, and how many parts wait for a slow reader.
const PART: usize = 64 << 10;
const PARTS: usize = 4;

impl Engine {
    /// How two releases of a project differ: what the second has and the first has not, and so on. Files are those that were published,
    /// without what a setup made of them.
    ///
    /// # Errors
    /// `not_found`; `release_not_ready` for one whose files are gone.
    pub async fn compare_releases(
        &self,
        who: &Principal,
        reference: &str,
        from: u64,
        to: u64,
    ) -> Result<ReleaseDiff> {
        let (_, old) = self.release_row(who, reference, from).await?;
        let (_, new) = self.release_row(who, reference, to).await?;
        let files = self.published_files(&old).await?.diff(&self.published_files(&new).await?);
        let named = |list: &[karta_types::release::Named]| {
            list.iter().map(|one| (one.name.clone(), format!("{one:?}"))).collect()
        };
        let agents = |list: &[karta_types::release::Agent]| {
            list.iter().map(|one| (one.name.clone(), format!("{one:?}"))).collect()
        };
        let started = |list: &[Started]| -> BTreeMap<String, String> {
            list.iter().map(|one| (format!("{}: {}", one.name, one.command), one.file.clone())).collect()
        };
        Ok(ReleaseDiff {
            files,
            agents: changed(agents(&old.found.agents), &agents(&new.found.agents)),
            skills: changed(named(&old.found.skills), &named(&new.found.skills)),
            commands: changed(named(&old.found.commands), &named(&new.found.commands)),
            hooks: changed(started(&old.found.hooks), &started(&new.found.hooks)),
            mcp_servers: changed(started(&old.found.mcp_servers), &started(&new.found.mcp_servers)),
            policy: policy(&old.recipe.policy, &new.recipe.policy),
            harness: (old.harness != new.harness).then_some((old.harness, new.harness)),
        })
    }

    /// A release's files as a gzipped tar archive, in parts. One that breaks off has an error as its last.
    ///
    /// # Errors
    /// `not_found`; `release_not_ready` for one whose files are gone; `rate_limited`, `overloaded` while too many are on their way.
    pub async fn release_archive(
        &self,
        who: &Principal,
        reference: &str,
        version: u64,
    ) -> Result<mpsc::Receiver<io::Result<Bytes>>> {
        let (_, mut row) = self.release_row(who, reference, version).await?;
        // What was published, not what a setup made of it.
        row.built = None;
        if row.state == ReleaseState::Deleted {
            return Err(gone(version));
        }
        let transfer = self.transfers().begin(who.org)?;
        let (path, files, _) = self.shelve(&row).await.map_err(|_| gone(version))?;
        let (to, parts) = mpsc::channel(PARTS);
        tokio::task::spawn_blocking(move || {
            let out = BufWriter::with_capacity(PART, Outward::new(to.clone()));
            if let Err(error) = archive::pack_gzip(&path, &files, out) {
                // Nobody may be there any more to hear it.
                let _ = to.try_send(Err(error));
            }
            drop(transfer);
        });
        Ok(parts)
    }

    async fn published_files(&self, row: &karta_store::ReleaseRow) -> Result<karta_release::Files> {
        if row.state == ReleaseState::Deleted {
            return Err(gone(row.version));
        }
        let Some(pack) = &row.files else {
            return Ok(self.shelve(row).await.map_err(|_| gone(row.version))?.1);
        };
        let pack = self.packs().get(row.project, pack).await.map_err(|_| gone(row.version))?;
        off_runtime("reading a release", move || {
            Ok(archive::listing(pack, &archive::Limits::own())
                .map_err(|error| super::shelf::unpacked(&error))?)
        })
        .await
    }
}

fn gone(version: u64) -> Error {
    Error::told(
        karta_types::ErrorCode::ReleaseNotReady,
        format!("the files of v{version} are not kept any more"),
    )
}

/// What differs between two maps.
fn changed(mut old: BTreeMap<String, String>, new: &BTreeMap<String, String>) -> Changed {
    let mut changed = Changed::default();
    for (name, value) in new {
        match old.remove(name) {
            None => changed.added.push(name.clone()),
            Some(before) if before != *value => changed.changed.push(name.clone()),
            Some(_) => {}
        }
    }
    changed.removed = old.into_keys().collect();
    changed
}

/// Policies compared key by key, as people write them: `caps.turn_seconds: 60`.
fn policy(old: &Policy, new: &Policy) -> Changed {
    let mut changed = changed(leaves(old), &leaves(new));
    let value_of = |policy: &Policy, key: &str| leaves(policy).remove(key).unwrap_or_default();
    changed.changed = changed
        .changed
        .iter()
        .map(|key| format!("{key}: {} → {}", value_of(old, key), value_of(new, key)))
        .collect();
    changed
}

fn leaves(policy: &Policy) -> BTreeMap<String, String> {
    let mut leaves = BTreeMap::new();
    let mut open = vec![(String::new(), serde_json::to_value(policy).unwrap_or_default())];
    while let Some((name, value)) = open.pop() {
        match value {
            Value::Object(inner) => {
                let prefix = if name.is_empty() { name } else { format!("{name}.") };
                open.extend(inner.into_iter().map(|(key, value)| (format!("{prefix}{key}"), value)));
            }
            Value::Null => {}
            value => drop(leaves.insert(name, value.to_string())),
        }
    }
    leaves
}
