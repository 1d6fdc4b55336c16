//! What a simulated host begins as.

use berth_agent_core::cards;
use berth_agent_core::observed::{Checkpoints, StopAction, VmMemory, VmSettings};
use berth_model::gpu::{Fingerprint, HostDriver, SerialNumber, Survey, Verdict};
use berth_model::id::VmName;
use berth_model::node::HostFacts;
use berth_model::pci::DeviceAddress;
use berth_model::vm::VmState;
use berth_model::{ModelName, NodeName, VmId};

/// A host: what it is, and what is in it at first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSpec {
    /// Its name.
    pub node: NodeName,
    /// What it is.
    pub facts: HostFacts,
    /// Its GPUs.
    pub gpus: Vec<GpuSpec>,
    /// Its VMs.
    pub vms: Vec<VmSpec>,
}

/// One GPU of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuSpec {
    /// Where it sits.
    pub address: DeviceAddress,
    /// What a survey says while the host runs it, its companions included.
    pub survey: Survey,
    /// The host's driver for it.
    pub driver: HostDriver,
    /// Found in the pool, dismounted from the host, rather than in the host's hands.
    pub pooled: bool,
}

impl GpuSpec {
    /// A GPU of a model, with the card table's facts (those of an ordinary card for a model it lacks), assignable,
    /// in the host's hands without a driver as on a host made for assigning devices.
    pub fn of(model: &ModelName, address: DeviceAddress) -> Self {
        let card = cards::by_model(model).unwrap_or(&cards::GENERIC);
        Self {
            address,
            survey: Survey {
                model: model.clone(),
                fingerprint: Fingerprint { id: card.id, serial: None },
                vram_bytes: Some(card.vram_bytes),
                mmio: card.mmio(),
                numa_node: None,
                companions: Vec::new(),
                verdict: Verdict::Assignable,
            },
            driver: HostDriver::None,
            pooled: false,
        }
    }

    /// The same with a serial number.
    pub fn with_serial(mut self, serial: SerialNumber) -> Self {
        self.survey.fingerprint.serial = Some(serial);
        self
    }

    /// The same with another function on its card that must move with it.
    pub fn with_companion(mut self, address: DeviceAddress) -> Self {
        self.survey.companions.push(address);
        self
    }
}

/// One VM of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmSpec {
    /// Its identity.
    pub id: VmId,
    /// Its name.
    pub name: VmName,
    /// What it does.
    pub state: VmState,
    /// Whether it is a clustered role.
    pub clustered: bool,
    /// Its settings.
    pub settings: VmSettings,
    /// Whether the host starts it when it boots.
    pub autostart: bool,
    /// Whether its guest has a driver for the GPUs.
    pub guest_driver: bool,
    /// Devices it has already, given by hand.
    pub devices: Vec<DeviceAddress>,
}

impl VmSpec {
    /// A VM as a person makes it: off, default settings, not clustered, with a driver for its GPUs.
    pub fn new(id: VmId, name: VmName) -> Self {
        Self {
            id,
            name,
            state: VmState::Off,
            clustered: false,
            settings: default_settings(),
            autostart: false,
            guest_driver: true,
            devices: Vec::new(),
        }
    }
}

/// The settings Hyper-V gives a new VM: state saved on host shutdown, 128 and 512 MiB of address space.
pub fn default_settings() -> VmSettings {
    VmSettings {
        stop_action: StopAction::Save,
        guest_cache_types: false,
        mmio_low_bytes: 128 << 20,
        mmio_high_bytes: 512 << 20,
        memory: VmMemory::DYNAMIC,
        checkpoints: Checkpoints::PRODUCTION,
    }
}
