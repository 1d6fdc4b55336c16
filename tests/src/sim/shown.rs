//! What an agent has told of its host, all reports of its session taken together. Once a leader has taken in a report, it
//! must believe exactly that of the node: nothing of what was told before a reload, nothing that only a later report says.

use super::Broken;
use berth_agent_core::observed::HostView;
use berth_core::world::{View, World};
use berth_model::gpu::GpuState;
use berth_model::pci::DeviceAddress;
use berth_model::vm::ObservedVm;
use berth_model::{NodeName, VmId};
use std::collections::BTreeMap;

/// One node, as its agent has shown it.
#[derive(Debug)]
pub(super) struct Shown {
    node: NodeName,
    gpus: BTreeMap<DeviceAddress, GpuState>,
    vms: BTreeMap<VmId, ObservedVm>,
}

impl Shown {
    pub(super) fn of(node: &NodeName, view: &HostView) -> Self {
        Self {
            node: node.clone(),
            gpus: view.gpus.iter().map(|(address, gpu)| (address.clone(), gpu.state.clone())).collect(),
            vms: view.vms.iter().map(|(id, vm)| (id.clone(), vm.vm.clone())).collect(),
        }
    }

    /// Compares it with what a leader believes that has just taken in the report.
    pub(super) fn check(&self, world: &World) -> Result<(), Broken> {
        let name = &self.node;
        let Some(node) = world.node(name) else { return Ok(()) };
        let broken = |what: String| Err(Broken(format!("a leader believes of {name} what was not told: {what}")));
        if node.view != View::Complete {
            return broken(format!("its view is {:?} after a complete report", node.view));
        }
        if node.vms != self.vms {
            let (believed, told): (Vec<_>, Vec<_>) = (node.vms.keys().collect(), self.vms.keys().collect());
            return broken(format!("VMs {believed:?}, told were {told:?}, or another state of them"));
        }
        for (address, gpu) in &node.gpus {
            let (believed, told) = (&gpu.observed.state, self.gpus.get(address));
            // What is not told of any more is nowhere.
            let nowhere = matches!(believed, GpuState::Unknown | GpuState::Missing | GpuState::Stale { .. });
            if told.map_or(!nowhere, |told| told != believed) {
                return broken(format!("GPU {address} is {believed:?}, told was {told:?}"));
            }
        }
        match self.gpus.keys().find(|address| !node.gpus.contains_key(*address)) {
            Some(address) => broken(format!("GPU {address} is not known")),
            None => Ok(()),
        }
    }
}
