//! The etcd store against real etcd servers: the contract of all stores, and what only a cluster can do to it.

mod contract;
mod history;
mod leading;
mod login;
mod trouble;

use berth_store::{CommitError, Event, Revision, Store, Transaction, Write};
use berth_store_etcd::{Etcd, Options};
use berth_tests::etcd::Etcd as Server;
use bytes::Bytes;
use futures::StreamExt as _;
use std::time::Duration;

/// Longest wait for something that must happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// The shortest lease there is, so that tests that wait for its end are short.
const TTL: Duration = berth_store_etcd::SHORTEST_LEASE_TTL;

fn options(server: &Server) -> Options {
    Options { endpoints: server.endpoints(), lease_ttl: TTL, ..Options::default() }
}

/// A controller's connection.
async fn connect(server: &Server) -> Etcd {
    Etcd::connect(options(server)).await.expect("etcd answers")
}

fn put(key: &str, value: impl Into<Bytes>) -> Transaction {
    let writes = vec![Write::Put { key: key.to_owned(), value: value.into() }];
    Transaction { writes, ..Transaction::default() }
}

async fn write(store: &Etcd, key: &str, value: impl Into<Bytes>) -> Revision {
    store.commit(put(key, value)).await.expect("an unconditional write is committed")
}

/// Waits for what must happen.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// All changes under a prefix up to a revision, walked revision by revision from the first.
async fn walk(store: &Etcd, prefix: &str, until: Revision) -> Vec<Event> {
    let end = write(store, &format!("{prefix}zzz/walked/{until}"), "").await;
    let mut watch = store.watch(prefix, Revision(1)).await.expect("nothing is compacted");
    let mut events = Vec::new();
    loop {
        let item = soon("the history", watch.next()).await.expect("it does not end").expect("it does not break");
        if item.iter().any(|event| event.revision() >= end) {
            return events;
        }
        events.extend(item.into_iter().filter(|event| event.revision() <= until));
    }
}
