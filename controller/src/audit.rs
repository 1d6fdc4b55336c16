//! The audit: who asked for what, what was decided, what was refused; complete, and chained by hashes.
//!
//! A record of a change is written in the very transaction of the change, so that one is never there without the other,
//! whoever is killed when. The leader then seals such records, about once a second and away from anybody who waits, into
//! blocks of which each holds the hash of the one before. Refused calls change nothing and are kept in memory until the
//! next block. Must never delay or fail a call. See `docs/decisions/2026-11-26-an-audit-in-the-transaction-it-tells-of.md`.

mod read;
mod record;

pub(crate) use read::read;
pub use record::Asked;
pub use record::records;
pub(crate) use record::refused;

use crate::metrics::AUDIT;
use berth_proto::v1::AuditRecord;
use berth_store::audit::{Beside, Done, HEAD, SealError};
use berth_store::{CommitError, Fence, Store, audit};
use berth_telemetry::KeyValue;
use berth_telemetry::metrics::fleet::OUTCOME;
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
                self.is_due();
                tracing::warn!(%error, "the audit could not be sealed; what is to be sealed stays where it is");
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
            let about = (leading.term, crate::leader::now());
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
