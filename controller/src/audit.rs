//! The audit: who asked for what, what was decided, what was refused; complete, and chained by hashes.
//!
//! A record of a change is written in the very transaction of the change, so that one is never there without the other,
//! whoever is killed when. The leader then seals such records, about once a second and away from anybody who waits, into
//! blocks of which each holds the hash of the one before. Refused calls change nothing and are kept in memory until the
//! next block. Must never delay or fail a call. See `docs/decisions/2026-11-26-an-audit-in-the-transaction-it-tells-of.md`.

mod read;
mod record;

pub(crate) use read::{last, read};
pub use record::Asked;
pub use record::records;
pub(crate) use record::{filled, refused};

use crate::metrics::AUDIT;
use berth_proto::v1::AuditRecord;
use berth_store::audit::{Beside, Done, HEAD, SealError};
use berth_store::{CommitError, Fence, Store, audit};
use berth_telemetry::metrics::fleet::OUTCOME;
use berth_telemetry::{KeyValue, names};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

/// From something being there to seal until it is sealed: what comes meanwhile shares the block.
const GATHER: Duration = Duration::from_secs(1);
/// Pause after sealing failed: the store has other troubles then.
const PAUSE: Duration = Duration::from_secs(5);
/// How long one sealing may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Refused calls kept for the next block; more are counted. A few hundred KiB, and far more than people make in a second.
const REFUSED: usize = 1_000;
/// Blocks that are kept: at one a second while things happen, some weeks of a busy fleet.
pub const KEEP: u64 = 100_000;

/// Where what is to be audited is handed in. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Audit(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    leads: watch::Sender<Option<Leads>>,
    waiting: Mutex<Waiting>,
    /// There may be something to seal.
    due: AtomicBool,
    woken: Notify,
    /// Records that the last sealing left behind, or could not seal.
    behind: AtomicU64,
}

impl Default for Inner {
    fn default() -> Self {
        let (leads, _) = watch::channel(None);
        Self {
            leads,
            waiting: Mutex::default(),
            due: AtomicBool::new(false),
            woken: Notify::new(),
            behind: AtomicU64::new(0),
        }
    }
}

/// A leadership, as it seals.
#[derive(Clone, Debug)]
struct Leads {
    fence: Fence,
    term: u64,
}

#[derive(Debug, Default)]
struct Waiting {
    refused: VecDeque<AuditRecord>,
    not_recorded: u64,
}

impl Audit {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Every change under this lock is a single one.
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This controller leads from now on. What its predecessors left is sealed by it.
    pub(crate) fn leads(&self, fence: Fence, term: u64) {
        self.0.leads.send_replace(Some(Leads { fence, term }));
        self.is_due();
    }

    /// Something was committed that is to be sealed.
    pub(crate) fn is_due(&self) {
        self.0.due.store(true, Ordering::Relaxed);
        self.0.woken.notify_one();
    }

    /// Takes in a refused call.
    pub(crate) fn refused(&self, record: AuditRecord) {
        let mut waiting = self.waiting();
        if waiting.refused.len() < REFUSED {
            waiting.refused.push_back(record);
        } else {
            waiting.not_recorded = waiting.not_recorded.saturating_add(1);
            AUDIT.gaps.add(1, &[]);
        }
        drop(waiting);
        self.is_due();
    }

    /// Records that are not part of the chain yet, as of the last sealing.
    pub(crate) fn behind(&self) -> u64 {
        let refused = u64::try_from(self.waiting().refused.len()).unwrap_or(u64::MAX);
        self.0.behind.load(Ordering::Relaxed).saturating_add(refused)
    }

    /// Seals, for as long as it is polled.
    pub(crate) async fn run(&self, store: &dyn Store, keep: u64) {
        let mut leads = self.0.leads.subscribe();
        loop {
            while !self.0.due.load(Ordering::Relaxed) {
                self.0.woken.notified().await;
            }
            let Ok(leading) = leads.wait_for(Option::is_some).await.map(|leading| leading.clone()) else { return };
            sleep(GATHER).await;
            let Some(leading) = leading else { continue };
            // Before looking: what comes from here on asks for another look.
            self.0.due.store(false, Ordering::Relaxed);
            if let Err(error) = self.seal_all(store, &leading, keep).await {
                // Nothing is lost, and the store's own trouble is told by those who wait for it.
                tracing::info!({ names::ERROR } = %error, "the audit is not sealed now; what is to be sealed stays where it is");
                self.is_due();
                sleep(PAUSE).await;
            }
        }
    }

    /// Seals until nothing is left.
    async fn seal_all(&self, store: &dyn Store, leading: &Leads, keep: u64) -> Result<(), SealError> {
        loop {
            let (refused, not_recorded) = {
                let waiting = self.waiting();
                (waiting.refused.iter().cloned().collect::<Vec<_>>(), waiting.not_recorded)
            };
            let beside = Beside { refused: &refused, not_recorded };
            let about = (leading.term, crate::clock::now());
            let (before, _) = audit::mark(store, HEAD).await?;
            let sealing = audit::seal(store, &leading.fence, about, beside, keep);
            let unknown = || SealError::Write(CommitError::Unknown("no answer in time".to_owned()));
            let done = match timeout(LIMIT, sealing).await.unwrap_or_else(|_| Err(unknown())) {
                // It may have happened: then the head has moved on, and nobody else moves it while this one leads.
                Err(SealError::Write(CommitError::Unknown(_))) if audit::mark(store, HEAD).await?.0 != before => {
                    Done { sealed: 0, more: true }
                }
                done => done?,
            };
            let mut waiting = self.waiting();
            waiting.refused.drain(..refused.len());
            waiting.not_recorded -= not_recorded;
            drop(waiting);
            let count = |records: usize, outcome| {
                let records = u64::try_from(records).unwrap_or(u64::MAX);
                AUDIT.records.add(records, &[KeyValue::new(OUTCOME, outcome)]);
            };
            count(done.sealed, "done");
            count(refused.len(), "refused");
            let left = if done.more { done.sealed } else { 0 };
            self.0.behind.store(u64::try_from(left).unwrap_or(u64::MAX), Ordering::Relaxed);
            if !done.more {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fault, Scripted, eventually};
    use berth_proto::v1::AuditBlock;
    use berth_store::audit::{BLOCKS, FRESH};
    use berth_store::{Precondition, Transaction, Write};
    use prost::Message as _;

    fn record(placement: &str) -> AuditRecord {
        AuditRecord { placement: placement.to_owned(), ..AuditRecord::default() }
    }

    async fn told(store: &Scripted) -> (Vec<String>, u64) {
        let blocks = store.range(BLOCKS, None, None, 100).await.unwrap().items;
        let blocks: Vec<_> = blocks.iter().map(|item| AuditBlock::decode(item.value.clone()).unwrap()).collect();
        let not_recorded = blocks.iter().map(|block| block.not_recorded).sum();
        (blocks.into_iter().flat_map(|block| block.records).map(|record| record.placement).collect(), not_recorded)
    }

    #[tokio::test]
    async fn sealing_goes_on_after_trouble_and_tells_nothing_twice() {
        let store = Scripted::new(1_000);
        let leadership = store.campaign("me").await.unwrap();
        let audit = Audit::default();
        audit.leads(leadership.fence.clone(), leadership.term);
        let key = audit::fresh(leadership.fence.created, 1);
        let writes = vec![Write::Put { key: key.clone(), value: audit::batch(vec![record("done")]) }];
        let (fence, preconditions) = (Some(leadership.fence.clone()), vec![Precondition::absent(key)]);
        store.commit(Transaction { fence, preconditions, writes }).await.unwrap();
        audit.refused(record("refused"));
        // Not written; written, and the answer lost; neither may lose or double anything.
        for fault in [Fault::Before, Fault::Lost, Fault::Full, Fault::After] {
            store.fail(fault);
        }
        let leads = Leads { fence: leadership.fence, term: leadership.term };
        let mut failed = 0;
        while audit.seal_all(store.as_ref(), &leads, KEEP).await.is_err() {
            failed += 1;
            assert!(failed < 4, "it never gets over it");
        }
        assert_eq!(failed, 3, "what was written although the answer was lost counts as written");
        assert_eq!(told(&store).await, (vec!["done".to_owned(), "refused".to_owned()], 0));
        assert!(store.range(FRESH, None, None, 1).await.unwrap().items.is_empty());
        assert_eq!(audit.behind(), 0);
    }

    #[tokio::test]
    async fn a_flood_of_refused_calls_is_counted_and_takes_no_more_room() {
        let store = Scripted::new(1_000);
        let leadership = store.campaign("me").await.unwrap();
        let audit = Audit::default();
        for _ in 0..REFUSED + 7 {
            audit.refused(record("no"));
        }
        let leads = Leads { fence: leadership.fence, term: leadership.term };
        audit.seal_all(store.as_ref(), &leads, KEEP).await.unwrap();
        let (told, not_recorded) = told(&store).await;
        assert_eq!((told.len(), not_recorded), (REFUSED, 7));
    }

    #[tokio::test]
    async fn at_rest_nothing_is_written() {
        let store = Scripted::new(1_000);
        let leadership = store.campaign("me").await.unwrap();
        let (audit, before) = (Audit::default(), store.transactions());
        audit.leads(leadership.fence, leadership.term);
        tokio::select! {
            () = audit.run(store.as_ref(), KEEP) => {}
            () = eventually("a look", || !audit.0.due.load(Ordering::Relaxed)) => {}
        }
        assert_eq!(store.transactions(), before);
    }
}
