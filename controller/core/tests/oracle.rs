//! The scheduler against an exhaustive search, and the index against its recomputation, on random small worlds.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

#[path = "support/fleet.rs"]
mod fleet;

use berth_core::schedule;
use berth_core::world::index::Index;
use berth_core::world::{Gpu, Link, Node, View, World};
use berth_model::gpu::{Finding, GpuHealth, GpuState, MmioSize, Verdict};
use berth_model::mmio;
use berth_model::node::Cordon;
use berth_model::reason::Refusal;
use berth_model::request::{Draft, Locality, PlacementRequest, Resources};
use berth_model::{NodeName, VmId};
use fleet::NOW;
use proptest::prelude::*;
use proptest::sample::select;

const MODELS: [&str; 3] = ["A2", "A16", "H100"];

fn any_gpu(slot: u32) -> impl Strategy<Value = Gpu> {
    let window = select(vec![256_u64 << 20, (16 << 30) + (32 << 20), 33 << 30, 0]);
    let vram = select(vec![None, Some(16_u64 << 30), Some(48 << 30)]);
    let numa = select(vec![None, Some(0_u16), Some(1)]);
    (0..3_usize, window, vram, numa, 0..12_u8).prop_map(move |(model, high_bytes, vram, numa, oddity)| {
        let mut gpu = fleet::gpu(slot, MODELS[model]);
        // Two functions a card.
        gpu.observed.address = format!("0000:{:02x}:00.{}", slot / 2, slot % 2).parse().unwrap();
        gpu.observed.survey.mmio = MmioSize { low_bytes: 0, high_bytes };
        gpu.observed.survey.vram_bytes = vram;
        gpu.observed.survey.numa_node = numa;
        match oddity {
            0 => gpu.observed.state = GpuState::Unknown,
            1 => gpu.observed.survey.verdict = Verdict::Blocked(vec![Finding::NoAcs]),
            2 => gpu.observed.health = GpuHealth::NeedsHostReboot,
            3..=6 => gpu.observed.state = GpuState::Pooled,
            _ => {}
        }
        gpu
    })
}

fn any_node(at: usize) -> impl Strategy<Value = Node> {
    let gpus = (0..=5_u32).prop_flat_map(|count| (0..count).map(any_gpu).collect::<Vec<_>>());
    let cap = select(vec![None, Some(60_u64 << 30), Some(120 << 30)]);
    (gpus, cap, 0..32_u64, 0..64_u64, 0..4_u8, 0..8_u8).prop_map(move |(gpus, cap, cores, gib, cluster, oddity)| {
        let mut node = fleet::with(fleet::node(&format!("n-{at}")), gpus);
        node.facts.mmio_high_cap_bytes = cap;
        node.facts.cpu_milli = cores * 1000;
        node.facts.memory_bytes = gib << 30;
        match oddity {
            0 => node.link = Link::Disconnected { since: NOW },
            1 => node.view = View::NotReported,
            2 => node.cordons.push(Cordon { label: "x".to_owned(), reason: "y".to_owned(), since: NOW }),
            _ => {}
        }
        if cluster > 0 { fleet::in_cluster(node, &format!("c-{cluster}")) } else { node }
    })
}

fn any_nodes() -> impl Strategy<Value = Vec<Node>> {
    (1..7_usize).prop_flat_map(|count| (0..count).map(any_node).collect::<Vec<_>>())
}

fn any_draft() -> impl Strategy<Value = Draft> {
    let some_models = proptest::sample::subsequence(MODELS.to_vec(), 0..=2);
    let small = (select(vec![0_u64, 0, 1000, 3500, 9000]), select(vec![0_u64, 0, 1, 7, 20]));
    let place = (select(vec!["", "", "", "n-0"]), select(vec!["", "", "c-1"]), select(vec!["", "g"]));
    let vram = select(vec![0_u64, 0, 0, 16 << 30, 20 << 30]);
    (1..=4_u32, some_models, small, place, vram, any::<bool>(), any::<bool>()).prop_map(
        |(gpus, models, (cpu_milli, gib), (node, cluster, group), min_vram_bytes, required, exclude)| Draft {
            models: models.iter().map(|model| (*model).to_owned()).collect(),
            node: node.to_owned(),
            cluster: cluster.to_owned(),
            spread_group: group.to_owned(),
            min_vram_bytes,
            exclude_nodes: if exclude && node.is_empty() { vec!["n-1".to_owned()] } else { Vec::new() },
            locality: if required { Locality::Required } else { Locality::Preferred },
            resources: Resources { cpu_milli, memory_bytes: gib << 30 },
            ..fleet::draft("p", gpus)
        },
    )
}

/// Whether these GPUs of one node would do, by the words of the request alone.
fn would_do(node: &Node, gpus: &[&Gpu], request: &PlacementRequest) -> bool {
    let survey = |gpu: &Gpu| gpu.observed.survey.clone();
    let one_model = gpus.windows(2).all(|pair| pair[0].model() == pair[1].model());
    let wanted = gpus.iter().all(|gpu| {
        node.is_available(gpu)
            && (request.models.is_empty() || request.models.contains(gpu.model()))
            && (request.min_vram_bytes == 0 || survey(gpu).vram_bytes >= Some(request.min_vram_bytes))
    });
    let numa = survey(gpus[0]).numa_node;
    let one_numa = gpus.len() == 1 || numa.is_some() && gpus.iter().all(|gpu| survey(gpu).numa_node == numa);
    let windows: Vec<MmioSize> = gpus.iter().map(|gpu| survey(gpu).mmio).collect();
    let left = node.left();
    one_model
        && wanted
        && (request.locality == Locality::Preferred || one_numa)
        && mmio::check(&windows, node.facts.mmio_high_cap_bytes).is_ok()
        && left.cpu_milli >= request.resources.cpu_milli
        && left.memory_bytes >= request.resources.memory_bytes
        && request.node.as_ref().is_none_or(|name| *name == node.name)
        && !request.exclude_nodes.contains(&node.name)
        && (request.cluster.is_none() || node.cluster() == request.cluster.as_ref())
}

/// Whether any set of GPUs of any node would do: all are tried.
fn exists(world: &World, request: &PlacementRequest) -> bool {
    world.nodes().any(|node| {
        let gpus: Vec<&Gpu> = node.gpus.values().collect();
        (0_u32..1 << gpus.len()).filter(|set| set.count_ones() == request.gpus).any(|set| {
            let chosen: Vec<&Gpu> =
                gpus.iter().enumerate().filter(|(at, _)| set >> at & 1 == 1).map(|(_, gpu)| *gpu).collect();
            would_do(node, &chosen, request)
        })
    })
}

fn index_is_recomputed(world: &World) -> bool {
    *world.index() == Index::recompute(world.nodes().map(|node| &**node))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_place_is_found_exactly_if_there_is_one(nodes in any_nodes(), drafts in proptest::collection::vec(any_draft(), 1..5)) {
        let mut world = fleet::world(nodes);
        for (number, draft) in drafts.into_iter().enumerate() {
            let draft = Draft { name: format!("p-{number}"), vm: format!("vm-{number}"), request_id: format!("r-{number}"), ..draft };
            let request = fleet::request(draft);
            let outcome = schedule::schedule(&world, &request, NOW);
            prop_assert_eq!(&outcome, &schedule::schedule(&world, &request, NOW), "the same again came out otherwise");
            prop_assert_eq!(schedule::find(&world, &request, NOW).map_err(|e| e.name()), match &outcome {
                Ok(assignment) => Ok(Some(assignment.clone())),
                Err(Refusal::NotPlaceable(_)) => Ok(None),
                Err(other) => Err(other.name()),
            });
            match outcome {
                Ok(assignment) => {
                    let node = world.node(&assignment.node).unwrap();
                    let gpus: Vec<&Gpu> = assignment.gpus.iter().map(|gpu| &node.gpus[&gpu.address]).collect();
                    prop_assert_eq!(gpus.len(), request.gpus as usize);
                    prop_assert!(assignment.gpus.is_sorted_by(|a, b| a.address < b.address), "not in order, or one twice");
                    prop_assert!(would_do(node, &gpus, &request), "{assignment:?} is not what {request:?} asks for");
                    world.put_placement(fleet::held(number, request, assignment));
                    prop_assert!(index_is_recomputed(&world));
                }
                Err(Refusal::NotPlaceable(explanation)) => {
                    prop_assert!(!exists(&world, &request), "there is a place for {request:?}: {explanation}");
                    let counted: u32 = explanation.counts.iter().map(|(_, count)| count).sum();
                    prop_assert_eq!(counted as usize, world.node_count());
                    prop_assert_eq!(&explanation.nearest.as_ref().unwrap().node, &explanation.rejected[0].0);
                }
                Err(Refusal::UnknownModel { .. } | Refusal::UnknownCluster { .. }) => prop_assert!(!exists(&world, &request)),
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
    }

    #[test]
    fn the_index_is_its_recomputation_after_any_changes(
        nodes in any_nodes(),
        changes in proptest::collection::vec((0..6_usize, 0..8_u8, 0..6_u32, any_gpu(9)), 1..20),
    ) {
        let mut world = fleet::world(nodes);
        for (at, kind, slot, other) in changes {
            let name = NodeName::new(format!("n-{at}")).unwrap();
            let snapshot = world.clone();
            world.update_node(&name, |node| {
                let gpu = node.gpus.values_mut().nth(slot as usize);
                match (kind, gpu) {
                    (0, _) => node.link = Link::Disconnected { since: NOW },
                    (1, _) => node.link = Link::Connected { since: NOW },
                    (2, _) => node.cordons.clear(),
                    (3, _) => node.facts.cpu_milli += 1500,
                    (4, _) => drop(node.gpus.insert(other.observed.address.clone(), other)),
                    (5, Some(gpu)) => gpu.observed.state = GpuState::Attached { vm: VmId::new("00000000-0000-0000-0000-000000000001").unwrap() },
                    (6, Some(gpu)) => gpu.observed.survey.model = other.observed.survey.model,
                    _ => *node = fleet::in_cluster(node.clone(), "c-2"),
                }
            });
            prop_assert!(index_is_recomputed(&world));
            prop_assert!(index_is_recomputed(&snapshot), "a snapshot changed");
        }
    }
}
