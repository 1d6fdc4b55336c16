//! What a run begins with: nodes with GPUs and VMs, and the bounds and times of both brains, short enough for a short run.

use super::agent::Agent;
use crate::scene::{address, gpu, legal, vm, vm_name};
use berth_agent_core::work::Pace;
use berth_core::decide::Limits;
use berth_model::gpu::HostDriver;
use berth_model::node::{HostFacts, Platform};
use berth_node_agent::driver::sim::{GpuSpec, Host, HostSpec, Rates};
use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;
use std::time::Duration;

/// VMs that are there at first, on any node, by these numbers; callers may ask for them by name.
pub(super) const VMS: u32 = 6;

/// A clock wrong by more than that is far off: half of them are.
pub(super) const SKEWED_MS: u64 = 10_000;

/// How wrong a clock goes, in milliseconds.
pub(super) fn skew(rng: &mut Xoshiro256PlusPlus) -> i64 {
    rng.random_range(-20_000..=20_000)
}

/// Times that are mostly kept, or, in every second run, mostly not: what is given up must come to the same end. In every
/// fourth, placements that are over are soon forgotten.
pub(super) fn limits(rng: &mut Xoshiro256PlusPlus) -> Limits {
    let share = if rng.random() { 1 } else { 3 };
    let s = |seconds| Duration::from_secs(seconds) / share;
    let limits = Limits {
        hold: s(40),
        prepare: s(90),
        attach: s(60),
        start: s(60),
        verify: s(120),
        release: s(60),
        ..Limits::default()
    };
    if rng.random_ratio(1, 4) { Limits { history: 3, ..limits } } else { limits }
}

pub(super) fn pace() -> Pace {
    let s = Duration::from_secs;
    Pace { verify_attempts: 6, longest_pause: s(8), stranded_pause: s(30), ..Pace::default() }
}

pub(super) fn agents(rng: &mut Xoshiro256PlusPlus, faulty: bool) -> Vec<Agent> {
    let nodes = rng.random_range(3..=8);
    let mut hosts: Vec<_> = (0..nodes).map(|number| host(rng, number)).collect();
    for number in 0..VMS {
        let at = rng.random_range(0..hosts.len());
        if let Some(host) = hosts.get_mut(at) {
            host.vms.push(vm(rng, vm_name(number)));
        }
    }
    let rates = Rates { step: rng.random_range(0..200), look: rng.random_range(0..120) };
    let mut agents = Vec::new();
    for spec in hosts {
        let mut host = Host::new(spec);
        if faulty {
            host.faults().by_chance(rng.random(), rates);
        }
        agents.push(Agent::new(host, skew(rng)));
    }
    agents
}

fn host(rng: &mut Xoshiro256PlusPlus, number: usize) -> HostSpec {
    // Mostly small: what goes wrong between two GPUs goes wrong between eight. One in eight is large all the same.
    let gpus = if rng.random_ratio(1, 8) { rng.random_range(4..=8) } else { rng.random_range(1..=3) };
    let serial = u32::try_from(number).unwrap_or(0) * 100;
    HostSpec {
        node: legal(format!("hv-{number}").parse()),
        facts: HostFacts {
            platform: Platform::Simulated,
            system: "simulated".to_owned(),
            cluster: Some(legal(format!("c{}", number % 2).parse())),
            cpu_milli: 64_000,
            memory_bytes: 1 << 39,
            mmio_high_cap_bytes: None,
            notes: Vec::new(),
        },
        gpus: (1..=gpus).map(|slot| card(rng, slot, serial + slot)).collect(),
        vms: Vec::new(),
    }
}

fn card(rng: &mut Xoshiro256PlusPlus, slot: u32, serial: u32) -> GpuSpec {
    let spec = gpu(if rng.random_ratio(2, 3) { "A2" } else { "A30" }, slot, serial);
    let spec = if rng.random_ratio(1, 3) { spec.with_companion(address(slot, 1)) } else { spec };
    GpuSpec { driver: if rng.random() { HostDriver::Bound } else { HostDriver::None }, ..spec }
}
