//! How often and how fast a cut stream is taken up again.

use std::time::Duration;

/// Bounded back-off: each pause is twice the one before, up to a most. Hearing from the server starts it anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Attempts in a row without hearing anything, before the stream gives up.
    pub attempts: u32,
    /// The pause before the first of them.
    pub first: Duration,
    /// The longest pause.
    pub most: Duration,
    /// Silence (not even a heartbeat) after which a connection counts as cut. The server's heartbeat is 15 seconds.
    pub silence: Duration,
}

impl Default for Retry {
    /// About half a minute of attempts: a server's restart.
    fn default() -> Self {
        Self {
            attempts: 10,
            first: Duration::from_millis(250),
            most: Duration::from_secs(5),
            silence: Duration::from_secs(50),
        }
    }
}

impl Retry {
    /// The pause before attempt number `attempt`, from 0.
    pub(crate) fn pause(&self, attempt: u32) -> Duration {
        self.first.saturating_mul(1u32.checked_shl(attempt.min(16)).unwrap_or(u32::MAX)).min(self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_most() {
        let retry = Retry::default();
        let pauses: Vec<_> = (0..7).map(|attempt| retry.pause(attempt).as_millis()).collect();
        assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 5000, 5000]);
        assert_eq!(retry.pause(u32::MAX), retry.most);
    }
}
