//! What agents say is believed of what they were told, and of nothing else.

use super::*;

#[test]
fn an_old_satisfied_does_not_release() {
    let mut f = Fixture::with_node(1);
    f.report("n1", vec![gpu(0, IN_HOST)], vec![vm(1, "web")]);
    f.create(request("p1", "web", 1)).unwrap();
    let uid = f.get("p1").uid.clone();
    let attached = f.brain.desired(&node_name("n1")).unwrap().generation;
    f.release("p1");
    let late = said(attached, uid, StepReport::Satisfied);
    f.input(Input::Progress { node: node_name("n1"), progress: Box::new(late.clone()) });
    assert_eq!(f.get("p1").phase.name(), "Releasing", "it said that the GPU is attached, not that it is back");
    let foreign = Progress { generation: 99, ..late };
    f.connect("n2");
    f.input(Input::Progress { node: node_name("n2"), progress: Box::new(foreign) });
    assert_eq!(f.get("p1").phase.name(), "Releasing", "another node has no say");
}

#[test]
fn what_an_agent_did_for_a_later_wish_than_the_store_remembers_is_no_answer_to_the_older_one() {
    let mut f = Fixture::with_node(1);
    f.create(request("p1", "web", 1)).unwrap();
    f.report("n1", vec![gpu(0, IN_HOST)], vec![vm(1, "web")]);
    // The store was put back to before p1 became active and was released: the agent has given the GPU back since, for
    // generation 7, and tells that first of all.
    f.connect_at("n1", 7);
    let uid = f.get("p1").uid.clone();
    let report = StepReport::Satisfied;
    f.input(Input::Progress { node: node_name("n1"), progress: Box::new(said(7, uid, report)) });
    f.check(expect![[r#"
        p1 Preparing n1/PCIROOT(0)#PCI(0000)
        n1 generation 8 wants [p1 Attached], 0 available
    "#]]);
    f.progress("p1", StepReport::Satisfied);
    assert_eq!(f.get("p1").phase.name(), "Active", "what is said of the present wish counts");
}

#[test]
fn a_generation_beyond_belief_moves_nothing() {
    let mut f = Fixture::with_node(1);
    f.create(request("p1", "web", 1)).unwrap();
    f.report("n1", vec![gpu(0, IN_HOST)], vec![vm(1, "web")]);
    for damaged in [u64::MAX, u64::MAX - 1, 2 + MAX_GENERATION_LEAP] {
        f.connect_at("n1", damaged);
        assert_eq!(f.brain.desired(&node_name("n1")).unwrap().generation, 1, "{damaged}");
    }
    f.connect_at("n1", 1 + MAX_GENERATION_LEAP);
    assert_eq!(f.brain.desired(&node_name("n1")).unwrap().generation, 2 + MAX_GENERATION_LEAP);
}

/// An empty or another store vouches for nothing that an agent holds: it must not be told to forget it.
#[test]
fn an_agent_that_holds_what_is_not_this_stores_is_shown_and_told_nothing() {
    let fleet = |number: u8| Some(format!("f1ee7000-0000-4000-8000-{number:012}").parse::<FleetId>().unwrap());
    let told = |f: &Fixture, node: &str| f.brain.desired(&node_name(node)).is_some();
    let mut f = Fixture::with_node(1);
    f.brain = f.brain.clone().of_fleet(fleet(1));
    // Also of this fleet, when the store does not know the node: it was rebuilt while the node was away.
    let strange = [("n2", Some(3), None), ("n3", None, None), ("n4", Some(1), fleet(2)), ("n5", Some(2), fleet(1))];
    for (node, placements, of) in strange {
        let decision = f.connect_holding(node, 7, placements, of);
        assert_eq!((decision.changes.len(), told(&f, node)), (0, false), "{node}");
        let why = f.brain.world().node(&node_name(node)).unwrap().not_ready().unwrap();
        assert_eq!(why.name(), "Stranger");
        assert!(why.to_string().contains("berth-controller rebuild"), "{why}");
        let decision = f.report(node, vec![gpu(0, IN_HOST)], vec![vm(5, "strange")]);
        assert_eq!(decision.changes, [], "nothing of what it reports counts");
        assert!(matches!(f.create(Draft { node: node.to_owned(), ..request("p", "vm", 1) }), Err(Refusal::NoRoom(_))));
    }
    // One that the store knows, too, if it is of another fleet: what is decided for that node waits.
    f.create(request("mine", "web", 1)).unwrap();
    f.report("n1", vec![gpu(0, IN_HOST)], vec![vm(1, "web")]);
    assert!(told(&f, "n1"));
    f.connect_holding("n1", 7, Some(1), fleet(2));
    f.release("mine");
    assert!(!told(&f, "n1"));
    let answer = said(99, f.get("mine").uid.clone(), StepReport::Satisfied);
    assert_eq!(f.input(Input::Progress { node: node_name("n1"), progress: Box::new(answer) }).changes, []);

    // Whoever holds nothing, or what is ours, is welcome; so is one from before fleets that the store knows.
    f.connect_holding("n4", 7, Some(0), fleet(2));
    f.connect_holding("n6", 0, None, None);
    f.connect_holding("n1", 7, Some(1), None);
    for node in ["n1", "n4", "n6"] {
        assert!(told(&f, node), "{node}");
        assert_eq!(f.brain.desired(&node_name(node)).unwrap().fleet, fleet(1));
        assert!(f.nodes.contains_key(&node_name(node)), "{node} is stored");
    }
    f.input(Input::Disconnected(node_name("n2")));
    assert!(!f.nodes.contains_key(&node_name("n2")), "it is nobody's still");
}

#[test]
fn a_report_about_a_wish_that_was_never_made_is_no_answer() {
    let mut f = Fixture::with_node(1);
    f.create(request("p1", "web", 1)).unwrap();
    f.report("n1", vec![gpu(0, IN_HOST)], vec![vm(1, "web")]);
    let uid = f.get("p1").uid.clone();
    let report = StepReport::Satisfied;
    f.input(Input::Progress { node: node_name("n1"), progress: Box::new(said(2, uid, report)) });
    assert_eq!(f.get("p1").phase.name(), "Preparing");
}

#[test]
fn many_vms_at_once_are_taken_up_in_several_decisions() {
    let mut f = Fixture::with_node(12);
    for n in 0..12 {
        f.create(request(&format!("p{n}"), &format!("vm{n}"), 1)).unwrap();
    }
    let gpus = (0..12).map(|slot| gpu(slot, IN_HOST)).collect();
    f.report("n1", gpus, (0..12).map(|n| vm(n, &format!("vm{n}"))).collect());
    f.pass(Duration::ZERO);
    assert!(f.brain.world().placements().all(|p| p.phase.name() == "Preparing"), "{}", f.show());
}

#[test]
fn a_report_that_says_nothing_new_costs_the_store_nothing() {
    let mut f = Fixture::with_node(4);
    let again = f.report("n1", (0..4).map(|slot| gpu(slot, IN_HOST)).collect(), vec![]);
    assert_eq!(again.changes, []);
    let moved = f.report("n1", (0..4).map(|slot| gpu(slot, GpuState::Pooled)).collect(), vec![vm(1, "web")]);
    assert_eq!(moved.changes, [], "where a GPU is is observed, not stored");
    f.input(Input::Disconnected(node_name("n1")));
    let back = f.brain.decide(f.now, Input::Tick).unwrap();
    assert_eq!(back.changes, []);
}
