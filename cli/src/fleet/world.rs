//! A described fleet as the controller's brain would see it: every node connected, every GPU seen.

use super::{Fleet, Gpu, Node, Vm};
use berth_core::world::{self, Link, View, World};
use berth_model::Timestamp;
use berth_model::gpu::{GpuHealth, GpuState, ObservedGpu};
use berth_model::request::Resources;
use berth_model::vm::{ObservedVm, VmDevice};

impl Fleet {
    /// The world this fleet makes, with nothing placed.
    pub fn world(&self, now: Timestamp) -> World {
        let mut world = World::default();
        for node in &self.nodes {
            world.insert_node(seen(node, now));
        }
        world
    }
}

fn seen(node: &Node, now: Timestamp) -> world::Node {
    let gpu = |gpu: &Gpu| {
        let holder = node.vms.iter().find(|vm| vm.devices.contains(&gpu.address));
        let state = match holder {
            Some(vm) => GpuState::Attached { vm: vm.id.clone() },
            None => GpuState::Host { driver: gpu.driver.clone() },
        };
        let observed = ObservedGpu {
            address: gpu.address.clone(),
            survey: gpu.survey.clone(),
            state,
            health: GpuHealth::Ok,
            problem: None,
        };
        (gpu.address.clone(), world::Gpu { observed, observed_at: Some(now), since: Some(now), claim: None })
    };
    world::Node {
        name: node.name.clone(),
        facts: node.facts.clone(),
        agent_version: String::new(),
        first_seen: now,
        cordons: Vec::new(),
        version: 1,
        generation: 0,
        link: Link::Connected { since: now },
        view: View::Complete,
        boot: None,
        gpus: node.gpus.iter().map(gpu).collect(),
        vms: node.vms.iter().map(|vm| (vm.id.clone(), observed(vm))).collect(),
        stale_since: std::collections::BTreeMap::new(),
        reserved: Resources::default(),
    }
}

fn observed(vm: &Vm) -> ObservedVm {
    ObservedVm {
        id: vm.id.clone(),
        name: vm.name.clone(),
        state: vm.state,
        clustered: vm.clustered,
        devices: vm.devices.iter().cloned().map(VmDevice::At).collect(),
    }
}
