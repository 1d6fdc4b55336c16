//! Parts of simulated hosts that the simulations share: addresses, cards, VMs, all from a seed.

use berth_model::gpu::SerialNumber;
use berth_model::pci::DeviceAddress;
use berth_model::vm::VmState;
use berth_model::{PlacementUid, VmId, VmName};
use berth_node_agent::driver::sim::{Card, GpuSpec, VmSpec};
use rand::{Rng, RngExt};

/// A value that the simulations make themselves and know to be legal.
pub(crate) fn legal<T, E: std::fmt::Display>(made: Result<T, E>) -> T {
    match made {
        Ok(value) => value,
        Err(e) => unreachable!("made by a simulation and legal: {e}"),
    }
}

pub(crate) fn address(slot: u32, function: u32) -> DeviceAddress {
    legal(format!("PCIROOT({slot}0)#PCI(0300)#PCI(000{function})").parse())
}

pub(crate) fn vm_name(number: u32) -> VmName {
    legal(VmName::new(format!("vm-{number}")))
}

fn vm_id(number: u64) -> VmId {
    legal(VmId::new(format!("00000000-0000-4000-9000-{number:012x}")))
}

pub(crate) fn uid(number: u32) -> PlacementUid {
    legal(format!("00000000-0000-4000-8000-{number:012x}").parse())
}

pub(crate) fn gpu(model: &str, slot: u32, serial: u32) -> GpuSpec {
    let spec = GpuSpec::of(&legal(model.parse()), address(slot, 0));
    spec.with_serial(legal(SerialNumber::new(format!("S{serial}"))))
}

/// A new VM under a name, as somebody might have made it.
pub(crate) fn vm(rng: &mut impl Rng, name: VmName) -> VmSpec {
    let id = vm_id(rng.random_range(1..1 << 40));
    VmSpec {
        state: if rng.random_ratio(1, 3) { VmState::Running } else { VmState::Off },
        clustered: rng.random_ratio(1, 6),
        autostart: rng.random(),
        guest_driver: rng.random_ratio(5, 6),
        ..VmSpec::new(id, name)
    }
}

/// A card that was never in the host before, for the slot of a GPU.
pub(crate) fn stranger(address: &DeviceAddress, serial: u32) -> Card {
    let spec = GpuSpec::of(&legal("A2".parse()), address.clone());
    Card::new(spec.with_serial(legal(SerialNumber::new(format!("X{serial}")))))
}
