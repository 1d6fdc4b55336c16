//! The steps an agent can take on a host. Each names one thing, can be repeated, and is believed only after looking again.

use crate::observed::VmSettings;
use berth_model::VmId;
use berth_model::pci::DeviceAddress;
use berth_model::placement::StepKind;

/// One step. Never a list, never "all": every step names the one VM or the one device it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Take a VM out of its cluster role; it stays registered on its node.
    MakeStandalone {
        /// The VM.
        vm: VmId,
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
    /// Take a device out of a VM's configuration.
    Detach {
        /// The VM.
        vm: VmId,
        /// The function.
        address: DeviceAddress,
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
            Self::Detach { .. } => StepKind::Detach,
            Self::Mount { .. } => StepKind::Mount,
            Self::Enable { .. } => StepKind::Enable,
            Self::RestoreVm { .. } => StepKind::RestoreVm,
        }
    }
}
