//! The production store: etcd, so that several controllers share one truth and one of them leads.
//!
//! The only crate that names etcd's client. Owns the connection to etcd, what its answers mean, and leadership by lease.
//! Must never repeat a transaction whose answer was lost, never wait without a bound (but for its turn to lead), and
//! never let a type of etcd's client out.

mod election;
mod members;
mod options;
mod read;
mod space;
mod transaction;
mod trouble;
mod watch;

pub use options::{ConnectError, DEFAULT_LEASE_TTL, LONGEST_LEASE_TTL, Options, SHORTEST_LEASE_TTL};

use async_trait::async_trait;
use berth_store::{CommitError, Error, KeyValue, Leadership, Page, Revision, Store, Transaction, Watch, key};
use election::Held;
use members::Members;
use space::Space;
use std::sync::Arc;
use tokio::sync::Mutex;

/// A store in an etcd cluster. One process needs one: it leads at most once at a time.
#[derive(Debug)]
pub struct Etcd {
    link: Arc<Link>,
    lease_ttl: std::time::Duration,
    /// The leadership this process has, if any; locked for as long as it waits to lead.
    held: Mutex<Option<Held>>,
}

/// How etcd is reached, and where in it this Berth's keys are.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) members: Members,
    pub(crate) space: Space,
}

impl Etcd {
    /// Reaches an etcd cluster: reads the files that the options name, and asks one question to see that it answers and
    /// lets this user in.
    ///
    /// # Errors
    /// [`ConnectError`] says what is wrong and what to do.
    pub async fn connect(options: Options) -> Result<Self, ConnectError> {
        let link = Link { members: Members::new(&options)?, space: Space::new(&options.prefix) };
        match link.read_key(key::LEADER).await {
            Ok(_) => Ok(Self { link: Arc::new(link), lease_ttl: options.lease_ttl, held: Mutex::default() }),
            Err(error) => {
                let endpoints = options.endpoints.join(", ");
                let silent = error.ask_again();
                Err(ConnectError::Unreachable { endpoints, why: error.text(), silent })
            }
        }
    }

    /// Makes etcd forget what happened before a revision; whatever is there at that revision stays readable.
    ///
    /// # Errors
    /// When etcd does not answer, or has not come to that revision yet.
    pub async fn compact(&self, before: Revision) -> Result<(), Error> {
        self.link.compact(before).await
    }
}

#[async_trait]
impl Store for Etcd {
    fn kind(&self) -> &'static str {
        "etcd"
    }

    async fn get(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        self.link.get(key).await
    }

    async fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        at: Option<Revision>,
        limit: usize,
    ) -> Result<Page, Error> {
        self.link.range(prefix, after, at, limit).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Revision, CommitError> {
        self.link.commit(transaction).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, Error> {
        self.link.watch(prefix, from).await
    }

    /// A leadership that this process still has is given up first.
    async fn campaign(&self, candidate: &str) -> Result<Leadership, Error> {
        let mut held = self.held.lock().await;
        if let Some(old) = held.take() {
            old.let_go(&self.link).await;
        }
        let (leadership, now_held) = election::campaign(&self.link, candidate, self.lease_ttl).await?;
        *held = Some(now_held);
        Ok(leadership)
    }

    async fn resign(&self) {
        // Whoever holds the lock waits for its turn: there is nothing to give up.
        let Ok(mut held) = self.held.try_lock() else { return };
        if let Some(old) = held.take() {
            old.let_go(&self.link).await;
        }
    }
}
