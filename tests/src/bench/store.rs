//! etcd, as Berth uses it and bare: one real member on an empty disk of its own, and transactions shaped like a
//! placement's.
//!
//! Bare transactions go through the very client that the controller uses, so that a comparison is about what Berth does
//! beside them.

use super::figures::{self, Usage};
use crate::etcd::{Etcd as Server, Options};
use crate::http;
use anyhow::{Context as _, ensure};
use berth_store::{CommitError, Event, Precondition, Revision, Store as _, Transaction, Write, key};
use berth_store_etcd::Etcd;
use futures::StreamExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// What is written beside Berth's own keys.
const BARE: &str = "bench/";
/// How long a revision's changes may take to be shown.
const SHOWN: Duration = Duration::from_secs(30);
/// Large enough for every version of every key of the longest benchmark: nothing is compacted meanwhile.
const QUOTA: &str = "--quota-backend-bytes=8589934592";

/// A running etcd, and the client.
pub(super) struct Store {
    server: Server,
    pub(super) client: Arc<Etcd>,
    pub(super) version: String,
    written: AtomicU64,
}

/// What one transaction writes: the sizes of each put's key and value, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Shape {
    puts: Vec<(usize, usize)>,
}

impl Shape {
    /// One put of a record's size.
    pub(super) fn single(&self) -> Self {
        Self { puts: self.puts.iter().max_by_key(|(_, value)| *value).copied().into_iter().collect() }
    }

    /// So many of these in one transaction.
    pub(super) fn times(&self, count: usize) -> Self {
        Self { puts: self.puts.iter().copied().cycle().take(self.puts.len() * count).collect() }
    }

    pub(super) fn puts(&self) -> usize {
        self.puts.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.puts.iter().map(|(key, value)| key + value).sum()
    }
}

/// What a transaction compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compares {
    /// One key: what nobody can do without.
    One,
    /// One for each put, as Berth does.
    Each,
}

/// Begin of every key that Berth writes, those of the audit included.
const EVERYTHING: &str = "berth/";

impl Store {
    /// Starts an empty etcd.
    ///
    /// # Errors
    /// When there is none, or it does not start.
    pub(super) async fn start() -> anyhow::Result<Self> {
        let options = Options { args: vec![QUOTA.to_owned()], ..Options::default() };
        let started = tokio::task::spawn_blocking(move || Server::start("bench", 1, &options)).await?;
        let server = started?.context("there is no etcd here; cargo xtask bench gets one")?;
        let client = Etcd::connect(berth_store_etcd::Options { endpoints: server.endpoints(), ..Default::default() });
        let client = Arc::new(client.await.context("etcd cannot be used")?);
        let endpoint = server.endpoints().concat();
        let version = tokio::task::spawn_blocking(move || http::get(&endpoint, "/version")?.json()).await??;
        let version = version["etcdserver"].as_str().unwrap_or("of an unknown version").to_owned();
        Ok(Self { server, client, version, written: AtomicU64::new(0) })
    }

    /// Where it is reached.
    pub(super) fn endpoint(&self) -> String {
        self.server.endpoints().concat()
    }

    pub(super) fn usage(&self) -> anyhow::Result<Usage> {
        figures::usage(self.server.id(0)?)
    }

    /// Its revision now.
    pub(super) async fn revision(&self) -> anyhow::Result<Revision> {
        Ok(self.client.range(key::LEADER, None, None, 1).await?.revision)
    }

    /// What the transaction of a revision wrote.
    pub(super) async fn shape(&self, revision: Revision) -> anyhow::Result<Shape> {
        let mut changes = self.client.watch(EVERYTHING, revision).await?;
        let first = tokio::time::timeout(SHOWN, changes.next()).await.context("etcd does not show its history")?;
        let first = first.context("the history ended")??;
        ensure!(first.iter().all(|change| change.revision() == revision), "nothing was written at {revision}");
        let put = |change: &Event| match change {
            Event::Put(item) => Some((item.key.len(), item.value.len())),
            Event::Delete { .. } => None,
        };
        Ok(Shape { puts: first.iter().filter_map(put).collect() })
    }

    /// One bare transaction of this shape, of keys that were not there.
    pub(super) async fn bare(&self, shape: &Shape, compares: Compares) -> Result<Revision, CommitError> {
        commit(&self.client, shape, compares, self.written.fetch_add(1, Ordering::Relaxed)).await
    }

    /// Bare transactions of this shape for some time, so many in flight; how many were done a second.
    pub(super) async fn rate(
        &self,
        shape: &Shape,
        compares: Compares,
        in_flight: usize,
        time: Duration,
    ) -> anyhow::Result<f64> {
        let begun = Instant::now();
        let mut lanes = JoinSet::new();
        for _ in 0..in_flight {
            let (client, shape) = (Arc::clone(&self.client), shape.clone());
            // Numbers that no other lane uses.
            let base = self.written.fetch_add(1 << 24, Ordering::Relaxed);
            lanes.spawn(async move {
                let mut done = 0;
                while begun.elapsed() < time {
                    commit(&client, &shape, compares, base + done).await?;
                    done += 1;
                }
                Ok::<u64, CommitError>(done)
            });
        }
        let mut done = 0;
        while let Some(lane) = lanes.join_next().await {
            done += lane??;
        }
        Ok(figures::number(done) / begun.elapsed().as_secs_f64())
    }
}

async fn commit(client: &Etcd, shape: &Shape, compares: Compares, number: u64) -> Result<Revision, CommitError> {
    let put = |(at, (key, value)): (usize, &(usize, usize))| {
        let width = key.saturating_sub(BARE.len());
        let name = format!("{at:03}/{number}");
        Write::Put { key: format!("{BARE}{name:0>width$}"), value: vec![b'b'; *value].into() }
    };
    let writes: Vec<_> = shape.puts.iter().enumerate().map(put).collect();
    let compared = match compares {
        Compares::One => 1,
        Compares::Each => writes.len(),
    };
    let preconditions = writes.iter().take(compared).map(|write| Precondition::absent(write.key())).collect();
    client.commit(Transaction { fence: None, preconditions, writes }).await
}
