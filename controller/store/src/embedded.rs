//! The store in a file of this machine: for one controller process, durable over crashes.
//!
//! Built on redb, a copy-on-write B-tree whose commits are atomic and synced. Writes go through one thread that commits
//! whatever waits together; reads see the last durable commit and never wait for a write. Must never acknowledge what is not
//! on disk, and never open what is not whole.

mod open;
mod tables;
mod writer;

pub use open::OpenError;

use crate::follow::{self, Chunk, History, Tip};
use crate::past::{self, Span};
use crate::store::{CommitError, Error, KeyValue, Leadership, Page, Revision, Store, Transaction, Watch};
use async_trait::async_trait;
use open::Files;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use tables::View;
use tokio::sync::{mpsc, oneshot, watch};
use writer::{Job, QUEUE, Writer};

/// Revisions kept for watches and reads of the past. A reader that pages or resumes is seconds behind, and the disk commits
/// at most some thousand transactions a second; at a few KiB each this is tens of MiB of file.
pub const HISTORY: u64 = 10_000;

/// A store in a directory.
#[derive(Debug)]
pub struct Embedded {
    files: Arc<Files>,
    tip: watch::Receiver<Tip>,
    /// Empty only while it is dropped.
    queue: Option<mpsc::Sender<Job>>,
    writer: Option<JoinHandle<()>>,
}

impl Embedded {
    /// Opens the store in `dir`; creates both when they are not there.
    ///
    /// # Errors
    /// [`OpenError`] says what is wrong with the directory and what to do. Nothing in it was changed then.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        Self::open_with_history(dir, HISTORY)
    }

    /// The same, keeping `history` revisions, at least 1, instead of [`HISTORY`].
    ///
    /// # Errors
    /// As [`Embedded::open`].
    pub fn open_with_history(dir: &Path, history: u64) -> Result<Self, OpenError> {
        Self::start(Arc::new(Files::open(dir)?), dir, history)
    }

    fn start(files: Arc<Files>, dir: &Path, history: u64) -> Result<Self, OpenError> {
        let failed = |error| open::unreadable(dir, error);
        let view = View::open(&files.database).map_err(failed)?;
        let leader = view.get(crate::key::LEADER).map_err(failed)?.map(|item| item.created);
        let (tip, follow) = watch::channel(Tip { revision: view.revision, leader, broken: false });
        let (queue, jobs) = mpsc::channel(QUEUE);
        let writer =
            Writer { files: Arc::clone(&files), queue: jobs, tip, compacted: view.compacted, history: history.max(1) };
        let thread = std::thread::Builder::new().name("berth-store".to_owned()).spawn(|| writer.run());
        let writer = thread.map_err(|source| OpenError::Io {
            path: dir.to_owned(),
            doing: "starting the thread that writes",
            source,
        })?;
        Ok(Self { files, tip: follow, queue: Some(queue), writer: Some(writer) })
    }

    /// Hands a job to the writer, waiting for room. `false`: the writer has stopped, the job was not taken.
    async fn hand_over(&self, job: Job) -> bool {
        match &self.queue {
            Some(queue) => queue.send(job).await.is_ok(),
            None => false,
        }
    }

    /// Reads in one consistent view, on a thread that may wait for the disk.
    async fn read<T: Send + 'static>(
        files: Arc<Files>,
        read: impl FnOnce(&View) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let done = tokio::task::spawn_blocking(move || read(&View::open(&files.database)?)).await;
        // A panic in there means that redb met something that cannot be.
        done.unwrap_or_else(|stopped| {
            Err(if stopped.is_panic() {
                Error::Corrupt(format!("a read failed in an unexpected way: {stopped}"))
            } else {
                Error::Unavailable("the process is ending".to_owned())
            })
        })
    }
}

const STOPPED: &str = "its writer stopped after the disk failed";

impl Drop for Embedded {
    /// Waits for the group that is being committed, so that the directory can be opened again at once.
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            // A panic of the writer was shown by its thread, and every caller got an error.
            drop(writer.join());
        }
    }
}

#[async_trait]
impl History for Files {
    async fn read(self: Arc<Self>, prefix: Arc<str>, from: Revision) -> Result<Chunk, Error> {
        Embedded::read(self, move |view| view.history(&prefix, from)).await
    }
}

#[async_trait]
impl Store for Embedded {
    fn kind(&self) -> &'static str {
        "embedded"
    }

    async fn get(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        let key = key.to_owned();
        Self::read(Arc::clone(&self.files), move |view| view.get(&key)).await
    }

    async fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        at: Option<Revision>,
        limit: usize,
    ) -> Result<Page, Error> {
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        Self::read(Arc::clone(&self.files), move |view| {
            view.range(Span { prefix: &prefix, after: after.as_deref() }, at, limit)
        })
        .await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Revision, CommitError> {
        transaction.check()?;
        let (answer, outcome) = oneshot::channel();
        if !self.hand_over(Job::Commit { transaction, answer }).await {
            return Err(CommitError::Unavailable(STOPPED.to_owned()));
        }
        outcome.await.unwrap_or_else(|_| Err(CommitError::Unknown(STOPPED.to_owned())))
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, Error> {
        let from = from.max(Revision(1));
        let compacted = Self::read(Arc::clone(&self.files), |view| Ok(view.compacted)).await?;
        past::kept(from, compacted)?;
        Ok(follow::follow(&self.files, self.tip.clone(), prefix, from))
    }

    async fn campaign(&self, candidate: &str) -> Result<Leadership, Error> {
        let (answer, outcome) = oneshot::channel();
        if !self.hand_over(Job::Campaign { candidate: candidate.to_owned(), answer }).await {
            return Err(Error::Unavailable(STOPPED.to_owned()));
        }
        let (term, created) = outcome.await.unwrap_or_else(|_| Err(Error::Unavailable(STOPPED.to_owned())))?;
        Ok(follow::leadership(term, created, self.tip.clone()))
    }
}

#[cfg(test)]
mod tests;
