//! What fits: per model from the index, and for a list of requests one after the other on a scratch copy of the world.

use super::schedule;
use crate::world::World;
use crate::world::index::ModelIndex;
use berth_model::mmio::{self, Excess};
use berth_model::placement::{Assignment, Phase, Placement};
use berth_model::reason::Refusal;
use berth_model::request::{MAX_WAIT, PlacementRequest};
use berth_model::{ModelName, NodeName, PlacementName, PlacementUid, Timestamp};
use std::collections::BTreeMap;

/// The VM sizes that capacity is told for, in GPUs.
pub const SLOT_SIZES: [u32; 5] = [1, 2, 4, 8, 16];

/// How many VMs of one size fit now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// GPUs of one VM.
    pub gpus: u32,
    /// Such VMs that fit at once, processor and memory aside.
    pub vms: u32,
}

/// What there is of one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelCapacity {
    /// The model.
    pub model: ModelName,
    /// GPUs known.
    pub gpus: u32,
    /// Those available now.
    pub available: u32,
    /// GPUs by the name of their state, in order of name; only states that occur.
    pub states: Vec<(&'static str, u32)>,
    /// GPUs that are not available, by the name of the first reason, most first.
    pub unavailable: Vec<(&'static str, u32)>,
    /// VMs that fit, for each of [`SLOT_SIZES`].
    pub slots: [Slots; SLOT_SIZES.len()],
    /// Where address space, not the number of GPUs, bounds a VM: by how many it can have, fewest first.
    pub limits: Vec<Limit>,
}

/// Nodes on which a VM cannot have address space for all GPUs of a model that are available there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// How many such nodes.
    pub nodes: u32,
    /// Most GPUs that one VM can have there.
    pub per_vm: u32,
    /// One of them, the first by name.
    pub node: NodeName,
    /// What one GPU more would need there.
    pub excess: Excess,
}

/// The limits of one model, found by its rooms: only one node of each kind is looked at.
fn limits(world: &World, model: &ModelName, entry: &ModelIndex) -> Vec<Limit> {
    let mut by_size: BTreeMap<u32, Limit> = BTreeMap::new();
    for (room, nodes) in entry.rooms.iter().filter(|(room, _)| room.per_vm < room.available) {
        let count = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
        let Some(node) = nodes.get_min().and_then(|name| world.node(name)) else { continue };
        let mut sizes: Vec<_> = (node.gpus.values())
            .filter(|gpu| gpu.model() == model && node.is_available(gpu))
            .map(|gpu| gpu.observed.survey.mmio)
            .collect();
        sizes.sort_unstable_by_key(|size| (size.high_bytes, size.low_bytes));
        sizes.truncate(room.per_vm as usize + 1);
        let Err(excess) = mmio::check(&sizes, node.facts.mmio_high_cap_bytes) else { continue };
        let (per_vm, name) = (room.per_vm, node.name.clone());
        let limit = by_size.entry(per_vm).or_insert(Limit { nodes: 0, per_vm, node: name.clone(), excess });
        limit.nodes = limit.nodes.saturating_add(count);
        if name < limit.node {
            (limit.node, limit.excess) = (name, excess);
        }
    }
    by_size.into_values().collect()
}

impl ModelCapacity {
    fn new(world: &World, model: &ModelName, entry: &ModelIndex) -> Self {
        let mut unavailable: Vec<_> = entry.blocked.iter().map(|(why, count)| (*why, *count)).collect();
        unavailable.sort_by_key(|(why, count)| (std::cmp::Reverse(*count), *why));
        let slots = SLOT_SIZES.map(|gpus| {
            let in_room = |(room, nodes): (&crate::world::index::Room, &imbl::OrdSet<_>)| {
                room.slots(gpus).saturating_mul(u32::try_from(nodes.len()).unwrap_or(u32::MAX))
            };
            Slots { gpus, vms: entry.rooms.iter().map(in_room).fold(0, u32::saturating_add) }
        });
        Self {
            model: model.clone(),
            gpus: entry.gpus,
            available: entry.available,
            states: entry.states.iter().map(|(state, count)| (*state, *count)).collect(),
            unavailable,
            slots,
            limits: limits(world, model, entry),
        }
    }
}

/// What there is and what fits, per model in order of name. Costs time in proportion to models and rooms, not to GPUs.
pub fn capacity(world: &World) -> Vec<ModelCapacity> {
    world.index().models().map(|(model, entry)| ModelCapacity::new(world, model, entry)).collect()
}

/// What would become of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// The request's name.
    pub name: PlacementName,
    /// Where it would go, or why not.
    pub outcome: Result<Assignment, Refusal>,
}

/// Decides requests one after the other, each as if those before it had been made. Changes nothing.
pub fn plan(world: &World, requests: &[PlacementRequest], now: Timestamp) -> Vec<Planned> {
    let mut scratch = world.clone();
    let decide = |(at, request): (usize, &PlacementRequest)| {
        let outcome = admit(&scratch, request).and_then(|()| schedule(&scratch, request, now));
        if let Ok(assignment) = &outcome
            && let Ok(uid) = PlacementUid::new(format!("00000000-0000-0000-0000-{at:012x}"))
        {
            scratch.put_placement(Placement {
                // No real uid is all zeros in front; requests in a plan need only differ from one another.
                uid,
                request: request.clone(),
                caller: String::new(),
                trace: None,
                created: now,
                version: 0,
                phase: Phase::Held { until: now.after(MAX_WAIT) },
                phase_since: now,
                assignment: Some(assignment.clone()),
                vm_id: None,
                generation: 0,
                history: Vec::new(),
            });
        }
        Planned { name: request.name.clone(), outcome }
    };
    requests.iter().enumerate().map(decide).collect()
}

/// What creating would refuse before looking for a place.
fn admit(world: &World, request: &PlacementRequest) -> Result<(), Refusal> {
    if world.placement(&request.name).is_some_and(|placement| placement.phase.is_live()) {
        return Err(Refusal::NameTaken(request.name.clone()));
    }
    match world.placement_by_vm(&request.vm) {
        Some(owner) => Err(Refusal::VmHasPlacement { vm: request.vm.clone(), placement: owner.name().clone() }),
        None => Ok(()),
    }
}
