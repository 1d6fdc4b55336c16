//! What an agent does for a placement, step by step, and what it says of it.

use crate::history::{ClusterRole, Forced};
use crate::id::PlacementUid;
use crate::install::Install;
use crate::step::StepKind;
use std::fmt;

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
