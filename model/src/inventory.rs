//! What an agent tells the controller about its host: who it is, and what it sees.

use crate::gpu::ObservedGpu;
use crate::id::{FleetId, NodeName, VmId};
use crate::node::{BootId, HostFacts};
use crate::vm::ObservedVm;

/// Most GPUs one node may report. The desired state of a node is sent whole and must stay small; the largest servers
/// take 16 accelerators, cards with four GPUs each make 64.
pub const MAX_GPUS_PER_NODE: usize = 64;
/// Most VMs one node may report: Hyper-V's limit per host is 1,024.
pub const MAX_VMS_PER_NODE: usize = 1024;

/// An agent's first words on a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The node it speaks for.
    pub node: NodeName,
    /// Its own version, for people.
    pub agent_version: String,
    /// Version of the agent protocol it speaks.
    pub protocol: u32,
    /// The host's current boot.
    pub boot: BootId,
    /// What the host is.
    pub facts: HostFacts,
    /// Highest term its ledger has seen.
    pub ledger_term: u64,
    /// Generation of the desired state it last accepted.
    pub ledger_generation: u64,
    /// The fleet that this desired state belongs to, as far as it is known.
    pub ledger_fleet: Option<FleetId>,
    /// How many placements it holds; not told by older agents.
    pub ledger_placements: Option<u32>,
}

/// Whether the listing behind an inventory is complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listing {
    /// All of the host was seen.
    Complete,
    /// It was not; nothing may be concluded from what is absent, and nothing new is placed on the node.
    Failed {
        /// What went wrong, for people.
        why: String,
    },
}

/// What an agent sees. A full report replaces what was known; a delta changes what it lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InventoryReport {
    /// Grows by one with each report of a session.
    pub sequence: u64,
    /// Full report rather than a delta.
    pub full: bool,
    /// Whether the listing was complete.
    pub listing: Listing,
    /// GPUs (in a delta: those that changed). An agent goes on listing what it once knew, as missing or unknown.
    pub gpus: Vec<ObservedGpu>,
    /// VMs (in a delta: those that changed).
    pub vms: Vec<ObservedVm>,
    /// In a delta: VMs that are surely not on the host any more.
    pub vms_gone: Vec<VmId>,
}
