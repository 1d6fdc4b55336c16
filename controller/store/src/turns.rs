//! Several handles on one store, of which one at a time leads: for several controllers in one process, in tests.
//!
//! A store of one process lets every candidate win at once. Here, as with etcd, a candidate waits until the leader gives
//! up or its handle is dropped. Must never be needed in production: processes that share a store need one that tells them
//! apart by itself.

use crate::store::{CommitError, Error, KeyValue, Leadership, Page, Revision, Store, Transaction, Watch};
use async_trait::async_trait;
use std::sync::Arc;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

/// One handle.
pub struct Turns {
    store: Arc<dyn Store>,
    seat: Arc<Semaphore>,
    held: Mutex<Option<OwnedSemaphorePermit>>,
}

impl std::fmt::Debug for Turns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Turns").field("store", &self.store.kind()).finish_non_exhaustive()
    }
}

impl Turns {
    /// The first handle on a store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, seat: Arc::new(Semaphore::new(1)), held: Mutex::default() }
    }

    /// Another handle on the same store.
    pub fn another(&self) -> Self {
        Self { store: Arc::clone(&self.store), seat: Arc::clone(&self.seat), held: Mutex::default() }
    }
}

#[async_trait]
impl Store for Turns {
    fn kind(&self) -> &'static str {
        self.store.kind()
    }

    async fn get(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        self.store.get(key).await
    }

    async fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        at: Option<Revision>,
        limit: usize,
    ) -> Result<Page, Error> {
        self.store.range(prefix, after, at, limit).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Revision, CommitError> {
        self.store.commit(transaction).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, Error> {
        self.store.watch(prefix, from).await
    }

    async fn campaign(&self, candidate: &str) -> Result<Leadership, Error> {
        let mut held = self.held.lock().await;
        *held = None;
        let seat = Arc::clone(&self.seat).acquire_owned().await;
        let seat = seat.map_err(|closed| Error::Unavailable(closed.to_string()))?;
        let leadership = self.store.campaign(candidate).await?;
        *held = Some(seat);
        Ok(leadership)
    }

    async fn resign(&self) {
        // Whoever holds the lock waits for its turn: there is nothing to give up.
        if let Ok(mut held) = self.held.try_lock() {
            *held = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;
    use futures::FutureExt as _;

    #[tokio::test]
    async fn a_candidate_waits_for_its_turn() {
        let one = Turns::new(Arc::new(Memory::new()));
        let (two, three) = (one.another(), one.another());
        let first = one.campaign("one").await.unwrap();
        let mut waiting = two.campaign("two");
        assert!((&mut waiting).now_or_never().is_none(), "one leads");
        one.resign().await;
        let second = waiting.await.unwrap();
        assert!(second.term > first.term);
        let mut waiting = three.campaign("three");
        assert!((&mut waiting).now_or_never().is_none(), "two leads");
        drop(two);
        assert!(waiting.await.unwrap().term > second.term);
    }
}
