//! Watches over a store that keeps a history: a cursor that reads the history and waits at its end.
//!
//! There is no queue between writer and watcher, so nothing can overflow and nothing be lost or doubled: a watcher that
//! is slow reads older history, and learns that it is too slow when that is compacted. Must never hold up a writer.

use crate::store::{Event, Fence, Leadership, Revision, Watch, WatchError};
use crate::{Error, key};
use async_trait::async_trait;
use futures::{StreamExt as _, stream};
use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use tokio::sync::watch;

/// Revisions a watcher reads at once. Ordinary ones are some KiB, so this bounds its memory to about a MiB; reading
/// one by one would cost a read transaction each.
pub(crate) const CHUNK: u64 = 256;

/// How far the store has come; published after each durable commit, before it is answered.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tip {
    pub(crate) revision: Revision,
    /// When the leader record was created.
    pub(crate) leader: Option<Revision>,
    /// Nothing will ever be committed again, because the disk failed.
    pub(crate) broken: bool,
}

/// Part of the history.
pub(crate) struct Chunk {
    /// The events of each revision that has any with the prefix.
    pub(crate) items: Vec<Vec<Event>>,
    /// The revision to go on from.
    pub(crate) next: Revision,
}

/// What can be watched.
#[async_trait]
pub(crate) trait History: Send + Sync + 'static {
    /// Up to [`CHUNK`] revisions from `from` on.
    async fn read(self: Arc<Self>, prefix: Arc<str>, from: Revision) -> Result<Chunk, Error>;
}

struct Cursor<H> {
    history: Weak<H>,
    tip: watch::Receiver<Tip>,
    prefix: Arc<str>,
    next: Revision,
    ready: VecDeque<Vec<Event>>,
}

impl<H: History> Cursor<H> {
    async fn next(&mut self) -> Result<Vec<Event>, WatchError> {
        let closed = || WatchError::Interrupted("the store was closed".to_owned());
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Ok(item);
            }
            let next = self.next;
            if self.tip.wait_for(|tip| tip.revision >= next).await.is_err() {
                return Err(closed());
            }
            let history = self.history.upgrade().ok_or_else(closed)?;
            let chunk = history.read(Arc::clone(&self.prefix), next).await.map_err(|error| match error {
                Error::Compacted { asked, oldest } => WatchError::Compacted { asked, oldest },
                Error::Unavailable(text) | Error::Corrupt(text) => WatchError::Interrupted(text),
            })?;
            self.next = chunk.next;
            self.ready.extend(chunk.items);
        }
    }
}

/// Watches from `from` on. The caller has made sure that it is not compacted.
pub(crate) fn follow<H: History>(history: &Arc<H>, tip: watch::Receiver<Tip>, prefix: &str, from: Revision) -> Watch {
    let cursor =
        Cursor { history: Arc::downgrade(history), tip, prefix: prefix.into(), next: from, ready: VecDeque::new() };
    stream::unfold(Some(cursor), |cursor| async move {
        let mut cursor = cursor?;
        match cursor.next().await {
            Ok(item) => Some((Ok(item), Some(cursor))),
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

/// A leadership won by creating the leader record at `created`.
pub(crate) fn leadership(term: u64, created: Revision, mut tip: watch::Receiver<Tip>) -> Leadership {
    let lost = async move {
        let gone = |tip: &Tip| tip.broken || (tip.revision >= created && tip.leader != Some(created));
        let closed = tip.wait_for(gone).await.is_err();
        if closed {
            // The store was closed in order: nobody else can have taken over.
            futures::future::pending::<()>().await;
        }
    };
    Leadership { term, fence: Fence { key: key::leader(), created }, lost: Box::pin(lost) }
}
