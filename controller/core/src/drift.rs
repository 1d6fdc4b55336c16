//! How hosts differ from what is wanted or known, without Berth's doing. Derived from the world at each look, never
//! stored, never acted upon.
//!
//! GPUs in a pool of the host's own cluster, and VMs that have GPUs from one, are no drift: they are somebody else's.

use crate::world::{Gpu, Node, World};
use berth_model::drift::{Difference, Kind};
use berth_model::gpu::{GpuHealth, GpuState, HostDriver, QuarantineReason};
use berth_model::pci::DeviceAddress;
use berth_model::placement::{Drift, Phase};
use berth_model::request::ReturnTo;
use berth_model::vm::VmDevice;
use berth_model::{GpuId, VmId};
use std::collections::BTreeSet;

/// GPUs that a placement which is over left in the pool because its request said so: no drift as long as that is
/// remembered. Costs time in proportion to all placements.
pub fn left_on_purpose(world: &World) -> BTreeSet<GpuId> {
    world
        .placements()
        .filter(|placement| placement.phase.is_over() && placement.request.return_to == ReturnTo::Pool)
        .flat_map(|placement| placement.assignment.iter().flat_map(|assignment| assignment.gpu_ids()))
        .collect()
}

/// All differences of one node, GPUs in order of address first, then VMs. Of a node that cannot be judged now nothing is said.
pub fn of_node(world: &World, node: &Node, on_purpose: &BTreeSet<GpuId>) -> Vec<Difference> {
    if node.not_ready().is_some() {
        return Vec::new();
    }
    let mut found: Vec<_> =
        node.gpus.iter().flat_map(|(address, gpu)| of_gpu(world, node, address, gpu, on_purpose)).collect();
    for placement in world.placements_on(&node.name).filter(|placement| placement.phase == Phase::Active) {
        let Some((since, drift)) = world.live(placement.name()).and_then(|live| live.drift.clone()) else { continue };
        // What is about a device stands with the device.
        if matches!(drift, Drift::VmGone | Drift::VmClustered) {
            found.push(Difference {
                node: node.name.clone(),
                kind: Kind::of(&drift),
                device: None,
                vm: placement.vm_id.clone(),
                placement: Some(placement.name().clone()),
                since: Some(since),
                seen: drift.to_string(),
            });
        }
    }
    for vm in node.vms.values() {
        let records = vm.devices.iter().filter(|device| **device == VmDevice::Stale).count();
        if records > 0 {
            let s = if records == 1 { "" } else { "s" };
            found.push(Difference {
                node: node.name.clone(),
                kind: Kind::StaleRecord,
                device: None,
                vm: Some(vm.id.clone()),
                placement: None,
                since: node.stale_since.get(&vm.id).copied(),
                seen: format!("VM {} has {records} record{s} of devices that are gone", vm.name),
            });
        }
    }
    found
}

/// The differences of one GPU.
pub fn of_gpu(
    world: &World,
    node: &Node,
    address: &DeviceAddress,
    gpu: &Gpu,
    on_purpose: &BTreeSet<GpuId>,
) -> Option<Difference> {
    if node.not_ready().is_some() {
        return None;
    }
    let id = || GpuId { node: node.name.clone(), address: address.clone() };
    let found = |kind, vm: Option<&VmId>, seen: String| Difference {
        node: node.name.clone(),
        kind,
        device: Some(address.clone()),
        vm: vm.cloned(),
        placement: gpu.claim.clone(),
        since: gpu.since,
        seen,
    };
    match &gpu.observed.health {
        GpuHealth::Quarantined(reason @ QuarantineReason::WrongCard { .. }) => {
            return Some(found(Kind::WrongCard, None, reason.to_string()));
        }
        GpuHealth::Quarantined(QuarantineReason::NativePool { .. }) => return None,
        GpuHealth::Quarantined(QuarantineReason::NotCleanAfterRelease { .. } | QuarantineReason::Operator { .. })
        | GpuHealth::Ok
        | GpuHealth::NeedsHostReboot => {}
    }
    if let Some(claim) = &gpu.claim {
        let placement = world.placement(claim)?;
        let (since, drift) = world.live(claim).and_then(|live| live.drift.clone())?;
        let about = match &drift {
            Drift::NotAttached { address, .. }
            | Drift::InOtherVm { address, .. }
            | Drift::WrongCard { address, .. } => Some(address),
            Drift::VmGone | Drift::VmClustered => None,
        };
        return (about == Some(address)).then(|| Difference {
            since: Some(since),
            ..found(Kind::of(&drift), placement.vm_id.as_ref(), drift.to_string())
        });
    }
    // What the agent says of it then, and why nobody gets it.
    let unclean = match &gpu.observed.health {
        GpuHealth::Quarantined(reason @ QuarantineReason::NotCleanAfterRelease { .. }) => Some(reason.to_string()),
        GpuHealth::Quarantined(_) | GpuHealth::Ok | GpuHealth::NeedsHostReboot => None,
    };
    match &gpu.observed.state {
        GpuState::Attached { vm } => {
            let name = node.vms.get(vm).map_or_else(|| vm.to_string(), |seen| seen.name.to_string());
            Some(found(Kind::AssignedByHand, Some(vm), format!("it is in VM {name}, and Berth did not put it there")))
        }
        GpuState::Stale { vm } => {
            Some(found(Kind::StaleRecord, Some(vm), format!("VM {vm} names it, and it is not in its slot")))
        }
        GpuState::Pooled if !on_purpose.contains(&id()) => Some(found(
            Kind::LeftDismounted,
            None,
            unclean.unwrap_or_else(|| {
                "it is dismounted from the host and in no VM, and no placement left it so".to_owned()
            }),
        )),
        GpuState::Host { driver: HostDriver::Disabled } => {
            let seen = unclean.unwrap_or_else(|| "it is disabled on the host, and no placement has it".to_owned());
            Some(found(Kind::Disabled, None, seen))
        }
        GpuState::Missing => {
            Some(found(Kind::CardMissing, None, "it was here and is not in its slot any more".to_owned()))
        }
        GpuState::Host { driver: HostDriver::Bound | HostDriver::None } | GpuState::Pooled | GpuState::Unknown => None,
    }
}
