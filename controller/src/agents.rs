//! Agents: who is connected, when each was last heard of, and what each is to be sent next.
//!
//! Owns the table of open sessions. Liveness is kept in memory only: a heartbeat costs one atomic store and no write.
//! Must never send an agent what is not committed (only the leader puts something into a slot, and only after the
//! commit), and must never believe an agent about any node but its own.

mod session;

pub(crate) use session::check_protocol;
pub use session::{Intervals, NodeAgentService};

use crate::leader::{Outbox, SessionId};
use berth_model::desired::DesiredNode;
use berth_model::{NodeName, Timestamp};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Nodes that ever had a session in this process. Twice the largest fleet designed for; a table without a bound could be
/// filled by anyone who invents names.
const MAX_NODES: usize = 20_000;

/// When each agent was last heard of. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    nodes: HashMap<NodeName, Entry>,
    last_id: u64,
}

#[derive(Debug)]
struct Entry {
    /// Milliseconds since the epoch; shared with the session, which alone writes it.
    heard: Arc<AtomicU64>,
    /// The open session.
    slot: Option<Slot>,
}

impl Entry {
    fn look_again(&self) {
        if let Some(slot) = &self.slot {
            slot.outgoing.send_modify(|outgoing| outgoing.looks = outgoing.looks.wrapping_add(1));
        }
    }
}

#[derive(Debug)]
struct Slot {
    id: SessionId,
    outgoing: watch::Sender<Outgoing>,
    /// Ends the session.
    end: CancellationToken,
}

/// What a session is to send. A slot, not a queue: only the latest counts.
#[derive(Clone, Debug, Default)]
struct Outgoing {
    desired: Option<Arc<DesiredNode>>,
    /// Grows with every request to look again.
    looks: u64,
}

/// Why no session was opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Busy {
    /// The node has a session that is alive.
    #[error(
        "node {node} is connected already, last heard of {silent_ms} ms ago; two agents must not have one name. If this is \
         the same agent, its old session ends after {silence_ms} ms of silence"
    )]
    Connected {
        /// The node.
        node: NodeName,
        /// Time since the other session was heard of.
        silent_ms: u128,
        /// Silence that ends a session.
        silence_ms: u128,
    },
    /// Too many names.
    #[error("{MAX_NODES} nodes have connected to this controller, that is the limit")]
    TooMany,
}

/// A session's own end of its entry.
struct Opened {
    id: SessionId,
    heard: Arc<AtomicU64>,
    outgoing: watch::Receiver<Outgoing>,
    end: CancellationToken,
}

impl Seen {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Every change under this lock is a single one; a panic elsewhere leaves the table whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the agent of a node was last heard of, `None` if never since this process started.
    pub fn last(&self, node: &NodeName) -> Option<Timestamp> {
        self.table().nodes.get(node).map(|entry| heard(&entry.heard))
    }

    /// Opens a session. One that is there already is ended, if nothing was heard of it for `silence`.
    fn open(&self, node: &NodeName, now: Timestamp, silence: Duration) -> Result<Opened, Busy> {
        let mut table = self.table();
        if !table.nodes.contains_key(node) && table.nodes.len() >= MAX_NODES {
            return Err(Busy::TooMany);
        }
        let id = SessionId(table.last_id.saturating_add(1));
        let entry = table.nodes.entry(node.clone()).or_insert_with(|| Entry { heard: Arc::default(), slot: None });
        if let Some(slot) = &entry.slot {
            let silent = now.since(heard(&entry.heard));
            if silent < silence && !slot.end.is_cancelled() {
                let (silent_ms, silence_ms) = (silent.as_millis(), silence.as_millis());
                return Err(Busy::Connected { node: node.clone(), silent_ms, silence_ms });
            }
            slot.end.cancel();
        }
        // Its own cell, so that a dead session that wakes up once more does not speak for this one.
        entry.heard = Arc::new(AtomicU64::new(now.as_millis()));
        let heard = Arc::clone(&entry.heard);
        let (slot, outgoing) = watch::channel(Outgoing::default());
        let end = CancellationToken::new();
        entry.slot = Some(Slot { id, outgoing: slot, end: end.clone() });
        table.last_id = id.0;
        Ok(Opened { id, heard, outgoing, end })
    }

    /// Closes a session, if it is still its node's.
    fn close(&self, node: &NodeName, id: SessionId) {
        let mut table = self.table();
        if let Some(entry) = table.nodes.get_mut(node)
            && entry.slot.as_ref().is_some_and(|slot| slot.id == id)
        {
            entry.slot = None;
        }
    }
}

impl Outbox for Seen {
    fn send(&self, node: &NodeName, desired: DesiredNode) {
        let table = self.table();
        if let Some(slot) = table.nodes.get(node).and_then(|entry| entry.slot.as_ref()) {
            slot.outgoing.send_modify(|outgoing| outgoing.desired = Some(Arc::new(desired)));
        }
    }

    fn look_again(&self) {
        self.table().nodes.values().for_each(Entry::look_again);
    }

    fn look_again_at(&self, node: &NodeName) {
        if let Some(entry) = self.table().nodes.get(node) {
            entry.look_again();
        }
    }
}

fn heard(cell: &AtomicU64) -> Timestamp {
    Timestamp::from_millis(cell.load(Ordering::Relaxed))
}

#[cfg(test)]
mod tests;
