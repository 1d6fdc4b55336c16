//! The leader end to end on a store in memory: what is answered is durable, and what goes wrong loses and doubles nothing.

use super::run::{Ended, Options, Service};
use super::*;
use crate::audit::Audit;
use crate::replica::Replica;
use crate::testing::{Fault, Remembering, Scripted, create, eventually, hello, node, report, session, uid};
use berth_core::decide::Limits;
use berth_core::invariants;
use berth_model::placement::{Phase, Progress, StepReport};
use berth_store::{Precondition, Store, Transaction, Write, key};
use futures::poll;
use std::sync::atomic::Ordering;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

struct Fixture {
    store: Arc<Scripted>,
    leader: Leader,
    replica: Replica,
    outbox: Arc<Remembering>,
    stop: CancellationToken,
    running: JoinHandle<Result<(), Ended>>,
}

fn options() -> Options {
    Options {
        limits: Limits::default(),
        commit_deadline: Duration::from_secs(20),
        candidate: "test".into(),
        audit: Audit::default(),
        findings: crate::checked::Findings::default(),
    }
}

async fn lead(store: &Arc<Scripted>) -> Fixture {
    lead_with(store, options().commit_deadline).await
}

#[expect(clippy::disallowed_methods, reason = "a test is its own task group: it waits for the handle")]
async fn lead_with(store: &Arc<Scripted>, commit_deadline: Duration) -> Fixture {
    let (leader, queue) = Leader::channel(64);
    let outbox = Arc::new(Remembering::default());
    let stop = CancellationToken::new();
    let shared = Arc::clone(store) as Arc<dyn Store>;
    let options = Options { commit_deadline, ..options() };
    let (replica, service) =
        Service::open(shared, options, queue, Arc::clone(&outbox) as Arc<dyn Outbox>, stop.clone()).await.unwrap();
    let running = tokio::spawn(service.run());
    Fixture { store: Arc::clone(store), leader, replica, outbox, stop, running }
}

impl Fixture {
    /// A leader with one node of `gpus` GPUs and one VM for each of `placements`.
    async fn with_node(gpus: usize, placements: &[&str]) -> Self {
        let fixture = lead(&Scripted::new(100_000)).await;
        fixture.connect(1, gpus, placements).await;
        fixture
    }

    async fn connect(&self, number: u64, gpus: usize, placements: &[&str]) {
        self.leader.feed(session(number), Input::Connected(Box::new(hello("n1")))).await.unwrap();
        self.report(number, gpus, placements).await;
        eventually("the node is ready", || self.is_ready()).await;
    }

    async fn report(&self, number: u64, gpus: usize, placements: &[&str]) {
        let names: Vec<_> = placements.iter().map(|name| format!("vm-{name}")).collect();
        let vms: Vec<_> = (1..).zip(names.iter().map(String::as_str)).collect();
        let input = Input::Report { node: node("n1"), report: Box::new(report(gpus, &vms)) };
        self.leader.feed(session(number), input).await.unwrap();
    }

    fn is_ready(&self) -> bool {
        self.replica.now().world.node(&node("n1")).is_some_and(|node| node.not_ready().is_none())
    }

    fn phase(&self, name: &str) -> Option<Phase> {
        self.replica.now().world.placement(&name.parse().unwrap()).map(|p| p.phase.clone())
    }

    async fn stop(self) -> Arc<Scripted> {
        self.stop.cancel();
        self.running.await.unwrap().unwrap();
        self.store
    }

    /// Starts again on what is stored, which checks every claim against its placement, and counts what it finds.
    async fn restarted(self) -> Self {
        let before = self.replica.now();
        let store = self.stop().await;
        let after = lead(&store).await;
        let now = after.replica.now();
        let all =
            |world: &berth_core::world::World| world.placements().map(|p| Placement::clone(p)).collect::<Vec<_>>();
        assert_eq!(all(&before.world), all(&now.world), "what was shown is what is stored");
        assert_eq!(invariants::check(&now.world), []);
        assert!(now.term > before.term);
        after
    }
}

#[tokio::test]
async fn what_is_answered_is_durable_visible_and_sent() {
    let fixture = Fixture::with_node(2, &["a"]).await;
    let decided = fixture.leader.submit(create(1, "a")).await.unwrap();
    let placement = decided.placement.unwrap();
    assert!(matches!(placement.phase, Phase::Preparing { .. }), "its VM is there: {:?}", placement.phase);
    assert!(fixture.replica.now().revision >= decided.revision);
    assert_eq!(fixture.phase("a"), Some(placement.phase.clone()), "readers see what the caller was told");
    let sent = fixture.outbox.last();
    assert_eq!(sent[&node("n1")].placements.len(), 1);
    assert_eq!(sent[&node("n1")].generation, placement.generation);

    let generation = placement.generation;
    let progress = Progress {
        generation,
        uid: uid(1),
        report: StepReport::Satisfied,
        forced: Vec::new(),
        install: None,
        removed_role: None,
    };
    let input = Input::Progress { node: node("n1"), progress: Box::new(progress) };
    fixture.leader.feed(session(1), input).await.unwrap();
    eventually("it is active", || fixture.phase("a") == Some(Phase::Active)).await;
    fixture.restarted().await.stop().await;
}

#[tokio::test]
async fn nobody_is_told_anything_before_it_is_durable() {
    let fixture = lead(&Scripted::new(0)).await;
    fixture.store.gate.add_permits(2);
    fixture.leader.feed(session(1), Input::Connected(Box::new(hello("n1")))).await.unwrap();
    eventually("the node is stored", || fixture.store.transactions() == 1).await;
    eventually("its commit ended", || fixture.replica.now().world.node(&node("n1")).is_some()).await;
    fixture.report(1, 2, &["a"]).await;
    eventually("the node is ready", || fixture.is_ready()).await;
    let sent_before = fixture.outbox.sent.lock().unwrap().len();

    let mut first = Box::pin(fixture.leader.submit(create(1, "a")));
    assert!(poll!(&mut first).is_pending());
    // Rests on the first: its answer must wait for that.
    let Input::Create { mut request, uid, caller, trace } = create(2, "a") else { unreachable!() };
    request.request_id = "another".parse().unwrap();
    let mut taken = Box::pin(fixture.leader.submit(Input::Create { request, uid, caller, trace }));
    assert!(poll!(&mut taken).is_pending());
    let queue = &fixture.leader.calls;
    eventually("both are decided", || queue.capacity() == queue.max_capacity()).await;
    eventually("the commit is under way", || fixture.store.transactions() == 3).await;
    assert!(poll!(&mut first).is_pending() && poll!(&mut taken).is_pending());
    assert_eq!(fixture.phase("a"), None, "readers see nothing of it");
    assert_eq!(fixture.outbox.sent.lock().unwrap().len(), sent_before, "nor does the agent");

    fixture.store.gate.add_permits(100_000);
    first.await.unwrap();
    assert!(matches!(taken.await, Err(CallError::Refused(Refusal::NameTaken(_)))));
    eventually("the agent is told", || fixture.outbox.sent.lock().unwrap().len() > sent_before).await;
    fixture.restarted().await.stop().await;
}

#[tokio::test]
async fn a_commit_that_is_refused_once_or_whose_answer_is_lost_is_carried_through() {
    for fault in [Fault::Before, Fault::Lost, Fault::After] {
        let fixture = Fixture::with_node(2, &["a"]).await;
        let (epoch, term) = (fixture.replica.now().epoch, fixture.replica.now().term);
        fixture.store.fail(fault);
        let placement = fixture.leader.submit(create(2, "a")).await.unwrap().placement.unwrap();
        assert_eq!(placement.version, 1, "{fault:?}: it was made once");
        assert_eq!((fixture.replica.now().epoch, fixture.replica.now().term), (epoch, term), "{fault:?}");
        fixture.restarted().await.stop().await;
    }
}

#[tokio::test]
async fn a_store_that_takes_nothing_takes_back_what_it_refused_and_nothing_else() {
    let fixture = Fixture::with_node(3, &["a", "b", "c"]).await;
    fixture.leader.submit(create(1, "a")).await.unwrap();
    let before = fixture.replica.now();
    for _ in 0..3 {
        fixture.store.fail(Fault::Full);
        let error = fixture.leader.submit(create(2, "b")).await.unwrap_err();
        assert!(matches!(error, CallError::Unavailable(_)), "{error}");
        assert!(error.to_string().contains("takes no writes"), "{error}");
    }
    let now = fixture.replica.now();
    assert_eq!((now.epoch, now.term), (before.epoch, before.term), "it leads on");
    let shown = |replica: &crate::replica::Snapshot| {
        let node = replica.world.node(&node("n1")).unwrap();
        (node.link.clone(), node.view.clone(), node.gpus.clone(), node.generation)
    };
    assert_eq!(shown(&now), shown(&before), "the node is as it was, and ready");
    assert_eq!(now.world.placement_count(), 1);
    assert_eq!(invariants::check(&now.world), []);
    assert_eq!(fixture.outbox.looked_at.lock().unwrap().first(), Some(&node("n1")), "what it told may be lost");
    assert_eq!(fixture.outbox.looks.load(Ordering::SeqCst), 0, "nobody else is asked");

    let again = fixture.leader.submit(create(3, "b")).await.unwrap().placement.unwrap();
    assert_eq!(again.uid, uid(3));
    fixture.leader.submit(create(4, "c")).await.unwrap();
    fixture.restarted().await.stop().await;
}

#[tokio::test]
async fn what_an_agent_told_is_asked_for_again_when_it_was_not_committed() {
    let fixture = Fixture::with_node(2, &["a"]).await;
    let made = fixture.leader.submit(create(1, "a")).await.unwrap().placement.unwrap();
    let done = || {
        let progress = Progress {
            generation: made.generation,
            uid: uid(1),
            report: StepReport::Satisfied,
            forced: Vec::new(),
            install: None,
            removed_role: None,
        };
        Input::Progress { node: node("n1"), progress: Box::new(progress) }
    };
    fixture.store.fail(Fault::Full);
    fixture.leader.feed(session(1), done()).await.unwrap();
    eventually("the agent is asked", || !fixture.outbox.looked_at.lock().unwrap().is_empty()).await;
    assert_eq!(fixture.phase("a"), Some(made.phase.clone()), "readers saw nothing of it");
    fixture.leader.feed(session(1), done()).await.unwrap();
    eventually("it is active", || fixture.phase("a") == Some(Phase::Active)).await;
    fixture.restarted().await.stop().await;
}

#[tokio::test]
async fn a_node_that_could_not_be_stored_comes_again() {
    let fixture = lead(&Scripted::new(100_000)).await;
    fixture.store.fail(Fault::Full);
    fixture.leader.feed(session(1), Input::Connected(Box::new(hello("n1")))).await.unwrap();
    eventually("it is stored in the end", || fixture.replica.now().world.node(&node("n1")).is_some()).await;
    fixture.store.fail(Fault::Full);
    // Its hardware is told once, and not committed.
    fixture.report(1, 2, &[]).await;
    eventually("the agent is asked", || fixture.outbox.looked_at.lock().unwrap().len() >= 2).await;
    fixture.report(1, 2, &[]).await;
    let gpus = || fixture.replica.now().world.node(&node("n1")).map(|node| node.gpus.len());
    eventually("its hardware is stored", || gpus() == Some(2)).await;
    assert!(fixture.is_ready());
    fixture.restarted().await.stop().await;
}

/// Somebody asks the same twice, and asks for what the first has taken: neither answer may rest on what is not to be.
#[tokio::test]
async fn no_answer_rests_on_what_was_taken_back() {
    let fixture = lead(&Scripted::new(2)).await;
    fixture.connect(1, 2, &["a"]).await;
    fixture.store.fail(Fault::Full);
    let Input::Create { mut request, uid: other, caller, trace } = create(3, "a") else { unreachable!() };
    request.request_id = "another".parse().unwrap();
    let taken = Input::Create { request, uid: other, caller, trace };
    let answers = [create(1, "a"), create(2, "a"), taken].map(|input| fixture.leader.submit(input));
    let mut answers = futures::future::join_all(answers);
    assert!(poll!(&mut answers).is_pending());
    let queue = &fixture.leader.calls;
    eventually("all are decided", || queue.capacity() == queue.max_capacity()).await;
    fixture.store.gate.add_permits(100_000);
    for answer in answers.await {
        assert!(matches!(answer, Err(CallError::Unavailable(_))), "{answer:?}");
    }
    assert_eq!(fixture.replica.now().world.placement_count(), 0);
    fixture.restarted().await.stop().await;
}

#[tokio::test]
async fn what_somebody_else_wrote_is_a_reason_to_refuse_and_in_the_end_to_read_everything() {
    let fixture = Fixture::with_node(2, &[]).await;
    let epoch = fixture.replica.now().epoch;
    let stray = key::request(&"r-a".parse().unwrap());
    let value = berth_store::record::claim(&"nobody".parse().unwrap(), &uid(9));
    let writes = vec![Write::Put { key: stray.clone(), value }];
    fixture.store.commit(Transaction { writes, ..Transaction::default() }).await.unwrap();
    for _ in 0..3 {
        let error = fixture.leader.submit(create(1, "a")).await.unwrap_err();
        assert!(matches!(&error, CallError::Unavailable(why) if why.contains(&stray)), "{error}");
        assert_eq!(fixture.replica.now().epoch, epoch);
        assert!(fixture.is_ready());
    }
    fixture.leader.submit(create(2, "b")).await.unwrap();
    fixture.leader.submit(create(1, "a")).await.unwrap_err();
    let ended = fixture.running.await.unwrap().unwrap_err();
    let text = format!("{:#}", anyhow::Error::new(ended));
    assert!(text.contains("requests/r-a belongs to nobody"), "a person must look: {text}");
}

/// A leader that cannot find out what became of a commit: its store is away for longer than a transaction may take.
async fn with_an_unknown_commit(fault: Fault) -> (Fixture, u64) {
    let fixture = lead_with(&Scripted::new(100_000), Duration::from_millis(100)).await;
    fixture.connect(1, 2, &["a", "b"]).await;
    fixture.leader.submit(create(1, "a")).await.unwrap();
    let term = fixture.replica.now().term;
    fixture.store.away.store(true, Ordering::SeqCst);
    fixture.store.fail(fault);
    let error = fixture.leader.submit(create(2, "b")).await.unwrap_err();
    assert!(matches!(error, CallError::Unknown(_)), "{error}");
    fixture.store.away.store(false, Ordering::SeqCst);
    eventually("the world is loaded anew", || fixture.replica.now().term > term).await;
    (fixture, term)
}

#[tokio::test]
async fn a_commit_that_stays_unknown_is_shut_out_and_the_world_is_loaded_anew() {
    for (fault, kept) in [(Fault::Lost, false), (Fault::After, true)] {
        let (fixture, term) = with_an_unknown_commit(fault).await;
        eventually("agents are asked", || fixture.outbox.looks.load(Ordering::SeqCst) == 1).await;
        assert!(fixture.replica.now().term > term, "a lost commit cannot land any more");
        assert_eq!(fixture.phase("b").is_some(), kept, "{fault:?}");
        assert!(fixture.phase("a").is_some(), "{fault:?}");

        // The session survives: its agent reports, and the very same call succeeds exactly once.
        fixture.report(1, 2, &["a", "b"]).await;
        eventually("the node is ready again", || fixture.is_ready()).await;
        let again = fixture.leader.submit(create(3, "b")).await.unwrap().placement.unwrap();
        assert_eq!(again.uid, uid(if kept { 2 } else { 3 }), "{fault:?}: the request id decides, not the attempt");
        let world = &fixture.replica.now().world;
        assert_eq!(world.placement_count(), 2);
        assert_eq!(invariants::check(world), []);
        fixture.restarted().await.stop().await;
    }
}

#[tokio::test]
async fn after_a_reload_a_delta_means_nothing_until_a_full_report() {
    let (fixture, _) = with_an_unknown_commit(Fault::Lost).await;
    let mut delta = report(1, &[]);
    delta.full = false;
    let input = Input::Report { node: node("n1"), report: Box::new(delta) };
    fixture.leader.feed(session(1), input).await.unwrap();
    // Decided after the delta: the queue keeps its order.
    let error = fixture.leader.submit(create(2, "b")).await.unwrap_err();
    assert!(matches!(error, CallError::Refused(Refusal::NoRoom(_))), "{error}");
    assert!(!fixture.is_ready());
    fixture.report(1, 2, &[]).await;
    eventually("the node is ready", || fixture.is_ready()).await;
    fixture.stop().await;
}

#[tokio::test]
async fn only_the_newest_session_speaks_for_a_node() {
    let fixture = Fixture::with_node(2, &[]).await;
    fixture.connect(5, 2, &[]).await;
    fixture.leader.feed(session(1), Input::Disconnected(node("n1"))).await.unwrap();
    fixture.report(1, 9, &[]).await;
    fixture.leader.submit(create(1, "a")).await.unwrap();
    let world = fixture.replica.now().world.clone();
    assert_eq!(world.node(&node("n1")).unwrap().gpus.len(), 2, "the old session is not believed");
    assert!(fixture.is_ready());
    fixture.leader.feed(session(5), Input::Disconnected(node("n1"))).await.unwrap();
    eventually("the node is disconnected", || !fixture.is_ready()).await;
    fixture.stop().await;
}

#[tokio::test]
async fn many_callers_at_once_share_transactions_and_none_is_lost() {
    let names: Vec<_> = (0..40).map(|number| format!("p{number}")).collect();
    let texts: Vec<_> = names.iter().map(String::as_str).collect();
    let fixture = Fixture::with_node(40, &texts).await;
    let before = fixture.store.transactions();
    let calls = (1..).zip(&names).map(|(number, name)| fixture.leader.submit(create(number, name)));
    for result in futures::future::join_all(calls).await {
        result.unwrap();
    }
    let transactions = fixture.store.transactions() - before;
    assert!(transactions < 40, "{transactions} transactions for 40 decisions");
    assert_eq!(fixture.replica.now().world.placement_count(), 40);
    fixture.restarted().await.stop().await;
}

#[tokio::test]
async fn whoever_lost_the_leadership_ends_without_writing() {
    let fixture = Fixture::with_node(1, &[]).await;
    let other = lead(&fixture.store).await;
    let ended = fixture.running.await.unwrap().unwrap_err();
    assert!(matches!(ended, Ended::LostLeadership), "{ended}");
    assert!(fixture.leader.submit(create(1, "a")).await.is_err());
    assert_eq!(other.replica.now().world.placement_count(), 0);
    other.stop().await;
}

#[tokio::test]
async fn claims_that_contradict_the_placements_are_named_and_nothing_starts() {
    let fixture = Fixture::with_node(1, &[]).await;
    fixture.leader.submit(create(1, "a")).await.unwrap();
    let store = fixture.stop().await;
    let claim = "berth/v1/claims/gpu/n1/PCIROOT(0)#PCI(0000)".to_owned();
    let value = store.get(&claim).await.unwrap().unwrap().value;
    let transaction = Transaction {
        fence: None,
        preconditions: vec![Precondition::Value { key: claim.clone(), value: value.clone() }],
        writes: vec![
            Write::Delete { key: claim.clone() },
            Write::Put { key: key::request(&"stray".parse().unwrap()), value },
        ],
    };
    store.commit(transaction).await.unwrap();
    let (_leader, queue) = Leader::channel(1);
    let opened =
        Service::open(store, options(), queue, Arc::new(Remembering::default()), CancellationToken::new()).await;
    let ended = opened.err().unwrap();
    let text = format!("{:#}", anyhow::Error::new(ended));
    assert!(text.contains("a person must look"), "{text}");
    assert!(text.contains(&format!("owns {claim}, but there is no such claim")), "{text}");
    assert!(text.contains("requests/stray belongs to a"), "{text}");
}

#[tokio::test]
async fn a_full_queue_is_told_at_once_and_a_stopped_leader_never_hangs() {
    let (leader, queue) = Leader::channel(1);
    let waiting = leader.submit(create(1, "a"));
    let full = leader.submit(create(2, "b"));
    let (waiting, full) = tokio::join!(tokio::time::timeout(Duration::from_millis(1), waiting), full,);
    assert!(waiting.is_err(), "it waits for its answer");
    assert!(matches!(full, Err(CallError::Overloaded)), "{full:?}");
    drop(queue);
    assert!(matches!(leader.submit(create(3, "c")).await, Err(CallError::Unavailable(_))));
}

/// As after a restore: the store remembers less than agents have obeyed.
#[tokio::test]
async fn a_leader_rises_above_the_highest_term_that_an_agent_has_obeyed() {
    let fixture = Fixture::with_node(2, &["a"]).await;
    fixture.leader.submit(create(1, "a")).await.unwrap();
    let before = fixture.replica.now().term;
    let told = |name: &str, ledger_term| {
        let hello = berth_model::inventory::Hello { ledger_term, ledger_generation: 40, ..hello(name) };
        Input::Connected(Box::new(hello))
    };
    fixture.leader.feed(session(2), told("n2", before + 500)).await.unwrap();
    fixture.leader.feed(session(3), told("n3", before + 900)).await.unwrap();
    eventually("the term is above both", || fixture.replica.now().term > before + 900).await;
    assert_eq!(fixture.replica.now().term, before + 901, "and no higher than it must be");
    assert!(fixture.phase("a").is_some(), "nothing is lost on the way");
    eventually("agents get the new term", || {
        fixture.outbox.last().get(&node("n3")).is_some_and(|sent| sent.term > before + 900 && sent.generation > 40)
    })
    .await;
    fixture.report(1, 2, &["a"]).await;
    eventually("the node is ready again", || fixture.is_ready()).await;
    // The same terms once more change nothing.
    fixture.leader.feed(session(4), told("n2", before + 500)).await.unwrap();
    let term = fixture.replica.now().term;
    fixture.leader.submit(create(2, "b")).await.unwrap();
    assert_eq!(fixture.replica.now().term, term);
    let after = fixture.restarted().await;
    assert!(after.replica.now().term > term, "the next leadership goes on from there");
    after.stop().await;
}

#[tokio::test]
async fn a_deposed_leader_does_not_rise_again() {
    let fixture = Fixture::with_node(1, &[]).await;
    let term = fixture.replica.now().term;
    // Somebody else leads, and an agent has heard of it; this one has not noticed.
    fixture.store.campaign("another").await.unwrap();
    let hello = berth_model::inventory::Hello { ledger_term: term + 1, ..hello("n2") };
    let _ended = fixture.leader.feed(session(2), Input::Connected(Box::new(hello))).await;
    let ended = fixture.running.await.unwrap();
    assert!(matches!(ended, Err(Ended::LostLeadership)), "{ended:?}");
    assert_eq!(fixture.store.get(key::TERM).await.unwrap(), None, "it wrote nothing");
}

#[tokio::test]
async fn a_term_that_cannot_be_is_not_followed() {
    let fixture = Fixture::with_node(1, &[]).await;
    let term = fixture.replica.now().term;
    let hello = berth_model::inventory::Hello { ledger_term: u64::MAX, ..hello("n2") };
    fixture.leader.feed(session(2), Input::Connected(Box::new(hello))).await.unwrap();
    eventually("the node is known", || fixture.replica.now().world.node(&node("n2")).is_some()).await;
    let mut service = fixture.restarted().await;
    assert_eq!(service.replica.now().term, term + 1);
    service.stop.cancel();
    (&mut service.running).await.unwrap().unwrap();
    assert_eq!(service.store.get(key::TERM).await.unwrap(), None);
}
