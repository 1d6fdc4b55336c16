//! A leader that is stopped in its tracks for longer than its lease cannot write one byte when it wakes: shown by etcd's
//! history, revision by revision.

use super::{Server, TTL, connect, soon, walk};
use berth_store::{Event, Store};
use berth_tests::process::{Process, other};
use std::time::Duration;

const ROUNDS: u64 = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_leader_writes_nothing_when_it_wakes() {
    let Some(server) = Server::one("a_paused_leader_writes_nothing_when_it_wakes").unwrap() else { return };
    let store = connect(&server).await;
    for round in 1..=ROUNDS {
        let mut child = other(env!("CARGO_BIN_EXE_berth-tests-leader"));
        child.args([&server.endpoints().join(","), &TTL.as_secs().to_string(), &format!("round/{round}/")]);
        let mut child = Process::start(child).unwrap();
        // It leads, and is in the midst of writing.
        child.wait_for_line(Duration::from_secs(60), |line| line.contains("wrote 20").then_some(())).unwrap();
        let paused = child.pause().unwrap();
        let successor = soon("somebody else leads", store.campaign("successor")).await.unwrap();
        drop(paused);
        let status = child.ended_within(Duration::from_secs(60)).unwrap().expect("it ends when it finds out");
        assert_eq!(status.code(), Some(3), "it must end because it lost its leadership; it said:\n{}", child.log());

        let now = store.range("nothing/", None, None, 1).await.unwrap().revision;
        let history = walk(&store, "round/", now).await;
        let of_this_round: Vec<_> =
            history.iter().filter(|event| event.key().starts_with(&format!("round/{round}/"))).collect();
        assert!(of_this_round.len() >= 20, "it wrote before it was paused: {}", of_this_round.len());
        let after: Vec<_> =
            of_this_round.iter().filter(|event| event.revision() > successor.fence.created).map(|e| e.key()).collect();
        assert!(after.is_empty(), "round {round}: written after somebody else led: {after:?}");
        assert!(history.iter().all(|event| matches!(event, Event::Put(_))));
        store.resign().await;
    }
}
