//! The host of a run: few GPUs and VMs, so that everything meets everything.

use berth_model::gpu::{HostDriver, SerialNumber};
use berth_model::node::{HostFacts, Platform};
use berth_model::pci::DeviceAddress;
use berth_model::vm::VmState;
use berth_model::{VmId, VmName};
use berth_node_agent::driver::sim::{Card, GpuSpec, HostSpec, VmSpec};
use rand::RngExt;
use rand::rngs::StdRng;

/// How many VM names there are. VMs come and go under them.
pub(super) const VM_NAMES: u32 = 5;

fn legal<T, E: std::fmt::Display>(made: Result<T, E>) -> T {
    match made {
        Ok(value) => value,
        Err(e) => unreachable!("made by this file and legal: {e}"),
    }
}

fn address(slot: u32, function: u32) -> DeviceAddress {
    legal(format!("PCIROOT({slot}0)#PCI(0300)#PCI(000{function})").parse())
}

pub(super) fn vm_name(number: u32) -> VmName {
    legal(VmName::new(format!("vm-{number}")))
}

fn vm_id(number: u64) -> VmId {
    legal(VmId::new(format!("00000000-0000-4000-9000-{number:012x}")))
}

pub(super) fn uid(number: u32) -> berth_model::PlacementUid {
    legal(format!("00000000-0000-4000-8000-{number:012x}").parse())
}

fn gpu(model: &str, slot: u32, serial: u32) -> GpuSpec {
    let spec = GpuSpec::of(&legal(model.parse()), address(slot, 0));
    spec.with_serial(legal(SerialNumber::new(format!("S{serial}"))))
}

pub(super) fn host(rng: &mut StdRng) -> HostSpec {
    let gpus = vec![
        GpuSpec { driver: HostDriver::Bound, ..gpu("A2", 1, 1).with_companion(address(1, 1)) },
        gpu("A2", 2, 2),
        gpu("A30", 3, 3).with_companion(address(3, 1)),
        GpuSpec { driver: HostDriver::Bound, ..gpu("A30", 4, 4) },
    ];
    let vms = (0..3).map(|number| vm(rng, number)).collect();
    HostSpec {
        node: legal("hv-01".parse()),
        facts: HostFacts {
            platform: Platform::Simulated,
            system: "simulated".to_owned(),
            cluster: None,
            cpu_milli: 64_000,
            memory_bytes: 1 << 39,
            mmio_high_cap_bytes: None,
        },
        gpus,
        vms,
    }
}

/// A new VM under one of the names, as somebody might have made it.
pub(super) fn vm(rng: &mut StdRng, number: u32) -> VmSpec {
    let id = vm_id(rng.random_range(1..1 << 40));
    VmSpec {
        state: if rng.random_ratio(1, 3) { VmState::Running } else { VmState::Off },
        clustered: rng.random_ratio(1, 6),
        autostart: rng.random(),
        guest_driver: rng.random_ratio(5, 6),
        ..VmSpec::new(id, vm_name(number))
    }
}

/// A card that was never in the host before, for the slot of a GPU.
pub(super) fn stranger(address: &DeviceAddress, serial: u32) -> Card {
    let spec = GpuSpec::of(&legal("A2".parse()), address.clone());
    Card::new(spec.with_serial(legal(SerialNumber::new(format!("X{serial}")))))
}
