//! What a host shows, unknown included.

use crate::guest::GuestView;
use berth_model::VmId;
use berth_model::gpu::{GpuHealth, GpuState, ObservedGpu};
use berth_model::history::ClusterRole;
use berth_model::node::BootId;
use berth_model::pci::DeviceAddress;
use berth_model::vm::{ObservedVm, VmState};
use std::collections::{BTreeMap, BTreeSet};

/// Settings of a VM that matter to device assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmSettings {
    /// What the host does with it on shutdown. Must not be [`StopAction::Save`].
    pub stop_action: StopAction,
    /// Guest-controlled cache types (write combining), wanted for GPUs.
    pub guest_cache_types: bool,
    /// Address space below 4 GiB, in bytes.
    pub mmio_low_bytes: u64,
    /// Address space above 4 GiB, in bytes.
    pub mmio_high_bytes: u64,
    /// Its memory; dynamic memory excludes device assignment.
    pub memory: VmMemory,
    /// Its checkpoints.
    pub checkpoints: Checkpoints,
}

/// How a VM gets its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmMemory {
    /// All of it at start.
    Static,
    /// As much as it uses, within bounds. The bounds of a VM without dynamic memory mean nothing and are not kept.
    Dynamic {
        /// Least, in bytes.
        minimum_bytes: u64,
        /// Most, in bytes.
        maximum_bytes: u64,
    },
}

impl VmMemory {
    /// Dynamic memory with the bounds that Hyper-V gives a new VM. Also what is meant where only "dynamic" was written
    /// down: before bounds were kept there were only simulated hosts, whose VMs have these.
    pub const DYNAMIC: Self = Self::Dynamic { minimum_bytes: 512 << 20, maximum_bytes: 1 << 40 };
}

/// Checkpoints of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoints {
    /// Which kind can be made.
    pub kind: CheckpointKind,
    /// Whether the host makes one at every start.
    pub automatic: bool,
}

impl Checkpoints {
    /// None, as a VM with a device needs it.
    pub const NONE: Self = Self { kind: CheckpointKind::Disabled, automatic: false };
    /// What a server gives a new VM. Also what is meant where only "enabled" was written down, as with
    /// [`VmMemory::DYNAMIC`].
    pub const PRODUCTION: Self = Self { kind: CheckpointKind::Production, automatic: false };
}

/// Kinds of checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CheckpointKind {
    /// None can be made.
    Disabled,
    /// With the guest's help, else as [`Self::Standard`].
    Production,
    /// With the guest's help or not at all.
    ProductionOnly,
    /// The whole state of the machine.
    Standard,
}

/// What the host does with a running VM when it shuts down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StopAction {
    /// Pull the plug.
    TurnOff,
    /// Save its state; not allowed with an assigned device.
    Save,
    /// Shut the guest down.
    ShutDown,
}

/// One VM with its settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmView {
    /// What is reported of it.
    pub vm: ObservedVm,
    /// What is not.
    pub settings: VmSettings,
    /// How many of its checkpoints hold the state of a running machine, as standard ones of a running VM do. One of which
    /// the host does not say whether it does is one of them.
    pub saved_checkpoints: u32,
    /// Its clustered role, where it is one and its cluster tells which.
    pub role: Option<ClusterRole>,
    /// What its guest showed when it was asked; `None` as long as it was not asked since it started.
    pub guest: Option<GuestView>,
}

/// One complete look at a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostView {
    /// The boot it was taken in.
    pub boot: BootId,
    /// GPUs, by address. A driver lists those that answered; [`crate::report::Tracker`] adds those it knows of as
    /// unknown or missing.
    pub gpus: BTreeMap<DeviceAddress, ObservedGpu>,
    /// Where the other functions of GPUs' cards (audio, USB) are, by address.
    pub companions: BTreeMap<DeviceAddress, GpuState>,
    /// VMs, by id.
    pub vms: BTreeMap<VmId, VmView>,
    /// Those of `vms` that this look did not show, although they were there a moment ago: what is said of them is memory.
    /// Nobody knows which devices they list now. A driver leaves this empty; [`crate::report::Tracker`] fills it.
    pub unseen: BTreeSet<VmId>,
}

impl HostView {
    /// Which VMs list a device, running or not: the only way to know whether it is free.
    pub fn holders(&self, address: &DeviceAddress) -> impl Iterator<Item = &VmView> {
        self.vms.values().filter(move |view| view.vm.devices.iter().any(|device| device.address() == Some(address)))
    }

    /// State of one GPU or companion; `Unknown` when it did not answer.
    pub fn state(&self, address: &DeviceAddress) -> GpuState {
        let companion = || self.companions.get(address);
        self.gpus.get(address).map(|gpu| &gpu.state).or_else(companion).cloned().unwrap_or(GpuState::Unknown)
    }

    /// Whether the VM is surely off.
    pub fn is_off(&self, vm: &VmId) -> bool {
        self.vms.get(vm).is_some_and(|view| view.vm.state == VmState::Off)
    }

    /// Whether nothing about a GPU's condition forbids using it.
    pub fn is_healthy(&self, address: &DeviceAddress) -> bool {
        self.gpus.get(address).is_some_and(|gpu| gpu.health == GpuHealth::Ok)
    }
}
