//! Bounds and times of the brain, each with its reason.

use std::time::Duration;

/// Bounds and times of the brain. Each has a sentence of justification at [`Limits::default`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long GPUs are held when the request does not say.
    pub hold: Duration,
    /// How long preparing may take.
    pub prepare: Duration,
    /// How long attaching may take.
    pub attach: Duration,
    /// How long starting may take.
    pub start: Duration,
    /// How long verifying may take.
    pub verify: Duration,
    /// How long releasing may take before it counts as stuck.
    pub release: Duration,
    /// Most placements in the queue.
    pub queued: usize,
    /// Most placements that are over and still kept.
    pub history: usize,
    /// How long one that is over is kept.
    pub history_age: Duration,
    /// Most placements in all.
    pub placements: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // Creating a VM from a large image takes minutes; ten leave room, and cost little if nobody comes.
            hold: Duration::from_secs(600),
            // Guest shutdown alone gets five minutes before the host forces it.
            prepare: Duration::from_secs(900),
            // Registration of a dismounted device lags by seconds, never minutes.
            attach: Duration::from_secs(300),
            // A VM with much memory and many devices takes minutes to power on.
            start: Duration::from_secs(600),
            // A guest boots and loads its driver.
            verify: Duration::from_secs(900),
            // Guest shutdown (five minutes), then every card's steps.
            release: Duration::from_secs(1800),
            // Each is looked at again when room appears; ten thousand take milliseconds.
            queued: 10_000,
            // A day's history of a busy cluster, a few MiB.
            history: 10_000,
            // People ask about yesterday.
            history_age: Duration::from_secs(48 * 3600),
            // Four for each GPU of the largest fleet designed for would be 320,000; memory allows that many.
            placements: 320_000,
        }
    }
}
