//! The one thread that writes: takes all transactions that wait and commits them with one fsync.
//!
//! Each transaction is checked and answered on its own and has its own revision; those behind it in the group see what
//! it wrote. Nothing is published or answered before the group is durable. Must never answer "committed" earlier, nor go
//! on after the disk failed.

use super::open::Files;
use super::tables::{KEYS, KeyTable, LOG, META, META_COMPACTED, META_REVISION, encode, failed};
use crate::engine::{self, Change, Refusal};
use crate::follow::Tip;
use crate::record;
use crate::store::{CommitError, Error, Revision, Transaction, Write};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};

/// Transactions that may wait. The controller has some dozens in flight; more callers than this wait for room.
pub(super) const QUEUE: usize = 1024;
/// Most transactions in one group: as many as can wait, so a full queue costs one fsync.
const GROUP: usize = QUEUE;
/// A group ends at this size, so that its memory and the time of its commit stay bounded whatever is in it.
const GROUP_BYTES: usize = 16 << 20;

/// What callers ask of the writer.
pub(super) enum Job {
    Commit { transaction: Transaction, answer: oneshot::Sender<Result<Revision, CommitError>> },
    Campaign { candidate: String, answer: oneshot::Sender<Result<(u64, Revision), Error>> },
}

impl Job {
    fn bytes(&self) -> usize {
        match self {
            Self::Campaign { candidate, .. } => candidate.len(),
            Self::Commit { transaction, .. } => {
                let bytes = |write: &Write| match write {
                    Write::Put { key, value } => key.len() + value.len(),
                    Write::Delete { key } => key.len(),
                };
                transaction.writes.iter().map(bytes).sum()
            }
        }
    }
}

/// What became of a job, to be told once the group is durable.
enum Outcome {
    Done(Revision),
    Refused(Refusal),
    Elected { term: u64, created: Revision },
    Damaged(record::Error),
}

/// Why the writer ends.
enum Failure {
    /// Before the commit: nothing of the group was written.
    Nothing(String),
    /// In the commit: all of the group was written, or nothing.
    Unknown(String),
}

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Nothing(failed(error).to_string())
    }
}

pub(super) struct Writer {
    pub(super) files: Arc<Files>,
    pub(super) queue: mpsc::Receiver<Job>,
    pub(super) tip: watch::Sender<Tip>,
    pub(super) compacted: Revision,
    pub(super) history: u64,
}

impl Writer {
    /// Works until the store is closed or the disk fails.
    pub(super) fn run(mut self) {
        while let Some(first) = self.queue.blocking_recv() {
            let mut bytes = first.bytes();
            let mut group = vec![first];
            while group.len() < GROUP && bytes < GROUP_BYTES {
                let Ok(job) = self.queue.try_recv() else { break };
                bytes += job.bytes();
                group.push(job);
            }
            match self.commit(&group) {
                Ok(outcomes) => group.into_iter().zip(outcomes).for_each(|(job, outcome)| answer(job, outcome)),
                Err(failure) => {
                    let (Failure::Nothing(text) | Failure::Unknown(text)) = &failure;
                    tracing::error!(error = %text, "the store's disk failed, nothing more is committed: look at the disk, then start again");
                    self.tip.send_modify(|tip| tip.broken = true);
                    // Closed before anybody hears of it: who comes now is refused, who waits was surely not written.
                    self.queue.close();
                    group.into_iter().for_each(|job| fail(job, &failure));
                    let untouched = Failure::Nothing(super::STOPPED.to_owned());
                    while let Some(job) = self.queue.blocking_recv() {
                        fail(job, &untouched);
                    }
                    return;
                }
            }
        }
    }

    fn commit(&mut self, group: &[Job]) -> Result<Vec<Outcome>, Failure> {
        let Tip { revision: before, mut leader, .. } = *self.tip.borrow();
        let mut revision = before;
        let mut compacted = self.compacted;
        let mut outcomes = Vec::with_capacity(group.len());
        let write = self.files.database.begin_write()?;
        {
            let mut keys = KeyTable(write.open_table(KEYS)?);
            let mut log = write.open_table(LOG)?;
            for job in group {
                let next = Revision(revision.0 + 1);
                let (changes, outcome) = apply(&mut keys, next, revision, job)?;
                if !changes.is_empty() {
                    log.insert(next.0, &*encode(&changes))?;
                    revision = next;
                    leader = engine::leader_after(&changes).unwrap_or(leader);
                }
                outcomes.push(outcome);
            }
            while revision.0 - compacted.0 > self.history {
                compacted.0 += 1;
                log.remove(compacted.0)?;
            }
            if revision > before {
                let mut meta = write.open_table(META)?;
                meta.insert(META_REVISION, revision.0)?;
                meta.insert(META_COMPACTED, compacted.0)?;
            }
        }
        if revision > before {
            write.commit().map_err(|error| Failure::Unknown(failed(error).to_string()))?;
            self.compacted = compacted;
            self.tip.send_modify(|tip| {
                tip.revision = revision;
                tip.leader = leader;
            });
        } else {
            // Everything was refused or only checked: there is nothing to sync.
            write.abort()?;
        }
        Ok(outcomes)
    }
}

impl Drop for Writer {
    /// A panic of the writer is as final as a failed disk: whoever leads must hear of it.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tip.send_modify(|tip| tip.broken = true);
        }
    }
}

fn apply(
    keys: &mut KeyTable<'_>,
    next: Revision,
    current: Revision,
    job: &Job,
) -> Result<(Vec<Change>, Outcome), Failure> {
    Ok(match job {
        Job::Commit { transaction, .. } => match engine::apply(keys, next, transaction)? {
            Ok(changes) if changes.is_empty() => (changes, Outcome::Done(current)),
            Ok(changes) => (changes, Outcome::Done(next)),
            Err(refusal) => (Vec::new(), Outcome::Refused(refusal)),
        },
        Job::Campaign { candidate, .. } => match engine::campaign(keys, next, candidate)? {
            Ok((term, change)) => (vec![change], Outcome::Elected { term, created: next }),
            Err(what) => (Vec::new(), Outcome::Damaged(what)),
        },
    })
}

/// Tells the caller; whoever stopped waiting does not hear it.
fn answer(job: Job, outcome: Outcome) {
    match job {
        Job::Commit { answer, .. } => {
            let _ = answer.send(match outcome {
                Outcome::Done(revision) | Outcome::Elected { created: revision, .. } => Ok(revision),
                Outcome::Refused(refusal) => Err(refusal.into()),
                Outcome::Damaged(what) => Err(CommitError::Unavailable(what.to_string())),
            });
        }
        Job::Campaign { answer, .. } => {
            let _ = answer.send(match outcome {
                Outcome::Elected { term, created } => Ok((term, created)),
                Outcome::Damaged(what) => Err(what.into()),
                Outcome::Done(_) | Outcome::Refused(_) => Err(Error::Corrupt("the election had no outcome".to_owned())),
            });
        }
    }
}

fn fail(job: Job, failure: &Failure) {
    match job {
        Job::Commit { answer, .. } => {
            let _ = answer.send(Err(match failure {
                Failure::Nothing(text) => CommitError::Unavailable(text.clone()),
                Failure::Unknown(text) => CommitError::Unknown(text.clone()),
            }));
        }
        Job::Campaign { answer, .. } => {
            let (Failure::Nothing(text) | Failure::Unknown(text)) = failure;
            let _ = answer.send(Err(Error::Unavailable(text.clone())));
        }
    }
}
