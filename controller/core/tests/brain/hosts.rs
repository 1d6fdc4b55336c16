//! What is seen on hosts, and what becomes available by it.

use super::*;

#[test]
fn unknown_is_never_free() {
    let mut f = Fixture::with_node(2);
    // A failed listing blocks and changes nothing else.
    let failed = InventoryReport {
        sequence: 9,
        full: true,
        listing: Listing::Failed { why: "Get-PnpDevice timed out".into() },
        gpus: vec![],
        vms: vec![],
        vms_gone: vec![],
    };
    f.input(Input::Report { node: node_name("n1"), report: Box::new(failed) });
    f.check(expect![[r#"
        n1 generation 0 wants [], 0 available
    "#]]);
    // A complete one that says nothing about a GPU makes that one unknown.
    f.report("n1", vec![gpu(0, IN_HOST)], vec![]);
    f.check(expect![[r#"
        n1 generation 0 wants [], 1 available
    "#]]);
    let node = f.brain.world().node(&node_name("n1")).unwrap();
    assert_eq!(node.gpus[&address(1)].observed.state, GpuState::Unknown);
    f.input(Input::Disconnected(node_name("n1")));
    f.check(expect![[r#"
        n1 generation 0 wants [], 0 available
    "#]]);
}

#[test]
fn another_card_in_the_slot_is_kept_back_and_the_measured_facts_stay() {
    let mut f = Fixture::with_node(1);
    let mut stranger = gpu(0, IN_HOST);
    stranger.survey.fingerprint.id = "10de:2331".parse().unwrap();
    f.report("n1", vec![stranger], vec![]);
    let node = f.brain.world().node(&node_name("n1")).unwrap().clone();
    let seen = &node.gpus[&address(0)].observed;
    assert!(matches!(seen.health, GpuHealth::Quarantined(QuarantineReason::WrongCard { .. })), "{seen:?}");
    assert_eq!(seen.survey, gpu(0, IN_HOST).survey);
    let mut pooled = gpu(0, GpuState::Pooled);
    pooled.survey.verdict = Verdict::NotMeasured;
    pooled.survey.mmio = MmioSize::default();
    f.report("n1", vec![pooled], vec![]);
    let node = f.brain.world().node(&node_name("n1")).unwrap();
    assert!(node.is_available(&node.gpus[&address(0)]), "what was measured once is remembered");
}

#[test]
fn cards_that_wander_from_slot_to_slot_do_not_fill_the_store() {
    let mut f = Fixture::with_node(1);
    f.create(request("p1", "web", 1)).unwrap();
    for round in 1..20 {
        f.now = f.now.after(Duration::from_secs(60));
        f.report("n1", (0..64).map(|slot| gpu(round * 100 + slot, IN_HOST)).collect(), vec![]);
    }
    let gpus = &f.brain.world().node(&node_name("n1")).unwrap().gpus;
    assert_eq!(gpus.len(), 256);
    assert!(gpus.contains_key(&address(0)), "what is owned stays");
    assert!((0..64).all(|slot| gpus.contains_key(&address(1900 + slot))), "what is listed stays");
    assert!(gpus.contains_key(&address(1800)) && !gpus.contains_key(&address(100)), "the oldest go first");
    assert_eq!(f.nodes[&node_name("n1")].gpus.len(), 256, "and out of the store");
}

#[test]
fn what_was_given_by_hand_is_not_available_and_drift_is_told_not_mended() {
    let mut f = Fixture::with_node(1);
    f.report("n1", vec![gpu(0, IN_HOST)], vec![vm(1, "web")]);
    f.create(request("p1", "web", 1)).unwrap();
    f.activate("p1", 1);
    let generation = f.brain.desired(&node_name("n1")).unwrap().generation;
    let mut thief = vm(2, "thief");
    thief.devices = vec![VmDevice::At(address(0))];
    f.report("n1", vec![gpu(0, GpuState::Attached { vm: vm_id(2) })], vec![vm(1, "web"), thief]);
    f.check(expect![[r#"
        p1 Active n1/PCIROOT(0)#PCI(0000)
          Drifted { since: Timestamp(1000000), what: InOtherVm { address: Location(LocationPath("PCIROOT(0)#PCI(0000)")), vm: VmId("00000000-0000-0000-0000-000000000002") } }
        n1 generation 2 wants [p1 Kept], 0 available
    "#]]);
    assert_eq!(f.brain.desired(&node_name("n1")).unwrap().generation, generation);
    f.report("n1", vec![gpu(0, IN_HOST)], vec![]);
    assert!(matches!(
        condition::conditions(f.brain.world(), f.get("p1"), f.now)[..],
        [Condition::Drifted { what: Drift::VmGone, .. }]
    ));
}

#[test]
fn a_vm_id_on_two_nodes_is_ambiguous_and_one_of_them_can_go() {
    let mut f = Fixture::with_node(2);
    f.connect("n2");
    f.report("n2", vec![gpu(0, IN_HOST)], vec![]);
    // As with Hyper-V Replica: a VM and its replica have one id.
    f.report("n1", vec![gpu(0, IN_HOST), gpu(1, IN_HOST)], vec![vm(1, "web")]);
    f.report("n2", vec![gpu(0, IN_HOST)], vec![vm(1, "web")]);
    let by_id = |name: &str| request(name, vm_id(1).as_str(), 1);
    let both = f.create(by_id("p1")).unwrap_err().to_string();
    expect!["VM 00000000-0000-0000-0000-000000000001 is on several nodes (n1, n2); add a node"].assert_eq(&both);
    f.report("n2", vec![gpu(0, IN_HOST)], vec![]);
    assert_eq!(f.create(by_id("p1")).unwrap().assignment.as_ref().unwrap().node, node_name("n1"));
    f.report("n2", vec![gpu(0, IN_HOST)], vec![vm(1, "web")]);
    f.release("p1");
    let named = f.create(Draft { node: "n1".into(), ..by_id("p2") });
    assert!(matches!(named, Err(Refusal::VmHasPlacement { .. })), "{named:?}");
}

#[test]
fn a_lost_node_keeps_its_claims_and_says_so() {
    let mut f = Fixture::with_node(1);
    f.create(request("p1", "web", 1)).unwrap();
    f.input(Input::Disconnected(node_name("n1")));
    f.now = f.now.after(condition::LOST_AFTER);
    f.check(expect![[r#"
        p1 Held n1/PCIROOT(0)#PCI(0000)
          NodeLost { since: Timestamp(1000000) }
        n1 generation 0 wants [], 0 available
    "#]]);
}
