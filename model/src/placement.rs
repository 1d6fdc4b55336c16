//! A placement: a request and its whole life.

use crate::gpu::Fingerprint;
use crate::gpu::MmioSize;
use crate::history::{Adoption, ClusterRole, Forced, Note, Noted};
use crate::id::{GpuId, ModelName, NodeName, PlacementName, PlacementUid, VmId};
use crate::install::Install;
use crate::pci::DeviceAddress;
use crate::request::PlacementRequest;
use crate::time::Timestamp;
use crate::trace::TraceParent;
use std::fmt;

/// Where a placement is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Accepted and not yet decided. Exists only inside one decision, never in the store.
    Requested,
    /// Nothing fits now; waiting for room.
    Queued {
        /// When it gives up.
        until: Timestamp,
    },
    /// GPUs and node are decided and claimed; the VM is not there yet.
    Held {
        /// When the hold expires.
        until: Timestamp,
    },
    /// The agent configures the VM and takes the cards from the host.
    Preparing {
        /// When it counts as failed.
        until: Timestamp,
    },
    /// The agent puts the cards into the VM's configuration.
    Attaching {
        /// When it counts as failed.
        until: Timestamp,
    },
    /// The VM starts.
    Starting {
        /// When it counts as failed.
        until: Timestamp,
    },
    /// The guest is asked whether it sees the GPUs.
    Verifying {
        /// When it counts as failed.
        until: Timestamp,
    },
    /// The VM has its GPUs.
    Active,
    /// The GPUs are being taken back.
    Releasing {
        /// Why.
        cause: ReleaseCause,
        /// When it counts as failed.
        until: Timestamp,
    },
    /// Over, as asked; the GPUs are free again.
    Released,
    /// Over, with a reason.
    Failed {
        /// What went wrong first.
        reason: FailureReason,
        /// Whether everything was given back. While it was not, the claims stay and the agent keeps trying.
        undone: bool,
    },
}

impl Phase {
    /// All names, in the order of a life.
    pub const NAMES: [&'static str; 11] = [
        "Requested",
        "Queued",
        "Held",
        "Preparing",
        "Attaching",
        "Starting",
        "Verifying",
        "Active",
        "Releasing",
        "Released",
        "Failed",
    ];

    /// Stable name without data.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Requested => "Requested",
            Self::Queued { .. } => "Queued",
            Self::Held { .. } => "Held",
            Self::Preparing { .. } => "Preparing",
            Self::Attaching { .. } => "Attaching",
            Self::Starting { .. } => "Starting",
            Self::Verifying { .. } => "Verifying",
            Self::Active => "Active",
            Self::Releasing { .. } => "Releasing",
            Self::Released => "Released",
            Self::Failed { .. } => "Failed",
        }
    }

    /// What went wrong: why it failed, or is given back.
    pub fn failure(&self) -> Option<&FailureReason> {
        match self {
            Self::Releasing { cause: ReleaseCause::Failure(reason), .. } | Self::Failed { reason, .. } => Some(reason),
            Self::Requested
            | Self::Queued { .. }
            | Self::Held { .. }
            | Self::Preparing { .. }
            | Self::Attaching { .. }
            | Self::Starting { .. }
            | Self::Verifying { .. }
            | Self::Active
            | Self::Releasing { cause: ReleaseCause::Asked, .. }
            | Self::Released => None,
        }
    }

    /// When this phase ends by itself.
    pub fn deadline(&self) -> Option<Timestamp> {
        match self {
            Self::Queued { until }
            | Self::Held { until }
            | Self::Preparing { until }
            | Self::Attaching { until }
            | Self::Starting { until }
            | Self::Verifying { until }
            | Self::Releasing { until, .. } => Some(*until),
            Self::Requested | Self::Active | Self::Released | Self::Failed { .. } => None,
        }
    }

    /// The same, to be moved.
    pub fn deadline_mut(&mut self) -> Option<&mut Timestamp> {
        match self {
            Self::Queued { until }
            | Self::Held { until }
            | Self::Preparing { until }
            | Self::Attaching { until }
            | Self::Starting { until }
            | Self::Verifying { until }
            | Self::Releasing { until, .. } => Some(until),
            Self::Requested | Self::Active | Self::Released | Self::Failed { .. } => None,
        }
    }

    /// Whether the placement owns GPUs: its claims are in the store. True exactly from the decision until the
    /// commit that ends it clean.
    pub fn holds_claims(&self) -> bool {
        match self {
            Self::Held { .. }
            | Self::Preparing { .. }
            | Self::Attaching { .. }
            | Self::Starting { .. }
            | Self::Verifying { .. }
            | Self::Active
            | Self::Releasing { .. }
            | Self::Failed { undone: false, .. } => true,
            Self::Requested | Self::Queued { .. } | Self::Released | Self::Failed { undone: true, .. } => false,
        }
    }

    /// Whether nothing will ever change about it again.
    pub fn is_over(&self) -> bool {
        matches!(self, Self::Released | Self::Failed { undone: true, .. })
    }

    /// Whether its name and its VM are taken.
    pub fn is_live(&self) -> bool {
        !self.is_over()
    }
}

/// Why GPUs are being taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReleaseCause {
    /// The caller asked.
    Asked,
    /// Something failed on the way to active; this undoes it.
    Failure(FailureReason),
}

/// What went wrong with a placement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FailureReason {
    /// Nobody took up the hold in time.
    HoldExpired,
    /// Nothing fitted in time.
    QueueExpired,
    /// A step failed for good.
    Step {
        /// The step.
        step: StepKind,
        /// Its last error.
        error: StepError,
    },
    /// A phase took too long.
    Deadline {
        /// Name of the phase.
        phase: String,
        /// The step it was at, where one was reported.
        step: Option<StepKind>,
        /// Its last error, where one was reported.
        last_error: Option<StepError>,
    },
    /// The VM is on another node than the hold.
    VmOnOtherNode {
        /// Where it appeared.
        node: NodeName,
    },
}

impl fmt::Display for FailureReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HoldExpired => write!(f, "the hold expired before the VM appeared"),
            Self::QueueExpired => write!(f, "nothing fitted before the wait in the queue ended"),
            Self::Step { step, error } => write!(f, "step {step} failed: {error}"),
            Self::Deadline { phase, step, last_error } => {
                write!(f, "{phase} took too long")?;
                if let Some(step) = step {
                    write!(f, ", at step {step}")?;
                }
                match last_error {
                    Some(error) => write!(f, ", last error: {error}"),
                    None => Ok(()),
                }
            }
            Self::VmOnOtherNode { node } => write!(f, "the VM appeared on node {node}, not where its GPUs are held"),
        }
    }
}

/// A step on the host, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StepKind {
    /// Look at VM and cards before touching anything.
    Check,
    /// Take the VM out of its cluster role.
    MakeStandalone,
    /// Stop the VM.
    StopVm,
    /// Stop action, cache types, MMIO, static memory, checkpoints.
    ConfigureVm,
    /// Disable a function on the host.
    Disable,
    /// Dismount it from the host.
    Dismount,
    /// Put it into the VM's configuration.
    Attach,
    /// Start the VM.
    StartVm,
    /// Ask the guest.
    Verify,
    /// Run a driver-install command in the guest.
    InstallDriver,
    /// Take it out of the VM's configuration.
    Detach,
    /// Give it back to the host.
    Mount,
    /// Enable it there.
    Enable,
    /// Put the VM's settings back.
    RestoreVm,
}

impl StepKind {
    /// Every step, for tables and round trips.
    pub const ALL: [Self; 14] = [
        Self::Check,
        Self::MakeStandalone,
        Self::StopVm,
        Self::ConfigureVm,
        Self::Disable,
        Self::Dismount,
        Self::Attach,
        Self::StartVm,
        Self::Verify,
        Self::InstallDriver,
        Self::Detach,
        Self::Mount,
        Self::Enable,
        Self::RestoreVm,
    ];

    /// Stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Check => "Check",
            Self::MakeStandalone => "MakeStandalone",
            Self::StopVm => "StopVm",
            Self::ConfigureVm => "ConfigureVm",
            Self::Disable => "Disable",
            Self::Dismount => "Dismount",
            Self::Attach => "Attach",
            Self::StartVm => "StartVm",
            Self::Verify => "Verify",
            Self::InstallDriver => "InstallDriver",
            Self::Detach => "Detach",
            Self::Mount => "Mount",
            Self::Enable => "Enable",
            Self::RestoreVm => "RestoreVm",
        }
    }
}

impl fmt::Display for StepKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What kind of trouble a step had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StepErrorClass {
    /// The host refused or failed it.
    Failed,
    /// It did not end in time; whether it took effect is unknown until looked at again.
    TimedOut,
    /// It reported success and changed nothing.
    NoEffect,
    /// A safety rule forbids it, or the host never can as it is; trying again changes nothing.
    Forbidden,
    /// What it needs is not there (VM, card).
    NotThere,
}

impl StepErrorClass {
    /// Every class, for tables and round trips.
    pub const ALL: [Self; 5] = [Self::Failed, Self::TimedOut, Self::NoEffect, Self::Forbidden, Self::NotThere];

    /// Stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Failed => "Failed",
            Self::TimedOut => "TimedOut",
            Self::NoEffect => "NoEffect",
            Self::Forbidden => "Forbidden",
            Self::NotThere => "NotThere",
        }
    }
}

/// An error of a step, as reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepError {
    /// Its class.
    pub class: StepErrorClass,
    /// For people.
    pub text: String,
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.text, self.class.name())
    }
}

/// What an agent reports about one placement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Generation of the desired state it works on.
    pub generation: u64,
    /// Which placement.
    pub uid: PlacementUid,
    /// How it goes.
    pub report: StepReport,
    /// All that was done by force for it so far, each time anew: a report may be lost.
    pub forced: Vec<Forced>,
    /// The driver-install command that was run in its guest, each time anew.
    pub install: Option<Install>,
    /// Its VM's clustered role that was removed, each time anew.
    pub removed_role: Option<ClusterRole>,
}

/// How work on a placement goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepReport {
    /// A step begins, or begins again.
    Working {
        /// The step.
        step: StepKind,
        /// Counts from 1.
        attempt: u32,
        /// Why it is tried again.
        last_error: Option<StepError>,
    },
    /// What is wanted was seen to be so.
    Satisfied,
    /// The agent gives up on what is wanted and waits for another desire.
    Failed {
        /// The step.
        step: StepKind,
        /// Its last error.
        error: StepError,
    },
}

/// The step an agent is at, as last reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CurrentStep {
    /// The step.
    pub step: StepKind,
    /// Counts from 1.
    pub attempt: u32,
    /// Why it is tried again.
    pub last_error: Option<StepError>,
}

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
