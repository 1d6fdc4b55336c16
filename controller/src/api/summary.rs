//! Counts over the whole fleet, computed once for each snapshot that somebody asks about.

use super::view::count;
use crate::replica::Snapshot;
use arc_swap::ArcSwapOption;
use berth_core::schedule::{Limit, ModelCapacity, Slots, capacity};
use berth_core::world::Link;
use berth_proto::v1;
use std::sync::Arc;

/// The counts of one snapshot.
#[derive(Debug, PartialEq)]
pub(crate) struct Summary {
    epoch: u64,
    sequence: u64,
    /// All nodes.
    pub(crate) nodes: u32,
    /// Nodes whose agent is connected.
    pub(crate) nodes_connected: u32,
    /// Nodes that take new placements, as far as their state goes.
    pub(crate) nodes_ready: u32,
    /// All GPUs.
    pub(crate) gpus: u32,
    /// GPUs that could be handed out now.
    pub(crate) gpus_available: u32,
    /// By model, in order of name.
    pub(crate) models: Vec<v1::ModelSummary>,
}

/// The last summary, for whoever asks about the same snapshot again.
#[derive(Clone, Default)]
pub(crate) struct Summaries {
    last: Arc<ArcSwapOption<Summary>>,
}

impl Summaries {
    /// The summary of a snapshot.
    pub(crate) fn of(&self, snapshot: &Snapshot) -> Arc<Summary> {
        let same = |s: &Arc<Summary>| s.epoch == snapshot.epoch && s.sequence == snapshot.sequence;
        if let Some(summary) = self.last.load_full().filter(same) {
            return summary;
        }
        let summary = Arc::new(summarize(snapshot));
        self.last.store(Some(Arc::clone(&summary)));
        summary
    }
}

fn summarize(snapshot: &Snapshot) -> Summary {
    let world = &snapshot.world;
    let (mut nodes_connected, mut nodes_ready) = (0, 0);
    for node in world.nodes() {
        nodes_connected += usize::from(matches!(node.link, Link::Connected { .. }));
        nodes_ready += usize::from(node.not_ready().is_none());
    }
    let models = capacity(world);
    Summary {
        epoch: snapshot.epoch,
        sequence: snapshot.sequence,
        nodes: count(world.node_count()),
        nodes_connected: count(nodes_connected),
        nodes_ready: count(nodes_ready),
        gpus: models.iter().map(|model| model.gpus).sum(),
        gpus_available: models.iter().map(|model| model.available).sum(),
        models: models.into_iter().map(show).collect(),
    }
}

fn show(capacity: ModelCapacity) -> v1::ModelSummary {
    let ModelCapacity { model, gpus, available, states, unavailable, slots, limits } = capacity;
    let counts = |counts: Vec<(&'static str, u32)>| {
        counts.into_iter().map(|(name, count)| v1::Count { name: name.to_owned(), count }).collect()
    };
    v1::ModelSummary {
        model: model.to_string(),
        gpus,
        available,
        states: counts(states),
        reasons: counts(unavailable),
        slots: slots.into_iter().map(|Slots { gpus, vms }| v1::Slots { gpus, vms }).collect(),
        limits: limits
            .into_iter()
            .map(|Limit { nodes, per_vm, node, excess }| v1::MmioLimit {
                nodes,
                gpus_per_vm: per_vm,
                node: node.to_string(),
                text: excess.to_string(),
            })
            .collect(),
    }
}
