//! A decision in the making: what it has touched, and, at its end, what of that must be committed.
//!
//! Changes are found by comparing each touched placement with what it was before the decision, so that however many
//! transitions one input causes, each record is written once.

use super::{Brain, Change, Decision, Learned, node_to_store};
use crate::claims::claims;
use crate::desired;
use crate::lifecycle::{self, Event};
use berth_model::placement::{Phase, Placement};
use berth_model::{NodeName, PlacementName, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Placements one input may change by itself (a report, a tick). A placement with 16 GPUs is at most 20 writes and its
/// node one; five of them stay within the 128 operations of one transaction. The rest follows with the next tick.
pub(super) const MAX_PLACEMENTS: usize = 5;

pub(super) struct Draft {
    pub(super) now: Timestamp,
    /// Touched placements as they were before the decision.
    before: BTreeMap<PlacementName, Option<Arc<Placement>>>,
    /// Nodes whose record is to be written.
    pub(super) store_nodes: BTreeSet<NodeName>,
    /// Nodes whose view changed.
    pub(super) nodes: BTreeSet<NodeName>,
    /// Nodes that need their desired state (again).
    pub(super) desired: BTreeSet<NodeName>,
    /// Placements whose view changed without a write.
    pub(super) touched: BTreeSet<PlacementName>,
    /// The placement the caller is told about.
    pub(super) answer: Option<PlacementName>,
    /// What agents did that was learned of.
    pub(super) learned: Vec<Learned>,
}

impl Draft {
    pub(super) fn new(now: Timestamp) -> Self {
        Self {
            now,
            before: BTreeMap::new(),
            store_nodes: BTreeSet::new(),
            nodes: BTreeSet::new(),
            desired: BTreeSet::new(),
            touched: BTreeSet::new(),
            answer: None,
            learned: Vec::new(),
        }
    }

    /// Whether this decision changes a placement.
    pub(super) fn touches(&self, name: &PlacementName) -> bool {
        self.before.contains_key(name)
    }

    /// Whether this decision may change yet another placement.
    pub(super) fn has_room(&self) -> bool {
        self.before.len() < MAX_PLACEMENTS
    }
}

impl Brain {
    /// Puts a placement in the place of the one of its name, if any. All ways of changing one lead through here or through
    /// [`Brain::discard`].
    pub(super) fn keep(&mut self, placement: Placement) {
        let before = self.world.placement(placement.name()).cloned();
        self.lookups.change(placement.name(), before.as_deref(), Some(&placement));
        self.world.put_placement(placement);
    }

    /// Removes a placement.
    pub(super) fn discard(&mut self, name: &PlacementName) {
        let before = self.world.placement(name).cloned();
        self.lookups.change(name, before.as_deref(), None);
        self.world.remove_placement(name);
    }

    /// Puts a placement into the world, noting what it was before.
    pub(super) fn put(&mut self, draft: &mut Draft, mut placement: Placement) {
        let name = placement.name().clone();
        let world = &self.world;
        let before = draft.before.entry(name.clone()).or_insert_with(|| world.placement(&name).cloned());
        placement.version = before.as_ref().map_or(1, |before| before.version + 1);
        self.keep(placement);
    }

    /// Forgets a placement that is over.
    pub(super) fn remove(&mut self, draft: &mut Draft, name: &PlacementName) {
        let world = &self.world;
        draft.before.entry(name.clone()).or_insert_with(|| world.placement(name).cloned());
        self.discard(name);
    }

    /// Lets an event happen to a placement; `edit` changes what else changes with it. False when the event changes
    /// nothing in its phase.
    pub(super) fn happen(
        &mut self,
        draft: &mut Draft,
        name: &PlacementName,
        event: &Event,
        edit: impl FnOnce(&mut Placement),
    ) -> bool {
        let Some(old) = self.world.placement(name) else { return false };
        let Some(phase) = lifecycle::next(&old.phase, event, draft.now, &self.limits) else { return false };
        let mut new = Placement::clone(old);
        new.phase = phase;
        new.phase_since = draft.now;
        edit(&mut new);
        if new.phase.is_over() {
            self.room = true;
        }
        self.put(draft, new);
        true
    }

    /// Works out what must be committed and told.
    pub(super) fn finish(&mut self, mut draft: Draft) -> Decision {
        self.renew_generations(&mut draft);
        let mut changes = Vec::new();
        for name in &draft.store_nodes {
            self.world.renew_version(name);
            changes.extend(self.world.node(name).map(|node| Change::PutNode(Arc::new(node_to_store(node)))));
        }
        for (name, before) in &draft.before {
            let after = self.world.placement(name);
            let had = before.as_ref().map(|p| claims(p)).unwrap_or_default();
            let has = after.map(|p| claims(p)).unwrap_or_default();
            for (what, uid) in had.difference(&has) {
                changes.push(Change::Unclaim { what: what.clone(), placement: name.clone(), uid: uid.clone() });
            }
            for (what, uid) in has.difference(&had) {
                changes.push(Change::Claim { what: what.clone(), placement: name.clone(), uid: uid.clone() });
            }
            match (before, after) {
                (_, Some(after)) => changes.push(Change::PutPlacement(Arc::clone(after))),
                (Some(before), None) => {
                    changes.push(Change::RemovePlacement { name: name.clone(), version: before.version });
                }
                (None, None) => {}
            }
            draft.touched.insert(name.clone());
            for placement in before.iter().chain(after) {
                draft.nodes.extend(placement.assignment.as_ref().map(|a| a.node.clone()));
            }
        }
        Decision {
            changes,
            placement: draft.answer.and_then(|name| self.world.placement(&name).cloned()),
            desired: draft.desired,
            touched: draft.touched,
            nodes: draft.nodes,
            learned: draft.learned,
        }
    }

    /// A changed wish makes a new generation of its node's desired state, one per decision.
    fn renew_generations(&mut self, draft: &mut Draft) {
        let mut changed: BTreeMap<NodeName, Vec<PlacementName>> = BTreeMap::new();
        for (name, before) in &draft.before {
            let after = self.world.placement(name);
            let wish = |placement: Option<&Arc<Placement>>| placement.and_then(|p| desired::entry(p));
            if wish(before.as_ref()) != wish(after) {
                for placement in before.iter().chain(after) {
                    if let Some(assignment) = &placement.assignment {
                        changed.entry(assignment.node.clone()).or_default().push(name.clone());
                    }
                }
            }
        }
        for (node, names) in changed {
            let generation = self.world.renew_generation(&node);
            for name in names {
                let Some(placement) = self.world.placement(&name) else { continue };
                if placement.generation != generation && !matches!(placement.phase, Phase::Queued { .. }) {
                    let mut placement = Placement::clone(placement);
                    placement.generation = generation;
                    self.keep(placement);
                }
            }
            draft.store_nodes.insert(node.clone());
            draft.desired.insert(node);
        }
    }
}
