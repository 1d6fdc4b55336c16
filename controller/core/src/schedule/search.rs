//! Finds the best place by the index: models from the most plentiful, rooms from the best score, then a few nodes.
//!
//! Exact about *whether* there is a place. About *which*: the best room always, and within the best rooms the best of the
//! first few nodes by name, so that the cost does not grow with the number of nodes that are alike.

use super::ask::Ask;
use super::filter::{self, Choice};
use super::score::{RoomScore, plenty};
use crate::world::index::{ModelIndex, Room, Rooms};
use crate::world::{Node, World};
use berth_model::request::Locality;
use berth_model::{ModelName, NodeName};
use imbl::OrdSet;

/// Nodes that fit and are compared within one room: nodes of a room differ only in cards and pool.
const COMPARED: usize = 4;
/// Nodes that may disappoint before all are looked at instead. Rooms are coarse in processor, memory and, where cards of
/// one model differ, in GPU memory; a node at the edge of its room may fail.
const MAX_MISSES: u32 = 128;

/// The best place, if there is one.
pub(super) fn best<'w>(world: &'w World, ask: &Ask<'_>) -> Option<Choice<'w>> {
    if let Some(only) = ask.only_node() {
        return filter::check(world, ask, world.node(only)?).ok();
    }
    match by_index(world, ask) {
        Found::Best(choice) => Some(choice),
        // All failure domains without members are full: those with members are compared one by one.
        Found::Nothing if ask.group.is_some() => walk(world, ask),
        Found::Nothing => None,
        Found::TooManyMisses => walk(world, ask),
    }
}

/// Looks at every node.
fn walk<'w>(world: &'w World, ask: &Ask<'_>) -> Option<Choice<'w>> {
    let choices = world.nodes().filter_map(|node| filter::check(world, ask, node).ok());
    choices.min_by(|a, b| a.score.cmp(&b.score))
}

/// What a search by index comes to.
enum Found<'w> {
    Best(Choice<'w>),
    /// Surely nothing (with a spread group: outside the failure domains of its members).
    Nothing,
    TooManyMisses,
}

/// A room that may hold the request, with its nodes.
struct Candidate<'w> {
    score: RoomScore,
    model: &'w ModelName,
    nodes: &'w OrdSet<NodeName>,
}

fn by_index<'w>(world: &'w World, ask: &Ask<'_>) -> Found<'w> {
    let mut models: Vec<_> = world
        .index()
        .models()
        .filter(|(name, entry)| takes_model(ask, name, entry))
        .map(|(name, entry)| (plenty(entry.available), name, entry))
        .collect();
    models.sort_by_key(|(plenty, name, _)| (*plenty, *name));
    let mut misses = 0;
    for class in models.chunk_by(|a, b| a.0 == b.0) {
        let mut rooms: Vec<Candidate<'w>> = Vec::new();
        for (plenty, model, entry) in class {
            let held = rooms_of(ask, entry).into_iter().flat_map(|all| all.range(Room::from(ask.request.gpus)..));
            rooms.extend(held.filter(|(room, _)| may_hold(ask, room)).map(|(room, nodes)| Candidate {
                score: RoomScore::new(*plenty, room, ask.request.gpus, ask.need),
                model,
                nodes,
            }));
        }
        // Mostly the first room holds it: finding the best again and again beats sorting all.
        while let Some(score) = rooms.iter().map(|candidate| candidate.score).min() {
            let mut best: Option<Choice<'w>> = None;
            for candidate in rooms.extract_if(.., |candidate| candidate.score == score) {
                let mut fitting = 0;
                for node in candidate.nodes.iter().filter_map(|name| world.node(name)) {
                    if !outside_of_group(ask, node) || filter::meant(ask, node).is_err() {
                        continue;
                    }
                    match filter::fit(world, ask, node, candidate.model) {
                        Ok(choice) => {
                            fitting += 1;
                            if best.as_ref().is_none_or(|b| choice.score < b.score) {
                                best = Some(choice);
                            }
                        }
                        Err(_) => misses += 1,
                    }
                    if misses > MAX_MISSES {
                        return Found::TooManyMisses;
                    }
                    if fitting >= COMPARED {
                        break;
                    }
                }
            }
            if let Some(best) = best {
                return Found::Best(best);
            }
        }
    }
    Found::Nothing
}

fn takes_model(ask: &Ask<'_>, name: &ModelName, entry: &ModelIndex) -> bool {
    let request = ask.request;
    let enough_memory =
        request.min_vram_bytes == 0 || entry.vram.keys().flatten().any(|bytes| *bytes >= request.min_vram_bytes);
    entry.available >= request.gpus
        && enough_memory
        && (request.models.is_empty() || request.models.contains(name))
        && !request.exclude_models.contains(name)
}

fn rooms_of<'w>(ask: &Ask<'_>, entry: &'w ModelIndex) -> Option<&'w Rooms> {
    match &ask.request.cluster {
        Some(cluster) => entry.clusters.get(cluster),
        None => Some(&entry.rooms),
    }
}

/// Whether some node of a room may hold the request. `false` is certain.
fn may_hold(ask: &Ask<'_>, room: &Room) -> bool {
    let request = ask.request;
    let local = request.gpus == 1 || request.locality == Locality::Preferred || room.one_numa >= request.gpus;
    let resources = request.resources;
    room.per_vm >= request.gpus
        && local
        && room.share.may_hold(resources.cpu_milli, resources.memory_bytes, room.available)
}

/// Whether a node's failure domain has no member of the request's spread group yet.
fn outside_of_group(ask: &Ask<'_>, node: &Node) -> bool {
    ask.group.as_ref().is_none_or(|group| group.members(node).0 == 0)
}
