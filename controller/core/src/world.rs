//! Nodes, GPUs and placements at one revision, with what is derived from them.
//!
//! Claims, reservations and the look-ups by VM, node and spread group are derived from placements and nodes and kept up
//! to date here, by the only functions that change either. [`crate::invariants`] recomputes them all.
//! The maps are persistent: a clone is cheap, so that readers get a snapshot and never wait.

pub mod index;
mod node;

pub use node::{Gpu, Link, Node, View};

use berth_model::id::FleetId;
use berth_model::inventory::Hello;
use berth_model::placement::{CurrentStep, Drift, Phase, Placement};
use berth_model::request::Resources;
use berth_model::vm::VmSelector;
use berth_model::{NodeName, PlacementName, Timestamp, VmId};
use imbl::{OrdMap, OrdSet};
use index::Index;
use node::{claim, unclaim};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What an agent last said about a live placement. Not stored: it comes again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// The step it is at.
    pub step: Option<CurrentStep>,
    /// How it differs from what is wanted, and since when.
    pub drift: Option<(Timestamp, Drift)>,
}

/// Everything known, at one revision.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// The fleet it is about, as far as that is known.
    fleet: Option<FleetId>,
    nodes: OrdMap<NodeName, Arc<Node>>,
    placements: OrdMap<PlacementName, Arc<Placement>>,
    live: OrdMap<PlacementName, Arc<Live>>,
    /// Live placements by the VM they name and, once known, by its id.
    by_vm: OrdMap<VmSelector, PlacementName>,
    /// Placements that own GPUs of a node.
    on_node: OrdMap<NodeName, OrdSet<PlacementName>>,
    /// How many placements are queued.
    queued: usize,
    /// How many placements are over.
    over: usize,
    /// Placements that own GPUs, by the group they are to be spread in.
    spread: OrdMap<PlacementName, OrdSet<PlacementName>>,
    /// Where VMs are seen, by id: a VM and its replica on another node have the same.
    vm_nodes: OrdMap<VmId, OrdSet<NodeName>>,
    /// VMs by lower-cased name: names are not unique.
    vm_names: OrdMap<String, OrdSet<(NodeName, VmId)>>,
    index: Index,
}

fn name_key(name: &str) -> String {
    name.to_ascii_lowercase()
}

/// The look-up key of a VM selector: names without regard to case.
pub(crate) fn vm_key(selector: &VmSelector) -> VmSelector {
    match selector {
        VmSelector::Id(_) => selector.clone(),
        VmSelector::Name(name) => {
            // Lower-casing ASCII cannot make a legal name illegal.
            VmSelector::Name(berth_model::VmName::new(name_key(name.as_str())).unwrap_or_else(|_| name.clone()))
        }
    }
}

impl World {
    /// Nothing yet, of this fleet.
    pub fn of(fleet: Option<FleetId>) -> Self {
        Self { fleet, ..Self::default() }
    }

    /// The fleet it is about, as far as that is known.
    pub fn fleet(&self) -> Option<&FleetId> {
        self.fleet.as_ref()
    }

    /// Says which fleet it is about.
    pub(crate) fn set_fleet(&mut self, fleet: Option<FleetId>) {
        self.fleet = fleet;
    }

    /// Why an agent is a stranger here: it holds placements that this store does not vouch for, because the store was lost
    /// or is another's. Told what this world wants of it, it would forget them, and with them what is left of its own.
    /// An agent that holds nothing is nobody's, and welcome anywhere.
    pub fn stranger(&self, hello: &Hello) -> Option<String> {
        let holds = match hello.ledger_placements {
            Some(0) => return None,
            Some(1) => "1 placement".to_owned(),
            Some(placements) => format!("{placements} placements"),
            // It never accepted anything that could hold one.
            None if hello.ledger_generation == 0 => return None,
            None => "placements, perhaps".to_owned(),
        };
        let what_to_do = "nothing is told to it. If this is not the right store, start the controllers on the right one \
                          (data_dir, etcd.prefix); if the store was lost, stop every controller, put what \
                          there is of it aside, and run berth-controller rebuild with all agents up";
        if let (Some(theirs), Some(ours)) = (&hello.ledger_fleet, &self.fleet)
            && theirs != ours
        {
            return Some(format!(
                "its agent holds {holds} of fleet {theirs}, and this store is of fleet {ours}: {what_to_do}"
            ));
        }
        // Whoever made them knows the node; a store that was rebuilt while the node was away, or is older, does not.
        let known = self.node(&hello.node).is_some_and(|node| node.version > 0);
        (!known).then(|| format!("its agent holds {holds}, and this store does not know the node: {what_to_do}"))
    }

    /// One node.
    pub fn node(&self, name: &NodeName) -> Option<&Arc<Node>> {
        self.nodes.get(name)
    }

    /// All nodes in order of name.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// Nodes whose name comes after `after`, in order.
    pub fn nodes_after(&self, after: Option<&NodeName>) -> impl Iterator<Item = &Arc<Node>> {
        use std::ops::Bound;
        let from = after.map_or(Bound::Unbounded, |name| Bound::Excluded(name.clone()));
        self.nodes.range((from, Bound::Unbounded)).map(|(_, node)| node)
    }

    /// How many nodes there are.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// One placement, live or over.
    pub fn placement(&self, name: &PlacementName) -> Option<&Arc<Placement>> {
        self.placements.get(name)
    }

    /// The live placement of a VM.
    pub fn placement_by_vm(&self, vm: &VmSelector) -> Option<&Arc<Placement>> {
        self.placements.get(self.by_vm.get(&vm_key(vm))?)
    }

    /// All placements in order of name.
    pub fn placements(&self) -> impl Iterator<Item = &Arc<Placement>> {
        self.placements.values()
    }

    /// Placements whose name comes after `after`, in order.
    pub fn placements_after(&self, after: Option<&PlacementName>) -> impl Iterator<Item = &Arc<Placement>> {
        use std::ops::Bound;
        let from = after.map_or(Bound::Unbounded, |name| Bound::Excluded(name.clone()));
        self.placements.range((from, Bound::Unbounded)).map(|(_, placement)| placement)
    }

    /// How many placements there are, live and over.
    pub fn placement_count(&self) -> usize {
        self.placements.len()
    }

    /// Placements that own GPUs of a node, in order of name.
    pub fn placements_on<'a>(&'a self, node: &NodeName) -> impl Iterator<Item = &'a Arc<Placement>> + use<'a> {
        self.on_node.get(node).into_iter().flatten().filter_map(|name| self.placements.get(name))
    }

    /// Placements of a spread group that own GPUs, in order of name.
    pub fn spread_group<'a>(&'a self, group: &PlacementName) -> impl Iterator<Item = &'a Arc<Placement>> + use<'a> {
        self.spread.get(group).into_iter().flatten().filter_map(|name| self.placements.get(name))
    }

    /// What the agent last said about a placement.
    pub fn live(&self, name: &PlacementName) -> Option<&Arc<Live>> {
        self.live.get(name)
    }

    /// How many placements are queued.
    pub fn queued(&self) -> usize {
        self.queued
    }

    /// How many placements are over.
    pub fn over_count(&self) -> usize {
        self.over
    }

    /// Where VMs that a selector means were last seen, in order of node.
    pub fn find_vms(&self, selector: &VmSelector) -> Vec<(NodeName, VmId)> {
        match selector {
            VmSelector::Id(id) => {
                self.vm_nodes.get(id).into_iter().flatten().map(|node| (node.clone(), id.clone())).collect()
            }
            VmSelector::Name(name) => {
                self.vm_names.get(&name_key(name.as_str())).into_iter().flatten().cloned().collect()
            }
        }
    }

    /// The index for scheduling.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Changes one node through `change` and brings everything derived from it up to date.
    pub fn update_node(&mut self, name: &NodeName, change: impl FnOnce(&mut Node)) {
        let Some(slot) = self.nodes.get_mut(name) else { return };
        let before = Arc::clone(slot);
        change(Arc::make_mut(slot));
        let after = Arc::clone(slot);
        self.reindex(Some(&before), Some(&after));
    }

    /// Says that a node's record will be written once more.
    pub(crate) fn renew_version(&mut self, name: &NodeName) {
        // Nothing is derived from it.
        if let Some(node) = self.nodes.get_mut(name) {
            Arc::make_mut(node).version += 1;
        }
    }

    /// Begins the next generation of a node's desired state, and says which it is.
    pub(crate) fn renew_generation(&mut self, name: &NodeName) -> u64 {
        // Nothing is derived from it.
        self.nodes.get_mut(name).map_or(0, |node| {
            let node = Arc::make_mut(node);
            node.generation += 1;
            node.generation
        })
    }

    /// Takes over where VMs were seen from a world shown before. Only where nothing is known of a node's VMs, and not from
    /// strangers: what those say was never believed.
    pub(crate) fn remember_vms(&mut self, shown: &Self) {
        for before in shown.nodes().filter(|node| !node.vms.is_empty() && !node.is_stranger()) {
            if self.node(&before.name).is_some_and(|node| node.vms.is_empty()) {
                self.update_node(&before.name, |node| node.vms.clone_from(&before.vms));
            }
        }
    }

    /// Adds a node that was not known, with its GPUs; claims and reservations of placements already known are derived.
    pub fn insert_node(&mut self, mut node: Node) {
        node.reserved = Resources::default();
        for gpu in node.gpus.values_mut() {
            gpu.claim = None;
        }
        for placement in self.on_node.get(&node.name).into_iter().flatten().filter_map(|name| self.placements.get(name))
        {
            claim(&mut node, placement);
        }
        let after = Arc::new(node);
        let before = self.nodes.insert(after.name.clone(), Arc::clone(&after));
        self.reindex(before.as_deref(), Some(&after));
    }

    fn reindex(&mut self, before: Option<&Node>, after: Option<&Node>) {
        let vms = |node: Option<&Node>| {
            node.map(|n| &n.vms)
                .into_iter()
                .flatten()
                .map(|(id, vm)| (id.clone(), vm.name.clone()))
                .collect::<BTreeMap<_, _>>()
        };
        let same_vms = matches!((before, after), (Some(b), Some(a)) if b.vms == a.vms);
        if !same_vms {
            if let Some(node) = before {
                for (id, name) in vms(before) {
                    if let Some(set) = self.vm_nodes.get_mut(&id) {
                        set.remove(&node.name);
                        if set.is_empty() {
                            self.vm_nodes.remove(&id);
                        }
                    }
                    let key = name_key(name.as_str());
                    if let Some(set) = self.vm_names.get_mut(&key) {
                        set.remove(&(node.name.clone(), id));
                        if set.is_empty() {
                            self.vm_names.remove(&key);
                        }
                    }
                }
            }
            if let Some(node) = after {
                for (id, name) in vms(after) {
                    self.vm_nodes.entry(id.clone()).or_default().insert(node.name.clone());
                    self.vm_names.entry(name_key(name.as_str())).or_default().insert((node.name.clone(), id));
                }
            }
        }
        self.index.node_changed(before, after);
    }

    /// Puts a placement in the place of the one of its name, if any, and brings everything derived from it up to date.
    pub fn put_placement(&mut self, placement: Placement) {
        let placement = Arc::new(placement);
        let before = self.placements.insert(placement.name().clone(), Arc::clone(&placement));
        self.rederive(before.as_ref(), Some(&placement));
    }

    /// Removes a placement from the history. What it owned is free.
    pub fn remove_placement(&mut self, name: &PlacementName) {
        let before = self.placements.remove(name);
        self.rederive(before.as_ref(), None);
        self.live.remove(name);
    }

    /// Removes a node. Placements that own GPUs of it keep them, and own them again when it comes back.
    pub fn remove_node(&mut self, name: &NodeName) {
        if let Some(before) = self.nodes.remove(name) {
            self.reindex(Some(&before), None);
        }
    }

    /// Brings everything derived from one placement up to date. What it gives both before and after is left alone: most
    /// changes of a placement are a step of its phase, and maps that are not touched are shared with every snapshot.
    fn rederive(&mut self, before: Option<&Arc<Placement>>, after: Option<&Arc<Placement>>) {
        let Some(name) = after.or(before).map(|placement| placement.name().clone()) else { return };
        let live = |p: &Placement| p.phase.is_live();
        change(&mut self.by_vm, &name, before, after, |p| match live(p) {
            true => [Some(vm_key(&p.request.vm)), p.vm_id.clone().map(VmSelector::Id)],
            false => [None, None],
        });
        count(&mut self.queued, before, after, |p| matches!(p.phase, Phase::Queued { .. }));
        count(&mut self.over, before, after, |p| !live(p));
        if after.is_some_and(|placement| !live(placement)) {
            self.live.remove(&name);
        }
        let owns = |p: &Arc<Placement>| p.phase.holds_claims() && p.assignment.is_some();
        let (owned, owning) = (before.filter(|p| owns(p)), after.filter(|p| owns(p)));
        let same = |(old, new): (&Arc<Placement>, &Arc<Placement>)| {
            old.assignment == new.assignment
                && old.request.resources == new.request.resources
                && old.request.spread_group == new.request.spread_group
        };
        if owned.zip(owning).is_some_and(same) {
            return;
        }
        if let Some(old) = owned {
            self.disown(old);
        }
        if let Some(new) = owning {
            self.own(new);
        }
    }

    /// A placement owns GPUs from now on.
    fn own(&mut self, placement: &Placement) {
        let Some(assignment) = &placement.assignment else { return };
        let name = placement.name();
        self.on_node.entry(assignment.node.clone()).or_default().insert(name.clone());
        if let Some(group) = &placement.request.spread_group {
            self.spread.entry(group.clone()).or_default().insert(name.clone());
        }
        self.update_node(&assignment.node, |node| claim(node, placement));
    }

    /// A placement owns nothing any more.
    fn disown(&mut self, placement: &Placement) {
        let Some(assignment) = &placement.assignment else { return };
        leave(&mut self.on_node, &assignment.node, placement.name());
        if let Some(group) = &placement.request.spread_group {
            leave(&mut self.spread, group, placement.name());
        }
        self.update_node(&assignment.node, |node| unclaim(node, placement));
    }

    /// Builds everything derived anew from nodes and placements and names what differs from what is kept.
    pub(crate) fn differences_from_recomputed(&self) -> Vec<String> {
        let mut fresh = Self::default();
        for node in self.nodes.values() {
            fresh.insert_node(Node::clone(node));
        }
        for placement in self.placements.values() {
            fresh.put_placement(Placement::clone(placement));
        }
        let reserved = |world: &Self| world.nodes.values().map(|n| (n.name.clone(), n.reserved)).collect::<Vec<_>>();
        let same = [
            ("placements by VM", self.by_vm == fresh.by_vm),
            ("placements on nodes", self.on_node == fresh.on_node),
            ("spread groups", self.spread == fresh.spread),
            ("how many are queued", self.queued == fresh.queued),
            ("how many are over", self.over == fresh.over),
            ("VMs by name", self.vm_names == fresh.vm_names),
            ("VMs by id", self.vm_nodes == fresh.vm_nodes),
            ("reservations", reserved(self) == reserved(&fresh)),
            ("the scheduling index", self.index == Index::recompute(self.nodes.values().map(|node| &**node))),
        ];
        same.into_iter()
            .filter(|(_, same)| !same)
            .map(|(what, _)| format!("{what} differ from their recomputation"))
            .collect()
    }

    /// Notes what an agent said about a placement.
    pub fn update_live(&mut self, name: &PlacementName, change: impl FnOnce(&mut Live)) {
        if self.placements.get(name).is_none_or(|p| p.phase.is_over()) {
            return;
        }
        let slot = self.live.entry(name.clone()).or_default();
        change(Arc::make_mut(slot));
    }
}

/// Moves a placement in a look-up from what it was found by to what it is found by.
fn change<K: Ord + Clone, const N: usize>(
    index: &mut OrdMap<K, PlacementName>,
    name: &PlacementName,
    before: Option<&Arc<Placement>>,
    after: Option<&Arc<Placement>>,
    keys: impl Fn(&Placement) -> [Option<K>; N],
) {
    let keys = |placement: Option<&Arc<Placement>>| placement.map(|p| keys(p)).into_iter().flatten().flatten();
    let (was, is): (Vec<K>, Vec<K>) = (keys(before).collect(), keys(after).collect());
    for key in was.iter().filter(|key| !is.contains(key)) {
        if index.get(key) == Some(name) {
            index.remove(key);
        }
    }
    for key in is.into_iter().filter(|key| !was.contains(key)) {
        index.insert(key, name.clone());
    }
}

/// Counts a placement out as it was and in as it is.
fn count(
    number: &mut usize,
    before: Option<&Arc<Placement>>,
    after: Option<&Arc<Placement>>,
    counts: impl Fn(&Placement) -> bool,
) {
    let counted = |placement: Option<&Arc<Placement>>| usize::from(placement.is_some_and(|p| counts(p)));
    *number = (*number + counted(after)).saturating_sub(counted(before));
}

/// Takes a placement out of the group of a key; a group without members is none.
fn leave<K: Ord + Clone>(groups: &mut OrdMap<K, OrdSet<PlacementName>>, key: &K, name: &PlacementName) {
    if let Some(members) = groups.get_mut(key) {
        members.remove(name);
        if members.is_empty() {
            groups.remove(key);
        }
    }
}
