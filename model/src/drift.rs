//! How a host differs from what Berth wants or knows without Berth's doing: named, told, never fixed unasked.

use crate::id::{NodeName, PlacementName, VmId};
use crate::pci::DeviceAddress;
use crate::placement::Drift;
use crate::time::Timestamp;
use std::fmt;

/// Kinds of differences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Another card answers where one was known.
    WrongCard,
    /// The VM of a placement is gone; the placement keeps its claims.
    VmGone,
    /// A placement's GPU is in another VM.
    InOtherVm,
    /// A placement's GPU is not in its VM.
    NotAttached,
    /// The VM of a placement is a clustered role and could be moved.
    VmClustered,
    /// A VM's configuration names a device that is gone.
    StaleRecord,
    /// Somebody gave a device to a VM by hand.
    AssignedByHand,
    /// A device was dismounted and left so; nobody owns it.
    LeftDismounted,
    /// A device is disabled on the host and nobody owns it.
    Disabled,
    /// A card that was known is not in its slot any more.
    CardMissing,
}

impl Kind {
    /// Every kind, the worst first.
    pub const ALL: [Self; 10] = [
        Self::WrongCard,
        Self::VmGone,
        Self::InOtherVm,
        Self::NotAttached,
        Self::VmClustered,
        Self::StaleRecord,
        Self::AssignedByHand,
        Self::LeftDismounted,
        Self::Disabled,
        Self::CardMissing,
    ];

    /// Stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::WrongCard => "WrongCard",
            Self::VmGone => "VmGone",
            Self::InOtherVm => "InOtherVm",
            Self::NotAttached => "NotAttached",
            Self::VmClustered => "VmClustered",
            Self::StaleRecord => "StaleRecord",
            Self::AssignedByHand => "AssignedByHand",
            Self::LeftDismounted => "LeftDismounted",
            Self::Disabled => "Disabled",
            Self::CardMissing => "CardMissing",
        }
    }

    /// The kind of a placement's drift.
    pub fn of(drift: &Drift) -> Self {
        match drift {
            Drift::VmGone => Self::VmGone,
            Drift::VmClustered => Self::VmClustered,
            Drift::NotAttached { .. } => Self::NotAttached,
            Drift::InOtherVm { .. } => Self::InOtherVm,
            Drift::WrongCard { .. } => Self::WrongCard,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// On which node.
    pub node: NodeName,
    /// What kind.
    pub kind: Kind,
    /// The device it is about.
    pub device: Option<DeviceAddress>,
    /// The VM it is about.
    pub vm: Option<VmId>,
    /// The placement that it concerns.
    pub placement: Option<PlacementName>,
    /// Since when it has been seen so without interruption; nobody knows after the controller's start until the node reports.
    pub since: Option<Timestamp>,
    /// What was seen, as a sentence.
    pub seen: String,
}

impl Difference {
    /// What to do about it, as a sentence. Berth does none of it unasked.
    pub fn remedy(&self) -> String {
        let node = &self.node;
        let device = self.device.as_ref().map(ToString::to_string).unwrap_or_else(|| "the device".to_owned());
        let vm = self.vm.as_ref().map(ToString::to_string).unwrap_or_else(|| "the VM".to_owned());
        let release = match &self.placement {
            Some(placement) => format!("`berth release {placement}`"),
            None => "release its placement".to_owned(),
        };
        match self.kind {
            Kind::WrongCard => {
                format!(
                    "put the card back that was known, or delete the agent's data on {node} to admit the node anew; until then nobody gets {device}"
                )
            }
            Kind::VmGone => format!("bring VM {vm} back to {node}, or give its GPUs back: {release}"),
            Kind::InOtherVm => format!("take {device} out of that VM, or give up the placement: {release}"),
            Kind::NotAttached => format!("put {device} back into VM {vm}, or give up the placement: {release}"),
            Kind::VmClustered => {
                format!("take VM {vm} out of its cluster role: it would fail over to where its GPUs are not")
            }
            Kind::StaleRecord => {
                format!(
                    "remove the record on {node}, or VM {vm} does not start: Get-VM -Id {vm} | Get-VMAssignableDevice, and of those without a LocationPath Remove-VMAssignableDevice"
                )
            }
            Kind::AssignedByHand => {
                format!(
                    "take it over: `berth adopt --node {node} --vm {vm}`; or take {device} out of the VM on the host"
                )
            }
            Kind::LeftDismounted => {
                format!(
                    "nothing, if it is kept for the next VM; else give it to its host on {node}: Mount-VMHostAssignableDevice -LocationPath '{device}', then Enable-PnpDevice"
                )
            }
            Kind::Disabled => {
                format!("nothing, if that is on purpose: Berth can place it as it is; else Enable-PnpDevice on {node}")
            }
            Kind::CardMissing => format!("put the card of {device} back, or leave it: nobody gets what is not there"),
        }
    }
}
