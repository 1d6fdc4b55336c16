//! The steps an agent can take on a host. Each names one thing, can be repeated, and is believed only after looking again.

use crate::observed::VmSettings;
use berth_model::history::ClusterRole;
use berth_model::pci::DeviceAddress;
use berth_model::placement::StepKind;
use berth_model::{CommandName, VmId};
use std::fmt;

/// One step. Never a list, never "all": every step names the one VM or the one device it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Take a VM out of its cluster role; it stays registered on its node.
    MakeStandalone {
        /// The VM.
        vm: VmId,
        /// The role: kept durably, and no other is removed. A driver refuses to remove one that nobody could make again.
        role: Option<ClusterRole>,
    },
    /// Stop a VM: guest shutdown first, then the plug.
    StopVm {
        /// The VM.
        vm: VmId,
    },
    /// Set a VM's settings. It must be off.
    ConfigureVm {
        /// The VM.
        vm: VmId,
        /// What they must be.
        settings: VmSettings,
    },
    /// Disable a function on the host.
    Disable {
        /// The function.
        address: DeviceAddress,
    },
    /// Dismount it from the host into the pool.
    Dismount {
        /// The function.
        address: DeviceAddress,
    },
    /// Put it into a VM's configuration.
    Attach {
        /// The VM.
        vm: VmId,
        /// The function.
        address: DeviceAddress,
    },
    /// Start a VM.
    StartVm {
        /// The VM.
        vm: VmId,
    },
    /// Ask a VM's guest which devices it sees.
    Verify {
        /// The VM.
        vm: VmId,
    },
    /// Run a driver-install command in a VM's guest: the one step whose result is believed, as far as it is about the command.
    InstallDriver {
        /// The VM.
        vm: VmId,
        /// Which of the node's commands.
        command: CommandName,
    },
    /// Take a device out of a VM's configuration.
    Detach {
        /// The VM.
        vm: VmId,
        /// The function.
        address: DeviceAddress,
    },
    /// Take records out of a VM's configuration whose device is gone. The host reports them without an address, so
    /// they cannot be named one by one; a record that names a device is never touched.
    DetachStale {
        /// The VM.
        vm: VmId,
    },
    /// Give it back to the host.
    Mount {
        /// The function.
        address: DeviceAddress,
    },
    /// Enable it there.
    Enable {
        /// The function.
        address: DeviceAddress,
    },
    /// Put a VM's settings back to what they were before its first device.
    RestoreVm {
        /// The VM.
        vm: VmId,
        /// What they were.
        settings: VmSettings,
    },
}

impl Step {
    /// Its name.
    pub fn kind(&self) -> StepKind {
        match self {
            Self::MakeStandalone { .. } => StepKind::MakeStandalone,
            Self::StopVm { .. } => StepKind::StopVm,
            Self::ConfigureVm { .. } => StepKind::ConfigureVm,
            Self::Disable { .. } => StepKind::Disable,
            Self::Dismount { .. } => StepKind::Dismount,
            Self::Attach { .. } => StepKind::Attach,
            Self::StartVm { .. } => StepKind::StartVm,
            Self::Verify { .. } => StepKind::Verify,
            Self::InstallDriver { .. } => StepKind::InstallDriver,
            Self::Detach { .. } | Self::DetachStale { .. } => StepKind::Detach,
            Self::Mount { .. } => StepKind::Mount,
            Self::Enable { .. } => StepKind::Enable,
            Self::RestoreVm { .. } => StepKind::RestoreVm,
        }
    }

    /// The VM it is about.
    pub fn vm(&self) -> Option<&VmId> {
        match self {
            Self::MakeStandalone { vm, .. }
            | Self::StopVm { vm }
            | Self::ConfigureVm { vm, .. }
            | Self::Attach { vm, .. }
            | Self::StartVm { vm }
            | Self::Verify { vm }
            | Self::InstallDriver { vm, .. }
            | Self::Detach { vm, .. }
            | Self::DetachStale { vm }
            | Self::RestoreVm { vm, .. } => Some(vm),
            Self::Disable { .. } | Self::Dismount { .. } | Self::Mount { .. } | Self::Enable { .. } => None,
        }
    }

    /// The function it is about.
    pub fn device(&self) -> Option<&DeviceAddress> {
        match self {
            Self::Disable { address }
            | Self::Dismount { address }
            | Self::Attach { address, .. }
            | Self::Detach { address, .. }
            | Self::Mount { address }
            | Self::Enable { address } => Some(address),
            Self::MakeStandalone { .. }
            | Self::StopVm { .. }
            | Self::ConfigureVm { .. }
            | Self::StartVm { .. }
            | Self::Verify { .. }
            | Self::InstallDriver { .. }
            | Self::DetachStale { .. }
            | Self::RestoreVm { .. } => None,
        }
    }
}

impl fmt::Display for Step {
    /// For the log: the step and what it is about.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::DetachStale { .. } => "Detach stale records",
            Self::MakeStandalone { .. }
            | Self::StopVm { .. }
            | Self::ConfigureVm { .. }
            | Self::Disable { .. }
            | Self::Dismount { .. }
            | Self::Attach { .. }
            | Self::StartVm { .. }
            | Self::Verify { .. }
            | Self::InstallDriver { .. }
            | Self::Detach { .. }
            | Self::Mount { .. }
            | Self::Enable { .. }
            | Self::RestoreVm { .. } => self.kind().name(),
        };
        f.write_str(name)?;
        if let Some(address) = self.device() {
            write!(f, " {address}")?;
        }
        match self.vm() {
            Some(vm) => write!(f, " of VM {vm}"),
            None => Ok(()),
        }
    }
}
