//! Decisions and explanations on small fleets, each as one line of text.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

#[path = "support/fleet.rs"]
mod fleet;

use berth_core::schedule::{capacity, plan, schedule};
use berth_core::world::{Gpu, Link, Node, View, World};
use berth_model::gpu::{GpuHealth, GpuState, QuarantineReason, Verdict};
use berth_model::node::Cordon;
use berth_model::reason::Refusal;
use berth_model::request::{Draft, Locality, Resources};
use berth_model::vm::{ObservedVm, VmState};
use berth_model::{NodeName, Timestamp, VmId, VmName};
use expect_test::{Expect, expect};
use fleet::{NOW, draft, gpu, held, in_cluster, node, node_of, request, with, world};

/// What becomes of a request: node and GPUs, or the refusal's name and text.
fn decide(world: &World, draft: Draft) -> String {
    match schedule(world, &request(draft), NOW) {
        Ok(assignment) => {
            let gpus: Vec<_> = assignment.gpus.iter().map(|gpu| gpu.address.to_string()).collect();
            let model = assignment.gpus.first().map(|gpu| gpu.model.to_string());
            format!("{} {}: {}", assignment.node, model.unwrap_or_default(), gpus.join(" "))
        }
        Err(refusal) => format!("{}: {refusal}", refusal.name()),
    }
}

fn check(world: &World, draft: Draft, expected: Expect) {
    expected.assert_eq(&decide(world, draft));
}

/// Places a request for good.
fn place(world: &mut World, uid: usize, draft: Draft) {
    let request = request(draft);
    let assignment = schedule(world, &request, NOW).unwrap();
    world.put_placement(held(uid, request, assignment));
}

fn numa(mut gpu: Gpu, node: u16) -> Gpu {
    gpu.observed.survey.numa_node = Some(node);
    gpu
}

fn at(mut gpu: Gpu, address: &str) -> Gpu {
    gpu.observed.address = address.parse().unwrap();
    gpu
}

fn pooled(mut gpu: Gpu) -> Gpu {
    gpu.observed.state = GpuState::Pooled;
    gpu
}

fn models(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn cordoned(mut node: Node, label: &str) -> Node {
    node.cordons.push(Cordon { label: label.to_owned(), reason: "test".to_owned(), since: NOW });
    node
}

fn with_vm(mut node: Node, number: u32, name: &str, clustered: bool) -> Node {
    let id = VmId::new(format!("00000000-0000-0000-0000-{number:012}")).unwrap();
    let vm = ObservedVm {
        id: id.clone(),
        name: VmName::new(name).unwrap(),
        state: VmState::Off,
        clustered,
        devices: Vec::new(),
    };
    node.vms.insert(id, vm);
    node
}

#[test]
fn who_does_not_care_gets_the_most_plentiful_model() {
    let fleet = || world([node_of("a", 1, "H100"), node_of("b", 8, "A16"), node_of("c", 8, "A16")]);
    check(&fleet(), draft("any", 1), expect!["b A16: PCIROOT(0)#PCI(0000)"]);
    let named = Draft { models: models(&["H100"]), ..draft("named", 1) };
    check(&fleet(), named, expect!["a H100: PCIROOT(0)#PCI(0000)"]);
    let not_that = Draft { exclude_models: models(&["A16"]), ..draft("not-that", 1) };
    check(&fleet(), not_that, expect!["a H100: PCIROOT(0)#PCI(0000)"]);
}

#[test]
fn of_models_equally_plentiful_the_larger_is_spared() {
    let large = |name: &str| {
        let mut node = node_of(name, 8, "H100");
        node.gpus.values_mut().for_each(|gpu| gpu.observed.survey.vram_bytes = Some(80 << 30));
        node
    };
    let world = world([large("a"), node_of("b", 8, "L4")]);
    check(&world, draft("any", 1), expect!["b L4: PCIROOT(0)#PCI(0000)"]);
    check(&world, Draft { min_vram_bytes: 40 << 30, ..draft("large", 1) }, expect!["a H100: PCIROOT(0)#PCI(0000)"]);
}

#[test]
fn whole_slots_are_kept() {
    let mut world = world([node_of("big", 8, "A16"), node_of("four", 4, "A16"), node_of("three", 3, "A16")]);
    check(&world, draft("one", 1), expect!["three A16: PCIROOT(0)#PCI(0000)"]);
    check(
        &world,
        draft("four", 4),
        expect!["four A16: PCIROOT(0)#PCI(0000) PCIROOT(1)#PCI(0000) PCIROOT(2)#PCI(0000) PCIROOT(3)#PCI(0000)"],
    );
    place(&mut world, 1, draft("three", 3));
    check(&world, draft("next", 1), expect!["four A16: PCIROOT(0)#PCI(0000)"]);
}

#[test]
fn nodes_with_room_are_for_requests_that_need_room() {
    let sized = |name: &str, cores: u64| {
        let mut node = node_of(name, 2, "T4");
        node.facts.cpu_milli = cores * 1000;
        node
    };
    let world = world([sized("roomy", 64), sized("tight", 16)]);
    let cores =
        |cores: u64| Draft { resources: Resources { cpu_milli: cores * 1000, memory_bytes: 0 }, ..draft("vm", 1) };
    check(&world, cores(4), expect!["tight T4: PCIROOT(0)#PCI(0000)"]);
    check(&world, cores(12), expect!["roomy T4: PCIROOT(0)#PCI(0000)"]);
}

#[test]
fn gpus_hang_on_one_numa_node_where_they_can() {
    let spread = with(node("n"), (0..4).map(|slot| numa(gpu(slot, "A16"), u16::try_from(slot % 2).unwrap())));
    let world = world([spread]);
    check(&world, draft("two", 2), expect!["n A16: PCIROOT(0)#PCI(0000) PCIROOT(2)#PCI(0000)"]);
    check(&world, draft("three", 3), expect!["n A16: PCIROOT(0)#PCI(0000) PCIROOT(1)#PCI(0000) PCIROOT(2)#PCI(0000)"]);
    check(
        &world,
        Draft { locality: Locality::Required, ..draft("three", 3) },
        expect![
            "NOT_PLACEABLE: none of 1 nodes can give 3 GPUs now (NotOneNuma: 1); nearest is n: at most 2 are available on one NUMA node; it would fit if the request prefers one NUMA node instead of requiring it"
        ],
    );
}

#[test]
fn an_unknown_numa_node_is_no_promise() {
    let world = world([node_of("n", 2, "A16")]);
    let required = |gpus| Draft { locality: Locality::Required, ..draft("vm", gpus) };
    check(&world, required(1), expect!["n A16: PCIROOT(0)#PCI(0000)"]);
    check(
        &world,
        required(2),
        expect![
            "NOT_PLACEABLE: none of 1 nodes can give 2 GPUs now (NotOneNuma: 1); nearest is n: at most 0 are available on one NUMA node; it would fit if the request prefers one NUMA node instead of requiring it"
        ],
    );
}

#[test]
fn cards_stay_whole_and_the_pool_goes_first() {
    let cards = ["0000:01:00.0", "0000:01:00.1", "0000:02:00.0"];
    let world = world([with(node("n"), cards.map(|address| at(gpu(0, "A16"), address)))]);
    check(&world, draft("one", 1), expect!["n A16: 0000:02:00.0"]);
    check(&world, draft("two", 2), expect!["n A16: 0000:01:00.0 0000:01:00.1"]);
    let pool = with(node("n"), [gpu(0, "A16"), pooled(gpu(1, "A16"))]);
    check(&fleet::world([pool]), draft("one", 1), expect!["n A16: PCIROOT(1)#PCI(0000)"]);
}

#[test]
fn a_spread_group_goes_to_other_clusters_then_other_nodes() {
    let mut world = world([
        in_cluster(node_of("a1", 2, "A2"), "a"),
        in_cluster(node_of("a2", 2, "A2"), "a"),
        in_cluster(node_of("b1", 2, "A2"), "b"),
    ]);
    let mut seen = Vec::new();
    for number in 0..5 {
        let wanted = Draft { spread_group: "web".to_owned(), ..draft(&format!("web-{number}"), 1) };
        seen.push(decide(&world, wanted.clone()));
        place(&mut world, number, wanted);
    }
    expect![[r#"
        a1 A2: PCIROOT(0)#PCI(0000)
        b1 A2: PCIROOT(0)#PCI(0000)
        a2 A2: PCIROOT(0)#PCI(0000)
        b1 A2: PCIROOT(1)#PCI(0000)
        a1 A2: PCIROOT(1)#PCI(0000)"#]]
    .assert_eq(&seen.join("\n"));
}

#[test]
fn a_misspelt_cluster_is_no_filter_that_nothing_passes() {
    let world = world([in_cluster(node_of("a", 1, "A16"), "hci-1")]);
    let asked = |cluster: &str| Draft { cluster: cluster.into(), ..draft("p", 1) };
    check(&world, asked("hci-l"), expect!["UNKNOWN_CLUSTER: no node of cluster hci-l is known; did you mean hci-1?"]);
    // Known, and full.
    let held = Draft { cluster: "hci-1".into(), gpus: 2, ..draft("p", 2) };
    assert!(matches!(schedule(&world, &request(held), NOW), Err(Refusal::NotPlaceable(_))));
}

#[test]
fn what_a_node_has_that_never_told_is_not_known() {
    let mut silent = node_of("silent", 0, "A16");
    silent.view = View::NotReported;
    let world = world([silent]);
    let Err(Refusal::NotPlaceable(why)) = schedule(&world, &request(draft("p", 1)), NOW) else {
        panic!("it is placed")
    };
    assert_eq!(why.counts.iter().map(|(name, count)| (*name, *count)).collect::<Vec<_>>(), [("NodeNotFresh", 1)]);
}

#[test]
fn a_cluster_is_a_filter() {
    let world = world([in_cluster(node_of("a1", 1, "A2"), "a"), in_cluster(node_of("b1", 4, "A2"), "b")]);
    check(&world, Draft { cluster: "b".to_owned(), ..draft("vm", 1) }, expect!["b1 A2: PCIROOT(0)#PCI(0000)"]);
    check(
        &world,
        Draft { cluster: "a".to_owned(), ..draft("vm", 2) },
        expect![
            "NOT_PLACEABLE: none of 2 nodes can give 2 GPUs now (OtherCluster: 1, TooSmall: 1); nearest is a1: it has only 1 in all; it would fit if node a1 has 1 more A2"
        ],
    );
}

#[test]
fn a_vm_that_exists_stays_where_it_is() {
    let world = world([
        node_of("empty", 8, "A16"),
        with_vm(with_vm(node_of("home", 1, "A16"), 1, "render", false), 2, "twin", false),
        with_vm(with_vm(node_of("other", 1, "A16"), 3, "TWIN", false), 4, "role", true),
    ]);
    let vm = |vm: &str| Draft { vm: vm.to_owned(), ..draft("p", 1) };
    check(&world, vm("Render"), expect!["home A16: PCIROOT(0)#PCI(0000)"]);
    check(&world, vm("00000000-0000-0000-0000-000000000001"), expect!["home A16: PCIROOT(0)#PCI(0000)"]);
    check(
        &world,
        vm("twin"),
        expect!["VM_AMBIGUOUS: VM name twin is on several nodes (home, other); name one by its id or add a node"],
    );
    check(&world, Draft { node: "other".to_owned(), ..vm("twin") }, expect!["other A16: PCIROOT(0)#PCI(0000)"]);
    check(
        &world,
        vm("role"),
        expect![
            "VM_CLUSTERED: VM 00000000-0000-0000-0000-000000000004 on other is a clustered role, which fails over; set allow_standalone to have it taken out, or take it out yourself"
        ],
    );
    check(&world, Draft { allow_standalone: true, ..vm("role") }, expect!["other A16: PCIROOT(0)#PCI(0000)"]);
    check(
        &world,
        vm("00000000-0000-0000-0000-000000000009"),
        expect![
            "UNKNOWN_VM: VM 00000000-0000-0000-0000-000000000009 is on no connected node; a VM that does not exist yet must be named by name, not by id"
        ],
    );
    check(
        &world,
        Draft { node: "empty".to_owned(), ..vm("render") },
        expect![
            "NOT_PLACEABLE: none of 3 nodes can give 1 GPU now (OtherNode: 2, VmElsewhere: 1); nearest is empty: the VM is on home; it would fit if the request names node home, where the VM is, or none"
        ],
    );
    check(
        &world,
        Draft { gpus: 2, ..vm("render") },
        expect![
            "NOT_PLACEABLE: none of 3 nodes can give 2 GPUs now (VmElsewhere: 2, TooSmall: 1); nearest is home: it has only 1 in all; it would fit if node home has 1 more A16"
        ],
    );
}

#[test]
fn unknown_names_are_refused_with_the_nearest() {
    let world = world([node_of("hv-01", 1, "A16"), node_of("hv-02", 1, "A2")]);
    check(
        &world,
        Draft { node: "hv-1".to_owned(), ..draft("p", 1) },
        expect!["UNKNOWN_NODE: node hv-1 is not known; did you mean hv-01?"],
    );
    check(
        &world,
        Draft { models: models(&["A100"]), ..draft("p", 1) },
        expect!["UNKNOWN_MODEL: no GPU of model A100 is known; known are A16, A2"],
    );
    check(
        &world,
        Draft { models: models(&["A100", "A2"]), ..draft("p", 1) },
        expect!["hv-02 A2: PCIROOT(0)#PCI(0000)"],
    );
    check(&World::default(), draft("p", 1), expect!["NOT_PLACEABLE: no node has ever connected"]);
}

#[test]
fn the_nearest_miss_says_what_would_make_it_fit() {
    let mut world = world([
        node_of("hv-01", 2, "A16"),
        cordoned(node_of("hv-02", 4, "A16"), "maintenance"),
        node_of("hv-03", 2, "A2"),
    ]);
    place(&mut world, 1, Draft { node: "hv-01".to_owned(), ..draft("render-07", 1) });
    let two = || Draft { models: models(&["A16"]), ..draft("vm", 2) };
    check(
        &world,
        two(),
        expect![
            "NOT_PLACEABLE: none of 3 nodes can give 2 GPUs now (Cordoned: 1, NoSuchGpu: 1, NotEnoughFree: 1); nearest is hv-02: not ready: its node is cordoned: maintenance; it would fit if node hv-02 is uncordoned (maintenance)"
        ],
    );
    check(
        &world,
        Draft { node: "hv-01".to_owned(), ..two() },
        expect![
            "NOT_PLACEABLE: none of 3 nodes can give 2 GPUs now (OtherNode: 2, NotEnoughFree: 1); nearest is hv-01: only 1 of 2 A16 are available; it would fit if placement render-07 releases PCIROOT(0)#PCI(0000) (A16)"
        ],
    );
    check(
        &world,
        Draft { gpus: 6, ..two() },
        expect![
            "NOT_PLACEABLE: none of 3 nodes can give 6 GPUs now (TooSmall: 2, NoSuchGpu: 1); nearest is hv-02: it has only 4 in all; it would fit if node hv-02 has 2 more A16"
        ],
    );
}

#[test]
fn several_things_in_the_way_are_all_named() {
    let mut broken = node_of("n", 4, "A16");
    broken.facts.cpu_milli = 8000;
    broken.link = Link::Disconnected { since: Timestamp::from_millis(0) };
    let mut gpus = broken.gpus.values_mut();
    gpus.next().unwrap().observed.health = GpuHealth::NeedsHostReboot;
    gpus.next().unwrap().observed.state = GpuState::Missing;
    let third = gpus.next().unwrap();
    third.observed.health = GpuHealth::Quarantined(QuarantineReason::Operator { reason: "fan rattles".to_owned() });
    third.observed.survey.verdict = Verdict::NotMeasured;
    let resources = Resources { cpu_milli: 12_500, memory_bytes: 5 << 40 };
    check(
        &world([broken]),
        Draft { resources, ..draft("vm", 4) },
        expect![
            "NOT_PLACEABLE: none of 1 nodes can give 4 GPUs now (NodeDisconnected: 1); nearest is n: not ready: its node's agent is not connected since 1970-01-01T00:00:00Z; it would fit if the agent of node n connects and node n is restarted and PCIROOT(1)#PCI(0000) (A16) is back in its slot and PCIROOT(2)#PCI(0000) (A16) is given to its host once and measured and PCIROOT(2)#PCI(0000) (A16) leaves quarantine (quarantined by an operator: fan rattles) and 4.500 more cores are left on node n and 1048576 MiB more memory is left on node n"
        ],
    );
}

#[test]
fn processor_and_memory_come_back_with_a_release() {
    let mut small = node_of("n", 1, "A16");
    small.facts.cpu_milli = 8000;
    let mut world = world([small]);
    let sized =
        |name: &str, milli| Draft { resources: Resources { cpu_milli: milli, memory_bytes: 0 }, ..draft(name, 1) };
    place(&mut world, 1, sized("first", 6000));
    check(
        &world,
        sized("second", 8000),
        expect![
            "NOT_PLACEABLE: none of 1 nodes can give 1 GPU now (NotEnoughFree: 1); nearest is n: only 0 of 1 A16 are available; it would fit if placement first releases PCIROOT(0)#PCI(0000) (A16)"
        ],
    );
}

#[test]
fn address_space_bounds_the_gpus_of_one_vm() {
    let mut capped = node_of("n", 2, "A16");
    capped.facts.mmio_high_cap_bytes = Some(70_000 << 20);
    let world = world([capped]);
    check(&world, draft("one", 1), expect!["n A16: PCIROOT(0)#PCI(0000)"]);
    check(
        &world,
        draft("two", 2),
        expect![
            "NOT_PLACEABLE: none of 1 nodes can give 2 GPUs now (Mmio: 1); nearest is n: needs 131616 MiB of high MMIO for 2 × A16, the node allows a VM 70000 MiB; it would fit if the request asks for at most 1 GPUs a VM"
        ],
    );
    let known = capacity(&world).remove(0);
    let slots: Vec<u32> = known.slots.iter().map(|slots| slots.vms).collect();
    assert_eq!(slots, [2, 0, 0, 0, 0]);
    let told: Vec<_> =
        known.limits.iter().map(|l| format!("{} {} {}: {}", l.nodes, l.per_vm, l.node, l.excess)).collect();
    assert_eq!(told, ["1 1 n: 131616 MiB of high MMIO, 70000 MiB can be had"]);
}

#[test]
fn what_no_waiting_brings_is_said_before_what_is_only_taken_now() {
    let mut capped = node_of("n", 2, "A16");
    capped.facts.mmio_high_cap_bytes = Some(70_000 << 20);
    let mut world = world([capped]);
    place(&mut world, 1, draft("first", 1));
    check(
        &world,
        draft("two", 2),
        expect![
            "NOT_PLACEABLE: none of 1 nodes can give 2 GPUs now (Mmio: 1); nearest is n: needs 131616 MiB of high MMIO for 2 × A16, the node allows a VM 70000 MiB; it would fit if the request asks for at most 1 GPUs a VM"
        ],
    );
}

#[test]
fn memory_of_a_gpu_that_nobody_knows_is_not_enough() {
    let mut unknown = gpu(0, "A16");
    unknown.observed.survey.vram_bytes = None;
    let world = world([with(node("n"), [unknown, gpu(1, "A16")])]);
    check(&world, Draft { min_vram_bytes: 16 << 30, ..draft("vm", 1) }, expect!["n A16: PCIROOT(1)#PCI(0000)"]);
    check(
        &world,
        Draft { min_vram_bytes: 17 << 30, ..draft("vm", 1) },
        expect![
            "NOT_PLACEABLE: none of 1 nodes can give 1 GPU now (NoSuchGpu: 1); nearest is n: no GPU as asked for; it has A16; it would fit if node n has 1 GPUs as asked for"
        ],
    );
}

#[test]
fn a_node_that_did_not_report_takes_nothing() {
    let mut silent = node_of("n", 1, "A16");
    silent.view = View::NotReported;
    check(
        &world([silent]),
        draft("vm", 1),
        expect![
            "NOT_PLACEABLE: none of 1 nodes can give 1 GPU now (NodeNotFresh: 1); nearest is n: not ready: its node's agent has not reported yet; it would fit if the agent of node n reports"
        ],
    );
}

#[test]
fn a_screenful_of_nodes_is_told_and_all_are_counted() {
    let world = world((0..100).map(|at| node_of(&format!("n-{at:03}"), 1, "A2")));
    let Err(Refusal::NotPlaceable(explanation)) = schedule(&world, &request(draft("vm", 2)), NOW) else {
        panic!("two GPUs were placed on nodes with one");
    };
    assert_eq!(explanation.counts, [("TooSmall", 100)]);
    assert_eq!(explanation.rejected.len(), 32);
}

#[test]
fn capacity_tells_states_reasons_and_slots() {
    let mut world = world([
        node_of("a", 8, "A16"),
        cordoned(node_of("b", 4, "A16"), "x"),
        with(node("c"), [pooled(gpu(0, "A16")), gpu(1, "A2")]),
    ]);
    place(&mut world, 1, Draft { node: "a".to_owned(), ..draft("p", 3) });
    let told: Vec<String> = capacity(&world)
        .iter()
        .map(|of| {
            let slots: Vec<_> = of.slots.iter().map(|slots| format!("{}x{}", slots.vms, slots.gpus)).collect();
            format!(
                "{}: {} of {} available, {:?}, {:?}, {}",
                of.model,
                of.available,
                of.gpus,
                of.states,
                of.unavailable,
                slots.join(" ")
            )
        })
        .collect();
    expect![[r#"
        A16: 6 of 13 available, [("Host", 12), ("Pooled", 1)], [("Cordoned", 4), ("Claimed", 3)], 6x1 2x2 1x4 0x8 0x16
        A2: 1 of 1 available, [("Host", 1)], [], 1x1 0x2 0x4 0x8 0x16"#]]
    .assert_eq(&told.join("\n"));
}

#[test]
fn a_plan_counts_what_it_placed_before_and_changes_nothing() {
    let world = world([node_of("n", 3, "A16")]);
    let requests: Vec<_> = [("a", 2), ("b", 2), ("c", 1), ("a", 1)].map(|(n, gpus)| request(draft(n, gpus))).to_vec();
    let told: Vec<String> = plan(&world, &requests, NOW)
        .iter()
        .map(|planned| match &planned.outcome {
            Ok(assignment) => format!("{}: {} GPUs on {}", planned.name, assignment.gpus.len(), assignment.node),
            Err(refusal) => format!("{}: {}", planned.name, refusal.name()),
        })
        .collect();
    assert_eq!(told, ["a: 2 GPUs on n", "b: NOT_PLACEABLE", "c: 1 GPUs on n", "a: NAME_TAKEN"]);
    assert_eq!(capacity(&world)[0].available, 3);
    assert_eq!(world.placement_count(), 0);
    assert!(world.node(&NodeName::new("n").unwrap()).is_some());
}
