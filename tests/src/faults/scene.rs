//! The host of a run: few GPUs and VMs, so that everything meets everything.

use crate::scene::{address, gpu, legal, vm, vm_name};
use berth_model::gpu::HostDriver;
use berth_model::node::{HostFacts, Platform};
use berth_node_agent::driver::sim::{GpuSpec, HostSpec};
use rand::rngs::StdRng;

/// How many VM names there are. VMs come and go under them.
pub(super) const VM_NAMES: u32 = 5;

pub(super) fn host(rng: &mut StdRng) -> HostSpec {
    let gpus = vec![
        GpuSpec { driver: HostDriver::Bound, ..gpu("A2", 1, 1).with_companion(address(1, 1)) },
        gpu("A2", 2, 2),
        gpu("A30", 3, 3).with_companion(address(3, 1)),
        GpuSpec { driver: HostDriver::Bound, ..gpu("A30", 4, 4) },
    ];
    let vms = (0..3).map(|number| vm(rng, vm_name(number))).collect();
    HostSpec {
        node: legal("hv-01".parse()),
        facts: HostFacts {
            platform: Platform::Simulated,
            system: "simulated".to_owned(),
            cluster: None,
            cpu_milli: 64_000,
            memory_bytes: 1 << 39,
            mmio_high_cap_bytes: None,
            notes: Vec::new(),
        },
        gpus,
        vms,
    }
}
