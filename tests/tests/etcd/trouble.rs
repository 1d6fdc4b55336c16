//! What etcd can do to a store: not answer, be full, lose members.

use super::{CommitError, Event, Revision, Server, connect, options, put, soon, write};
use berth_store::{Store, WatchError};
use berth_store_etcd::{Etcd, Options};
use berth_tests::etcd;
use futures::StreamExt as _;
use std::time::{Duration, Instant};

#[tokio::test]
async fn a_lost_answer_is_unknown_and_nothing_is_sent_twice() {
    let Some(server) = Server::one("a_lost_answer_is_unknown").unwrap() else { return };
    let before = write(&connect(&server).await, "a", "0").await;
    let store = Etcd::connect(Options { deadline: Duration::from_secs(1), ..options(&server) }).await.unwrap();
    let paused = server.pause(0).unwrap();
    let begun = Instant::now();
    let outcome = store.commit(put("a", "1")).await;
    assert!(matches!(outcome, Err(CommitError::Unknown(_))), "{outcome:?}");
    assert!(begun.elapsed() < Duration::from_secs(5), "the deadline holds: {:?}", begun.elapsed());
    let read = store.get("a").await;
    assert!(matches!(read, Err(berth_store::Error::Unavailable(_))), "{read:?}");
    drop(paused);
    // Whatever was under way has landed before this one.
    let end = soon("etcd answers again", async {
        loop {
            if let Ok(revision) = store.commit(put("b", "")).await {
                break revision;
            }
        }
    })
    .await;
    let written = super::walk(&store, "a", end).await;
    let written = written.iter().filter(|event| event.revision() > before).count();
    assert!(written <= 1, "it was written {written} times");
}

#[tokio::test]
async fn what_was_never_sent_is_not_unknown() {
    let Some(mut server) = Server::one("what_was_never_sent_is_not_unknown").unwrap() else { return };
    let store = connect(&server).await;
    write(&store, "a", "0").await;
    server.kill(0).unwrap();
    // The first may have been on its way to the connection that broke; from then on there is none.
    let outcome = soon("the connection is gone", async {
        loop {
            match store.commit(put("a", "1")).await {
                Err(CommitError::Unknown(_)) => {}
                other => break other,
            }
        }
    })
    .await;
    assert!(matches!(&outcome, Err(CommitError::Unavailable(why)) if why.contains("cannot connect")), "{outcome:?}");
    server.restart(0).unwrap();
    assert_eq!(store.get("a").await.unwrap().unwrap().version, 1, "none of them was written");
}

#[tokio::test]
async fn nobody_there_is_said_at_once() {
    let port = berth_tests::process::free_port().unwrap();
    let options = Options { endpoints: vec![format!("127.0.0.1:{port}")], ..Options::default() };
    let begun = Instant::now();
    let text = Etcd::connect(options).await.unwrap_err().to_string();
    assert!(text.contains(&port.to_string()) && text.contains("cannot connect"), "{text}");
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_full_etcd_refuses_writes_and_goes_on_with_reads() {
    let args = vec!["--quota-backend-bytes".to_owned(), (4 * 1024 * 1024).to_string()];
    let test = "a_full_etcd_refuses_writes_and_goes_on_with_reads";
    let Some(server) = Server::start(test, 1, &etcd::Options { args, tls: false }).unwrap() else { return };
    let store = connect(&server).await;
    let mut leadership = store.campaign("one").await.unwrap();
    let first = write(&store, "first", "1").await;
    let filling = async {
        loop {
            if let Err(error) = store.commit(put("filler", vec![7; 256 * 1024])).await {
                break error;
            }
        }
    };
    let full = soon("it is full", filling).await;
    assert!(matches!(full, CommitError::Full(_)), "{full:?}");
    assert!(full.to_string().contains("out of space") && full.to_string().contains("alarm disarm"), "{full}");

    assert_eq!(store.get("first").await.unwrap().unwrap().value, "1");
    let page = store.range("f", None, None, 10).await.unwrap();
    assert_eq!(page.items.len(), 2);
    let mut watch = store.watch("first", first).await.unwrap();
    assert_eq!(soon("a watch", watch.next()).await.unwrap().unwrap().len(), 1);
    assert!(
        tokio::time::timeout(2 * super::TTL, &mut leadership.lost).await.is_err(),
        "the lease is kept alive though nothing can be written"
    );

    // What the text says to do.
    store.compact(page.revision).await.unwrap();
    server.call("v3/maintenance/defragment", "{}").unwrap();
    let alarms = server.call("v3/maintenance/alarm", r#"{"action": "GET"}"#).unwrap();
    let member = alarms["alarms"][0]["memberID"].as_str().expect("an alarm is on").to_owned();
    let disarm = format!(r#"{{"action": "DEACTIVATE", "memberID": "{member}", "alarm": "NOSPACE"}}"#);
    server.call("v3/maintenance/alarm", &disarm).unwrap();
    write(&store, "first", "2").await;
}

#[tokio::test]
async fn a_watch_goes_on_after_a_restart_without_a_gap() {
    let Some(mut server) = Server::one("a_watch_goes_on_after_a_restart").unwrap() else { return };
    let store = connect(&server).await;
    let first = write(&store, "w/1", "").await;
    let mut watch = store.watch("w/", first).await.unwrap();
    let item = soon("the first", watch.next()).await.unwrap().unwrap();
    let mut seen: Vec<Event> = item;
    server.kill(0).unwrap();
    let end = soon("the watch ends", watch.next()).await;
    assert!(matches!(end, Some(Err(WatchError::Interrupted(_)))), "{end:?}");
    server.restart(0).unwrap();
    write(&store, "w/2", "").await;
    write(&store, "w/3", "").await;
    let next = Revision(seen.last().unwrap().revision().0 + 1);
    let mut watch = soon("a new watch", store.watch("w/", next)).await.unwrap();
    while seen.len() < 3 {
        seen.extend(soon("the rest", watch.next()).await.unwrap().unwrap());
    }
    let keys: Vec<_> = seen.iter().map(Event::key).collect();
    assert_eq!(keys, ["w/1", "w/2", "w/3"]);
}

#[tokio::test]
async fn a_cluster_without_a_majority_refuses_in_time() {
    let test = "a_cluster_without_a_majority_refuses_in_time";
    let Some(mut server) = Server::start(test, 3, &etcd::Options::default()).unwrap() else { return };
    let store = connect(&server).await;
    write(&store, "a", "1").await;
    server.kill(1).unwrap();
    server.kill(2).unwrap();
    let begun = Instant::now();
    let outcome = store.commit(put("a", "2")).await;
    assert!(matches!(outcome, Err(CommitError::Unknown(_) | CommitError::Unavailable(_))), "{outcome:?}");
    assert!(store.get("a").await.is_err(), "what one member remembers is no answer");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    server.restart(1).unwrap();
    let value = soon("two are enough", async {
        loop {
            if let Ok(Some(item)) = store.get("a").await {
                break item.value;
            }
        }
    });
    assert!(matches!(&*value.await, b"1" | b"2"));
}
