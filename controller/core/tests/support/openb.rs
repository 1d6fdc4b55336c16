//! Placement quality on the public openb trace: a real cluster's nodes and pods, whole GPUs only.
//!
//! Method: node order shuffled by seed; pods sampled with replacement until their GPUs sum to the fleet's (1.00×); each
//! placed in turn or refused; no departures; processor and memory count.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "test support: each program that includes this file uses another part of it"
)]

use super::fleet;
use berth_core::schedule;
use berth_core::world::{Node, World};
use berth_model::request::{Draft, PlacementRequest, Resources};
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use std::path::{Path, PathBuf};

/// The trace's folder, beside the repository; none where it is absent.
pub fn folder() -> Option<PathBuf> {
    let above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    above.map(|folder| folder.join("shared/data/openb")).find(|folder| folder.is_dir())
}

struct Host {
    cpu_milli: u64,
    memory_mib: u64,
    gpus: u32,
    model: String,
}

struct Pod {
    resources: Resources,
    gpus: u32,
    models: Vec<String>,
}

/// Nodes and pods of one pod list.
pub struct Trace {
    hosts: Vec<Host>,
    pods: Vec<Pod>,
}

/// What one run placed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// GPUs of the fleet.
    pub gpus: u32,
    /// GPUs placed.
    pub placed: u32,
    /// GPUs asked for by requests of four and more.
    pub large: u32,
    /// Those placed.
    pub large_placed: u32,
}

fn percent(part: u32, whole: u32) -> f64 {
    f64::from(part) * 100.0 / f64::from(whole)
}

impl Outcome {
    pub fn allocated(&self) -> f64 {
        percent(self.placed, self.gpus)
    }

    pub fn large_share(&self) -> f64 {
        percent(self.large_placed, self.large)
    }
}

fn rows(path: &Path) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().skip(1).map(|line| line.split(',').map(str::to_owned).collect()).collect()
}

impl Trace {
    pub fn load(folder: &Path, pods: &str) -> Self {
        let hosts = rows(&folder.join("openb_node_list_gpu_node.csv")).into_iter().map(|row| Host {
            cpu_milli: row[1].parse().unwrap(),
            memory_mib: row[2].parse().unwrap(),
            gpus: row[3].parse().unwrap(),
            model: row[4].clone(),
        });
        let pods = rows(&folder.join(pods)).into_iter().filter_map(|row| {
            let gpus: u32 = row[3].parse().unwrap();
            let whole = gpus >= 1 && row[4] == "1000";
            let mut models: Vec<String> = row[5].split('|').filter(|m| !m.is_empty()).map(str::to_owned).collect();
            models.sort();
            models.dedup();
            let memory_mib: u64 = row[2].parse().unwrap();
            let resources = Resources { cpu_milli: row[1].parse().unwrap(), memory_bytes: memory_mib << 20 };
            whole.then_some(Pod { resources, gpus, models })
        });
        Self { hosts: hosts.collect(), pods: pods.collect() }
    }

    /// The fleet with its nodes in an order drawn from `random`: names follow the order.
    fn world(&self, random: &mut impl Rng) -> World {
        let mut hosts: Vec<&Host> = self.hosts.iter().collect();
        hosts.shuffle(random);
        fleet::world(hosts.into_iter().enumerate().map(|(at, host)| {
            let mut node: Node = fleet::node_of(&format!("node-{at:04}"), host.gpus, &host.model);
            node.facts.cpu_milli = host.cpu_milli;
            node.facts.memory_bytes = host.memory_mib << 20;
            node
        }))
    }

    /// One run. Every decision's GPUs are really claimed, so a double use would show as a missing GPU.
    pub fn run(&self, seed: u64) -> Outcome {
        let mut random = StdRng::seed_from_u64(seed);
        let mut world = self.world(&mut random);
        let mut outcome = Outcome { gpus: self.hosts.iter().map(|host| host.gpus).sum(), ..Outcome::default() };
        let mut asked = 0;
        for number in 0.. {
            if asked >= outcome.gpus {
                break;
            }
            let pod = self.pods.choose(&mut random).unwrap();
            asked += pod.gpus;
            let large = if pod.gpus >= 4 { pod.gpus } else { 0 };
            outcome.large += large;
            let request = self.request(number, pod);
            if let Some(assignment) = schedule::find(&world, &request, fleet::NOW).unwrap() {
                outcome.placed += pod.gpus;
                outcome.large_placed += large;
                world.put_placement(fleet::held(number, request, assignment));
            }
        }
        let claimed = world.nodes().flat_map(|node| node.gpus.values()).filter(|gpu| gpu.claim.is_some()).count();
        assert_eq!(claimed, outcome.placed as usize, "seed {seed}: GPUs placed and GPUs claimed differ");
        outcome
    }

    fn request(&self, number: usize, pod: &Pod) -> PlacementRequest {
        let draft = fleet::draft(&format!("pod-{number}"), pod.gpus);
        fleet::request(Draft { models: pod.models.clone(), resources: pod.resources, ..draft })
    }
}

/// The mean of a figure over runs.
pub fn mean(outcomes: &[Outcome], figure: fn(&Outcome) -> f64) -> f64 {
    let count = u32::try_from(outcomes.len()).unwrap();
    outcomes.iter().map(figure).sum::<f64>() / f64::from(count)
}

/// The least of a figure over runs.
pub fn least(outcomes: &[Outcome], figure: fn(&Outcome) -> f64) -> f64 {
    outcomes.iter().map(figure).fold(f64::INFINITY, f64::min)
}
