//! The only door to the brain: an input goes in, a decision comes out, and the world is as if it were committed.
//!
//! The shell commits the changes of a decision, in order, before it tells anyone. If a commit fails for good, the shell
//! throws the brain away and loads a new one from the store: nothing speculative survives.

use crate::world::World;
use berth_model::id::{GpuId, NodeName, PlacementName, PlacementUid, RequestId, VmId};
use berth_model::inventory::{Hello, InventoryReport};
use berth_model::node::StoredNode;
use berth_model::placement::{Placement, Progress};
use berth_model::request::PlacementRequest;
use berth_model::trace::TraceParent;
use berth_model::vm::VmSelector;
use std::collections::BTreeSet;
use std::sync::Arc;
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
    /// How long agents get to reconnect after a leader takes over before their placements say `NodeLost`.
    pub reconnect: Duration,
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
            // Agents back off to at most some seconds between attempts.
            reconnect: Duration::from_secs(60),
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

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// Somebody asks for a placement.
    Create {
        /// What is asked.
        request: Box<PlacementRequest>,
        /// The uid it gets if it is new; drawn by the shell.
        uid: PlacementUid,
        /// Who asks.
        caller: String,
        /// The trace of the call.
        trace: Option<TraceParent>,
    },
    /// Somebody says that the VM of a held placement exists.
    Commit {
        /// Which placement.
        name: PlacementName,
        /// The VM's id, where the caller knows it.
        vm_id: Option<VmId>,
        /// The version the caller rests on.
        version: Option<u64>,
    },
    /// Somebody gives GPUs back.
    Release {
        /// Which placement.
        name: PlacementName,
        /// The uid the caller means.
        uid: Option<PlacementUid>,
        /// The version the caller rests on.
        version: Option<u64>,
    },
    /// An agent opened a session.
    Connected(Box<Hello>),
    /// A node's session ended, or nothing was heard of it for too long.
    Disconnected(NodeName),
    /// An agent reports what it sees.
    Report {
        /// Its node.
        node: NodeName,
        /// What it sees.
        report: Box<InventoryReport>,
    },
    /// An agent reports how work goes.
    Progress {
        /// Its node.
        node: NodeName,
        /// How it goes.
        progress: Box<Progress>,
    },
    /// Time has passed.
    Tick,
}

/// One durable change. The shell turns each into writes with preconditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Writes a placement; its version is one more than that of the stored one, 1 if it is new.
    PutPlacement(Arc<Placement>),
    /// Forgets a placement that is over, at this version.
    RemovePlacement {
        /// Which.
        name: PlacementName,
        /// Its version.
        version: u64,
    },
    /// Writes a node; versions as with placements.
    PutNode(Arc<StoredNode>),
    /// Creates a claim that must not exist yet.
    Claim {
        /// What is claimed.
        what: Claimed,
        /// By which placement.
        placement: PlacementName,
        /// Its uid.
        uid: PlacementUid,
    },
    /// Deletes a claim that must still name this placement.
    Unclaim {
        /// What was claimed.
        what: Claimed,
        /// By which placement.
        placement: PlacementName,
        /// Its uid.
        uid: PlacementUid,
    },
}

/// What a placement can own in the store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Claimed {
    /// A GPU.
    Gpu(GpuId),
    /// A VM, as named (names in lower case) or by id.
    Vm(VmSelector),
    /// A request id.
    Request(RequestId),
}

/// What a decision comes to.
#[derive(Clone, Debug, Default)]
pub struct Decision {
    /// What must be committed, together, before anyone is told.
    pub changes: Vec<Change>,
    /// The placement the input was about, as it is once committed.
    pub placement: Option<Arc<Placement>>,
    /// Nodes whose desired state is to be sent (again) once committed.
    pub desired: BTreeSet<NodeName>,
    /// Placements whose view changed, committed or only observed: whoever watches wants to know.
    pub touched: BTreeSet<PlacementName>,
    /// Nodes whose view (or whose GPUs' view) changed.
    pub nodes: BTreeSet<NodeName>,
}

/// The brain.
#[derive(Clone, Debug)]
pub struct Brain {
    world: World,
    term: u64,
    limits: Limits,
}
