//! Where a placement is in its life, and why it ended as it did.

use super::step::StepError;
use crate::id::NodeName;
use crate::step::StepKind;
use crate::time::Timestamp;
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
