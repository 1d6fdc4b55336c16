//! The rules of truth, recomputed from scratch and compared with what is kept up to date step by step.

use crate::claims::{self, Claimed};
use crate::world::{Live, Node, World};
use berth_model::placement::{Phase, Placement};
use berth_model::{GpuId, PlacementName};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// One broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Id of the rule in ARCHITECTURE.md.
    pub rule: &'static str,
    /// What was found.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.text)
    }
}

fn violation(rule: &'static str, text: String) -> Violation {
    Violation { rule, text }
}

/// Every broken rule of a world; empty is good. Costs time in proportion to the world.
pub fn check(world: &World) -> Vec<Violation> {
    let mut found = Vec::new();
    check_owners(world, &mut found);
    for placement in world.placements() {
        check_placement(world, placement, &mut found);
    }
    found.extend(world.differences_from_recomputed().into_iter().map(|text| violation("I8", text)));
    found
}

/// I1: a GPU has at most one live placement, and the claim shown is that placement.
fn check_owners(world: &World, found: &mut Vec<Violation>) {
    let mut owners: BTreeMap<GpuId, &PlacementName> = BTreeMap::new();
    for placement in world.placements().filter(|p| p.phase.holds_claims()) {
        for gpu in placement.assignment.iter().flat_map(|a| a.gpu_ids()) {
            if let Some(other) = owners.insert(gpu.clone(), placement.name()) {
                found.push(violation("I1", format!("GPU {gpu} is owned by {other} and {}", placement.name())));
            }
        }
    }
    for node in world.nodes() {
        for (address, gpu) in &node.gpus {
            let id = GpuId { node: node.name.clone(), address: address.clone() };
            let owner = owners.remove(&id);
            if gpu.claim.as_ref() != owner {
                found.push(violation("I1", format!("GPU {id} shows claim {:?}, its owner is {owner:?}", gpu.claim)));
            }
            if gpu.claim.is_some() && node.is_available(gpu) {
                found.push(violation("I6", format!("GPU {id} is claimed and yet available")));
            }
        }
    }
    for (gpu, owner) in owners {
        found.push(violation("I1", format!("placement {owner} owns GPU {gpu}, which is not known")));
    }
}

fn check_placement(world: &World, placement: &Placement, found: &mut Vec<Violation>) {
    let name = placement.name();
    if placement.phase.holds_claims() {
        let gpus = placement.assignment.as_ref().map_or(0, |a| a.gpus.len());
        if u32::try_from(gpus) != Ok(placement.request.gpus) {
            found.push(violation(
                "I1",
                format!("placement {name} asked for {} GPUs and owns {gpus}", placement.request.gpus),
            ));
        }
    }
    let touches_host = crate::desired::intent(&placement.phase).is_some();
    if touches_host && placement.vm_id.is_none() {
        found.push(violation("I8", format!("placement {name} is {} without a VM", placement.phase.name())));
    }
    let ends_by_itself = placement.phase.deadline().is_some();
    let rests = matches!(placement.phase, Phase::Active | Phase::Released | Phase::Failed { .. });
    if ends_by_itself == rests {
        found
            .push(violation("I8", format!("placement {name} is {} and its deadline is wrong", placement.phase.name())));
    }
    if let Some(assignment) = &placement.assignment {
        let generation = world.node(&assignment.node).map_or(0, |node| node.generation);
        if placement.generation > generation {
            found.push(violation(
                "I4",
                format!("placement {name} is at generation {} of its node's {generation}", placement.generation),
            ));
        }
    }
}

/// How two worlds differ in what readers are shown; empty when they show the same. For comparing a copy with its
/// original; costs time in proportion to both. How often a node's record was written is left out: several decisions
/// that one transaction holds write it once.
pub fn differences(one: &World, other: &World) -> Vec<String> {
    fn compare<K: Ord + fmt::Display, T: PartialEq + fmt::Debug>(
        what: &str,
        one: BTreeMap<K, T>,
        mut other: BTreeMap<K, T>,
        found: &mut Vec<String>,
    ) {
        for (key, value) in one {
            match other.remove(&key) {
                Some(twin) if twin == value => {}
                twin => found.push(format!("{what} {key}: {value:?} here, {twin:?} there")),
            }
        }
        found.extend(other.into_iter().map(|(key, twin)| format!("{what} {key}: nothing here, {twin:?} there")));
    }
    let placements = |world: &World| -> BTreeMap<_, _> {
        let shown = |p: &Placement| (p.clone(), world.live(p.name()).map(|live| Live::clone(live)).unwrap_or_default());
        world.placements().map(|placement| (placement.name().clone(), shown(placement))).collect()
    };
    let shown = |node: &Node| Node { version: 0, ..node.clone() };
    let nodes = |world: &World| world.nodes().map(|node| (node.name.clone(), shown(node))).collect();
    let mut found = Vec::new();
    compare("placement", placements(one), placements(other), &mut found);
    compare("node", nodes(one), nodes(other), &mut found);
    found
}

/// Everything that must be claimed in the store, by whom: what the shell compares with what is there.
pub fn claims(world: &World) -> BTreeMap<Claimed, (PlacementName, berth_model::PlacementUid)> {
    world
        .placements()
        .flat_map(|placement| {
            claims::claims(placement).into_iter().map(|(what, uid)| (what, (placement.name().clone(), uid)))
        })
        .collect()
}

/// Compares the claims found in the store with those that its placements make. Empty is good.
pub fn check_claims(
    world: &World,
    stored: &BTreeMap<Claimed, (PlacementName, berth_model::PlacementUid)>,
) -> Vec<Violation> {
    let wanted = claims(world);
    let keys: BTreeSet<_> = wanted.keys().chain(stored.keys()).collect();
    keys.into_iter()
        .filter(|key| wanted.get(*key) != stored.get(*key))
        .map(|key| {
            violation(
                "I1",
                format!(
                    "{key:?} is claimed by {:?} in the store, by {:?} in the placements",
                    stored.get(key),
                    wanted.get(key)
                ),
            )
        })
        .collect()
}
