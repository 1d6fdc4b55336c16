//! A store whose calls are measured.

use super::INSTRUMENTS;
use async_trait::async_trait;
use berth_store::{CommitError, Error, KeyValue, Leadership, Page, Revision, Store, Transaction, Watch};
use berth_telemetry::KeyValue as Label;
use berth_telemetry::metrics::controller::OPERATION;
use berth_telemetry::metrics::fleet::OUTCOME;
use std::sync::Arc;
use std::time::Instant;

/// Passes everything on, and measures how long it takes.
pub(crate) struct Measured(Arc<dyn Store>);

impl Measured {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self(store)
    }
}

async fn measure<T>(
    operation: &'static str,
    call: impl Future<Output = T> + Send,
    outcome: fn(&T) -> &'static str,
) -> T {
    let begun = Instant::now();
    let result = call.await;
    let about = [Label::new(OPERATION, operation), Label::new(OUTCOME, outcome(&result))];
    INSTRUMENTS.store_duration.record(begun.elapsed().as_secs_f64(), &about);
    result
}

fn read<T>(result: &Result<T, Error>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(Error::Unavailable(_)) => "unavailable",
        Err(Error::Compacted { .. }) => "compacted",
        Err(Error::Corrupt(_)) => "corrupt",
    }
}

fn written(result: &Result<Revision, CommitError>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(CommitError::Precondition { .. }) => "precondition",
        Err(CommitError::Fenced) => "fenced",
        Err(CommitError::Illegal(_)) => "illegal",
        Err(CommitError::Unavailable(_)) => "unavailable",
        Err(CommitError::Full(_)) => "full",
        Err(CommitError::Unknown(_)) => "unknown",
    }
}

#[async_trait]
impl Store for Measured {
    fn kind(&self) -> &'static str {
        self.0.kind()
    }

    async fn get(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        measure("get", self.0.get(key), read).await
    }

    async fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        at: Option<Revision>,
        limit: usize,
    ) -> Result<Page, Error> {
        measure("range", self.0.range(prefix, after, at, limit), read).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Revision, CommitError> {
        measure("commit", self.0.commit(transaction), written).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, Error> {
        measure("watch", self.0.watch(prefix, from), read).await
    }

    // Waits for as long as another one leads: no measure of the store.
    async fn campaign(&self, candidate: &str) -> Result<Leadership, Error> {
        self.0.campaign(candidate).await
    }

    async fn resign(&self) {
        self.0.resign().await;
    }
}
