//! A described fleet as simulated hosts.

use super::{Fleet, Gpu, Node, Vm};
use berth_agent_core::observed::{Checkpoints, StopAction, VmMemory};
use berth_model::mmio::{required_high, required_low};
use berth_node_agent::driver::sim::{GpuSpec, HostSpec, VmSpec, default_settings};

impl Fleet {
    /// The hosts this fleet describes, in order of name.
    pub fn hosts(&self) -> Vec<HostSpec> {
        self.nodes.iter().map(host).collect()
    }
}

fn host(node: &Node) -> HostSpec {
    HostSpec {
        node: node.name.clone(),
        facts: node.facts.clone(),
        gpus: node.gpus.iter().map(gpu).collect(),
        vms: node.vms.iter().map(|described| vm(node, described)).collect(),
    }
}

fn gpu(gpu: &Gpu) -> GpuSpec {
    let Gpu { address, survey, driver } = gpu;
    // A described GPU begins in the host's hands, or in a VM that says so.
    GpuSpec { address: address.clone(), survey: survey.clone(), driver: driver.clone(), pooled: false }
}

fn vm(node: &Node, vm: &Vm) -> VmSpec {
    let Vm { id, name, state, clustered, devices } = vm;
    let sizes = node.gpus.iter().filter(|gpu| devices.contains(&gpu.address)).map(|gpu| gpu.survey.mmio);
    let mut settings = default_settings();
    if !devices.is_empty() {
        // Whoever gave it devices by hand set what devices need, or it would not run.
        settings.stop_action = StopAction::TurnOff;
        settings.guest_cache_types = true;
        settings.memory = VmMemory::Static;
        settings.checkpoints = Checkpoints::NONE;
        let sizes: Vec<_> = sizes.collect();
        settings.mmio_low_bytes = settings.mmio_low_bytes.max(required_low(&sizes));
        settings.mmio_high_bytes = settings.mmio_high_bytes.max(required_high(&sizes));
    }
    VmSpec {
        state: *state,
        clustered: *clustered,
        settings,
        devices: devices.clone(),
        ..VmSpec::new(id.clone(), name.clone())
    }
}
