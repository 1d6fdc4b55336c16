//! What callers see of the world: stored facts joined with what is observed right now.

use crate::last_seen::LastSeen;
use berth_core::condition::conditions;
use berth_core::world::{Gpu, Link, Node, World};
use berth_model::pci::DeviceAddress;
use berth_model::placement::Placement;
use berth_model::vm::{ObservedVm, VmSelector};
use berth_model::{GpuId, Timestamp};
use berth_proto::{convert, v1};
use std::sync::Arc;

/// A count on the wire. No fleet comes near its end.
pub(crate) fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// A placement with its conditions and the step it is at.
pub(crate) fn placement(world: &World, placement: &Placement, now: Timestamp) -> v1::Placement {
    let step = world.live(placement.name()).and_then(|live| live.step.as_ref());
    v1::Placement {
        conditions: conditions(world, placement, now).iter().map(Into::into).collect(),
        current_step: step.map(Into::into),
        ..placement.into()
    }
}

/// A node.
pub(crate) fn node(node: &Node, seen: &dyn LastSeen) -> v1::Node {
    let (connected, since) = match node.link {
        Link::Connected { since } => (true, since),
        Link::Disconnected { since } | Link::Unheard { since } => (false, since),
    };
    let not_ready = node.not_ready();
    v1::Node {
        name: node.name.to_string(),
        facts: Some((&node.facts).into()),
        agent_version: node.agent_version.clone(),
        connected,
        ready: not_ready.is_none(),
        not_ready: not_ready.as_ref().map(|why| why.name().to_owned()).unwrap_or_default(),
        not_ready_reason: not_ready.map(|why| why.to_string()).unwrap_or_default(),
        last_seen: seen.last_seen(&node.name).map(convert::timestamp),
        since: Some(convert::timestamp(since)),
        cordons: node.cordons.iter().map(Into::into).collect(),
        gpus: count(node.gpus.len()),
        gpus_available: count(node.gpus.values().filter(|gpu| node.is_available(gpu)).count()),
        vms: count(node.vms.len()),
        reserved: Some((&node.reserved).into()),
        generation: node.generation,
    }
}

/// A GPU, with everything that speaks against handing it out.
pub(crate) fn gpu(node: &Node, address: &DeviceAddress, gpu: &Gpu) -> v1::Gpu {
    let unavailable: Vec<_> = node.unavailable(gpu).map(|why| (&why).into()).collect();
    v1::Gpu {
        id: gpu_key(node, address),
        node: node.name.to_string(),
        observed: Some((&gpu.observed).into()),
        observed_at: gpu.observed_at.map(convert::timestamp),
        available: unavailable.is_empty(),
        unavailable,
        placement: gpu.claim.as_ref().map(ToString::to_string).unwrap_or_default(),
    }
}

/// A GPU's id as text.
pub(crate) fn gpu_key(node: &Node, address: &DeviceAddress) -> String {
    GpuId { node: node.name.clone(), address: address.clone() }.to_string()
}

/// A VM, with its placement and why it must stay where it is.
pub(crate) fn vm(world: &World, node: &Node, vm: &ObservedVm) -> v1::Vm {
    let placement = placement_of(world, node, vm);
    let pin = placement.filter(|p| p.phase.holds_claims()).and_then(|p| p.assignment.as_ref()).map(|a| &a.pin);
    v1::Vm {
        node: node.name.to_string(),
        observed: Some(vm.into()),
        placement: placement.map(|p| p.name().to_string()).unwrap_or_default(),
        pin: pin.map(Into::into),
        fresh: node.not_ready().is_none(),
    }
}

/// The live placement of a VM. One that names the VM by its display name counts only on the node it was decided for:
/// names are not unique.
fn placement_of<'a>(world: &'a World, node: &Node, vm: &ObservedVm) -> Option<&'a Arc<Placement>> {
    world.placement_by_vm(&VmSelector::Id(vm.id.clone())).or_else(|| {
        world
            .placement_by_vm(&VmSelector::Name(vm.name.clone()))
            .filter(|p| p.vm_id.is_none() && p.assignment.as_ref().is_some_and(|a| a.node == node.name))
    })
}
