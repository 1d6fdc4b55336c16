//! Every reason why not: why a GPU is not available, why a node was passed over, why a call was refused.

use crate::adopt::Skip;
use crate::gpu::{Finding, QuarantineReason};
use crate::id::{GpuId, ModelName, NodeName, PlacementName, RequestId, VmId};
use crate::mmio::Excess;
use crate::pci::DeviceAddress;
use crate::request::{FieldError, PlacementRequest};
use crate::time::Timestamp;
use crate::vm::VmSelector;
use std::fmt;

/// The kind of an error decides its gRPC code, whether a retry helps, its metric label and its log level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ErrorClass {
    /// The request itself is wrong; the same one will never do.
    InvalidArgument,
    /// What it names does not exist.
    NotFound,
    /// What it would make exists already, differently.
    AlreadyExists,
    /// Not in the present state.
    FailedPrecondition,
    /// No room now; later perhaps.
    NotPlaceable,
    /// Somebody else was faster, or a page token is too old: read again, then decide again.
    Aborted,
    /// A bound was hit; try again more slowly.
    Overloaded,
    /// Nobody can answer now; a retry helps.
    Unavailable,
    /// It is not known whether it happened: read back before trying again.
    Unknown,
    /// A fault of Berth.
    Internal,
}

impl ErrorClass {
    /// Stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::InvalidArgument => "InvalidArgument",
            Self::NotFound => "NotFound",
            Self::AlreadyExists => "AlreadyExists",
            Self::FailedPrecondition => "FailedPrecondition",
            Self::NotPlaceable => "NotPlaceable",
            Self::Aborted => "Aborted",
            Self::Overloaded => "Overloaded",
            Self::Unavailable => "Unavailable",
            Self::Unknown => "Unknown",
            Self::Internal => "Internal",
        }
    }

    /// Whether the very same call can succeed later without anyone changing it.
    pub fn retry_helps(self) -> bool {
        match self {
            Self::NotPlaceable | Self::Overloaded | Self::Unavailable | Self::Unknown => true,
            Self::InvalidArgument
            | Self::NotFound
            | Self::AlreadyExists
            | Self::FailedPrecondition
            | Self::Aborted
            | Self::Internal => false,
        }
    }
}

/// The six terms of "available": a GPU is available when none of them speaks against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Term {
    /// Surveyed assignable.
    Assignable,
    /// Healthy.
    Healthy,
    /// Unclaimed.
    Unclaimed,
    /// Not cordoned.
    Uncordoned,
    /// Observed in host or pool.
    InReach,
    /// Its node is connected and its view fresh.
    NodeReady,
}

/// One reason why a GPU is not available.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// The survey speaks against it.
    NotAssignable(Vec<Finding>),
    /// It was never measured, so nobody knows what it would need.
    NotMeasured,
    /// Berth keeps it back.
    Quarantined(QuarantineReason),
    /// Its host must be restarted first.
    NeedsHostReboot,
    /// A placement owns it.
    Claimed {
        /// Which.
        by: PlacementName,
    },
    /// Its node takes nothing new.
    Cordoned {
        /// Whose cordons.
        labels: Vec<String>,
    },
    /// A VM has it that Berth did not give it to.
    InVm {
        /// That VM.
        vm: VmId,
    },
    /// A VM's configuration names it although it is gone.
    StaleRecord {
        /// That VM.
        vm: VmId,
    },
    /// It is not in its slot any more.
    Missing,
    /// Nobody could observe it.
    Unknown,
    /// Its node's agent is not connected.
    NodeDisconnected {
        /// Since when.
        since: Timestamp,
    },
    /// Its node's agent is connected but has reported nothing yet, or nothing for too long.
    NodeNotFresh,
    /// The last survey of its node failed.
    SurveyFailed {
        /// In the agent's words.
        why: String,
    },
    /// Its node's agent holds placements that are not this store's.
    Stranger {
        /// What it holds, and what to do.
        why: String,
    },
}

impl Unavailable {
    /// Which term of availability this breaks.
    pub fn term(&self) -> Term {
        match self {
            Self::NotAssignable(_) | Self::NotMeasured => Term::Assignable,
            Self::Quarantined(_) | Self::NeedsHostReboot => Term::Healthy,
            Self::Claimed { .. } => Term::Unclaimed,
            Self::Cordoned { .. } => Term::Uncordoned,
            Self::InVm { .. } | Self::StaleRecord { .. } | Self::Missing | Self::Unknown => Term::InReach,
            Self::NodeDisconnected { .. } | Self::NodeNotFresh | Self::SurveyFailed { .. } | Self::Stranger { .. } => {
                Term::NodeReady
            }
        }
    }

    /// Stable name, used as a filter and a label.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NotAssignable(_) => "NotAssignable",
            Self::NotMeasured => "NotMeasured",
            Self::Quarantined(_) => "Quarantined",
            Self::NeedsHostReboot => "NeedsHostReboot",
            Self::Claimed { .. } => "Claimed",
            Self::Cordoned { .. } => "Cordoned",
            Self::InVm { .. } => "InVm",
            Self::StaleRecord { .. } => "StaleRecord",
            Self::Missing => "Missing",
            Self::Unknown => "Unknown",
            Self::NodeDisconnected { .. } => "NodeDisconnected",
            Self::NodeNotFresh => "NodeNotFresh",
            Self::SurveyFailed { .. } => "SurveyFailed",
            Self::Stranger { .. } => "Stranger",
        }
    }
}

fn join<T: fmt::Display>(f: &mut fmt::Formatter<'_>, items: &[T], between: &str) -> fmt::Result {
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            f.write_str(between)?;
        }
        write!(f, "{item}")?;
    }
    Ok(())
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAssignable(findings) => {
                f.write_str("cannot be assigned: ")?;
                join(f, findings, "; ")
            }
            Self::NotMeasured => f.write_str("never measured: it was not in the host's hands yet"),
            Self::Quarantined(reason) => write!(f, "quarantined: {reason}"),
            Self::NeedsHostReboot => f.write_str("its host must be restarted first"),
            Self::Claimed { by } => write!(f, "claimed by placement {by}"),
            Self::Cordoned { labels } => {
                f.write_str("its node is cordoned: ")?;
                join(f, labels, ", ")
            }
            Self::InVm { vm } => write!(f, "in VM {vm}, not by Berth"),
            Self::StaleRecord { vm } => write!(f, "named by VM {vm} although it is gone"),
            Self::Missing => f.write_str("not in its slot any more"),
            Self::Unknown => f.write_str("could not be observed"),
            Self::NodeDisconnected { since } => write!(f, "its node's agent is not connected since {since}"),
            Self::NodeNotFresh => f.write_str("its node's agent has not reported yet"),
            Self::SurveyFailed { why } => write!(f, "the last survey of its node failed: {why}"),
            Self::Stranger { why } => f.write_str(why),
        }
    }
}

/// Why a node was passed over: the first rule that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The request names another node.
    OtherNode,
    /// The request excludes this node.
    ExcludedNode,
    /// The request names another cluster.
    OtherCluster,
    /// The VM exists already, on another node.
    VmElsewhere {
        /// Where.
        node: NodeName,
    },
    /// The node as a whole takes nothing now.
    NotReady(Unavailable),
    /// It has no GPU the request would take, free or not.
    NoSuchGpu {
        /// The models it has.
        has: Vec<ModelName>,
    },
    /// It has too few of them in all.
    TooSmall {
        /// How many it has of the best model.
        has: u32,
    },
    /// It has enough, but not enough are available.
    NotEnoughFree {
        /// The model that comes nearest.
        model: ModelName,
        /// How many are available.
        available: u32,
        /// What blocks the others.
        blocked: Vec<(DeviceAddress, Unavailable)>,
    },
    /// Enough are available, but not on one NUMA node.
    NotOneNuma {
        /// Most available on one NUMA node.
        best: u32,
    },
    /// Not enough processor left.
    Cpu {
        /// Thousandths of a core left.
        left_milli: u64,
    },
    /// Not enough memory left.
    Memory {
        /// Bytes left.
        left_bytes: u64,
    },
    /// The GPUs need more address space than a VM on this host can have.
    Mmio {
        /// How many.
        gpus: u32,
        /// Of which model.
        model: ModelName,
        /// What does not fit.
        excess: Excess,
    },
}

impl Rejection {
    /// Stable name, used as a count's key and a label.
    pub fn name(&self) -> &'static str {
        match self {
            Self::OtherNode => "OtherNode",
            Self::ExcludedNode => "ExcludedNode",
            Self::OtherCluster => "OtherCluster",
            Self::VmElsewhere { .. } => "VmElsewhere",
            Self::NotReady(why) => why.name(),
            Self::NoSuchGpu { .. } => "NoSuchGpu",
            Self::TooSmall { .. } => "TooSmall",
            Self::NotEnoughFree { .. } => "NotEnoughFree",
            Self::NotOneNuma { .. } => "NotOneNuma",
            Self::Cpu { .. } => "Cpu",
            Self::Memory { .. } => "Memory",
            Self::Mmio { .. } => "Mmio",
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherNode => f.write_str("the request names another node"),
            Self::ExcludedNode => f.write_str("the request excludes it"),
            Self::OtherCluster => f.write_str("the request names another cluster"),
            Self::VmElsewhere { node } => write!(f, "the VM is on {node}"),
            Self::NotReady(why) => write!(f, "not ready: {why}"),
            Self::NoSuchGpu { has } if has.is_empty() => f.write_str("it has no GPU"),
            Self::NoSuchGpu { has } => {
                f.write_str("no GPU as asked for; it has ")?;
                join(f, has, ", ")
            }
            Self::TooSmall { has } => write!(f, "it has only {has} in all"),
            Self::NotEnoughFree { model, available, blocked } => {
                write!(f, "only {available} of {} {model} are available", *available as usize + blocked.len())
            }
            Self::NotOneNuma { best } => write!(f, "at most {best} are available on one NUMA node"),
            Self::Cpu { left_milli } => write!(f, "only {}.{:03} cores left", left_milli / 1000, left_milli % 1000),
            Self::Memory { left_bytes } => write!(f, "only {} MiB of memory left", left_bytes >> 20),
            Self::Mmio { gpus, model, excess: Excess { gap, needed_bytes, cap_bytes } } => write!(
                f,
                "needs {} MiB of {gap} MMIO for {gpus} × {model}, the node allows a VM {} MiB",
                needed_bytes.div_ceil(1 << 20),
                cap_bytes >> 20
            ),
        }
    }
}

/// The node that came nearest, and what would make the request fit there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NearestMiss {
    /// That node.
    pub node: NodeName,
    /// Why it was passed over.
    pub rejection: Rejection,
    /// What would make it fit, one thing a line.
    pub fixes: Vec<String>,
}

/// Why a request cannot be placed now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// How many GPUs were asked for.
    pub gpus: u32,
    /// How many nodes were looked at.
    pub nodes: u32,
    /// How many nodes fell to each rule, most first.
    pub counts: Vec<(&'static str, u32)>,
    /// Per node the first failing rule, nearest first, at most [`Explanation::MAX_NODES`].
    pub rejected: Vec<(NodeName, Rejection)>,
    /// The nearest miss, unless there are no nodes.
    pub nearest: Option<NearestMiss>,
}

impl Explanation {
    /// How many nodes are told one by one: a screenful. The counts cover all.
    pub const MAX_NODES: usize = 32;
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no node has ever connected");
        }
        write!(
            f,
            "none of {} nodes can give {} GPU{} now (",
            self.nodes,
            self.gpus,
            if self.gpus == 1 { "" } else { "s" }
        )?;
        for (at, (name, count)) in self.counts.iter().enumerate() {
            write!(f, "{}{name}: {count}", if at > 0 { ", " } else { "" })?;
        }
        f.write_str(")")?;
        if let Some(nearest) = &self.nearest {
            write!(f, "; nearest is {}: {}", nearest.node, nearest.rejection)?;
            if !nearest.fixes.is_empty() {
                f.write_str("; it would fit if ")?;
                join(f, &nearest.fixes, " and ")?;
            }
        }
        Ok(())
    }
}

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
