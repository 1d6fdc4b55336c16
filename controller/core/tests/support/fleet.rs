//! Small fleets for tests, examples and benchmarks: nodes that are ready, GPUs that are available.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "test support: each program that includes this file uses another part of it"
)]

use berth_core::world::{Gpu, Link, Node, View, World};
use berth_model::gpu::{Fingerprint, GpuHealth, GpuState, HostDriver, MmioSize, ObservedGpu, Survey, Verdict};
use berth_model::id::ClusterName;
use berth_model::node::{HostFacts, Platform};
use berth_model::placement::{Assignment, Phase, Placement};
use berth_model::request::{Draft, PlacementRequest, Resources};
use berth_model::{ModelName, NodeName, PlacementUid, Timestamp};
use std::collections::BTreeMap;
use std::time::Duration;

pub const NOW: Timestamp = Timestamp::from_millis(1_795_382_868_000);

/// A ready node without GPUs, with so much processor and memory that neither matters.
pub fn node(name: &str) -> Node {
    Node {
        name: NodeName::new(name).unwrap(),
        facts: HostFacts {
            platform: Platform::Simulated,
            system: "test".to_owned(),
            cluster: None,
            cpu_milli: 512_000,
            memory_bytes: 4 << 40,
            mmio_high_cap_bytes: None,
            notes: Vec::new(),
        },
        agent_version: "0".to_owned(),
        first_seen: NOW,
        cordons: Vec::new(),
        version: 1,
        generation: 0,
        link: Link::Connected { since: NOW },
        view: View::Complete,
        boot: None,
        gpus: BTreeMap::new(),
        vms: BTreeMap::new(),
        stale_since: BTreeMap::new(),
        reserved: Resources::default(),
    }
}

/// A GPU at root bus `slot`, in the host's hands, its NUMA node unknown.
pub fn gpu(slot: u32, model: &str) -> Gpu {
    Gpu {
        observed: ObservedGpu {
            address: format!("PCIROOT({slot:X})#PCI(0000)").parse().unwrap(),
            survey: Survey {
                model: ModelName::new(model).unwrap(),
                fingerprint: Fingerprint { id: "10de:25b6:10de:14a9".parse().unwrap(), serial: None },
                vram_bytes: Some(16 << 30),
                mmio: MmioSize { low_bytes: 16 << 20, high_bytes: (32 << 30) + (32 << 20) },
                numa_node: None,
                companions: Vec::new(),
                verdict: Verdict::Assignable,
            },
            state: GpuState::Host { driver: HostDriver::None },
            health: GpuHealth::Ok,
            problem: None,
        },
        observed_at: Some(NOW),
        since: Some(NOW),
        claim: None,
    }
}

/// Puts GPUs into a node.
pub fn with(mut node: Node, gpus: impl IntoIterator<Item = Gpu>) -> Node {
    node.gpus.extend(gpus.into_iter().map(|gpu| (gpu.observed.address.clone(), gpu)));
    node
}

/// A ready node with `count` GPUs of one model.
pub fn node_of(name: &str, count: u32, model: &str) -> Node {
    with(node(name), (0..count).map(|slot| gpu(slot, model)))
}

pub fn in_cluster(mut node: Node, cluster: &str) -> Node {
    node.facts.cluster = Some(ClusterName::new(cluster).unwrap());
    node
}

pub fn world(nodes: impl IntoIterator<Item = Node>) -> World {
    let mut world = World::default();
    for node in nodes {
        world.insert_node(node);
    }
    world
}

/// A request for `gpus` GPUs; its VM has its name.
pub fn draft(name: &str, gpus: u32) -> Draft {
    Draft {
        request_id: format!("request-{name}"),
        name: name.to_owned(),
        vm: name.to_owned(),
        gpus,
        ..Draft::default()
    }
}

pub fn request(draft: Draft) -> PlacementRequest {
    PlacementRequest::new(draft).unwrap()
}

/// A placement held where it was decided.
pub fn held(uid: usize, request: PlacementRequest, assignment: Assignment) -> Placement {
    Placement {
        uid: PlacementUid::new(format!("00000000-0000-0000-0000-{uid:012x}")).unwrap(),
        request,
        caller: "test".to_owned(),
        trace: None,
        created: NOW,
        version: 1,
        phase: Phase::Held { until: NOW.after(Duration::from_secs(600)) },
        phase_since: NOW,
        assignment: Some(assignment),
        vm_id: None,
        generation: 0,
        history: Vec::new(),
    }
}
