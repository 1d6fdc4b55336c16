//! When agents were last heard of: kept in memory by whoever holds their sessions, or hears of it from there.

use berth_model::{NodeName, Timestamp};

/// Who knows.
pub trait LastSeen: Send + Sync + 'static {
    /// When this node's agent was last heard of, if it was since the controller's start.
    fn last_seen(&self, node: &NodeName) -> Option<Timestamp>;
}
