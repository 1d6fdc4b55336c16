//! Finds the best place by the index: models from the most plentiful, rooms from the best score, then a few nodes.
//!
//! Exact about *whether* there is a place. About *which*: the best room always, and within the best rooms the best of the
//! first few nodes by name, so that the cost does not grow with the number of nodes that are alike.

use super::ask::Ask;
use super::filter::{self, Choice};
use super::score::{ModelRank, RoomScore};
use crate::world::index::{ModelIndex, Room, Rooms};
use crate::world::{Node, World};
use berth_model::request::Locality;
use berth_model::{ModelName, NodeName};
use imbl::OrdSet;

/// Nodes that fit and are compared when their rooms score alike: such nodes differ only in cards and pool.
const COMPARED: usize = 2;
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

/// A model that the request would take, its rank, and what is known of it.
type Model<'w> = (ModelRank, &'w ModelName, &'w ModelIndex);

fn by_index<'w>(world: &'w World, ask: &Ask<'_>) -> Found<'w> {
    let mut models: Vec<Model<'w>> = world
        .index()
        .models()
        .filter(|(name, entry)| takes_model(ask, name, entry))
        .map(|(name, entry)| (ModelRank::new(entry), name, &**entry))
        .collect();
    models.sort_by_key(|(rank, name, _)| (*rank, *name));
    let mut misses = 0;
    for class in models.chunk_by(|a, b| a.0 == b.0) {
        // Mostly the first score holds it: looking for the next best again and again beats sorting all rooms.
        let mut tried = None;
        while let Some((score, rooms)) = next_rooms(ask, class, tried) {
            match best_in(world, ask, score, &rooms, &mut misses) {
                Found::Nothing => tried = Some(score),
                found @ (Found::Best(_) | Found::TooManyMisses) => return found,
            }
        }
    }
    Found::Nothing
}

/// The rooms that may hold the request and have the best score after `tried`, with that score.
#[expect(clippy::type_complexity, reason = "a name for a pair of one caller would say less")]
fn next_rooms<'w>(
    ask: &Ask<'_>,
    class: &[Model<'w>],
    tried: Option<RoomScore>,
) -> Option<(RoomScore, Vec<(&'w ModelName, &'w OrdSet<NodeName>)>)> {
    let mut best: Option<RoomScore> = None;
    let mut rooms = Vec::new();
    for (rank, model, entry) in class {
        for (room, nodes) in rooms_of(ask, entry).into_iter().flat_map(|all| all.range(Room::from(ask.request.gpus)..))
        {
            let score = RoomScore::new(*rank, room, ask.request.gpus, ask.need);
            if tried.is_some_and(|tried| score <= tried)
                || best.is_some_and(|best| best < score)
                || !may_hold(ask, room)
            {
                continue;
            }
            if best != Some(score) {
                best = Some(score);
                rooms.clear();
            }
            rooms.push((*model, nodes));
        }
    }
    best.map(|score| (score, rooms))
}

/// The best of the first nodes that fit in rooms of one score.
fn best_in<'w>(
    world: &'w World,
    ask: &Ask<'_>,
    score: RoomScore,
    rooms: &[(&'w ModelName, &'w OrdSet<NodeName>)],
    misses: &mut u32,
) -> Found<'w> {
    let mut best: Option<Choice<'w>> = None;
    let mut fitting = 0;
    let nodes = rooms.iter().flat_map(|(model, nodes)| nodes.iter().map(move |name| (*model, name)));
    for (model, node) in nodes.filter_map(|(model, name)| Some((model, world.node(name)?))) {
        if !outside_of_group(ask, node) || filter::meant(ask, node).is_err() {
            continue;
        }
        let Ok(fit) = filter::fit(ask, node, model) else {
            *misses += 1;
            if *misses > MAX_MISSES {
                return Found::TooManyMisses;
            }
            continue;
        };
        let choice = fit.rated(ask, score);
        if best.as_ref().is_none_or(|b| choice.score < b.score) {
            best = Some(choice);
        }
        fitting += 1;
        if fitting >= COMPARED {
            break;
        }
    }
    best.map_or(Found::Nothing, Found::Best)
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
