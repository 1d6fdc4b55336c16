//! Why a GPU is not available.

use crate::gpu::{Finding, QuarantineReason};
use crate::id::{PlacementName, VmId};
use crate::time::Timestamp;
use std::fmt;

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

pub(super) fn join<T: fmt::Display>(f: &mut fmt::Formatter<'_>, items: &[T], between: &str) -> fmt::Result {
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
