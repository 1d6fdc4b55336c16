//! Decisions that were not committed are taken back: what is stored takes their place.
//!
//! Must never touch what was only observed: where GPUs and VMs are is true, whatever became of a decision.

use super::{Brain, node_from_store};
use berth_model::node::StoredNode;
use berth_model::placement::Placement;
use berth_model::{NodeName, PlacementName, Timestamp};
use std::collections::BTreeSet;

/// What the store holds in place of decisions that are not to be; `None` where it holds nothing.
#[derive(Clone, Debug, Default)]
pub struct Stored {
    /// Each placement that such a decision changed.
    pub placements: Vec<(PlacementName, Option<Placement>)>,
    /// Each node whose record such a decision changed.
    pub nodes: Vec<(NodeName, Option<StoredNode>)>,
}

impl Brain {
    /// Takes decisions back. Whoever told something that they rested on is to be asked again: a VM that came, a step that
    /// ended.
    pub fn put_back(&mut self, stored: Stored, now: Timestamp) {
        let Stored { placements, nodes } = stored;
        let mut concerned: BTreeSet<NodeName> = nodes.iter().map(|(name, _)| name.clone()).collect();
        // First what is not to be: what it owned is then there for its owners.
        for (name, _) in placements.iter().filter(|(_, stored)| stored.is_none()) {
            self.discard(name);
        }
        for placement in placements.into_iter().filter_map(|(_, stored)| stored) {
            concerned.extend(placement.assignment.as_ref().map(|assignment| assignment.node.clone()));
            self.keep(placement);
        }
        for (name, stored) in nodes {
            match stored {
                Some(stored) => self.put_back_node(stored, now),
                None => self.world.remove_node(&name),
            }
        }
        // Room that was given away is there again, and VMs that were taken up wait for it once more.
        self.room = true;
        self.pass = None;
        self.waiting_vms.extend(concerned.into_iter().filter(|name| self.world.node(name).is_some()));
    }

    fn put_back_node(&mut self, stored: StoredNode, now: Timestamp) {
        let mut node = node_from_store(stored, now);
        if let Some(shown) = self.world.node(&node.name) {
            node.link = shown.link.clone();
            node.view = shown.view.clone();
            node.boot = shown.boot.clone();
            node.vms = shown.vms.clone();
            node.stale_since = shown.stale_since.clone();
            for (address, gpu) in &mut node.gpus {
                if let Some(seen) = shown.gpus.get(address) {
                    gpu.observed.health = seen.observed.health.clone();
                    gpu.observed_at = seen.observed_at;
                    // A survey that is taken back may be the one that forbids what the older one allows.
                    if gpu.observed.survey == seen.observed.survey {
                        gpu.observed.state = seen.observed.state.clone();
                        gpu.observed.problem = seen.observed.problem;
                        gpu.since = seen.since;
                    }
                }
            }
        }
        self.world.insert_node(node);
    }
}
