//! Leadership among several controllers: by turns, never two, and never longer than the lease.

use super::{PATIENCE, Server, TTL, connect, options, put, soon, write};
use berth_store::{CommitError, Leadership, Store, Transaction, Write, key};
use berth_store_etcd::{Etcd, Options};
use futures::FutureExt as _;
use std::time::{Duration, Instant};

fn fenced(leadership: &Leadership, key: &str) -> Transaction {
    Transaction { fence: Some(leadership.fence.clone()), ..put(key, "") }
}

#[tokio::test]
async fn a_leader_that_vanished_is_replaced_when_its_lease_runs_out() {
    let Some(server) = Server::one("a_leader_that_vanished_is_replaced").unwrap() else { return };
    let (first, second) = (connect(&server).await, connect(&server).await);
    let old = first.campaign("first").await.unwrap();
    first.commit(fenced(&old, "a")).await.unwrap();
    // Nobody keeps the lease alive any more, as after kill -9.
    drop(first);
    let begun = Instant::now();
    let new = soon("the second leads", second.campaign("second")).await.unwrap();
    assert!(begun.elapsed() < TTL + Duration::from_secs(10), "it took {:?}", begun.elapsed());
    assert!(new.term > old.term, "{} after {}", new.term, old.term);
    let outcome = second.commit(fenced(&old, "a")).await;
    assert!(matches!(outcome, Err(CommitError::Fenced)), "{outcome:?}");
    second.commit(fenced(&new, "a")).await.unwrap();
}

#[tokio::test]
async fn a_leader_that_resigns_is_replaced_at_once() {
    let Some(server) = Server::one("a_leader_that_resigns_is_replaced_at_once").unwrap() else { return };
    let patient = Options { lease_ttl: Duration::from_secs(300), ..options(&server) };
    let first = Etcd::connect(patient).await.unwrap();
    let second = connect(&server).await;
    let mut old = first.campaign("first").await.unwrap();
    let mut waiting = Box::pin(second.campaign("second"));
    // It waits: the other leads for minutes yet.
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut waiting).await.is_err());
    first.resign().await;
    let new = soon("the second leads", waiting).await.unwrap();
    assert!(new.term > old.term);
    soon("the first is told", &mut old.lost).await;
}

#[tokio::test]
async fn a_lease_is_kept_for_as_long_as_its_leader_lives() {
    let Some(server) = Server::one("a_lease_is_kept").unwrap() else { return };
    let (first, second) = (connect(&server).await, connect(&server).await);
    let mut leadership = first.campaign("first").await.unwrap();
    // Twice the time of the lease: without renewal somebody else would lead by then.
    assert!(tokio::time::timeout(2 * TTL, second.campaign("second")).await.is_err(), "nobody else may lead");
    assert!((&mut leadership.lost).now_or_never().is_none());
    first.commit(fenced(&leadership, "a")).await.unwrap();
}

#[tokio::test]
async fn a_leader_whose_key_was_deleted_is_told_and_cannot_write() {
    let Some(server) = Server::one("a_leader_whose_key_was_deleted_is_told").unwrap() else { return };
    let (first, other) = (connect(&server).await, connect(&server).await);
    let mut leadership = first.campaign("first").await.unwrap();
    let writes = vec![Write::Delete { key: key::leader() }];
    other.commit(Transaction { writes, ..Transaction::default() }).await.unwrap();
    soon("it is told", &mut leadership.lost).await;
    let outcome = first.commit(fenced(&leadership, "a")).await;
    assert!(matches!(outcome, Err(CommitError::Fenced)), "{outcome:?}");
    // Its lease is no help to it any more, and no hindrance.
    let again = soon("it leads again", first.campaign("first")).await.unwrap();
    assert!(again.term > leadership.term);
}

#[tokio::test]
async fn a_leader_that_is_cut_off_gives_up_before_its_lease_can_have_run_out() {
    let Some(server) = Server::one("a_leader_that_is_cut_off_gives_up").unwrap() else { return };
    let store = connect(&server).await;
    let mut leadership = store.campaign("first").await.unwrap();
    let paused = server.pause(0).unwrap();
    let begun = Instant::now();
    tokio::time::timeout(PATIENCE, &mut leadership.lost).await.expect("it must give up by its own clock");
    assert!(begun.elapsed() < TTL, "the lease may have run out {:?} after the last renewal", begun.elapsed());
    drop(paused);
    let again = soon("it leads again", store.campaign("first")).await.unwrap();
    assert!(again.term > leadership.term);
}

#[tokio::test]
async fn a_leader_outlives_the_member_it_talks_to() {
    let test = "a_leader_outlives_the_member_it_talks_to";
    let Some(mut server) = Server::start(test, 3, &Default::default()).unwrap() else { return };
    // Long enough for etcd to elect a leader of its own.
    let store = Etcd::connect(Options { lease_ttl: Duration::from_secs(10), ..options(&server) }).await.unwrap();
    let mut leadership = store.campaign("first").await.unwrap();
    write(&store, "a", "1").await;
    server.kill(0).unwrap();
    let begun = Instant::now();
    let again = || async {
        // A write that was under way may be lost; the next one must not be.
        while let Err(error) = store.commit(fenced(&leadership, "b")).await {
            assert!(!matches!(error, CommitError::Fenced | CommitError::Illegal(_)), "{error}");
            assert!(begun.elapsed() < PATIENCE, "{error}");
        }
    };
    again().await;
    assert_eq!(store.get("a").await.unwrap().unwrap().value, "1");
    assert!(
        tokio::time::timeout(Duration::from_secs(12), &mut leadership.lost).await.is_err(),
        "it leads on through the others"
    );
    store.commit(fenced(&leadership, "c")).await.unwrap();
}

/// A machine that loses its power takes a controller and a member of etcd with it, and says good-bye to nobody.
#[tokio::test]
async fn whoever_waits_for_its_turn_notices_a_member_that_fell_silent() {
    let test = "whoever_waits_for_its_turn_notices";
    let Some(server) = Server::start(test, 3, &Default::default()).unwrap() else { return };
    let (first, second) = (connect(&server).await, connect(&server).await);
    let old = first.campaign("first").await.unwrap();
    let mut waiting = Box::pin(second.campaign("second"));
    assert!(tokio::time::timeout(Duration::from_millis(500), &mut waiting).await.is_err());
    let _silent = server.pause(0).unwrap();
    drop(first);
    let begun = Instant::now();
    let new = soon("the second leads", waiting).await.unwrap();
    // An election among the members, the whole lease again, a look, and its share of a deadline; the connection itself would
    // notice only after 15 s.
    assert!(begun.elapsed() < TTL + Duration::from_secs(10), "it took {:?}", begun.elapsed());
    assert!(new.term > old.term);
}
