//! What a new leader knows and when it calls somebody late; and what a copy shows that hears of no leader.

use super::*;

#[test]
fn a_new_leader_knows_what_the_old_one_stored() {
    let mut f = Fixture::with_node(2);
    f.report("n1", vec![gpu(0, IN_HOST), gpu(1, IN_HOST)], vec![vm(1, "web")]);
    f.create(request("p1", "web", 1)).unwrap();
    f.create(Draft { resources: Resources { cpu_milli: 1000, memory_bytes: 1 << 30 }, ..request("p2", "db", 1) })
        .unwrap();
    let nodes = f.nodes.values().map(|n| StoredNode::clone(n)).collect();
    let placements: Vec<_> = f.placements.values().map(|p| Placement::clone(p)).collect();
    let loaded = Brain::load(2, Limits::default(), nodes, placements.clone(), f.now).unwrap();
    assert_eq!(loaded.check(), []);
    assert_eq!(invariants::check_claims(loaded.world(), &f.claims), []);
    let (old, new) = (f.brain.desired(&node_name("n1")).unwrap(), loaded.desired(&node_name("n1")).unwrap());
    assert_eq!((old.generation, old.placements), (new.generation, new.placements));
    assert!(loaded.world().nodes().all(|n| n.gpus.values().all(|g| !n.is_available(g))), "nothing is known to be free");
    let mut twice = placements[0].clone();
    twice.request.name = name("p9");
    let doubled = [placements, vec![twice]].concat();
    let nodes = f.nodes.values().map(|n| StoredNode::clone(n)).collect();
    assert!(Brain::load(2, Limits::default(), nodes, doubled, f.now).is_err());
}

/// A VM that is there already must not be taken for one that is still to be made, and be given GPUs of another node.
#[test]
fn a_new_leader_remembers_where_vms_were_seen_until_their_nodes_report() {
    let mut f = Fixture::with_node(1);
    f.report("n1", vec![gpu(0, IN_HOST)], vec![vm(1, "web"), vm(2, "db")]);
    f.connect("n2");
    f.report("n2", vec![gpu(0, IN_HOST)], vec![]);
    let nodes: Vec<_> = f.nodes.values().map(|n| StoredNode::clone(n)).collect();
    let shown = f.brain.world().clone();
    f.brain = Brain::load(2, Limits::default(), nodes, vec![], f.now).unwrap().remembering(&shown);
    let all = Decision { nodes: [node_name("n1"), node_name("n2")].into(), ..Decision::default() };
    f.mirrors.iter_mut().for_each(|mirror| follow_leader(mirror, &f.brain, &all));
    assert_eq!(f.brain.check(), []);
    f.connect("n2");
    f.report("n2", vec![gpu(0, IN_HOST)], vec![]);

    // By its name or by its id: n2 has room, and must not be it.
    for (placement, selector) in [("p1", "web".to_owned()), ("p2", vm(2, "db").id.to_string())] {
        let outcome = f.create(request(placement, &selector, 1));
        assert!(matches!(outcome, Err(Refusal::NoRoom(_))), "{selector}: {outcome:?}");
    }
    f.connect("n1");
    assert!(f.create(request("p1", "web", 1)).is_err(), "connected is not reported");
    // One has gone meanwhile, and is to be made anew.
    f.report("n1", vec![gpu(0, IN_HOST)], vec![vm(1, "web")]);
    let on = |placement: &Placement| placement.assignment.as_ref().unwrap().node.clone();
    assert_eq!(on(&f.create(request("p1", "web", 1)).unwrap()), node_name("n1"));
    assert_eq!(on(&f.create(request("p2", "db", 1)).unwrap()), node_name("n2"));
}

#[test]
fn what_an_agent_did_while_no_controller_was_there_is_not_late() {
    let mut f = Fixture::with_node(1);
    f.report("n1", vec![gpu(0, IN_HOST)], vec![vm(1, "web")]);
    f.create(request("p1", "web", 1)).unwrap();
    let generation = f.brain.desired(&node_name("n1")).unwrap().generation;
    // An hour without a controller. The agent has long finished, and the VM runs.
    f.now = f.now.after(Duration::from_secs(3600));
    let nodes = f.nodes.values().map(|n| StoredNode::clone(n)).collect();
    let placements = f.placements.values().map(|p| Placement::clone(p)).collect();
    f.brain = Brain::load(2, Limits::default(), nodes, placements, f.now).unwrap();
    assert_eq!(f.brain.decide(f.now, Input::Tick).unwrap().changes, []);
    f.now = f.now.after(Duration::from_secs(5));
    f.connect("n1");
    let uid = f.get("p1").uid.clone();
    let progress = said(generation, uid, StepReport::Satisfied);
    f.input(Input::Progress { node: node_name("n1"), progress: Box::new(progress) });
    assert_eq!(f.get("p1").phase, Phase::Active);
}

/// Nobody knows since when it is away: the time counts from when the new leader could have heard of it.
#[test]
fn a_new_leader_calls_no_node_lost_before_its_agent_had_time_to_come() {
    let mut f = Fixture::with_node(1);
    f.connect("n2");
    f.report("n2", vec![gpu(0, IN_HOST)], vec![]);
    f.create(Draft { node: "n1".into(), ..request("p1", "web", 1) }).unwrap();
    f.create(Draft { node: "n2".into(), ..request("p2", "db", 1) }).unwrap();
    let until = f.get("p1").phase.deadline();
    f.now = f.now.after(Duration::from_secs(60));
    let nodes = f.nodes.values().map(|n| StoredNode::clone(n)).collect();
    let placements = f.placements.values().map(|p| Placement::clone(p)).collect();
    f.brain = Brain::load(2, Limits::default(), nodes, placements, f.now).unwrap();
    assert_eq!(f.get("p1").phase.deadline(), until, "a hold's deadline is what was promised");
    let lost = |f: &Fixture, name: &str| {
        let conditions = condition::conditions(f.brain.world(), f.get(name), f.now);
        conditions.iter().any(|condition| matches!(condition, Condition::NodeLost { .. }))
    };
    f.now = f.now.after(condition::LOST_AFTER - Duration::from_millis(1));
    f.brain.decide(f.now, Input::Connected(Box::new(hello("n2")))).unwrap();
    assert!(!lost(&f, "p1") && !lost(&f, "p2"));
    f.now = f.now.after(Duration::from_millis(1));
    assert!(lost(&f, "p1") && !lost(&f, "p2"), "whoever did not come by then is lost");
}

/// A follower that hears no leader any more shows what it last knew, and none of it as available.
#[test]
fn a_copy_shows_nothing_as_available_that_nobody_vouches_for() {
    let mut fixture = Fixture::with_node(4);
    fixture.create(request("p", "vm-p", 1)).unwrap();
    let later = fixture.now.after(Duration::from_secs(5));
    let [mirror, _] = &mut fixture.mirrors;
    let free = |mirror: &Mirror| {
        let nodes = mirror.world().nodes();
        nodes.flat_map(|node| node.gpus.values().filter(|gpu| node.is_available(gpu))).count()
    };
    assert_eq!(free(mirror), 3);
    let mut touched = Touched::default();
    mirror.lose(later, &mut touched);
    assert_eq!((free(mirror), touched.nodes.len(), touched.placements.len()), (0, 1, 1));
    let node = mirror.world().node(&node_name("n1")).unwrap();
    assert!(node.gpus.values().all(|gpu| gpu.observed.state == IN_HOST), "it is remembered");
    assert_eq!(node.not_ready(), Some(reason::Unavailable::NodeNotFresh));
    assert_eq!(invariants::check(mirror.world()), []);
    let placement = mirror.world().placement(&name("p")).unwrap();
    let much_later = later.after(Duration::from_secs(3600));
    assert_eq!(condition::conditions(mirror.world(), placement, much_later), [], "nobody says that the node is lost");
    // The next leader tells of another node only: of this one it does not know where it is.
    mirror.complete(&mut touched);
    assert_eq!(free(mirror), 0);
    assert!(
        mirror.world().node(&node_name("n1")).unwrap().gpus.values().all(|gpu| gpu.observed.state == GpuState::Unknown)
    );
    follow_leader(mirror, &fixture.brain, &Decision { nodes: [node_name("n1")].into(), ..Decision::default() });
    assert_eq!(free(&fixture.mirrors[0]), 3);
}
