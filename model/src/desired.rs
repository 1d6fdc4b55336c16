//! What one node should hold: the whole of it, sent to its agent at every change and at every new session.

use crate::gpu::{Fingerprint, MmioSize};
use crate::id::{CommandName, FleetId, PlacementName, PlacementUid, VmId};
use crate::pci::DeviceAddress;
use crate::request::{ReturnTo, VerifyLevel};
use crate::trace::TraceParent;

/// The desired state of one node. A GPU or VM that no placement here names is none of the agent's business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredNode {
    /// The leadership that says so. An agent obeys none lower than its ledger's.
    pub term: u64,
    /// Version of this node's desired state; grows with every change of its content, across terms.
    pub generation: u64,
    /// The fleet that the placements belong to; none from a controller that does not say. An agent that holds placements
    /// obeys no other fleet.
    pub fleet: Option<FleetId>,
    /// In order of uid.
    pub placements: Vec<DesiredPlacement>,
}

/// What is wanted of one placement on its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredPlacement {
    /// Which placement.
    pub uid: PlacementUid,
    /// Its name, for people reading the agent's log.
    pub name: PlacementName,
    /// The VM, by the host's own identity.
    pub vm: VmId,
    /// Its GPUs.
    pub gpus: Vec<DesiredGpu>,
    /// What to do with them.
    pub intent: Intent,
    /// Whether a clustered VM may be taken out of its cluster role.
    pub allow_standalone: bool,
    /// How far to verify in the guest.
    pub verify: VerifyLevel,
    /// Where the GPUs go on [`Intent::Detached`].
    pub return_to: ReturnTo,
    /// Which of the node's driver-install commands to run in the guest, once, when it shows the GPUs and no driver runs them.
    pub install_driver: Option<CommandName>,
    /// The trace of the call that asked for it.
    pub trace: Option<TraceParent>,
}

/// One GPU of a desired placement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredGpu {
    /// Where it sits.
    pub address: DeviceAddress,
    /// The card that was chosen. Another card at this address must not be touched.
    pub fingerprint: Fingerprint,
    /// Address space it takes, as measured when it was chosen.
    pub mmio: MmioSize,
}

/// What is wanted of a placement's GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Intent {
    /// Give them to the VM, start it, verify.
    Attached,
    /// It was reached; watch and report, change nothing: whoever stops the VM or takes the card out meant it.
    Kept,
    /// Take them from the VM and give them back.
    Detached,
}
