//! The rules a node must pass, in their fixed order; the first that fails is the node's rejection.
//!
//! 1 named node · 2 excluded node · 3 cluster · 4 where the VM is · 5 has such a GPU at all · 6 has enough of one model,
//! and a VM can have address space for so many · 7 node ready and not cordoned · then, per model: 8 enough available ·
//! 9 NUMA node, if required · 10 processor · 11 memory · 12 address space for those that are available. What can never fit
//! comes before what does not fit now. Of a node without any known GPU 7 comes before 5.

use super::ask::Ask;
use super::pick::{ever, pick, shape};
use super::score::{ModelRank, RoomScore, Score};
use crate::world::index::room;
use crate::world::{Gpu, Node, World};
use berth_model::placement::{AssignedGpu, Assignment, Pin, PinReason};
use berth_model::reason::Rejection;
use berth_model::{ModelName, Timestamp};
use std::collections::BTreeMap;

/// A place for a request.
#[derive(Clone, Debug)]
pub(super) struct Choice<'a> {
    pub(super) score: Score,
    gpus: Vec<&'a Gpu>,
}

impl Choice<'_> {
    pub(super) fn assignment(self, now: Timestamp) -> Assignment {
        let assigned = |gpu: &Gpu| AssignedGpu {
            address: gpu.observed.address.clone(),
            model: gpu.model().clone(),
            fingerprint: gpu.observed.survey.fingerprint.clone(),
            mmio: gpu.observed.survey.mmio,
        };
        Assignment {
            node: self.score.node,
            gpus: self.gpus.into_iter().map(assigned).collect(),
            pin: Pin { reason: PinReason::DeviceAssignment, since: now },
        }
    }
}

/// Rules 1 to 4: whether this node can be meant.
pub(super) fn meant(ask: &Ask<'_>, node: &Node) -> Result<(), Rejection> {
    let request = ask.request;
    if request.node.as_ref().is_some_and(|name| *name != node.name) {
        return Err(Rejection::OtherNode);
    }
    if request.exclude_nodes.contains(&node.name) {
        return Err(Rejection::ExcludedNode);
    }
    if request.cluster.as_ref().is_some_and(|cluster| node.cluster() != Some(cluster)) {
        return Err(Rejection::OtherCluster);
    }
    match &ask.vm_node {
        Some(vm) if *vm != node.name => Err(Rejection::VmElsewhere { node: vm.clone() }),
        Some(_) | None => Ok(()),
    }
}

/// Rules 5 and 6: the models of which the node has enough, available or not, and of which one VM can have so many.
pub(super) fn models<'a>(ask: &Ask<'_>, node: &'a Node) -> Result<Vec<&'a ModelName>, Rejection> {
    let wanted = ask.request.gpus;
    let mut has: BTreeMap<&ModelName, Vec<&Gpu>> = BTreeMap::new();
    for gpu in node.gpus.values() {
        has.entry(gpu.model()).or_default().extend(ask.takes(gpu).then_some(gpu));
    }
    let most = has.values().map(Vec::len).max().unwrap_or(0);
    if most == 0 {
        return Err(Rejection::NoSuchGpu { has: has.into_keys().cloned().collect() });
    }
    if most < wanted as usize {
        return Err(Rejection::TooSmall { has: u32::try_from(most).unwrap_or(u32::MAX) });
    }
    let enough = has.into_iter().filter(|(_, gpus)| gpus.len() >= wanted as usize);
    let (mut fitting, mut first) = (Vec::new(), None);
    for (model, gpus) in enough {
        match ever(&gpus, wanted, node.facts.mmio_high_cap_bytes) {
            Ok(()) => fitting.push(model),
            Err(rejection) => first = first.or(Some(rejection)),
        }
    }
    match first {
        Some(rejection) if fitting.is_empty() => Err(rejection),
        Some(_) | None => Ok(fitting),
    }
}

/// GPUs of one node and model that pass all rules.
pub(super) struct Fit<'a> {
    node: &'a Node,
    model: &'a ModelName,
    /// Everything available of the model, whatever the request takes of it: so does the index see the node.
    available: Vec<&'a Gpu>,
    gpus: Vec<&'a Gpu>,
}

/// Rules 8 to 12 for one model of a node that can be meant.
pub(super) fn fit<'a>(ask: &Ask<'_>, node: &'a Node, model: &'a ModelName) -> Result<Fit<'a>, Rejection> {
    let request = ask.request;
    let mut available: Vec<&Gpu> = Vec::with_capacity(node.gpus.len());
    available.extend(node.gpus.values().filter(|gpu| gpu.model() == model && node.is_available(gpu)));
    let taken: Vec<&Gpu> = available.iter().copied().filter(|gpu| ask.takes(gpu)).collect();
    if taken.len() < request.gpus as usize {
        return Err(Rejection::NotEnoughFree {
            model: model.clone(),
            available: u32::try_from(taken.len()).unwrap_or(u32::MAX),
            // Told only where it is shown: see `explain`.
            blocked: Vec::new(),
        });
    }
    let picked = pick(&taken, request.gpus, request.locality, node.facts.mmio_high_cap_bytes);
    if let Err(rejection @ Rejection::NotOneNuma { .. }) = picked {
        return Err(rejection);
    }
    let left = node.left();
    if left.cpu_milli < request.resources.cpu_milli {
        return Err(Rejection::Cpu { left_milli: left.cpu_milli });
    }
    if left.memory_bytes < request.resources.memory_bytes {
        return Err(Rejection::Memory { left_bytes: left.memory_bytes });
    }
    Ok(Fit { node, model, available, gpus: picked? })
}

impl<'a> Fit<'a> {
    /// The score of the node's room, from the node itself.
    fn room_score(&self, world: &World, ask: &Ask<'_>) -> RoomScore {
        let rank = world.index().model(self.model).map_or_else(ModelRank::default, |entry| ModelRank::new(entry));
        RoomScore::new(rank, &room(self.node, &self.available), ask.request.gpus, ask.need)
    }

    /// Rates it, given the score of its room.
    pub(super) fn rated(self, ask: &Ask<'_>, room: RoomScore) -> Choice<'a> {
        let members = ask.group.as_ref().map_or((0, 0), |group| group.members(self.node));
        let score = Score::new(members, room, shape(&self.gpus, &self.available), self.model, &self.node.name);
        Choice { score, gpus: self.gpus }
    }
}

/// All rules: the best choice on this node, or the first rule that fails; among models, the one that came farthest.
pub(super) fn check<'a>(world: &World, ask: &Ask<'_>, node: &'a Node) -> Result<Choice<'a>, Rejection> {
    meant(ask, node)?;
    // What a node has that never told, or is not believed, nobody knows.
    if let Some(why) = node.not_ready().filter(|_| node.gpus.is_empty()) {
        return Err(Rejection::NotReady(why));
    }
    let models = models(ask, node)?;
    if let Some(why) = node.not_ready().or_else(|| node.cordoned()) {
        return Err(Rejection::NotReady(why));
    }
    let mut best: Option<Choice<'a>> = None;
    let mut farthest: Option<Rejection> = None;
    for model in models {
        match fit(ask, node, model) {
            Ok(fit) => {
                let room = fit.room_score(world, ask);
                let choice = fit.rated(ask, room);
                if best.as_ref().is_none_or(|b| choice.score < b.score) {
                    best = Some(choice);
                }
            }
            Err(rejection) => {
                if farthest.as_ref().is_none_or(|f| progress(&rejection) > progress(f)) {
                    farthest = Some(rejection);
                }
            }
        }
    }
    best.ok_or_else(|| farthest.unwrap_or(Rejection::NoSuchGpu { has: Vec::new() }))
}

/// How far a model came: the rule, then how many were available.
pub(super) fn progress(rejection: &Rejection) -> (u8, u32) {
    match rejection {
        Rejection::OtherNode => (1, 0),
        Rejection::ExcludedNode => (2, 0),
        Rejection::OtherCluster => (3, 0),
        Rejection::VmElsewhere { .. } => (4, 0),
        Rejection::NoSuchGpu { .. } => (5, 0),
        Rejection::TooSmall { has } => (6, *has),
        Rejection::NotReady(_) => (7, 0),
        Rejection::NotEnoughFree { available, .. } => (8, *available),
        Rejection::NotOneNuma { best } => (9, *best),
        Rejection::Cpu { .. } => (10, 0),
        Rejection::Memory { .. } => (11, 0),
        Rejection::Mmio { .. } => (12, 0),
    }
}
