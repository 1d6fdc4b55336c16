//! A simulated host outlives its agent, and the process both live in: what it is like, as a value to write down.
//!
//! Cards are not part of it: hardware is described, and what is in a slot at the next start is there, remembered or not.

use super::{Function, Host, Record, Vm};
use crate::driver::sim::spec::HostSpec;
use berth_agent_core::observed::{CheckpointKind, Checkpoints, StopAction, VmMemory, VmSettings};
use berth_model::gpu::{Fingerprint, SerialNumber};
use berth_model::vm::VmState;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

/// What a host is like beside its hardware: how often it booted, what it did to its devices, and its VMs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    boots: u64,
    devices: BTreeMap<String, Device>,
    vms: BTreeMap<String, SavedVm>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Device {
    dismounted: bool,
    disabled: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedVm {
    name: String,
    state: String,
    clustered: bool,
    autostart: bool,
    guest_driver: bool,
    asked: bool,
    stop_action: Stop,
    guest_cache_types: bool,
    mmio_low_bytes: u64,
    mmio_high_bytes: u64,
    static_memory: bool,
    /// Bounds of dynamic memory. Not there in what older hosts saved, as the two further down.
    #[serde(default)]
    memory_bounds: Option<(u64, u64)>,
    checkpoints: bool,
    #[serde(default)]
    checkpoint_kind: Option<Checkpoint>,
    #[serde(default)]
    automatic_checkpoints: bool,
    devices: Vec<SavedRecord>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Checkpoint {
    Production,
    ProductionOnly,
    Standard,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Stop {
    TurnOff,
    Save,
    ShutDown,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedRecord {
    address: String,
    pci_id: String,
    serial: Option<String>,
}

/// What was written down cannot be read back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the saved state of host {node} cannot be used: {why}")]
pub struct NotRestored {
    node: String,
    why: String,
}

impl Host {
    /// What it is like now.
    pub fn save(&self) -> Saved {
        let functions = self.slots.values().flatten().flat_map(|card| &card.functions);
        let device = |is: &Function| Device { dismounted: is.dismounted, disabled: is.disabled };
        Saved {
            boots: self.boots,
            devices: functions.map(|(address, is)| (address.to_string(), device(is))).collect(),
            vms: self.vms.iter().map(|(id, vm)| (id.to_string(), saved(vm))).collect(),
        }
    }

    /// The host as it was, with the hardware described now. Its VMs are those it had, not those described; devices
    /// that it had not are in the host's hands as described.
    ///
    /// # Errors
    /// When what was saved is no state of a host.
    pub fn restore(spec: HostSpec, from: &Saved) -> Result<Self, NotRestored> {
        let node = spec.node.to_string();
        let mut host = Self::new(HostSpec { vms: Vec::new(), ..spec });
        host.boots = from.boots;
        for (address, function) in host.slots.values_mut().flatten().flat_map(|card| &mut card.functions) {
            if let Some(Device { dismounted, disabled }) = from.devices.get(&address.to_string()) {
                *function = Function { dismounted: *dismounted, disabled: *disabled };
            }
        }
        for (id, vm) in &from.vms {
            let restored = parse("VM id", id).and_then(|id| Ok((id, vm_of(vm)?)));
            let (id, vm) = restored.map_err(|why| NotRestored { node: node.clone(), why })?;
            host.vms.insert(id, vm);
        }
        Ok(host)
    }
}

fn parse<T: FromStr<Err: Display>>(what: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|e| format!("{what}: {e}"))
}

fn saved(vm: &Vm) -> SavedVm {
    let Vm { name, state, clustered, settings, autostart, guest_driver, devices, asked } = vm;
    let VmSettings { stop_action, guest_cache_types, mmio_low_bytes, mmio_high_bytes, memory, checkpoints } =
        settings.clone();
    let checkpoint_kind = match checkpoints.kind {
        CheckpointKind::Disabled => None,
        CheckpointKind::Production => Some(Checkpoint::Production),
        CheckpointKind::ProductionOnly => Some(Checkpoint::ProductionOnly),
        CheckpointKind::Standard => Some(Checkpoint::Standard),
    };
    let record = |record: &Record| SavedRecord {
        address: record.address.to_string(),
        pci_id: record.card.id.to_string(),
        serial: record.card.serial.as_ref().map(ToString::to_string),
    };
    SavedVm {
        name: name.to_string(),
        state: state.name().to_owned(),
        clustered: *clustered,
        autostart: *autostart,
        guest_driver: *guest_driver,
        asked: *asked,
        stop_action: match stop_action {
            StopAction::TurnOff => Stop::TurnOff,
            StopAction::Save => Stop::Save,
            StopAction::ShutDown => Stop::ShutDown,
        },
        guest_cache_types,
        mmio_low_bytes,
        mmio_high_bytes,
        static_memory: memory == VmMemory::Static,
        memory_bounds: match memory {
            VmMemory::Static => None,
            VmMemory::Dynamic { minimum_bytes, maximum_bytes } => Some((minimum_bytes, maximum_bytes)),
        },
        checkpoints: checkpoint_kind.is_some(),
        checkpoint_kind,
        automatic_checkpoints: checkpoints.automatic,
        devices: devices.iter().map(record).collect(),
    }
}

fn vm_of(saved: &SavedVm) -> Result<Vm, String> {
    let state = VmState::ALL.into_iter().find(|state| state.name() == saved.state);
    let record = |record: &SavedRecord| {
        let serial = record.serial.as_ref().map(SerialNumber::new).transpose().map_err(|e| e.to_string())?;
        let card = Fingerprint { id: parse("device", &record.pci_id)?, serial };
        Ok::<_, String>(Record { address: parse("device", &record.address)?, card })
    };
    Ok(Vm {
        name: parse("VM name", &saved.name)?,
        state: state.ok_or_else(|| format!("{:?} is no state of a VM", saved.state))?,
        clustered: saved.clustered,
        settings: VmSettings {
            stop_action: match saved.stop_action {
                Stop::TurnOff => StopAction::TurnOff,
                Stop::Save => StopAction::Save,
                Stop::ShutDown => StopAction::ShutDown,
            },
            guest_cache_types: saved.guest_cache_types,
            mmio_low_bytes: saved.mmio_low_bytes,
            mmio_high_bytes: saved.mmio_high_bytes,
            memory: match (saved.static_memory, saved.memory_bounds) {
                (true, _) => VmMemory::Static,
                (false, Some((minimum_bytes, maximum_bytes))) => VmMemory::Dynamic { minimum_bytes, maximum_bytes },
                (false, None) => VmMemory::DYNAMIC,
            },
            checkpoints: Checkpoints {
                kind: match (saved.checkpoints, saved.checkpoint_kind) {
                    (false, _) => CheckpointKind::Disabled,
                    (true, Some(Checkpoint::Production) | None) => CheckpointKind::Production,
                    (true, Some(Checkpoint::ProductionOnly)) => CheckpointKind::ProductionOnly,
                    (true, Some(Checkpoint::Standard)) => CheckpointKind::Standard,
                },
                automatic: saved.automatic_checkpoints,
            },
        },
        autostart: saved.autostart,
        guest_driver: saved.guest_driver,
        devices: saved.devices.iter().map(record).collect::<Result<_, _>>()?,
        asked: saved.asked,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::sim::spec::{GpuSpec, VmSpec};
    use berth_agent_core::step::Step;
    use berth_model::VmId;
    use berth_model::node::{HostFacts, Platform};
    use berth_model::pci::DeviceAddress;

    fn spec() -> HostSpec {
        let gpu = |text: &str| GpuSpec::of(&"A30".parse().unwrap(), text.parse().unwrap());
        HostSpec {
            node: "hv-01".parse().unwrap(),
            facts: HostFacts {
                platform: Platform::Simulated,
                system: "test".into(),
                cluster: None,
                cpu_milli: 1,
                memory_bytes: 1,
                mmio_high_cap_bytes: None,
                notes: Vec::new(),
            },
            gpus: vec![gpu("PCIROOT(10)#PCI(0100)#PCI(0000)"), gpu("PCIROOT(20)#PCI(0100)#PCI(0000)")],
            vms: vec![VmSpec::new(vm(), "described".parse().unwrap())],
        }
    }

    fn vm() -> VmId {
        VmId::new("8fce3318-aa0f-4de3-8664-278533573cd2").unwrap()
    }

    #[test]
    fn a_host_is_after_a_restart_as_it_was_before() {
        let mut host = Host::new(spec());
        host.reboot();
        let address: DeviceAddress = "PCIROOT(10)#PCI(0100)#PCI(0000)".parse().unwrap();
        for step in [
            Step::Disable { address: address.clone() },
            Step::Dismount { address: address.clone() },
            Step::Attach { vm: vm(), address },
        ] {
            let outcome = host.act(&step);
            assert!(matches!(outcome, super::super::Outcome::Ended(Ok(()))), "{step:?}: {outcome:?}");
        }
        let text = serde_json::to_string(&host.save()).unwrap();
        let back = Host::restore(spec(), &serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!(back.look(), host.look());
        assert_eq!(back.save(), host.save());
    }

    #[test]
    fn a_vm_that_was_deleted_does_not_come_back_from_the_description() {
        let mut host = Host::new(spec());
        host.delete_vm(&vm()).unwrap();
        assert_eq!(Host::restore(spec(), &host.save()).unwrap().vm_ids().count(), 0);
    }

    #[test]
    fn what_is_no_state_is_refused() {
        let mut saved = Host::new(spec()).save();
        for vm in saved.vms.values_mut() {
            vm.state = "Dancing".into();
        }
        let refused = Host::restore(spec(), &saved).unwrap_err().to_string();
        assert_eq!(refused, r#"the saved state of host hv-01 cannot be used: "Dancing" is no state of a VM"#);
    }
}
