//! What the two sides say, and nothing of how it travels.
//!
//! One byte stream carries [frames](frame). A frame belongs to a stream; a stream is opened by a [request](message::Request) of the
//! host (odd numbers) or by a program inside that connected to a service (even numbers), and then carries bytes both ways. Each
//! direction of each stream has a window of [`WINDOW`] bytes: who sends more than was granted breaks the protocol, so one stream that
//! nobody reads holds that many bytes and stops nobody else.
//!
//! Every frame carries the generation of the machine it belongs to. A machine that was copied gets a higher one before anything else,
//! so bytes that an older copy, or a host of an older copy, left in a channel are told from what counts.

pub mod frame;
pub mod message;
pub mod record;
pub mod wire;

/// The version both sides must have in common.
pub const VERSION: u32 = 1;
/// How many bytes of one direction of one stream may be under way.
pub const WINDOW: u32 = 128 << 10;
/// Most bytes of one data frame.
pub const CHUNK: usize = 32 << 10;
/// Most streams the host may have open.
pub const HOST_STREAMS: usize = 256;
/// Most streams a guest may have open.
pub const GUEST_STREAMS: usize = 128;
/// The user and the group that a session's processes run as.
pub const USER: u32 = 1000;
