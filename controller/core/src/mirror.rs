//! A copy of the leader's world, for controllers that do not lead: what is stored, joined with what the leader tells.
//!
//! Stored facts and told ones arrive on two ways, in any order between them; what is shown depends only on the last of
//! each, never on the order. Owns that joining. Must never show as available what nobody vouches for: a node of which no
//! leader tells (any more) is [`Link::Unheard`], whatever was last known of it.

use crate::decide::node_from_store;
use crate::world::{Gpu, Link, Live, Node, View, World};
use berth_model::gpu::ObservedGpu;
use berth_model::id::FleetId;
use berth_model::node::{BootId, HostFacts, StoredNode};
use berth_model::pci::DeviceAddress;
use berth_model::placement::Placement;
use berth_model::vm::ObservedVm;
use berth_model::{NodeName, PlacementName, Timestamp, VmId};
use std::collections::{BTreeMap, BTreeSet};

/// What a leader knows of a node and does not store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenNode {
    /// Which node.
    pub name: NodeName,
    /// Whether its agent is there.
    pub link: Link,
    /// How good the view of it is.
    pub view: View,
    /// Its current boot.
    pub boot: Option<BootId>,
    /// Its GPUs.
    pub gpus: BTreeMap<DeviceAddress, SeenGpu>,
    /// Its VMs.
    pub vms: BTreeMap<VmId, ObservedVm>,
    /// Since when VMs have records of devices that are gone.
    pub stale_since: BTreeMap<VmId, Timestamp>,
    /// What a record would say, where nothing is stored of it.
    pub unstored: Option<Unstored>,
}

/// What a leader knows of a GPU and does not store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenGpu {
    /// As it was reported.
    pub observed: ObservedGpu,
    /// When it was last reported.
    pub at: Option<Timestamp>,
    /// Since when it has been seen like this.
    pub since: Option<Timestamp>,
}

/// Of a node without a record, as a stranger that the store does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unstored {
    /// What it is.
    pub facts: HostFacts,
    /// Its agent's version.
    pub agent_version: String,
    /// When it first connected.
    pub first_seen: Timestamp,
}

impl SeenNode {
    /// What there is to tell of a node.
    pub fn of(node: &Node) -> Self {
        let gpu = |(address, gpu): (&DeviceAddress, &Gpu)| {
            let seen = SeenGpu { observed: gpu.observed.clone(), at: gpu.observed_at, since: gpu.since };
            (address.clone(), seen)
        };
        Self {
            name: node.name.clone(),
            link: node.link.clone(),
            view: node.view.clone(),
            boot: node.boot.clone(),
            gpus: node.gpus.iter().map(gpu).collect(),
            vms: node.vms.clone(),
            stale_since: node.stale_since.clone(),
            unstored: (node.version == 0).then(|| Unstored {
                facts: node.facts.clone(),
                agent_version: node.agent_version.clone(),
                first_seen: node.first_seen,
            }),
        }
    }
}

/// Something that was told, and whether whoever told it still vouches for it.
#[derive(Clone, Debug)]
struct Told<T> {
    what: T,
    fresh: bool,
}

/// Names whose view changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Placements.
    pub placements: BTreeSet<PlacementName>,
    /// Nodes.
    pub nodes: BTreeSet<NodeName>,
}

/// The copy.
#[derive(Clone, Debug)]
pub struct Mirror {
    world: World,
    stored: BTreeMap<NodeName, StoredNode>,
    seen: BTreeMap<NodeName, Told<SeenNode>>,
    live: BTreeMap<PlacementName, Told<Live>>,
    /// Since when nobody vouches for what is not fresh.
    unheard_since: Timestamp,
}

impl Mirror {
    /// A copy of nothing yet.
    pub fn new(now: Timestamp) -> Self {
        Self {
            world: World::default(),
            stored: BTreeMap::new(),
            seen: BTreeMap::new(),
            live: BTreeMap::new(),
            unheard_since: now,
        }
    }

    /// The world as it is known here.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Begins anew from a listing of everything that is stored; what was told stays.
    pub fn list(&mut self, nodes: Vec<StoredNode>, placements: Vec<Placement>) {
        self.world = World::of(self.world.fleet().cloned());
        self.stored = nodes.into_iter().map(|node| (node.name.clone(), node)).collect();
        for name in self.stored.keys().cloned().collect::<Vec<_>>() {
            self.show_node(&name);
        }
        for name in self.seen.keys().filter(|name| !self.stored.contains_key(*name)).cloned().collect::<Vec<_>>() {
            self.show_node(&name);
        }
        for placement in placements {
            let name = placement.name().clone();
            self.world.put_placement(placement);
            self.show_live(&name);
        }
    }

    /// Which fleet the store holds.
    pub fn set_fleet(&mut self, fleet: Option<FleetId>) {
        self.world.set_fleet(fleet);
    }

    /// A node's record was written.
    pub fn put_node(&mut self, node: StoredNode, touched: &mut Touched) {
        let name = node.name.clone();
        self.stored.insert(name.clone(), node);
        self.show_node(&name);
        touched.nodes.insert(name);
    }

    /// A node's record was deleted.
    pub fn remove_node(&mut self, name: &NodeName, touched: &mut Touched) {
        self.stored.remove(name);
        self.world.remove_node(name);
        touched.nodes.insert(name.clone());
    }

    /// A placement was written.
    pub fn put_placement(&mut self, placement: Placement, touched: &mut Touched) {
        let name = placement.name().clone();
        self.touch_placement(&name, touched);
        self.world.put_placement(placement);
        self.touch_placement(&name, touched);
        self.show_live(&name);
    }

    /// A placement was forgotten.
    pub fn remove_placement(&mut self, name: &PlacementName, touched: &mut Touched) {
        self.touch_placement(name, touched);
        self.world.remove_placement(name);
        self.live.remove(name);
    }

    /// The leader tells of a node.
    pub fn see_node(&mut self, node: SeenNode, touched: &mut Touched) {
        let name = node.name.clone();
        self.seen.insert(name.clone(), Told { what: node, fresh: true });
        self.show_node(&name);
        self.touch_node(name, touched);
    }

    /// The leader tells how work on a placement goes.
    pub fn see_live(&mut self, name: PlacementName, live: Live, touched: &mut Touched) {
        if live == Live::default() {
            self.live.remove(&name);
            self.world.update_live(&name, |shown| *shown = live);
        } else {
            self.live.insert(name.clone(), Told { what: live, fresh: true });
            self.show_live(&name);
        }
        touched.placements.insert(name);
    }

    /// The leader has told everything there is: what it did not name is not there any more.
    pub fn complete(&mut self, touched: &mut Touched) {
        let nodes: Vec<_> = self.seen.iter().filter(|(_, told)| !told.fresh).map(|(name, _)| name.clone()).collect();
        for name in nodes {
            self.seen.remove(&name);
            self.show_node(&name);
            self.touch_node(name, touched);
        }
        let quiet: Vec<_> = self.live.iter().filter(|(_, told)| !told.fresh).map(|(name, _)| name.clone()).collect();
        for name in quiet {
            self.see_live(name, Live::default(), touched);
        }
    }

    /// Nobody vouches for anything any more that was told: no leader is heard.
    pub fn lose(&mut self, now: Timestamp, touched: &mut Touched) {
        self.live.values_mut().for_each(|told| told.fresh = false);
        let fresh: Vec<_> = self.seen.iter().filter(|(_, told)| told.fresh).map(|(name, _)| name.clone()).collect();
        if fresh.is_empty() {
            return;
        }
        self.unheard_since = now;
        for name in fresh {
            if let Some(told) = self.seen.get_mut(&name) {
                told.fresh = false;
            }
            self.show_node(&name);
            self.touch_node(name, touched);
        }
    }

    fn touch_placement(&self, name: &PlacementName, touched: &mut Touched) {
        touched.placements.insert(name.clone());
        let assignment = self.world.placement(name).and_then(|placement| placement.assignment.as_ref());
        touched.nodes.extend(assignment.map(|assignment| assignment.node.clone()));
    }

    /// The conditions of placements depend on their node.
    fn touch_node(&self, name: NodeName, touched: &mut Touched) {
        touched.placements.extend(self.world.placements_on(&name).map(|placement| placement.name().clone()));
        touched.nodes.insert(name);
    }

    fn show_live(&mut self, name: &PlacementName) {
        if let Some(told) = self.live.get(name) {
            let live = told.what.clone();
            self.world.update_live(name, |shown| *shown = live);
        }
    }

    /// Joins what is stored of a node with what was told of it. A node that is told of before its record has arrived is
    /// shown with the record; one without a record, as a stranger, as it was told.
    fn show_node(&mut self, name: &NodeName) {
        let told = || self.seen.get(name).and_then(|told| unstored(&told.what));
        let Some(stored) = self.stored.get(name).cloned().or_else(told) else {
            self.world.remove_node(name);
            return;
        };
        let mut node = node_from_store(stored, self.unheard_since);
        node.link = Link::Unheard { since: self.unheard_since };
        if let Some(Told { what, fresh }) = self.seen.get(name) {
            let SeenNode { name: _, link, view, boot, gpus, vms, stale_since, unstored: _ } = what.clone();
            if *fresh {
                node.link = link;
            }
            node.view = view;
            node.boot = boot;
            node.vms = vms;
            node.stale_since = stale_since;
            for (address, SeenGpu { observed, at, since }) in gpus {
                node.gpus.insert(address, Gpu { observed, observed_at: at, since, claim: None });
            }
        }
        self.world.insert_node(node);
    }
}

/// What a record of a node would say that has none.
fn unstored(seen: &SeenNode) -> Option<StoredNode> {
    let Unstored { facts, agent_version, first_seen } = seen.unstored.clone()?;
    Some(StoredNode {
        name: seen.name.clone(),
        facts,
        agent_version,
        first_seen,
        cordons: Vec::new(),
        gpus: Vec::new(),
        generation: 0,
        version: 0,
    })
}
