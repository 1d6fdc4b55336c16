//! Grouping and order, against a store whose commits end when the test says so.

use super::groups::IN_FLIGHT;
use super::*;
use crate::testing::{Fault, Scripted, hello, node, report, request, uid};
use berth_core::decide::{Brain, Change, Claimed, Input, Limits};
use berth_model::placement::{Phase, Placement};
use berth_model::{PlacementName, Timestamp};
use berth_store::{MAX_OPERATIONS, key, record};
use std::collections::BTreeMap;

/// A store, and a pipeline that leads on it.
async fn pipeline(permits: usize) -> (Arc<Scripted>, Pipeline) {
    let store = Scripted::new(permits);
    let leadership = store.campaign("test").await.unwrap();
    let groups = Groups::new(leadership.fence, BTreeMap::new(), Revision(1));
    let pipeline = Pipeline::new(Arc::clone(&store) as Arc<dyn Store>, groups, Duration::from_secs(20));
    (store, pipeline)
}

fn placement(name: &str, version: u64) -> Change {
    Change::PutPlacement(Arc::new(Placement {
        uid: uid(1),
        request: request(name, 1),
        caller: "test".into(),
        trace: None,
        created: Timestamp::from_millis(1),
        version,
        phase: Phase::Queued { until: Timestamp::from_millis(2) },
        phase_since: Timestamp::from_millis(1),
        assignment: None,
        vm_id: None,
        generation: 0,
        history: Vec::new(),
    }))
}

/// The change that a first report of a node makes.
fn node_change(name: &str, version: u64) -> Change {
    let now = Timestamp::from_millis(1);
    let mut brain = Brain::load(1, Limits::default(), vec![], vec![], now).unwrap();
    brain.decide(now, Input::Connected(Box::new(hello(name)))).unwrap();
    let report = Input::Report { node: node(name), report: Box::new(report(2, &[])) };
    let changes = brain.decide(now, report).unwrap().changes;
    let put = changes.into_iter().find_map(|change| match change {
        Change::PutNode(stored) => Some(stored),
        Change::PutPlacement(_) | Change::RemovePlacement { .. } | Change::Claim { .. } | Change::Unclaim { .. } => {
            None
        }
    });
    let mut stored = (*put.unwrap()).clone();
    stored.version = version;
    Change::PutNode(Arc::new(stored))
}

fn claim(gpus: usize) -> Vec<Change> {
    let one = |slot: usize| Change::Claim {
        what: Claimed::Gpu(format!("n1/PCIROOT({slot})#PCI(0000)").parse().unwrap()),
        placement: PlacementName::new("p").unwrap(),
        uid: uid(1),
    };
    (0..gpus).map(one).collect()
}

/// Lets every future of the pipeline begin, without waiting for any to end.
async fn begin(pipeline: &mut Pipeline) {
    pipeline.dispatch();
    tokio::select! {
        biased;
        ended = pipeline.next(), if pipeline.is_busy() => panic!("ended without a permit: {ended:?}"),
        () = tokio::task::yield_now() => {}
    }
}

/// Lets one commit after the other end until all is durable.
async fn drain(store: &Scripted, pipeline: &mut Pipeline) {
    store.gate.add_permits(1000);
    loop {
        pipeline.dispatch();
        match pipeline.next().await {
            Some(result) => result.unwrap(),
            None => return,
        }
    }
}

/// Where all of it is durable, and up to where nothing else is stored.
fn at(groups: &mut Groups) -> Option<(u64, u64)> {
    groups.durable_at(groups.mark()).map(|at| (at.revision.0, at.complete.0))
}

#[tokio::test]
async fn a_world_is_never_said_to_be_complete_beyond_what_may_have_landed_without_it() {
    let (_store, Pipeline { mut groups, .. }) = pipeline(0).await;
    let send = |groups: &mut Groups, name: &str| {
        groups.add(&[placement(name, 1)]).unwrap();
        let (id, _) = groups.next_to_send().unwrap();
        (id, groups.mark())
    };
    let (first, after_first) = send(&mut groups, "first");
    let (second, _) = send(&mut groups, "second");
    // The second has landed at 10 already, and nobody here knows.
    groups.ended(first, Ok(Revision(11))).unwrap();
    let durable = groups.durable_at(after_first).unwrap();
    assert_eq!((durable.revision, durable.complete), (Revision(11), Revision(1)), "the first is there at 11");
    let (third, _) = send(&mut groups, "third");
    groups.ended(second, Ok(Revision(10))).unwrap();
    let durable = groups.durable_at(third).unwrap();
    assert_eq!((durable.revision, durable.complete), (Revision(11), Revision(11)), "the third cannot be below 12");
    groups.ended(third, Ok(Revision(12))).unwrap();
    assert_eq!(at(&mut groups), Some((12, 12)));
}

#[tokio::test]
async fn decisions_wait_together_while_the_store_is_busy() {
    let (store, mut pipeline) = pipeline(0).await;
    for number in 0..IN_FLIGHT {
        pipeline.groups.add(&[placement(&format!("first-{number}"), 1)]).unwrap();
        begin(&mut pipeline).await;
    }
    for number in 0..50 {
        pipeline.groups.add(&[placement(&format!("later-{number}"), 1)]).unwrap();
        begin(&mut pipeline).await;
    }
    assert_eq!(store.transactions(), IN_FLIGHT, "no more than that are in flight");
    drain(&store, &mut pipeline).await;
    let sizes: Vec<_> = store.seen.lock().unwrap().iter().map(|t| t.writes.len()).collect();
    assert_eq!(sizes, [vec![1; IN_FLIGHT], vec![50]].concat());
}

#[tokio::test]
async fn a_group_never_exceeds_the_limit_and_never_splits_a_decision() {
    let (store, mut pipeline) = pipeline(0).await;
    // Ten operations each: twelve of them fit, a thirteenth would have to be split.
    for number in 0..30 {
        let mut changes: Vec<_> = (0..9).map(|part| placement(&format!("p-{number}-{part}"), 1)).collect();
        changes.push(placement(&format!("p-{number}-last"), 1));
        pipeline.groups.add(&changes).unwrap();
    }
    drain(&store, &mut pipeline).await;
    let sizes: Vec<_> = store.seen.lock().unwrap().iter().map(|t| (t.writes.len(), t.operations())).collect();
    assert_eq!(sizes, [(120, 121), (120, 121), (60, 61)]);
    assert!(pipeline.groups.add(&claim(MAX_OPERATIONS - 2)).is_ok());
    assert_eq!(
        pipeline.groups.add(&claim(MAX_OPERATIONS - 1)),
        Err(Unfit::Operations { operations: MAX_OPERATIONS + 1 })
    );
}

#[tokio::test]
async fn two_writes_of_one_key_are_never_in_flight_together() {
    let (store, mut pipeline) = pipeline(0).await;
    for version in 1..=3 {
        pipeline.groups.add(&[placement("same", version)]).unwrap();
        begin(&mut pipeline).await;
        assert_eq!(store.transactions(), 1, "version {version} must wait");
    }
    pipeline.groups.add(&[placement("other", 1)]).unwrap();
    begin(&mut pipeline).await;
    assert_eq!(store.transactions(), 1, "what comes later does not overtake");
    drain(&store, &mut pipeline).await;
    assert_eq!(store.transactions(), 3);
    let stored = store.get(&key::placement(&"same".parse().unwrap())).await.unwrap().unwrap();
    assert_eq!(stored.version, 3);
}

#[tokio::test]
async fn many_decisions_about_one_node_share_a_transaction() {
    let (store, mut pipeline) = pipeline(0).await;
    pipeline.groups.add(&[node_change("n1", 1)]).unwrap();
    begin(&mut pipeline).await;
    for version in 2..=6 {
        pipeline.groups.add(&[node_change("n1", version), placement(&format!("p{version}"), 1)]).unwrap();
        begin(&mut pipeline).await;
    }
    drain(&store, &mut pipeline).await;
    assert_eq!(store.transactions(), 2);
    pipeline.groups.add(&[node_change("n1", 7)]).unwrap();
    drain(&store, &mut pipeline).await;
    assert_eq!(store.get(&key::node(&node("n1"))).await.unwrap().unwrap().version, 3);
}

#[tokio::test]
async fn a_placement_waits_for_the_node_it_rests_on() {
    let (store, mut pipeline) = pipeline(0).await;
    pipeline.groups.add(&[node_change("n1", 1)]).unwrap();
    begin(&mut pipeline).await;
    let Change::PutPlacement(queued) = placement("p", 1) else { panic!() };
    let mut held = (*queued).clone();
    held.assignment = Some(berth_model::placement::Assignment {
        node: node("n1"),
        gpus: vec![],
        pin: berth_model::placement::Pin {
            reason: berth_model::placement::PinReason::DeviceAssignment,
            since: Timestamp::from_millis(1),
        },
    });
    pipeline.groups.add(&[Change::PutPlacement(Arc::new(held))]).unwrap();
    begin(&mut pipeline).await;
    assert_eq!(store.transactions(), 1);
    drain(&store, &mut pipeline).await;
    assert_eq!(store.transactions(), 2);
}

#[tokio::test]
async fn nothing_counts_as_durable_before_all_that_was_decided_earlier_is() {
    let (store, mut pipeline) = pipeline(0).await;
    assert_eq!(at(&mut pipeline.groups), Some((1, 1)), "nothing to wait for");
    let first = pipeline.groups.add(&[placement("a", 1)]).unwrap().unwrap();
    let after_first = pipeline.groups.mark();
    begin(&mut pipeline).await;
    pipeline.groups.add(&[placement("b", 1)]).unwrap();
    let after_second = pipeline.groups.mark();
    begin(&mut pipeline).await;
    assert_eq!(pipeline.groups.add(&[]).unwrap(), None);
    assert_eq!(pipeline.groups.mark(), after_second, "without changes it waits for what is in flight already");
    store.fail(Fault::Full);
    store.gate.add_permits(2);
    let mut results = [pipeline.next().await.unwrap(), pipeline.next().await.unwrap()];
    results.sort_by_key(Result::is_ok);
    assert!(matches!(results[0], Err(CommitError::Full(_))) && results[1].is_ok());
    assert_eq!(pipeline.groups.durable_at(after_first), None);
    assert_eq!(pipeline.groups.durable_at(after_second), None, "the second is durable, but the first is not");
    assert_eq!(pipeline.groups.fate(first), Fate::NotWritten);
    assert_eq!(pipeline.groups.fate(after_second - 1), Fate::Unknown);
}

#[tokio::test]
async fn a_commit_without_an_answer_is_unknown_not_failed() {
    let (_store, mut pipeline) = pipeline(0).await;
    pipeline.deadline = Duration::from_millis(20);
    let group = pipeline.groups.add(&[placement("a", 1)]).unwrap().unwrap();
    pipeline.dispatch();
    assert!(matches!(pipeline.next().await, Some(Err(CommitError::Unknown(_)))));
    assert_eq!(pipeline.groups.fate(group), Fate::Unknown);
}

#[tokio::test]
async fn a_lost_answer_is_found_again_and_nothing_is_written_twice() {
    for fault in [Fault::Before, Fault::Lost, Fault::After] {
        let (store, mut pipeline) = pipeline(1000).await;
        store.fail(fault);
        pipeline.groups.add(&[placement("a", 1)]).unwrap();
        drain(&store, &mut pipeline).await;
        let stored = store.get(&key::placement(&"a".parse().unwrap())).await.unwrap().unwrap();
        assert_eq!(stored.version, 1, "{fault:?}");
        assert_eq!(at(&mut pipeline.groups), Some((stored.modified.0, stored.modified.0)), "{fault:?}");
        assert_eq!(store.transactions(), if fault == Fault::After { 1 } else { 2 }, "{fault:?}");
    }
}

#[tokio::test]
async fn what_cannot_be_read_back_stays_unknown() {
    let (store, mut pipeline) = pipeline(1000).await;
    pipeline.deadline = Duration::from_millis(100);
    store.fail(Fault::After);
    store.away.store(true, std::sync::atomic::Ordering::SeqCst);
    pipeline.groups.add(&[placement("a", 1)]).unwrap();
    pipeline.dispatch();
    assert!(matches!(pipeline.next().await, Some(Err(CommitError::Unknown(_)))));
    assert_eq!(store.transactions(), 1);
}

#[tokio::test]
async fn a_failure_takes_along_what_needs_it_and_nothing_else() {
    let names = |undone: &Undone| undone.placements.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    for (loss, gone) in [(Loss::Own, "fails rests"), (Loss::Waiting, "apart fails rests")] {
        let (store, mut pipeline) = pipeline(0).await;
        pipeline.groups.add(&[placement("fails", 1)]).unwrap();
        begin(&mut pipeline).await;
        let lands = pipeline.groups.add(&[placement("lands", 1)]).unwrap().unwrap();
        begin(&mut pipeline).await;
        // Two changes of one key: no transaction holds both, so that each begins a group. The last one is full.
        pipeline.groups.add(&[placement("fails", 2), placement("rests", 1)]).unwrap();
        pipeline.groups.add(&[placement("rests", 2)]).unwrap();
        pipeline.groups.add(&claim(MAX_OPERATIONS - 3)).unwrap();
        let apart = pipeline.groups.add(&[placement("apart", 1)]).unwrap().unwrap();
        assert!(lands < apart);
        store.fail(Fault::Full);
        store.gate.add_permits(2);
        let results = [pipeline.next().await.unwrap(), pipeline.next().await.unwrap()];
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
        assert_eq!(pipeline.groups.next_to_send().map(|(id, _)| id), None, "nothing is sent before it is undone");

        let undone = pipeline.groups.undo(loss);
        assert_eq!(names(&undone), gone, "{loss:?}");
        drain(&store, &mut pipeline).await;
        let stored = store.range(key::PLACEMENTS, None, None, 10).await.unwrap().items;
        let stored: Vec<_> = stored.iter().map(|item| item.key.rsplit('/').next().unwrap()).collect();
        let kept = if loss == Loss::Own { vec!["apart", "lands"] } else { vec!["lands"] };
        assert_eq!(stored, kept, "{loss:?}");
        assert!(pipeline.groups.durable_at(pipeline.groups.mark()).is_some(), "nothing is left to wait for");
        // What was undone can be decided again.
        pipeline.groups.add(&[placement("fails", 1)]).unwrap();
        drain(&store, &mut pipeline).await;
    }
}

/// One that waits for nobody is kept, unless one that goes needs it: what is stored of their records is older than it.
#[tokio::test]
async fn what_a_lost_group_rests_on_goes_with_it() {
    let (store, mut pipeline) = pipeline(0).await;
    pipeline.groups.add(&[placement("fails", 1)]).unwrap();
    begin(&mut pipeline).await;
    // Full each, so that each stays a group.
    let full = |name: &str, version| {
        let mut changes = vec![placement(name, version)];
        changes.extend((0..MAX_OPERATIONS - 4).map(|part| placement(&format!("{name}-{version}-{part}"), 1)));
        changes
    };
    pipeline.groups.add(&full("kept", 1)).unwrap();
    pipeline.groups.add(&full("shared", 1)).unwrap();
    pipeline.groups.add(&[full("fails", 2), vec![placement("shared", 2)]].concat()).unwrap();
    store.fail(Fault::Full);
    store.gate.add_permits(1);
    pipeline.next().await.unwrap().unwrap_err();
    let undone = pipeline.groups.undo(Loss::Own);
    let named = |name: &str| undone.placements.contains(&PlacementName::new(name).unwrap());
    assert!(named("fails") && named("shared") && !named("kept"), "{:?}", undone.groups);
    drain(&store, &mut pipeline).await;
    assert!(store.get(&key::placement(&"kept".parse().unwrap())).await.unwrap().is_some());
    assert!(store.get(&key::placement(&"shared".parse().unwrap())).await.unwrap().is_none());
}

#[tokio::test]
async fn an_undone_node_is_written_again_as_often_as_it_really_was() {
    let (store, mut pipeline) = pipeline(1000).await;
    pipeline.groups.add(&[node_change("n1", 1)]).unwrap();
    drain(&store, &mut pipeline).await;
    store.fail(Fault::Full);
    pipeline.groups.add(&[node_change("n1", 2)]).unwrap();
    pipeline.dispatch();
    pipeline.next().await.unwrap().unwrap_err();
    let undone = pipeline.groups.undo(Loss::Own);
    assert_eq!(undone.nodes, [node("n1")].into());
    pipeline.groups.put_back(&node("n1"), 1);
    pipeline.groups.add(&[node_change("n1", 2)]).unwrap();
    drain(&store, &mut pipeline).await;
    assert_eq!(store.get(&key::node(&node("n1"))).await.unwrap().unwrap().version, 2);
}

#[tokio::test]
async fn a_decision_that_contradicts_itself_is_refused() {
    let (_store, mut pipeline) = pipeline(0).await;
    let key = key::placement(&"a".parse().unwrap());
    assert_eq!(pipeline.groups.add(&[placement("a", 1), placement("a", 2)]), Err(Unfit::Twice { key }));
}

#[tokio::test]
async fn a_claim_is_made_once_and_deleted_only_by_its_owner() {
    let (store, mut pipeline) = pipeline(1000).await;
    pipeline.groups.add(&claim(1)).unwrap();
    drain(&store, &mut pipeline).await;
    pipeline.groups.add(&claim(1)).unwrap();
    pipeline.dispatch();
    assert!(matches!(pipeline.next().await, Some(Err(CommitError::Precondition { .. }))));
    let Change::Claim { what, placement, .. } = claim(1).remove(0) else { panic!() };
    let leadership = store.campaign("test").await.unwrap();
    let unclaim = |number| Change::Unclaim { what: what.clone(), placement: placement.clone(), uid: uid(number) };
    for (number, holds) in [(2, false), (1, true)] {
        let shared = Arc::clone(&store) as Arc<dyn Store>;
        let fence = leadership.fence.clone();
        let groups = Groups::new(fence, BTreeMap::new(), Revision(1));
        let mut pipeline = Pipeline::new(shared, groups, Duration::from_secs(20));
        pipeline.groups.add(&[unclaim(number)]).unwrap();
        pipeline.dispatch();
        assert_eq!(pipeline.next().await.unwrap().is_ok(), holds, "uid {number}");
    }
}

/// A hold that expires and a placement that waits in the queue meet in one tick.
#[tokio::test]
async fn a_gpu_changes_hands_within_one_decision() {
    let (store, mut pipeline) = pipeline(1000).await;
    let what = || Claimed::Gpu("n1/PCIROOT(1)#PCI(0000)".parse().unwrap());
    let name = |text: &str| PlacementName::new(text).unwrap();
    let give = |from: &str, by| Change::Unclaim { what: what(), placement: name(from), uid: uid(by) };
    let take = |to: &str, by| Change::Claim { what: what(), placement: name(to), uid: uid(by) };
    pipeline.groups.add(&[take("b", 1)]).unwrap();
    drain(&store, &mut pipeline).await;
    for (changes, owner, by) in [
        (vec![give("b", 1), take("c", 2)], "c", 2),
        // Changes come in the order of names.
        (vec![take("a", 3), give("c", 2)], "a", 3),
    ] {
        pipeline.groups.add(&changes).unwrap();
        drain(&store, &mut pipeline).await;
        let stored = store.get("berth/v1/claims/gpu/n1/PCIROOT(1)#PCI(0000)").await.unwrap().unwrap();
        assert_eq!(stored.value, record::claim(&name(owner), &uid(by)));
    }
    pipeline.groups.add(&[give("b", 1), take("d", 4)]).unwrap();
    pipeline.dispatch();
    assert!(
        matches!(pipeline.next().await, Some(Err(CommitError::Precondition { .. }))),
        "what somebody else owns is not handed on"
    );
}
