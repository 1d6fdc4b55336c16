//! What can be done on a host, step by step.

use std::fmt;

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
