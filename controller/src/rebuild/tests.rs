//! What agents hold becomes a world again; what contradicts is named and left out.

use super::gather::Heard;
use super::reconstruct::{Rebuilt, reconstruct};
use super::*;
use crate::testing::{hello, node, report};
use berth_core::decide::Limits;
use berth_core::desired;
use berth_model::desired::{DesiredGpu, DesiredNode, DesiredPlacement, Intent};
use berth_model::gpu::{Fingerprint, MmioSize};
use berth_model::inventory::Hello;
use berth_model::placement::{Phase, Placement};
use berth_model::request::{ReturnTo, VerifyLevel};
use expect_test::{Expect, expect};

const NOW: Timestamp = Timestamp::from_millis(1_000_000_000);

/// A placement with the GPU in a slot of [`report`].
fn holds(number: u32, name: &str, slot: usize, intent: Intent) -> DesiredPlacement {
    DesiredPlacement {
        uid: crate::testing::uid(number),
        name: name.parse().unwrap(),
        vm: format!("20000000-0000-0000-0000-{number:012}").parse().unwrap(),
        gpus: vec![gpu(slot)],
        intent,
        allow_standalone: true,
        verify: VerifyLevel::Visible,
        return_to: ReturnTo::Pool,
        install_driver: None,
        trace: None,
    }
}

fn gpu(slot: usize) -> DesiredGpu {
    DesiredGpu {
        address: format!("PCIROOT({slot})#PCI(0000)").parse().unwrap(),
        fingerprint: Fingerprint { id: "10de:25b6:10de:157e".parse().unwrap(), serial: None },
        mmio: MmioSize { low_bytes: 16 << 20, high_bytes: 16 << 30 },
    }
}

fn heard(name: &str, placements: &[DesiredPlacement]) -> Heard {
    let desired = DesiredNode { term: 6, generation: 11, fleet: None, placements: placements.to_vec() };
    Heard {
        hello: Hello { ledger_term: 6, ledger_generation: 11, ..hello(name) },
        holdings: Some(Some(desired)),
        report: Some(report(4, &[])),
    }
}

/// A world that a controller would lead, whatever came in.
fn rebuild(heard: &[Heard]) -> Rebuilt {
    let rebuilt = reconstruct(heard, &Limits::default(), NOW);
    rebuilt.content.check(&Limits::default(), NOW).unwrap();
    rebuilt
}

fn names(rebuilt: &Rebuilt) -> Vec<&str> {
    rebuilt.content.placements.iter().map(|placement| placement.name().as_str()).collect()
}

#[test]
fn every_placement_that_an_agent_holds_comes_back_and_wants_the_same() {
    let held = [
        holds(1, "kept", 0, Intent::Kept),
        holds(2, "coming", 1, Intent::Attached),
        holds(3, "going", 2, Intent::Detached),
    ];
    let mut two = heard("n2", &[holds(4, "elsewhere", 0, Intent::Kept)]);
    two.hello.ledger_term = 9;
    let rebuilt = rebuild(&[heard("n1", &held), two]);
    assert_eq!(rebuilt.left_out, []);
    assert_eq!(names(&rebuilt), ["coming", "elsewhere", "going", "kept"]);
    let find = |name: &str| -> &Placement {
        rebuilt.content.placements.iter().find(|placement| placement.name().as_str() == name).unwrap()
    };
    assert!(matches!(find("kept").phase, Phase::Active));
    assert!(matches!(find("coming").phase, Phase::Preparing { .. }));
    assert!(matches!(find("going").phase, Phase::Releasing { .. }));
    for held in &held {
        let placement = find(held.name.as_str());
        assert_eq!(desired::entry(placement).as_ref(), Some(held), "its agent is told nothing new");
        assert_eq!(placement.generation, 12, "and reports about older wishes do not answer this one");
        assert_eq!(placement.request.request_id.as_str(), format!("rebuilt-{}", held.uid));
        assert_eq!(placement.request.models.iter().map(ToString::to_string).collect::<Vec<_>>(), ["A2"]);
        assert_eq!(placement.assignment.as_ref().unwrap().node, node("n1"));
    }
    assert_eq!(rebuilt.content.term, 9, "the highest that any agent has obeyed");
    assert_eq!(rebuilt.content.nodes.iter().map(|node| node.generation).collect::<Vec<_>>(), [12, 12]);
}

#[test]
fn what_contradicts_is_left_out_and_named() {
    fn check(heard: &[Heard], left: &[&str], out: Expect) {
        let rebuilt = rebuild(heard);
        assert_eq!(names(&rebuilt), left);
        out.assert_eq(&rebuilt.left_out.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"));
    }
    let other = holds(9, "other", 3, Intent::Kept);
    check(
        &[
            heard("n1", &[holds(1, "one", 0, Intent::Kept), other.clone()]),
            heard("n2", &[holds(2, "one", 0, Intent::Attached)]),
        ],
        &["other"],
        expect![[r#"
            one (10000000-0000-0000-0000-000000000001) on n1, VM 20000000-0000-0000-0000-000000000001, GPUs PCIROOT(0)#PCI(0000): the name one also belongs to one on n2
            one (10000000-0000-0000-0000-000000000002) on n2, VM 20000000-0000-0000-0000-000000000002, GPUs PCIROOT(0)#PCI(0000): the name one also belongs to one on n1"#]],
    );
    // An agent that was away long keeps what was given back elsewhere.
    check(
        &[heard("n1", &[holds(1, "one", 0, Intent::Detached)]), heard("n2", &[holds(2, "one", 0, Intent::Kept)])],
        &["one"],
        expect![
            "one (10000000-0000-0000-0000-000000000001) on n1, VM 20000000-0000-0000-0000-000000000001, GPUs PCIROOT(0)#PCI(0000): the name one also belongs to one on n2"
        ],
    );
    // One GPU for two, and one VM for two.
    let same_vm = DesiredPlacement { vm: other.vm.clone(), ..holds(3, "three", 2, Intent::Kept) };
    check(
        &[heard("n1", &[holds(1, "one", 0, Intent::Kept), holds(2, "two", 0, Intent::Kept), same_vm, other])],
        &[],
        expect![[r#"
            one (10000000-0000-0000-0000-000000000001) on n1, VM 20000000-0000-0000-0000-000000000001, GPUs PCIROOT(0)#PCI(0000): the GPU n1/PCIROOT(0)#PCI(0000) also belongs to two on n1
            two (10000000-0000-0000-0000-000000000002) on n1, VM 20000000-0000-0000-0000-000000000002, GPUs PCIROOT(0)#PCI(0000): the GPU n1/PCIROOT(0)#PCI(0000) also belongs to one on n1
            three (10000000-0000-0000-0000-000000000003) on n1, VM 20000000-0000-0000-0000-000000000009, GPUs PCIROOT(2)#PCI(0000): the VM 20000000-0000-0000-0000-000000000009 also belongs to other on n1
            other (10000000-0000-0000-0000-000000000009) on n1, VM 20000000-0000-0000-0000-000000000009, GPUs PCIROOT(3)#PCI(0000): the VM 20000000-0000-0000-0000-000000000009 also belongs to three on n1"#]],
    );
}

#[test]
fn a_card_that_cannot_be_seen_or_is_another_one_stays_on_record_as_it_was_chosen() {
    let mut blind = heard("n1", &[holds(1, "one", 0, Intent::Kept)]);
    blind.report = None;
    let rebuilt = rebuild(&[blind]);
    let survey = &rebuilt.content.nodes[0].gpus[0].1;
    assert_eq!((survey.model.to_string().as_str(), &survey.fingerprint), ("unknown", &gpu(0).fingerprint));
    assert_eq!(rebuilt.content.placements[0].request.models, []);

    let mut swapped = holds(1, "one", 0, Intent::Kept);
    swapped.gpus[0].fingerprint.id = "10de:2236:10de:1482".parse().unwrap();
    let rebuilt = rebuild(&[heard("n1", &[swapped.clone()])]);
    assert_eq!(rebuilt.content.nodes[0].gpus[0].1.fingerprint, swapped.gpus[0].fingerprint);
}

#[test]
fn an_agent_that_never_held_anything_is_a_node_without_placements() {
    let mut fresh = heard("n1", &[]);
    fresh.holdings = Some(None);
    fresh.hello.ledger_generation = 0;
    let rebuilt = rebuild(&[fresh]);
    assert_eq!((rebuilt.content.nodes[0].generation, rebuilt.content.placements.len()), (0, 0));
}

#[test]
fn nothing_is_written_while_an_agent_has_not_told() {
    let options = |nodes| Rebuild { wait: Duration::from_secs(30), nodes, yes: true };
    let whole = heard("n1", &[]);
    let silent = Heard { holdings: None, ..heard("n2", &[]) };
    assert!(judge(std::slice::from_ref(&whole), &options(Some(1))).is_ok());
    let check = |heard: &[Heard], nodes, why: &str| {
        let error = judge(heard, &options(nodes)).unwrap_err().to_string();
        assert!(error.contains(why), "{why}: {error}");
    };
    check(&[], None, "no agent came within 30 s");
    check(std::slice::from_ref(&whole), Some(2), "1 of 2 nodes");
    check(&[whole, silent], None, "n2 (agent 0.1.0)");
}

#[test]
fn what_will_be_written_is_shown_first() {
    let heard = [heard("n1", &[holds(1, "one", 0, Intent::Kept)]), heard("n2", &[holds(2, "one", 1, Intent::Kept)])];
    let said = told(&heard, &rebuild(&heard), &[], "a store in memory");
    for part in ["2 nodes told what they hold: n1, n2", "LEFT OUT", "no placements", "queued or held"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    let heard = &heard[..1];
    let said = told(heard, &rebuild(heard), &[], "a store in memory");
    assert!(
        said.contains("  one        Active  n1    20000000-0000-0000-0000-000000000001  PCIROOT(0)#PCI(0000)"),
        "{said}"
    );
    assert!(!said.contains("LEFT OUT"));
}
