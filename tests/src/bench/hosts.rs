//! The hosts of a fleet by number: alike, as hosts of one purchase are, with eight GPUs each.
//!
//! Owns what a host says of itself, as its agent tells it and as it is stored, so that both are the same fleet.

use crate::scene::legal;
use berth_model::gpu::{GpuHealth, GpuState, HostDriver, ObservedGpu, SerialNumber};
use berth_model::inventory::Hello;
use berth_model::node::{BootId, HostFacts, Platform, StoredNode};
use berth_model::{ModelName, NodeName, Timestamp};
use berth_node_agent::driver::sim::GpuSpec;
use berth_proto::AGENT_PROTOCOL;

/// GPUs of each host.
pub(super) const GPUS: usize = 8;
/// One model a host.
const MODELS: [&str; 4] = ["H100", "A100", "L40S", "A30"];
/// Hosts of one cluster: as many as Windows allows.
const CLUSTER: usize = 16;
/// What agents say of their version.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The name of a host.
pub(super) fn name(number: usize) -> NodeName {
    legal(format!("hv-{number:05}").parse())
}

/// The model that its GPUs are, and that a request of the same number asks for.
pub(super) fn model(number: usize) -> ModelName {
    legal(MODELS[number % MODELS.len()].parse())
}

/// Its GPUs, in the host's hands.
pub(super) fn gpus(number: usize) -> Vec<ObservedGpu> {
    let model = model(number);
    let gpu = |slot: usize| {
        let address = legal(format!("PCIROOT({}0)#PCI(0{}00)#PCI(0000)", slot / 2, slot % 2 + 1).parse());
        let serial = legal(SerialNumber::new(format!("13{:010}", number * GPUS + slot)));
        let GpuSpec { address, mut survey, .. } = GpuSpec::of(&model, address).with_serial(serial);
        survey.numa_node = Some(u16::from(slot >= GPUS / 2));
        ObservedGpu {
            address,
            survey,
            state: GpuState::Host { driver: HostDriver::None },
            health: GpuHealth::Ok,
            problem: None,
        }
    };
    (0..GPUS).map(gpu).collect()
}

fn facts(number: usize) -> HostFacts {
    HostFacts {
        platform: Platform::Simulated,
        system: "Windows Server 2025 Datacenter (simulated)".to_owned(),
        cluster: Some(legal(format!("hci-{:04}", number / CLUSTER).parse())),
        cpu_milli: 128_000,
        memory_bytes: 1 << 40,
        mmio_high_cap_bytes: None,
        notes: Vec::new(),
    }
}

/// What its agent says first, when it has obeyed nobody yet.
pub(super) fn hello(number: usize) -> Hello {
    Hello {
        node: name(number),
        agent_version: VERSION.to_owned(),
        protocol: AGENT_PROTOCOL,
        boot: legal(BootId::new(format!("boot-{number}"))),
        facts: facts(number),
        ledger_term: 0,
        ledger_generation: 0,
        ledger_fleet: None,
        ledger_placements: Some(0),
    }
}

/// How it is stored once it is known.
pub(super) fn stored(number: usize, first_seen: Timestamp) -> StoredNode {
    StoredNode {
        name: name(number),
        facts: facts(number),
        agent_version: VERSION.to_owned(),
        first_seen,
        cordons: Vec::new(),
        gpus: gpus(number).into_iter().map(|gpu| (gpu.address, gpu.survey)).collect(),
        generation: 1,
        version: 1,
    }
}
