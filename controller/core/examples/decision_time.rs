//! Prints how long one decision takes (choose, claim, update the index) at 100, 1,000 and 10,000 nodes of 8 GPUs.
//!
//! Each fleet is first filled to about half with VMs of mixed sizes, so that rooms of every kind exist. Then each timed
//! decision is undone outside the clock. A snapshot is taken for every group of decisions, as the leader does for its
//! readers, and the copies on write that it causes are counted. The last line of each fleet is what a lone placement costs:
//! nothing of the world is in the caches, and every decision has a snapshot of its own.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program for people at a terminal")]

#[path = "../tests/support/fleet.rs"]
mod fleet;

use berth_core::schedule;
use berth_core::world::World;
use berth_model::request::{Draft, PlacementRequest, Resources};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::time::{Duration, Instant};

/// As in the controller.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SAMPLES: usize = 20_000;
/// Decisions that begin with cold caches.
const COLD_SAMPLES: usize = 2_000;
/// Read between two such decisions: more than the caches of a core.
const THRASH_BYTES: usize = 6 << 20;
/// Decisions committed together, and so published together.
const GROUP: usize = 32;

fn half_full(nodes: usize) -> World {
    let mut random = StdRng::seed_from_u64(7);
    let models = ["A16", "L40S", "H100"];
    let mut world = fleet::world((0..nodes).map(|at| {
        let mut node = fleet::node_of(&format!("hv-{at:05}"), 8, models[at % models.len()]);
        for (slot, gpu) in (0_u16..).zip(node.gpus.values_mut()) {
            gpu.observed.survey.numa_node = Some(slot / 4);
        }
        node.facts.cpu_milli = 128_000;
        node.facts.memory_bytes = 1 << 40;
        node.facts.mmio_high_cap_bytes = Some(1 << 40);
        fleet::in_cluster(node, &format!("cluster-{}", at / 16))
    }));
    for number in 0..nodes * 3 {
        let gpus = [1, 1, 1, 2, 4][random.random_range(0..5)];
        let resources = Resources {
            cpu_milli: u64::from(gpus) * random.random_range(1..=16) * 1000,
            memory_bytes: (u64::from(gpus) * random.random_range(1..=120)) << 30,
        };
        // Over the fleet, not packed: the scheduler would leave few kinds of rooms.
        let node = format!("hv-{:05}", random.random_range(0..nodes));
        let request = fleet::request(Draft { resources, node, ..fleet::draft(&format!("full-{number}"), gpus) });
        if let Some(assignment) = schedule::find(&world, &request, fleet::NOW).unwrap() {
            world.put_placement(fleet::held(number, request, assignment));
        }
    }
    world
}

fn request(number: usize, gpus: u32) -> PlacementRequest {
    let share = u64::from(gpus);
    let resources = Resources { cpu_milli: share * 4000, memory_bytes: (share * 32) << 30 };
    fleet::request(Draft { resources, ..fleet::draft(&format!("timed-{number}"), gpus) })
}

/// Median and 99th percentile of one decision.
fn measure(world: &mut World, gpus: u32) -> (Duration, Duration) {
    let mut times = Vec::with_capacity(SAMPLES);
    let mut snapshot = world.clone();
    for number in 0..SAMPLES {
        let request = request(number, gpus);
        if number % GROUP == 0 {
            snapshot = world.clone();
        }
        let start = Instant::now();
        let assignment = schedule::schedule(world, &request, fleet::NOW).unwrap();
        let name = request.name.clone();
        world.put_placement(fleet::held(1 << 30 | number, request, assignment));
        times.push(start.elapsed());
        world.remove_placement(&name);
    }
    drop(snapshot);
    times.sort_unstable();
    (times[SAMPLES / 2], times[SAMPLES * 99 / 100])
}

/// Median time of one decision, and of taking the snapshot before it apart, when other programs have had the caches.
fn measure_cold(world: &mut World) -> (Duration, Duration) {
    let (mut decided, mut dropped) = (Vec::new(), Vec::new());
    let mut others = vec![1_u8; THRASH_BYTES];
    let mut use_caches = |with: u8| {
        for line in others.iter_mut().step_by(64) {
            *line = std::hint::black_box(line.wrapping_add(with));
        }
    };
    let mut snapshot = world.clone();
    for number in 0..COLD_SAMPLES {
        let request = request(number, 1);
        use_caches(1);
        let start = Instant::now();
        let assignment = schedule::schedule(world, &request, fleet::NOW).unwrap();
        world.put_placement(fleet::held(1 << 30 | number, request, assignment));
        decided.push(start.elapsed());
        let before = std::mem::replace(&mut snapshot, world.clone());
        use_caches(3);
        let start = Instant::now();
        drop(before);
        dropped.push(start.elapsed());
    }
    for number in 0..COLD_SAMPLES {
        world.remove_placement(&request(number, 1).name);
    }
    decided.sort_unstable();
    dropped.sort_unstable();
    (decided[COLD_SAMPLES / 2], dropped[COLD_SAMPLES / 2])
}

/// Median time of refusing what no node can give, without and with the explanation.
fn measure_refusal(world: &World) -> (Duration, Duration) {
    let request = request(0, 16);
    let median = |samples: usize, refuse: &dyn Fn()| {
        let mut times: Vec<Duration> = (0..samples)
            .map(|_| {
                let start = Instant::now();
                refuse();
                start.elapsed()
            })
            .collect();
        times.sort_unstable();
        times[samples / 2]
    };
    let find = || assert!(schedule::find(world, &request, fleet::NOW).unwrap().is_none());
    let explain = || assert!(schedule::schedule(world, &request, fleet::NOW).is_err());
    (median(1000, &find), median(50, &explain))
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn main() {
    println!("| nodes | rooms | 1 GPU p50 | p99 | 8 GPUs p50 | p99 | 8 / 1 GPUs, p50 | p99 |");
    println!("|---|---|---|---|---|---|---|---|");
    let mut first: Option<[Duration; 4]> = None;
    for nodes in [100, 1_000, 10_000] {
        let mut world = half_full(nodes);
        let rooms: usize = world.index().models().map(|(_, entry)| entry.rooms.len()).sum();
        let (one, one_99) = measure(&mut world, 1);
        let (eight, eight_99) = measure(&mut world, 8);
        println!(
            "| {nodes} | {rooms} | {:.1} µs | {:.1} µs | {:.1} µs | {:.1} µs | {:.2} | {:.2} |",
            micros(one),
            micros(one_99),
            micros(eight),
            micros(eight_99),
            micros(eight) / micros(one),
            micros(eight_99) / micros(one_99),
        );
        let (refused, explained) = measure_refusal(&world);
        println!("  refused: {:.1} µs; explained: {:.0} µs", micros(refused), micros(explained));
        if nodes * 4 > COLD_SAMPLES {
            let (decided, dropped) = measure_cold(&mut world);
            println!("  with cold caches: {:.1} µs; dropping it: {:.1} µs", micros(decided), micros(dropped));
        }
        let now = [one, one_99, eight, eight_99];
        let then = *first.get_or_insert(now);
        let ratios: Vec<String> =
            now.iter().zip(then).map(|(now, then)| format!("{:.2}", micros(*now) / micros(then))).collect();
        println!("  against 100 nodes: {}", ratios.join(", "));
    }
}
