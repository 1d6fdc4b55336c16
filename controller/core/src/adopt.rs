//! Which assignments of a node, made without Berth, can become placements, and why the others cannot.
//!
//! Pure: it judges one node as it was seen. Must never guess: what was not observed, or belongs to somebody else, is
//! skipped with its reason.

use crate::world::{Gpu, Node, World};
use berth_model::adopt::Skip;
use berth_model::gpu::{GpuHealth, GpuState, QuarantineReason};
use berth_model::pci::DeviceAddress;
use berth_model::placement::{AssignedGpu, Placement};
use berth_model::reason::Refusal;
use berth_model::request::MAX_GPUS_PER_REQUEST;
use berth_model::vm::{ObservedVm, VmDevice, VmSelector, VmState};
use berth_model::{NodeName, PlacementName};
use std::collections::BTreeSet;
use std::sync::Arc;

/// One VM that has devices, and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The VM as it was seen.
    pub vm: ObservedVm,
    /// Its GPUs, in order of address, as far as Berth knows them.
    pub gpus: Vec<AssignedGpu>,
    /// The name its placement gets, or why it is skipped.
    pub outcome: Result<PlacementName, Skip>,
}

/// How placements are called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Naming {
    /// Exactly so; for one VM.
    pub name: Option<PlacementName>,
    /// With this before the VM's name.
    pub prefix: Option<PlacementName>,
}

/// The VMs of a node that have a device, or those that are asked for, in order of id, each with what becomes of it.
///
/// # Errors
/// When the node is not known or cannot be judged now, or a VM that is asked for is not on it.
pub fn candidates(
    world: &World,
    node: &NodeName,
    only: &[VmSelector],
    naming: &Naming,
) -> Result<Vec<Candidate>, Refusal> {
    let Some(node) = world.node(node) else {
        let nearest = crate::schedule::nearest(node.as_str(), world.nodes().map(|known| &known.name)).cloned();
        return Err(Refusal::UnknownNode { node: node.clone(), nearest });
    };
    if let Some(why) = node.not_ready() {
        return Err(Refusal::NodeNotReady { node: node.name.clone(), why });
    }
    if let Some(lost) = only.iter().find(|vm| !node.vms.values().any(|seen| vm.selects(seen))) {
        return Err(Refusal::VmNotOnNode { vm: lost.clone(), node: node.name.clone() });
    }
    let asked = |vm: &&ObservedVm| match only {
        [] => !vm.devices.is_empty(),
        only => only.iter().any(|selector| selector.selects(vm)),
    };
    let mut names = BTreeSet::new();
    Ok(node
        .vms
        .values()
        .filter(asked)
        .map(|vm| {
            let gpus = vm.devices.iter().filter_map(VmDevice::address).filter_map(|at| node.gpus.get(at));
            let mut gpus: Vec<_> = gpus.map(assigned).collect();
            gpus.sort_by(|a, b| a.address.cmp(&b.address));
            let outcome = judge(world, node, vm).and_then(|()| name(world, vm, naming, &mut names));
            Candidate { vm: vm.clone(), gpus, outcome }
        })
        .collect())
}

fn assigned(gpu: &Gpu) -> AssignedGpu {
    AssignedGpu {
        address: gpu.observed.address.clone(),
        model: gpu.model().clone(),
        fingerprint: gpu.observed.survey.fingerprint.clone(),
        mmio: gpu.observed.survey.mmio,
    }
}

/// The live placement of a VM of a node, however it named the VM.
fn placement_of<'a>(world: &'a World, node: &Node, vm: &ObservedVm) -> Option<&'a Arc<Placement>> {
    let here = |placement: &&Arc<Placement>| {
        placement.vm_id.as_ref().is_none_or(|id| *id == vm.id)
            && placement.assignment.as_ref().is_none_or(|assignment| assignment.node == node.name)
    };
    // A VM and its replica on another node have the same id; whose the placement is must be looked at, all the same.
    let by_id = world.placement_by_vm(&VmSelector::Id(vm.id.clone()));
    by_id.or_else(|| world.placement_by_vm(&VmSelector::Name(vm.name.clone())).filter(here))
}

fn judge(world: &World, node: &Node, vm: &ObservedVm) -> Result<(), Skip> {
    if let Some(placement) = placement_of(world, node, vm) {
        return Err(Skip::AlreadyPlaced { placement: placement.name().clone() });
    }
    if let Some(pool) = vm.devices.iter().find_map(|device| match device {
        VmDevice::Pool { pool, .. } => Some(pool.clone()),
        VmDevice::At(_) | VmDevice::Stale => None,
    }) {
        return Err(Skip::NativePool { pool });
    }
    if vm.clustered {
        return Err(Skip::Clustered);
    }
    if vm.state == VmState::Unknown {
        return Err(Skip::Unobserved { what: "what the VM does".to_owned() });
    }
    if vm.devices.contains(&VmDevice::Stale) {
        return Err(Skip::StaleRecord);
    }
    let devices: BTreeSet<&DeviceAddress> = vm.devices.iter().filter_map(VmDevice::address).collect();
    let gpus: Vec<&Gpu> = devices.iter().filter_map(|at| node.gpus.get(*at)).collect();
    if gpus.is_empty() && devices.is_empty() {
        return Err(Skip::NoGpu);
    }
    let companions: BTreeSet<&DeviceAddress> = gpus.iter().flat_map(|gpu| &gpu.observed.survey.companions).collect();
    if let Some(device) = devices.iter().find(|at| !node.gpus.contains_key(**at) && !companions.contains(*at)) {
        return Err(Skip::ForeignDevice { device: (*device).clone() });
    }
    if gpus.len() > MAX_GPUS_PER_REQUEST as usize {
        return Err(Skip::TooMany { gpus: gpus.len() });
    }
    for gpu in gpus {
        let device = || gpu.observed.address.clone();
        if let Some(by) = &gpu.claim {
            return Err(Skip::Claimed { device: device(), by: by.clone() });
        }
        match &gpu.observed.health {
            GpuHealth::Ok => {}
            GpuHealth::Quarantined(QuarantineReason::NativePool { pool }) => {
                return Err(Skip::NativePool { pool: pool.clone() });
            }
            GpuHealth::Quarantined(reason) => {
                return Err(Skip::Unhealthy { device: device(), why: reason.to_string() });
            }
            GpuHealth::NeedsHostReboot => {
                return Err(Skip::Unhealthy { device: device(), why: "its host must be restarted first".to_owned() });
            }
        }
        // The whole card: its other functions go back to the host with it.
        for function in std::iter::once(&gpu.observed.address).chain(&gpu.observed.survey.companions) {
            let lists = |other: &&ObservedVm| other.devices.iter().any(|d| d.address() == Some(function));
            if let Some(other) = node.vms.values().filter(|other| other.id != vm.id).find(lists) {
                return Err(Skip::InOtherVm { device: function.clone(), vm: other.id.clone() });
            }
        }
        match &gpu.observed.state {
            GpuState::Attached { vm: seen } if *seen == vm.id => {}
            GpuState::Attached { vm: seen } => return Err(Skip::InOtherVm { device: device(), vm: seen.clone() }),
            GpuState::Host { .. }
            | GpuState::Pooled
            | GpuState::Stale { .. }
            | GpuState::Missing
            | GpuState::Unknown => return Err(Skip::Unobserved { what: format!("where {} is", device()) }),
        }
    }
    Ok(())
}

/// A name for a VM's placement that no live placement has, nor another of this run.
fn name(
    world: &World,
    vm: &ObservedVm,
    naming: &Naming,
    taken: &mut BTreeSet<PlacementName>,
) -> Result<PlacementName, Skip> {
    let free = |name: &PlacementName, taken: &BTreeSet<PlacementName>| {
        !taken.contains(name) && world.placement(name).is_none_or(|placement| placement.phase.is_over())
    };
    let found = match &naming.name {
        Some(name) if free(name, taken) => name.clone(),
        Some(name) => return Err(Skip::NameTaken { name: name.clone() }),
        None => {
            let plain = of_vm(vm, naming.prefix.as_ref(), "");
            // Names of VMs are not unique; their ids are.
            let id = format!("-{}", vm.id.as_str().get(..8).unwrap_or_default());
            let longer = of_vm(vm, naming.prefix.as_ref(), &id);
            match (plain, longer) {
                (Some(plain), _) if free(&plain, taken) => plain,
                (_, Some(longer)) if free(&longer, taken) => longer,
                (plain, longer) => {
                    // Either is legal: what a VM is called is put into the form of a name.
                    let Some(name) = longer.or(plain) else { return Err(Skip::NoGpu) };
                    return Err(Skip::NameTaken { name });
                }
            }
        }
    };
    taken.insert(found.clone());
    Ok(found)
}

/// A VM's name as a placement's: what a name cannot hold becomes a dash.
fn of_vm(vm: &ObservedVm, prefix: Option<&PlacementName>, end: &str) -> Option<PlacementName> {
    let legal = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_') { c } else { '-' };
    let body: String = vm.name.as_str().chars().map(legal).collect();
    let body = body.trim_matches('-');
    let body = if body.is_empty() { "vm" } else { body };
    let mut text = match prefix {
        Some(prefix) => format!("{prefix}{body}"),
        None if body.starts_with(|c: char| c.is_ascii_alphanumeric()) => body.to_owned(),
        None => format!("vm{body}"),
    };
    text.truncate(PlacementName::MAX_BYTES.saturating_sub(end.len()));
    PlacementName::new(text + end).ok()
}
