//! What scheduling and summaries look up instead of walking over all nodes.
//!
//! Owns counts and buckets ("rooms") per model, derived from nodes alone and kept up to date node by node. Must never
//! decide: whether a GPU is available says [`Node::is_available`], which node is best says [`crate::schedule`].

use super::{Gpu, Link, Node, View};
use berth_model::gpu::MmioSize;
use berth_model::id::ClusterName;
use berth_model::mmio;
use berth_model::{ModelName, NodeName};
use imbl::{OrdMap, OrdSet};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One core, in thousandths: the step in which shares of processor are compared.
const CPU_STEP_MILLI: u64 = 1000;
/// The step in which shares of memory are compared, in bytes.
const MEMORY_STEP_BYTES: u64 = 4 << 30;
/// Shares above this many steps are all alike: no VM needs so much for one GPU.
const MAX_STEPS: u64 = 64;

/// What a node has left for each of its available GPUs of one model, in coarse steps so that few rooms arise: exact to
/// 8 steps, then four steps an octave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share {
    /// Processor, in steps of one core.
    pub cpu: u32,
    /// Memory, in steps of 4 GiB.
    pub memory: u32,
}

/// Cuts a number of steps to the next lower one that counts, and says which is the next higher.
fn coarse(steps: u64) -> (u64, Option<u64>) {
    if steps >= MAX_STEPS {
        (MAX_STEPS, None)
    } else if steps < 8 {
        (steps, Some(steps + 1))
    } else {
        let width = (1 << steps.ilog2()) / 4;
        let lower = steps / width * width;
        (lower, Some(lower + width))
    }
}

impl Share {
    /// The share of each of `gpus` GPUs in these amounts.
    pub fn of(cpu_milli: u64, memory_bytes: u64, gpus: u32) -> Self {
        let gpus = u64::from(gpus.max(1));
        let step = |amount: u64, step: u64| u32::try_from(coarse(amount / gpus / step).0).unwrap_or(u32::MAX);
        Self { cpu: step(cpu_milli, CPU_STEP_MILLI), memory: step(memory_bytes, MEMORY_STEP_BYTES) }
    }

    /// Whether a node with this share for each of `gpus` GPUs may have these amounts left. `false` is certain.
    pub fn may_hold(self, cpu_milli: u64, memory_bytes: u64, gpus: u32) -> bool {
        let below = |steps: u32, step: u64, need: u64| {
            coarse(u64::from(steps)).1.is_none_or(|above| need < (above * step).saturating_mul(u64::from(gpus)))
        };
        below(self.cpu, CPU_STEP_MILLI, cpu_milli) && below(self.memory, MEMORY_STEP_BYTES, memory_bytes)
    }
}

/// What nodes that are alike to a request have in common. Ordered by available GPUs first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Room {
    /// Available GPUs of the model.
    pub available: u32,
    /// The most of them on one known NUMA node.
    pub one_numa: u32,
    /// The most of them that one VM can have address space for.
    pub per_vm: u32,
    /// What is left for each of them.
    pub share: Share,
}

impl Room {
    /// The smallest room, in order, with this many available GPUs.
    pub fn from(available: u32) -> Self {
        Self { available, one_numa: 0, per_vm: 0, share: Share { cpu: 0, memory: 0 } }
    }

    /// How many VMs of `gpus` GPUs fit, processor and memory aside.
    pub fn slots(&self, gpus: u32) -> u32 {
        if self.per_vm < gpus { 0 } else { self.available.checked_div(gpus).unwrap_or(0) }
    }
}

/// Nodes by what they offer of one model. Nodes without an available GPU of it are in no room.
pub type Rooms = OrdMap<Room, OrdSet<NodeName>>;

/// All about one model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelIndex {
    /// GPUs known.
    pub gpus: u32,
    /// Those available.
    pub available: u32,
    /// GPUs by the name of their state.
    pub states: BTreeMap<&'static str, u32>,
    /// GPUs that are not available by the name of the first reason.
    pub blocked: BTreeMap<&'static str, u32>,
    /// GPUs by memory in bytes, where known.
    pub vram: BTreeMap<Option<u64>, u32>,
    /// All rooms.
    pub rooms: Rooms,
    /// Rooms of the nodes of each cluster.
    pub clusters: OrdMap<ClusterName, Rooms>,
}

/// Free GPUs by model and node. Persistent: a clone costs next to nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    models: OrdMap<ModelName, Arc<ModelIndex>>,
}

impl Index {
    /// Builds the index of these nodes from nothing.
    pub fn recompute<'a>(nodes: impl Iterator<Item = &'a Node>) -> Self {
        let mut index = Self::default();
        for node in nodes {
            index.node_changed(None, Some(node));
        }
        index
    }

    /// All models known, in order of name.
    pub fn models(&self) -> impl Iterator<Item = (&ModelName, &Arc<ModelIndex>)> {
        self.models.iter()
    }

    /// One model, if a GPU of it is known.
    pub fn model(&self, name: &ModelName) -> Option<&Arc<ModelIndex>> {
        self.models.get(name)
    }

    /// Takes a node out as it was and puts it in as it is. The only way in.
    pub(super) fn node_changed(&mut self, before: Option<&Node>, after: Option<&Node>) {
        if let (Some(before), Some(after)) = (before, after)
            && same_to_index(before, after)
        {
            return;
        }
        let old = before.map(offers).unwrap_or_default();
        let mut new = after.map(offers).unwrap_or_default();
        let cluster = |node: Option<&Node>| node.and_then(Node::cluster).cloned();
        let (old_cluster, new_cluster) = (cluster(before), cluster(after));
        for (model, old) in old {
            let new = new.iter().position(|(m, _)| *m == model).map(|at| new.swap_remove(at).1);
            if new.as_ref() == Some(&old) && old_cluster == new_cluster {
                continue;
            }
            self.change(model, |entry| {
                let stays = new.as_ref().is_some_and(|n| n.room == old.room) && old_cluster == new_cluster;
                entry.count(&old, subtract);
                if let (false, Some(room), Some(node)) = (stays, old.room, before) {
                    entry.leave(room, old_cluster.as_ref(), &node.name);
                }
                if let Some(new) = &new {
                    entry.count(new, u32::saturating_add);
                    if let (false, Some(room), Some(node)) = (stays, new.room, after) {
                        entry.enter(room, new_cluster.as_ref(), &node.name);
                    }
                }
            });
        }
        for (model, new) in new {
            self.change(model, |entry| {
                entry.count(&new, u32::saturating_add);
                if let (Some(room), Some(node)) = (new.room, after) {
                    entry.enter(room, new_cluster.as_ref(), &node.name);
                }
            });
        }
    }

    fn change(&mut self, model: &ModelName, change: impl FnOnce(&mut ModelIndex)) {
        let entry = Arc::make_mut(self.models.entry(model.clone()).or_default());
        change(entry);
        if entry.gpus == 0 {
            self.models.remove(model);
        }
    }
}

fn subtract(from: u32, what: u32) -> u32 {
    debug_assert!(from >= what, "the index counts what was counted in");
    from.saturating_sub(what)
}

impl ModelIndex {
    fn count(&mut self, offer: &Offer, change: fn(u32, u32) -> u32) {
        fn each<K: Ord + Clone>(counts: &mut BTreeMap<K, u32>, by: &BTreeMap<K, u32>, change: fn(u32, u32) -> u32) {
            for (key, number) in by {
                let count = counts.entry(key.clone()).or_default();
                *count = change(*count, *number);
                if *count == 0 {
                    counts.remove(key);
                }
            }
        }
        self.gpus = change(self.gpus, offer.gpus);
        self.available = change(self.available, offer.available);
        each(&mut self.states, &offer.states, change);
        each(&mut self.blocked, &offer.blocked, change);
        each(&mut self.vram, &offer.vram, change);
    }

    fn enter(&mut self, room: Room, cluster: Option<&ClusterName>, node: &NodeName) {
        self.rooms.entry(room).or_default().insert(node.clone());
        if let Some(cluster) = cluster {
            self.clusters.entry(cluster.clone()).or_default().entry(room).or_default().insert(node.clone());
        }
    }

    fn leave(&mut self, room: Room, cluster: Option<&ClusterName>, node: &NodeName) {
        fn leave(rooms: &mut Rooms, room: Room, node: &NodeName) {
            if let Some(nodes) = rooms.get_mut(&room) {
                nodes.remove(node);
                if nodes.is_empty() {
                    rooms.remove(&room);
                }
            }
        }
        leave(&mut self.rooms, room, node);
        if let Some((cluster, rooms)) = cluster.and_then(|c| self.clusters.get_mut(c).map(|rooms| (c, rooms))) {
            leave(rooms, room, node);
            if rooms.is_empty() {
                self.clusters.remove(cluster);
            }
        }
    }
}

/// Whether nothing changed that the index rests on: the everyday case (VMs, versions, who talks since when).
fn same_to_index(before: &Node, after: &Node) -> bool {
    let kind = |node: &Node| {
        let link = match &node.link {
            Link::Disconnected { .. } => 0_u8,
            Link::Connected { .. } => 1,
            Link::Unheard { .. } => 2,
        };
        let view = match &node.view {
            View::NotReported => 0_u8,
            View::Complete => 1,
            View::Failed { .. } => 2,
            View::Stranger { .. } => 3,
        };
        (link, view, node.cordons.is_empty())
    };
    kind(before) == kind(after)
        && before.reserved == after.reserved
        && before.facts == after.facts
        && before.gpus == after.gpus
}

/// What one node has of one model.
#[derive(Debug, Default, PartialEq, Eq)]
struct Offer {
    gpus: u32,
    available: u32,
    states: BTreeMap<&'static str, u32>,
    blocked: BTreeMap<&'static str, u32>,
    vram: BTreeMap<Option<u64>, u32>,
    room: Option<Room>,
}

/// What a node has, by model.
fn offers(node: &Node) -> Vec<(&ModelName, Offer)> {
    // Nodes have one model, two at most: a list is the quickest map.
    let mut found: Vec<(&ModelName, Offer, Vec<&Gpu>)> = Vec::with_capacity(1);
    for gpu in node.gpus.values() {
        let model = gpu.model();
        let at = found.iter().position(|(m, ..)| *m == model).unwrap_or_else(|| {
            found.push((model, Offer::default(), Vec::with_capacity(node.gpus.len())));
            found.len() - 1
        });
        let (_, offer, available) = &mut found[at];
        offer.gpus += 1;
        *offer.states.entry(gpu.observed.state.name()).or_default() += 1;
        *offer.vram.entry(gpu.observed.survey.vram_bytes).or_default() += 1;
        match node.unavailable(gpu).next() {
            None => available.push(gpu),
            Some(first) => *offer.blocked.entry(first.name()).or_default() += 1,
        }
    }
    found
        .into_iter()
        .map(|(model, mut offer, available)| {
            let room = room(node, &available);
            offer.available = room.available;
            offer.room = (room.available > 0).then_some(room);
            (model, offer)
        })
        .collect()
}

/// The room of a node with these available GPUs of one model.
pub(crate) fn room(node: &Node, available: &[&Gpu]) -> Room {
    let count = u32::try_from(available.len()).unwrap_or(u32::MAX);
    let numa = |gpu: &&Gpu| gpu.observed.survey.numa_node;
    // Few GPUs: counting the like of each is quicker than a map.
    let alike = |of: u16| available.iter().filter(|gpu| numa(gpu) == Some(of)).count();
    let one_numa = available.iter().filter_map(numa).map(alike).max().unwrap_or(0);
    let left = node.left();
    Room {
        available: count,
        one_numa: u32::try_from(one_numa).unwrap_or(u32::MAX),
        per_vm: per_vm(available, node.facts.mmio_high_cap_bytes),
        share: Share::of(left.cpu_milli, left.memory_bytes, count),
    }
}

/// The most of these GPUs that one VM can have address space for: the smallest windows first, since more devices and
/// larger windows never need less.
pub(crate) fn per_vm(gpus: &[&Gpu], cap_bytes: Option<u64>) -> u32 {
    let mut sizes: Vec<MmioSize> = gpus.iter().map(|gpu| gpu.observed.survey.mmio).collect();
    // Mostly all fit, and then the order says nothing.
    let mut fits = sizes.len();
    if mmio::check(&sizes, cap_bytes).is_err() {
        sizes.sort_unstable_by_key(|size| (size.high_bytes, size.low_bytes));
        while fits > 0 && mmio::check(&sizes[..fits], cap_bytes).is_err() {
            fits -= 1;
        }
    }
    u32::try_from(fits).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_exact_when_small_and_never_too_high() {
        let steps: Vec<u64> = [0, 1, 7, 8, 9, 10, 15, 16, 19, 20, 40, 63, 64, 9_999].map(|s| coarse(s).0).to_vec();
        assert_eq!(steps, [0, 1, 7, 8, 8, 10, 14, 16, 16, 20, 40, 56, 64, 64]);
        for milli in (0..200_000).step_by(137) {
            let share = Share::of(milli, u64::MAX, 3);
            assert!(share.may_hold(milli, u64::MAX, 3), "{milli} is there and {share:?} denies it");
            let too_much = (u64::from(share.cpu) * 2 + 2) * 3 * CPU_STEP_MILLI;
            assert_eq!(share.may_hold(too_much, 0, 3), u64::from(share.cpu) == MAX_STEPS, "{share:?} {too_much}");
        }
    }
}
