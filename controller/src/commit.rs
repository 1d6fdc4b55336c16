//! From decisions to durable transactions: grouped, several in flight, each brought to a certain end.
//!
//! [`Groups`] holds what is decided, its order, and what is undone when a group fails; [`Effort`] brings one transaction
//! to a certain end, reading back what a lost answer leaves open. Both wait for nothing, so that the simulation drives
//! the same rules; [`Pipeline`] adds the store and the clock.

mod effort;
mod groups;

pub use effort::{Effort, Next};
pub use groups::{Durable, Fate, Groups, Loss, Undone, Unfit};

use crate::metrics::INSTRUMENTS;
use berth_store::{CommitError, Page, Revision, Store, Transaction};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout_at};

/// Before a transaction that was surely not written is sent again, or a read that failed is repeated; doubles each time.
const PAUSE: Duration = Duration::from_millis(25);
/// Longest pause: etcd elects a leader of its own within about a second.
const LONGEST_PAUSE: Duration = Duration::from_millis(400);

/// The result of one transaction.
type Settled = (u64, Result<Revision, CommitError>);

/// Everything between decision and durability.
pub(crate) struct Pipeline {
    store: Arc<dyn Store>,
    deadline: Duration,
    /// What is decided.
    pub(crate) groups: Groups,
    in_flight: FuturesUnordered<BoxFuture<'static, Settled>>,
}

impl Pipeline {
    /// An empty pipeline. A transaction without a certain end after `deadline` counts as unknown.
    pub(crate) fn new(store: Arc<dyn Store>, groups: Groups, deadline: Duration) -> Self {
        Self { store, deadline, groups, in_flight: FuturesUnordered::new() }
    }

    /// Whether a transaction is in flight, so that [`Pipeline::next`] has something to wait for.
    pub(crate) fn is_busy(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Sends every group whose turn it is.
    pub(crate) fn dispatch(&mut self) {
        while let Some((id, transaction)) = self.groups.next_to_send() {
            let operations = u32::try_from(transaction.operations()).unwrap_or(u32::MAX);
            INSTRUMENTS.commit_size.record(f64::from(operations), &[]);
            let (store, end) = (Arc::clone(&self.store), Instant::now() + self.deadline);
            self.in_flight.push(Box::pin(async move { (id, carry_through(store.as_ref(), transaction, end).await) }));
        }
    }

    /// Waits for the next transaction to end; `None` when none is in flight.
    ///
    /// # Errors
    /// Why it failed. What rests on it must then be undone, once nothing is in flight any more.
    pub(crate) async fn next(&mut self) -> Option<Result<(), CommitError>> {
        let (id, result) = self.in_flight.next().await?;
        Some(self.groups.ended(id, result))
    }
}

/// Brings a transaction to a certain end, or says that there is none by then.
async fn carry_through(store: &dyn Store, transaction: Transaction, end: Instant) -> Result<Revision, CommitError> {
    let mut effort = Effort::new(transaction);
    let mut next = Next::Send;
    let mut pause = PAUSE;
    loop {
        next = match next {
            Next::Settled(result) => return result,
            Next::Send => match timeout_at(end, store.commit(effort.transaction().clone())).await {
                Ok(result) => effort.answered(result),
                Err(_) => effort.answered(Err(CommitError::Unknown("no answer in time".to_owned()))),
            },
            Next::ReadBack => match timeout_at(end, look(store, &effort)).await {
                Ok(Ok((page, leads))) => effort.read_back(&page, leads),
                Ok(Err(_)) | Err(_) => Next::ReadBack,
            },
        };
        if let Next::Settled(result) = next {
            return result;
        }
        if Instant::now() >= end {
            return Err(effort.give_up());
        }
        sleep_until((Instant::now() + pause).min(end)).await;
        pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
    }
}

/// What a transaction left, and whether its leadership stood after that.
async fn look(store: &dyn Store, effort: &Effort) -> Result<(Page, bool), berth_store::Error> {
    let page = store.range(effort.witness(), None, None, 1).await?;
    let Some(fence) = effort.fence() else { return Ok((page, true)) };
    let leader = store.get(&fence.key).await?;
    Ok((page, leader.is_some_and(|leader| leader.created == fence.created)))
}

#[cfg(test)]
mod tests;
