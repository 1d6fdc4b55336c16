//! What makes one place better than another. The order of the fields is the priority; less is better everywhere.

use super::pick::Shape;
use crate::world::index::{ModelIndex, Room, Share};
use berth_model::{ModelName, NodeName};
use std::cmp::Reverse;

/// The smallest slot worth keeping whole: below it nearly every node has one.
const SMALLEST_SLOT: u32 = 4;

/// A place's rank among all places for one request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Score {
    /// Members of the request's spread group in the node's failure domain.
    pub(super) in_domain: u32,
    /// Members of it on the node.
    pub(super) on_node: u32,
    /// How the node's room suits the request.
    pub(super) room: RoomScore,
    /// NUMA nodes used beyond the first.
    pub(super) extra_numa: u32,
    /// Cards torn apart.
    pub(super) split_cards: u32,
    /// GPUs that the host must give up first; those in the pool are ready.
    pub(super) in_host: u32,
    /// Model, so that ties are stable.
    pub(super) model: ModelName,
    /// Node, so that ties are stable.
    pub(super) node: NodeName,
}

/// The part of a score that all nodes of one room share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RoomScore {
    /// Which model goes first.
    pub(super) model: ModelRank,
    /// GPUs of the largest whole slot (16, 8 or 4) that is broken.
    pub(super) breaks: u32,
    /// Whether the GPUs cannot all be on one known NUMA node.
    pub(super) crosses_numa: bool,
    /// By how many steps the request takes more processor and memory than its GPUs' share of what is left: the other
    /// GPUs would be left without.
    pub(super) short: u32,
    /// Available GPUs left: the best fit leaves fewest.
    pub(super) left: u32,
    /// By how many steps it takes less than its share: roomy nodes are for requests that need room.
    pub(super) surplus: u32,
}

/// The largest slot worth keeping that this many GPUs hold.
fn slot(gpus: u32) -> u32 {
    if gpus < SMALLEST_SLOT { 0 } else { 1 << gpus.ilog2() }
}

/// Which model goes first to a request that would take several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ModelRank {
    /// Doublings of the model's available GPUs in the fleet. The most plentiful model goes first: what is rare, and what
    /// requests by name have made rare, is spared by those that do not care. Doublings, not counts: between models about
    /// equally plentiful what follows decides.
    plenty: Reverse<u32>,
    /// Doublings of the memory of its smallest GPU: of models about equally plentiful the larger ones are spared. Unknown
    /// memory counts as none.
    memory: u32,
}

impl ModelRank {
    pub(super) fn new(entry: &ModelIndex) -> Self {
        let doublings = |count: u64| count.checked_ilog2().unwrap_or(0);
        let smallest = entry.vram.keys().next().copied().flatten().unwrap_or(0);
        Self { plenty: Reverse(doublings(u64::from(entry.available))), memory: doublings(smallest) }
    }
}

impl RoomScore {
    pub(super) fn new(model: ModelRank, room: &Room, gpus: u32, need: Share) -> Self {
        let left = room.available.saturating_sub(gpus);
        let Share { cpu, memory } = room.share;
        Self {
            model,
            breaks: slot(room.available) - slot(left),
            crosses_numa: gpus > 1 && room.one_numa < gpus,
            short: need.cpu.saturating_sub(cpu) + need.memory.saturating_sub(memory),
            left,
            surplus: cpu.saturating_sub(need.cpu) + memory.saturating_sub(need.memory),
        }
    }
}

impl Score {
    pub(super) fn new(members: (u32, u32), room: RoomScore, shape: Shape, model: &ModelName, node: &NodeName) -> Self {
        let Shape { extra_numa, split_cards, in_host } = shape;
        Self {
            in_domain: members.0,
            on_node: members.1,
            room,
            extra_numa,
            split_cards,
            in_host,
            model: model.clone(),
            node: node.clone(),
        }
    }
}
