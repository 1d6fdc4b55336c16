//! A placement: a request and its whole life.

mod phase;
mod step;

use crate::gpu::{Fingerprint, MmioSize};
use crate::history::{Adoption, ClusterRole, Forced, Note, Noted};
use crate::id::{GpuId, ModelName, NodeName, PlacementName, PlacementUid, VmId};
use crate::install::Install;
use crate::pci::DeviceAddress;
use crate::request::PlacementRequest;
pub use crate::step::StepKind;
use crate::time::Timestamp;
use crate::trace::TraceParent;
pub use phase::{FailureReason, Phase, ReleaseCause};
use std::fmt;
pub use step::{CurrentStep, Progress, StepError, StepErrorClass, StepReport};

/// Where a placement's GPUs are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The node.
    pub node: NodeName,
    /// Its GPUs there, in order of address.
    pub gpus: Vec<AssignedGpu>,
    /// Why the VM must stay.
    pub pin: Pin,
}

impl Assignment {
    /// The ids of its GPUs.
    pub fn gpu_ids(&self) -> impl Iterator<Item = GpuId> + '_ {
        self.gpus.iter().map(|gpu| GpuId { node: self.node.clone(), address: gpu.address.clone() })
    }
}

/// One GPU of a placement, as it was when chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssignedGpu {
    /// Where it sits.
    pub address: DeviceAddress,
    /// Its model.
    pub model: ModelName,
    /// Which card it was.
    pub fingerprint: Fingerprint,
    /// Address space it takes.
    pub mmio: MmioSize,
}

/// The recorded fact that a VM must stay on its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// Why.
    pub reason: PinReason,
    /// Since when.
    pub since: Timestamp,
}

/// Why a VM is pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PinReason {
    /// It has, or will have, a device of this node.
    DeviceAssignment,
}

impl PinReason {
    /// Stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::DeviceAssignment => "DeviceAssignment",
        }
    }
}

/// A placement as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Tells it from others of the same name before and after.
    pub uid: PlacementUid,
    /// What was asked.
    pub request: PlacementRequest,
    /// Who asked, as far as the connection proves it.
    pub caller: String,
    /// The trace it began in.
    pub trace: Option<TraceParent>,
    /// When it was asked for.
    pub created: Timestamp,
    /// How often it was written: 1 for the first time. Callers use it to say which state they act on.
    pub version: u64,
    /// Where it is in its life.
    pub phase: Phase,
    /// Since when.
    pub phase_since: Timestamp,
    /// Where its GPUs are, once decided.
    pub assignment: Option<Assignment>,
    /// The VM's identity, once it was seen or named.
    pub vm_id: Option<VmId>,
    /// Generation of its node's desired state since which what is wanted of it is what it is now; 0 while nothing is.
    /// An agent's report about an older generation answers another wish and is ignored.
    pub generation: u64,
    /// What is to be known later, in the order in which it was learned; at most [`crate::history::MAX_NOTES`].
    pub history: Vec<Noted>,
}

impl Placement {
    /// How it was adopted, if it was.
    pub fn adoption(&self) -> Option<&Adoption> {
        self.history.iter().find_map(|noted| match &noted.what {
            Note::Adopted(adoption) => Some(adoption),
            Note::Forced(_) | Note::Installed(_) | Note::RoleRemoved(_) => None,
        })
    }

    /// What was done by force for it.
    pub fn forced(&self) -> impl Iterator<Item = &Forced> {
        self.history.iter().filter_map(|noted| match &noted.what {
            Note::Forced(forced) => Some(forced),
            Note::Adopted(_) | Note::Installed(_) | Note::RoleRemoved(_) => None,
        })
    }

    /// The driver-install command that was run in its guest, as was last told.
    pub fn installed(&self) -> Option<&Install> {
        self.history.iter().rev().find_map(|noted| match &noted.what {
            Note::Installed(install) => Some(install),
            Note::Adopted(_) | Note::Forced(_) | Note::RoleRemoved(_) => None,
        })
    }

    /// Its VM's clustered role that was removed, as was last told.
    pub fn removed_role(&self) -> Option<&ClusterRole> {
        self.history.iter().rev().find_map(|noted| match &noted.what {
            Note::RoleRemoved(role) => Some(role),
            Note::Adopted(_) | Note::Forced(_) | Note::Installed(_) => None,
        })
    }

    /// The caller's name for it.
    pub fn name(&self) -> &PlacementName {
        &self.request.name
    }
}

/// Something beside the phase that people must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Its node has not been heard of. It keeps its claims.
    NodeLost {
        /// Since when.
        since: Timestamp,
    },
    /// What is observed differs from what is wanted, without our doing.
    Drifted {
        /// Since when.
        since: Timestamp,
        /// What was seen.
        what: Drift,
    },
    /// It is past a deadline, or keeps failing.
    Stuck {
        /// Since when.
        since: Timestamp,
        /// What it is stuck at.
        what: String,
    },
}

impl Condition {
    /// Stable name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NodeLost { .. } => "NodeLost",
            Self::Drifted { .. } => "Drifted",
            Self::Stuck { .. } => "Stuck",
        }
    }

    /// Since when it holds.
    pub fn since(&self) -> Timestamp {
        match self {
            Self::NodeLost { since } | Self::Drifted { since, .. } | Self::Stuck { since, .. } => *since,
        }
    }
}

/// How an active placement differs from what is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Drift {
    /// The VM is not on its node any more.
    VmGone,
    /// The VM is a clustered role (again), so it could move.
    VmClustered,
    /// A GPU is not in the VM's configuration.
    NotAttached {
        /// Which.
        address: DeviceAddress,
        /// Where it was seen instead.
        seen: String,
    },
    /// A GPU is in another VM.
    InOtherVm {
        /// Which.
        address: DeviceAddress,
        /// That VM.
        vm: VmId,
    },
    /// Another card sits at the address.
    WrongCard {
        /// Which.
        address: DeviceAddress,
        /// The card that answers.
        found: Fingerprint,
    },
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::VmGone => write!(f, "the VM is not on its node any more"),
            Self::VmClustered => write!(f, "the VM is a clustered role and could be moved"),
            Self::NotAttached { address, seen } => write!(f, "GPU {address} is not in the VM: it is {seen}"),
            Self::InOtherVm { address, vm } => write!(f, "GPU {address} is in another VM, {vm}"),
            Self::WrongCard { address, found } => write!(f, "another card answers at {address}: {found}"),
        }
    }
}
