//! What should be known of how machines run here.

use super::command::Accelerator;
use super::{Shared, blocking};
use crate::cgroup::Tree;

/// What is weaker without root's powers.
const UNPRIVILEGED: &str = "the server is not root: the monitors of all virtual machines have the server's user id on the host, so \
                            a session that breaks out of its machine is held only by namespaces and the filter of system calls, \
                            not by a user of its own";

/// All of it, as far as it has been found out.
pub(super) async fn notes(shared: &Shared) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some((Accelerator::Tcg, why)) = shared.accelerator.get() {
        notes.push(format!(
            "virtual machines run by SOFTWARE EMULATION, ten to thirty times slower than by the processor: {}",
            why.as_deref().unwrap_or("the host has no virtualisation")
        ));
    }
    if !rustix::process::geteuid().is_root() {
        notes.push(UNPRIVILEGED.to_owned());
        let group = blocking(|| Tree::find().and_then(|tree| tree.probe()));
        if let Err(reason) = group.await {
            notes.push(format!(
                "memory and processor time of the monitors of virtual machines are not limited: {reason}"
            ));
        }
    }
    notes
}
