//! Releases: published, built, activated, shown for a while, compared, kept in order.

mod activate;
mod build;
mod compare;
mod keep;
mod loaded;
mod logs;
mod packs;
mod previews;
mod publish;
mod shelf;
mod transfers;

pub use loaded::Loaded;
pub(crate) use loaded::{Catalogue, Pinning};
pub use logs::{LogCursor, LogKind, LogReader};
pub(crate) use packs::Packs;
pub(crate) use publish::Publishing;
pub use publish::{Publish, Published};
pub(crate) use shelf::clear_incoming;
pub(crate) use transfers::Transfers;
