//! Why an assignment that exists already is not taken over as a placement.

use crate::id::{PlacementName, VmId};
use crate::pci::DeviceAddress;
use crate::request::MAX_GPUS_PER_REQUEST;
use std::fmt;

/// Why a VM that has devices is skipped. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Skip {
    /// It has a placement.
    AlreadyPlaced {
        /// Which.
        placement: PlacementName,
    },
    /// It is a clustered role, which fails over to where its devices are not.
    Clustered,
    /// The host's own cluster gives it devices from a pool.
    NativePool {
        /// The pool's name.
        pool: String,
    },
    /// What it does, or where its devices are, could not be observed.
    Unobserved {
        /// What could not be.
        what: String,
    },
    /// Its configuration names a device that is gone.
    StaleRecord,
    /// It has a device that is none of the node's GPUs and belongs to none.
    ForeignDevice {
        /// That device.
        device: DeviceAddress,
    },
    /// Another VM's configuration lists one of its devices, too.
    InOtherVm {
        /// That device.
        device: DeviceAddress,
        /// That VM.
        vm: VmId,
    },
    /// A placement owns one of its GPUs.
    Claimed {
        /// That GPU.
        device: DeviceAddress,
        /// Its placement.
        by: PlacementName,
    },
    /// One of its GPUs is not healthy.
    Unhealthy {
        /// That GPU.
        device: DeviceAddress,
        /// What is wrong with it.
        why: String,
    },
    /// It has more GPUs than a placement can hold.
    TooMany {
        /// How many.
        gpus: usize,
    },
    /// It has no GPU.
    NoGpu,
    /// No name for the placement is left.
    NameTaken {
        /// The name that was tried last.
        name: PlacementName,
    },
}

impl Skip {
    /// Stable name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::AlreadyPlaced { .. } => "AlreadyPlaced",
            Self::Clustered => "Clustered",
            Self::NativePool { .. } => "NativePool",
            Self::Unobserved { .. } => "Unobserved",
            Self::StaleRecord => "StaleRecord",
            Self::ForeignDevice { .. } => "ForeignDevice",
            Self::InOtherVm { .. } => "InOtherVm",
            Self::Claimed { .. } => "Claimed",
            Self::Unhealthy { .. } => "Unhealthy",
            Self::TooMany { .. } => "TooMany",
            Self::NoGpu => "NoGpu",
            Self::NameTaken { .. } => "NameTaken",
        }
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlreadyPlaced { placement } => write!(f, "it has placement {placement} already"),
            Self::Clustered => {
                f.write_str("it is a clustered role, which fails over; take it out of the cluster first")
            }
            Self::NativePool { pool } => {
                write!(
                    f,
                    "the cluster gives it GPUs from its own pool {pool:?}; one of the two must hand them out, not both"
                )
            }
            Self::Unobserved { what } => write!(f, "{what} could not be observed; look again when it can"),
            Self::StaleRecord => {
                f.write_str("it names a device that is gone; remove that record first, or the VM does not start again")
            }
            Self::ForeignDevice { device } => {
                write!(
                    f,
                    "it has device {device}, which is no GPU that Berth knows; take it out first, or leave the VM alone"
                )
            }
            Self::InOtherVm { device, vm } => {
                write!(f, "VM {vm} lists {device}, too; take it out of one of them first")
            }
            Self::Claimed { device, by } => write!(f, "placement {by} owns {device}; release that first"),
            Self::Unhealthy { device, why } => write!(f, "{device}: {why}"),
            Self::TooMany { gpus } => write!(f, "it has {gpus} GPUs, a placement holds at most {MAX_GPUS_PER_REQUEST}"),
            Self::NoGpu => f.write_str("it has no GPU"),
            Self::NameTaken { name } => write!(f, "another placement is called {name}; give a name"),
        }
    }
}
