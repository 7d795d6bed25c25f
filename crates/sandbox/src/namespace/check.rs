//! Whether the driver works here, what should be known of how, and what a crash left.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use karta_types::{SandboxId, SessionId};

use super::{Shared, folder, machine};
use crate::cgroup::Group;
use crate::live::{self, Live};
use crate::{Command, Error, Sandbox as _, Spec};

/// The session of sandboxes that are only tried, and what their names begin with.
const TRIAL: SessionId = SessionId::from_u128(0);
const TRIED: &str = "trial-";

impl Shared {
    /// Makes a sandbox, runs a program in it and ends it.
    pub(super) async fn trial(self: &Arc<Self>, id: SandboxId) -> Result<(), Error> {
        let name = format!("{}-release", self.name(id, TRIAL));
        let release = self.machines.root.join(&name);
        let live = Live::new(name);
        let tried = match fs::create_dir_all(&release).map_err(machine::at("making", &release)) {
            Ok(()) => {
                let spec = Spec::new(TRIAL, release.clone(), "trial".to_owned());
                self.attempt(id, &spec).await
            }
            Err(error) => Err(error),
        };
        let _ = fs::remove_dir_all(&release);
        drop(live);
        tried.map_err(|error| {
            let text = error.to_string();
            let causes = std::iter::successors(std::error::Error::source(&error), |cause| cause.source());
            let text = causes.fold(text, |text, cause| format!("{text}: {cause}"));
            let text = text.strip_prefix("this isolation is not available here: ").unwrap_or(&text);
            Error::Unavailable(format!("{text}{}", hint(text)))
        })
    }

    /// What a sandbox's things on the host are called. A trial may be another process's than the server's, and tells whose.
    pub(super) fn name(&self, id: SandboxId, session: SessionId) -> String {
        if session == TRIAL {
            return format!("{}{TRIED}{}-{id}", self.tag, std::process::id());
        }
        format!("{}{id}", self.tag)
    }

    /// Whether somebody uses the things of this name.
    fn uses(&self, name: &str) -> bool {
        let tried = name.strip_prefix(&self.tag).and_then(|rest| rest.strip_prefix(TRIED));
        let maker = tried.and_then(|rest| rest.split('-').next()?.parse().ok());
        let other = maker.filter(|pid: &u32| *pid != std::process::id());
        live::is(name) || other.is_some_and(|pid| Path::new(&format!("/proc/{pid}")).exists())
    }

    async fn attempt(self: &Arc<Self>, id: SandboxId, spec: &Spec) -> Result<(), Error> {
        let (sandbox, _running) = Arc::clone(self).make(id, spec).await?;
        let command = Command {
            program: "/bin/sh".to_owned(),
            args: vec!["-c".to_owned(), "exit 7".to_owned()],
            env: Vec::new(),
            cwd: sandbox.place().workspace.clone(),
        };
        let ended = match sandbox.spawn(&command).await {
            Ok(mut process) => Ok(process.control.wait().await),
            Err(error) => Err(error),
        };
        sandbox.close().await?;
        let ended = ended?;
        if ended.status == Some(7) {
            return Ok(());
        }
        Err(Error::Unavailable(format!("a program in a sandbox ended otherwise than it should ({ended:?})")))
    }

    /// What should be known.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = vec![
            "sandboxes share the host's kernel: a fault in it lets a session out; `microvm` gives each its own".to_owned(),
        ];
        if matches!(self.image(), Ok(None)) {
            notes.push(
                "sandboxes see the programs of this host (`/usr`, `/bin`, `/lib`) and no image's: `karta image build` makes one"
                    .to_owned(),
            );
        }
        if karta_guest::jail::landlock() == 0 {
            notes.push(
                "the kernel has no Landlock, a second lock on what sessions may write: boot with `lsm=landlock,…`".to_owned(),
            );
        }
        if !self.privileged {
            notes.push(
                "the server is not root: a session's disk use is measured every 3 seconds, and only that of each file is limited by the kernel, its \
                 processes have the server's user id on the host, and they can reach the folder under their workspace"
                    .to_owned(),
            );
            let group = self
                .groups
                .as_ref()
                .map_err(Clone::clone)
                .and_then(|tree| tree.probe().map_err(|error| error.to_string()));
            if let Err(reason) = group {
                notes.push(format!("memory and processor time of sandboxes are not limited: {reason}"));
            }
        }
        notes
    }

    /// Removes what is on the host of sandboxes that this process does not have. Answers of how many.
    pub(super) async fn sweep(self: Arc<Self>) -> Result<usize, Error> {
        super::blocking("removing what a crash left", move || {
            // First all that is there, then whether it is in use: see `live`.
            let mut left: BTreeMap<String, (Option<Group>, Option<PathBuf>)> = BTreeMap::new();
            if let Ok(tree) = &self.groups {
                for (name, group) in tree.found(&self.tag) {
                    left.entry(name).or_default().0 = Some(group);
                }
            }
            for entry in fs::read_dir(&self.machines.root).into_iter().flatten().flatten() {
                if let Some(name) = entry.file_name().to_str().filter(|name| name.starts_with(&self.tag)) {
                    left.entry(name.to_owned()).or_default().1 = Some(entry.path());
                }
            }
            let mut removed = 0;
            for (name, (group, folder)) in left.into_iter().filter(|(name, _)| !self.uses(name)) {
                let there = |path: &PathBuf| path.exists();
                // What was being removed just now is gone, and was not left.
                removed +=
                    usize::from(group.iter().flat_map(Group::folders).any(there) || folder.iter().any(there));
                if group.is_some_and(|group| !group.remove()) {
                    tracing::warn!(group = name, "a control group that a crash left could not be removed");
                }
                if let Some(folder) = folder {
                    folder::remove(&folder);
                }
            }
            Ok(removed)
        })
        .await
    }
}

/// What to do about a failure.
fn hint(text: &str) -> &'static str {
    let hints = [
        (
            "disk of the session's file",
            "; load the module (`modprobe loop`), and where the server runs in a container give it \
                                        `/dev/loop-control` and `/dev/loop*`",
        ),
        (
            "another owner",
            "; the file system of the data directory can't give files another owner for a mount: use ext4, XFS, Btrfs, or \
                           tmpfs since Linux 6.3",
        ),
        (
            "No space left on device",
            "; if the disk is not full, raise the limit with `sysctl user.max_user_namespaces=15000`",
        ),
        (
            "making the namespaces",
            "; allow them with `sysctl user.max_user_namespaces=15000`, and run the server outside of containers \
                                   that forbid them",
        ),
    ];
    hints.iter().find(|(sign, _)| text.contains(sign)).map_or("", |(_, hint)| hint)
}
