//! Why a call was refused.

use super::class::ErrorClass;
use super::rejection::Explanation;
use super::unavailable::Unavailable;
use crate::adopt::Skip;
use crate::id::{ClusterName, GpuId, ModelName, NodeName, PlacementName, RequestId, VmId};
use crate::request::{FieldError, PlacementRequest};
use crate::vm::VmSelector;
use std::fmt;

/// Why a call was refused. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Fields of the request are wrong.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<FieldError>),
    /// Nothing fits now, and why.
    #[error("{0}")]
    NotPlaceable(Box<Explanation>),
    /// Nothing fits now. Why is worked out from the world by whoever tells the caller: it costs time in proportion to
    /// the fleet, which deciding must not.
    #[error("nothing fits now")]
    NoRoom(Box<PlacementRequest>),
    /// The request id was used for something else.
    #[error("request id {request_id} was used for placement {placement} already, with another {field}")]
    RequestIdReused {
        /// The id.
        request_id: RequestId,
        /// What it made then.
        placement: PlacementName,
        /// The first field that differs.
        field: &'static str,
    },
    /// A live placement has that name.
    #[error("placement {0} exists already; release it first or choose another name")]
    NameTaken(PlacementName),
    /// The VM has a placement already.
    #[error("VM {vm} has placement {placement} already; release that first")]
    VmHasPlacement {
        /// The VM as asked for.
        vm: VmSelector,
        /// Its placement.
        placement: PlacementName,
    },
    /// Several VMs have that name, or that id: a VM and its replica have the same.
    #[error("{}", ambiguous(.vm, .nodes))]
    VmAmbiguous {
        /// The VM as asked for.
        vm: VmSelector,
        /// Where it was seen, at most 8.
        nodes: Vec<NodeName>,
    },
    /// The VM is a clustered role and the request does not allow changing that.
    #[error(
        "VM {vm} on {node} is a clustered role, which fails over; set allow_standalone to have it taken out, or take it out yourself"
    )]
    VmClustered {
        /// The VM.
        vm: VmId,
        /// Its node.
        node: NodeName,
    },
    /// No such node.
    #[error("node {node} is not known{}", did_you_mean(.nearest.as_ref()))]
    UnknownNode {
        /// As asked for.
        node: NodeName,
        /// The known name most like it.
        nearest: Option<NodeName>,
    },
    /// No node is of that cluster.
    #[error("no node of cluster {cluster} is known{}", did_you_mean(.nearest.as_ref()))]
    UnknownCluster {
        /// As asked for.
        cluster: ClusterName,
        /// The known name most like it.
        nearest: Option<ClusterName>,
    },
    /// No GPU of that model is known.
    #[error("no GPU of model {model} is known; known are {}", list_or_none(.known))]
    UnknownModel {
        /// As asked for.
        model: ModelName,
        /// All known models.
        known: Vec<ModelName>,
    },
    /// No such VM id on any node.
    #[error("VM {vm} is on no connected node; a VM that does not exist yet must be named by name, not by id")]
    UnknownVm {
        /// As asked for.
        vm: VmSelector,
    },
    /// No such placement.
    #[error("placement {name} does not exist{}", did_you_mean(.nearest.as_ref()))]
    UnknownPlacement {
        /// As asked for.
        name: PlacementName,
        /// The known name most like it.
        nearest: Option<PlacementName>,
    },
    /// No such GPU.
    #[error("GPU {0} is not known")]
    UnknownGpu(GpuId),
    /// The placement changed since the caller looked.
    #[error("placement {name} is at version {actual}, not {expected}; read it again before deciding")]
    VersionMismatch {
        /// Which.
        name: PlacementName,
        /// What the caller rests on.
        expected: u64,
        /// What is so.
        actual: u64,
    },
    /// The uid the caller names is not the one that now has the name.
    #[error("placement {name} is another one now ({actual}, not {expected})")]
    UidMismatch {
        /// Which.
        name: PlacementName,
        /// What the caller rests on.
        expected: String,
        /// What is so.
        actual: String,
    },
    /// Only a held placement can be committed.
    #[error("placement {name} is {phase}, only a held one can be committed")]
    NotHeld {
        /// Which.
        name: PlacementName,
        /// Its phase.
        phase: &'static str,
    },
    /// The VM to commit to was not seen and not named by id.
    #[error("VM {vm} was not seen on node {node} yet; name it by id, or wait until the agent reports it")]
    VmNotSeen {
        /// The VM as asked for.
        vm: VmSelector,
        /// The node that holds its GPUs.
        node: NodeName,
    },
    /// The node cannot be judged now.
    #[error("node {node} cannot be judged now: {why}")]
    NodeNotReady {
        /// Which.
        node: NodeName,
        /// Why.
        why: Unavailable,
    },
    /// The VM is not on the node that the caller names.
    #[error("VM {vm} is not on node {node}")]
    VmNotOnNode {
        /// The VM as asked for.
        vm: VmSelector,
        /// The node.
        node: NodeName,
    },
    /// What the VM has cannot be taken over.
    #[error("VM {vm} cannot be adopted: {why}")]
    NotAdoptable {
        /// The VM.
        vm: VmId,
        /// Why.
        why: Skip,
    },
    /// The queue is full.
    #[error("{queued} placements are queued already, that is the limit; try again later or without a queue time")]
    QueueFull {
        /// How many wait.
        queued: usize,
    },
    /// More placements than one controller keeps.
    #[error("{count} placements exist already, that is the limit")]
    TooManyPlacements {
        /// How many there are.
        count: usize,
    },
}

fn did_you_mean<T: fmt::Display>(nearest: Option<&T>) -> String {
    nearest.map(|n| format!("; did you mean {n}?")).unwrap_or_default()
}

fn list_or_none<T: fmt::Display>(items: &[T]) -> String {
    if items.is_empty() {
        "none".to_owned()
    } else {
        items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}

fn ambiguous(vm: &VmSelector, nodes: &[NodeName]) -> String {
    let several = nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    match (vm, nodes) {
        (VmSelector::Id(_), _) => format!("VM {vm} is on several nodes ({several}); add a node"),
        (VmSelector::Name(_), [node]) => format!("several VMs on {node} have the name {vm}; name one by its id"),
        (VmSelector::Name(_), _) => {
            format!("VM name {vm} is on several nodes ({several}); name one by its id or add a node")
        }
    }
}

impl Refusal {
    /// Its class.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Invalid(_) => ErrorClass::InvalidArgument,
            Self::NotPlaceable(_) | Self::NoRoom(_) => ErrorClass::NotPlaceable,
            Self::RequestIdReused { .. } | Self::NameTaken(_) | Self::VmHasPlacement { .. } => {
                ErrorClass::AlreadyExists
            }
            Self::VmAmbiguous { .. }
            | Self::VmClustered { .. }
            | Self::NotHeld { .. }
            | Self::VmNotSeen { .. }
            | Self::NotAdoptable { .. }
            | Self::UidMismatch { .. } => ErrorClass::FailedPrecondition,
            Self::UnknownNode { .. }
            | Self::UnknownCluster { .. }
            | Self::UnknownModel { .. }
            | Self::UnknownVm { .. }
            | Self::UnknownPlacement { .. }
            | Self::VmNotOnNode { .. }
            | Self::UnknownGpu(_) => ErrorClass::NotFound,
            // It passes as soon as its agent has reported.
            Self::NodeNotReady { .. } => ErrorClass::Unavailable,
            Self::VersionMismatch { .. } => ErrorClass::Aborted,
            Self::QueueFull { .. } | Self::TooManyPlacements { .. } => ErrorClass::Overloaded,
        }
    }

    /// Stable name, sent as the reason in error details.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "INVALID_FIELDS",
            Self::NotPlaceable(_) | Self::NoRoom(_) => "NOT_PLACEABLE",
            Self::RequestIdReused { .. } => "REQUEST_ID_REUSED",
            Self::NameTaken(_) => "NAME_TAKEN",
            Self::VmHasPlacement { .. } => "VM_HAS_PLACEMENT",
            Self::VmAmbiguous { .. } => "VM_AMBIGUOUS",
            Self::VmClustered { .. } => "VM_CLUSTERED",
            Self::UnknownNode { .. } => "UNKNOWN_NODE",
            Self::UnknownCluster { .. } => "UNKNOWN_CLUSTER",
            Self::UnknownModel { .. } => "UNKNOWN_MODEL",
            Self::UnknownVm { .. } => "UNKNOWN_VM",
            Self::UnknownPlacement { .. } => "UNKNOWN_PLACEMENT",
            Self::UnknownGpu(_) => "UNKNOWN_GPU",
            Self::VersionMismatch { .. } => "VERSION_MISMATCH",
            Self::UidMismatch { .. } => "UID_MISMATCH",
            Self::NotHeld { .. } => "NOT_HELD",
            Self::VmNotSeen { .. } => "VM_NOT_SEEN",
            Self::NodeNotReady { .. } => "NODE_NOT_READY",
            Self::VmNotOnNode { .. } => "VM_NOT_ON_NODE",
            Self::NotAdoptable { .. } => "NOT_ADOPTABLE",
            Self::QueueFull { .. } => "QUEUE_FULL",
            Self::TooManyPlacements { .. } => "TOO_MANY_PLACEMENTS",
        }
    }
}
