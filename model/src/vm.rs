//! What a virtual machine looks like from its host, and how a caller names one.

use crate::id::{InvalidName, VmId, VmName};
use crate::pci::DeviceAddress;
use std::fmt;
use std::str::FromStr;

/// What a VM is doing. The host's many transitional states are one here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VmState {
    /// Running.
    Running,
    /// Off: the only state in which its devices and settings may be changed.
    Off,
    /// Saved to disk; with an assigned device it cannot resume.
    Saved,
    /// Paused.
    Paused,
    /// Starting, stopping, saving, resuming, resetting.
    Changing,
    /// The host could not say.
    Unknown,
}

impl VmState {
    /// Every state, for tables and round trips.
    pub const ALL: [Self; 6] = [Self::Running, Self::Off, Self::Saved, Self::Paused, Self::Changing, Self::Unknown];

    /// Stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "Running",
            Self::Off => "Off",
            Self::Saved => "Saved",
            Self::Paused => "Paused",
            Self::Changing => "Changing",
            Self::Unknown => "Unknown",
        }
    }
}

/// One VM as an agent saw it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObservedVm {
    /// The host's identity for it.
    pub id: VmId,
    /// Its display name; not unique.
    pub name: VmName,
    /// What it does.
    pub state: VmState,
    /// Whether it is a clustered role, which may move by itself.
    pub clustered: bool,
    /// Devices its configuration lists.
    pub devices: Vec<VmDevice>,
}

/// One device in a VM's configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VmDevice {
    /// Names a device.
    At(DeviceAddress),
    /// A record whose device is gone: the host reports it with an empty path.
    Stale,
    /// A record of a pool of the host's own cluster: the cluster chooses the device when the VM starts, so that it may
    /// name none now. Berth leaves such a VM and such a device alone.
    Pool {
        /// The pool's name, as the host says it.
        pool: String,
        /// The device that it stands for now, if one.
        address: Option<DeviceAddress>,
    },
}

impl VmDevice {
    /// The device it names now.
    pub fn address(&self) -> Option<&DeviceAddress> {
        match self {
            Self::At(address) | Self::Pool { address: Some(address), .. } => Some(address),
            Self::Stale | Self::Pool { address: None, .. } => None,
        }
    }
}

/// How a caller names a VM: by GUID, or by a name that must then be unique where it is looked up.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VmSelector {
    /// By identity.
    Id(VmId),
    /// By display name.
    Name(VmName),
}

impl VmSelector {
    /// Whether `vm` is meant. Display names compare without regard to ASCII case, as Hyper-V does.
    pub fn selects(&self, vm: &ObservedVm) -> bool {
        match self {
            Self::Id(id) => *id == vm.id,
            Self::Name(name) => name.as_str().eq_ignore_ascii_case(vm.name.as_str()),
        }
    }
}

impl fmt::Display for VmSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl FromStr for VmSelector {
    type Err = InvalidName;
    /// A GUID is an id, everything else a name.
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        match VmId::new(text) {
            Ok(id) => Ok(Self::Id(id)),
            Err(_) => VmName::new(text).map(Self::Name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guid_selects_by_identity_and_anything_else_by_name() {
        assert!(matches!("8FCE3318-aa0f-4de3-8664-278533573cd2".parse(), Ok(VmSelector::Id(_))));
        assert!(matches!("render 07".parse(), Ok(VmSelector::Name(_))));
        assert!("".parse::<VmSelector>().is_err());
    }
}
