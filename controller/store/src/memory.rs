//! The store in memory, for tests and simulations: same rules, nothing kept.
//!
//! Deterministic: no task, no clock, no randomness; equal calls in equal order give equal answers. Must never be used
//! where something has to survive.

use crate::engine::{self, Change, Keys, Stored};
use crate::follow::{self, CHUNK, Chunk, History, Tip};
use crate::past::{self, Span, Undo};
use crate::store::{CommitError, Error, KeyValue, Leadership, Page, Revision, Store, Transaction, Watch};
use async_trait::async_trait;
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Revisions kept for watches and reads of the past: as many as the embedded store keeps, so that what works on one
/// works on the other.
pub const HISTORY: u64 = crate::embedded::HISTORY;

/// An empty store in memory.
#[derive(Debug)]
pub struct Memory {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    tip: watch::Sender<Tip>,
    history: u64,
}

#[derive(Debug, Default)]
struct State {
    keys: BTreeMap<String, Stored>,
    /// The last revision that is not in the log any more.
    compacted: Revision,
    /// The changes of each revision after it.
    log: VecDeque<Vec<Change>>,
}

impl Keys for BTreeMap<String, Stored> {
    type Error = Infallible;

    fn get(&self, key: &str) -> Result<Option<Stored>, Infallible> {
        Ok(Self::get(self, key).cloned())
    }

    fn put(&mut self, key: &str, stored: &Stored) -> Result<(), Infallible> {
        self.insert(key.to_owned(), stored.clone());
        Ok(())
    }

    fn delete(&mut self, key: &str) -> Result<(), Infallible> {
        self.remove(key);
        Ok(())
    }
}

impl State {
    fn revision(&self) -> Revision {
        Revision(self.compacted.0 + self.log.len() as u64)
    }

    /// The log after a revision, which is kept, each row with its revision.
    fn after(&self, revision: Revision) -> impl Iterator<Item = (Revision, &Vec<Change>)> {
        let skip = revision.0.saturating_sub(self.compacted.0);
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        (self.compacted.0 + 1..).map(Revision).zip(&self.log).skip(skip)
    }

    /// Notes what was done as the next revision.
    fn log(&mut self, changes: Vec<Change>, history: u64) {
        self.log.push_back(changes);
        while self.log.len() as u64 > history {
            self.log.pop_front();
            self.compacted.0 += 1;
        }
    }

    /// The keys with a prefix after `after`, as they stood at `at`.
    fn range(&self, prefix: &str, after: Option<&str>, at: Revision, limit: usize) -> Page {
        let span = Span { prefix, after };
        let mut undo = Undo::new();
        for change in self.after(at).flat_map(|(_, changes)| changes) {
            span.undo(&mut undo, change.clone());
        }
        let now = self.keys.range::<str, _>((span.start(), Bound::Unbounded));
        let now = now.take_while(|(key, _)| key.starts_with(prefix));
        let Ok(page) =
            past::page(at, limit, now.map(|(key, stored)| Ok::<_, Infallible>((key.clone(), stored.clone()))), undo);
        page
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory {
    /// An empty store that keeps [`HISTORY`] revisions.
    pub fn new() -> Self {
        Self::with_history(HISTORY)
    }

    /// An empty store that keeps `history` revisions, at least 1.
    pub fn with_history(history: u64) -> Self {
        let (tip, _) = watch::channel(Tip::default());
        Self { shared: Arc::new(Shared { state: Mutex::default(), tip, history: history.max(1) }) }
    }
}

impl Shared {
    /// A panic while it was locked would be ours: nothing is left half done, so others may go on.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, state: &mut State, changes: Vec<Change>) -> Revision {
        let leader = engine::leader_after(&changes);
        state.log(changes, self.history);
        let revision = state.revision();
        self.tip.send_modify(|tip| {
            tip.revision = revision;
            tip.leader = leader.unwrap_or(tip.leader);
        });
        revision
    }
}

#[async_trait]
impl History for Shared {
    async fn read(self: Arc<Self>, prefix: Arc<str>, from: Revision) -> Result<Chunk, Error> {
        let state = self.state();
        past::kept(from, state.compacted)?;
        let mut chunk = Chunk { items: Vec::new(), next: from };
        let rows = usize::try_from(CHUNK).unwrap_or(usize::MAX);
        for (revision, changes) in state.after(Revision(from.0 - 1)).take(rows) {
            let matching = changes.iter().filter(|change| change.key.starts_with(&*prefix)).cloned();
            let events: Vec<_> = matching.map(|change| change.into_event(revision)).collect();
            if !events.is_empty() {
                chunk.items.push(events);
            }
            chunk.next = Revision(revision.0 + 1);
        }
        Ok(chunk)
    }
}

#[async_trait]
impl Store for Memory {
    fn kind(&self) -> &'static str {
        "memory"
    }

    async fn get(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        let stored = self.shared.state().keys.get(key).cloned();
        Ok(stored.map(|stored| stored.into_key_value(key.to_owned())))
    }

    async fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        at: Option<Revision>,
        limit: usize,
    ) -> Result<Page, Error> {
        let state = self.shared.state();
        let at = past::readable(at, state.compacted, state.revision())?;
        Ok(state.range(prefix, after, at, limit))
    }

    async fn commit(&self, transaction: Transaction) -> Result<Revision, CommitError> {
        transaction.check()?;
        let mut state = self.shared.state();
        let next = Revision(state.revision().0 + 1);
        let Ok(applied) = engine::apply(&mut state.keys, next, &transaction);
        let changes = applied?;
        if changes.is_empty() {
            return Ok(state.revision());
        }
        Ok(self.shared.publish(&mut state, changes))
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, Error> {
        let from = from.max(Revision(1));
        past::kept(from, self.shared.state().compacted)?;
        Ok(follow::follow(&self.shared, self.shared.tip.subscribe(), prefix, from))
    }

    async fn campaign(&self, candidate: &str) -> Result<Leadership, Error> {
        let mut state = self.shared.state();
        let next = Revision(state.revision().0 + 1);
        let Ok(won) = engine::campaign(&mut state.keys, next, candidate);
        let (term, change) = won?;
        let created = self.shared.publish(&mut state, vec![change]);
        Ok(follow::leadership(term, created, self.shared.tip.subscribe()))
    }
}
