//! What a transaction does to keys, for the stores that keep them themselves.
//!
//! Owns the order of the checks and how versions are counted: in memory and on disk the same code, so that the two
//! cannot differ. Must never wait, and knows nothing of how keys are kept.

use crate::store::{CommitError, Event, Fence, KeyValue, Revision, Transaction, Write};
use crate::{Precondition, key, record};
use bytes::Bytes;

/// What is kept under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) created: Revision,
    pub(crate) modified: Revision,
    pub(crate) version: u64,
    pub(crate) value: Bytes,
}

impl Stored {
    pub(crate) fn into_key_value(self, key: String) -> KeyValue {
        let Self { created, modified, version, value } = self;
        KeyValue { key, value, created, modified, version }
    }
}

/// One key's change by one revision. The state before it serves reads of the past, the state after it watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) key: String,
    pub(crate) before: Option<Stored>,
    pub(crate) after: Option<Stored>,
}

impl Change {
    pub(crate) fn into_event(self, revision: Revision) -> Event {
        match self.after {
            Some(stored) => Event::Put(stored.into_key_value(self.key)),
            None => Event::Delete { key: self.key, revision },
        }
    }
}

/// The keys as they stand, wherever they are kept.
pub(crate) trait Keys {
    type Error;
    fn get(&self, key: &str) -> Result<Option<Stored>, Self::Error>;
    fn put(&mut self, key: &str, stored: &Stored) -> Result<(), Self::Error>;
    fn delete(&mut self, key: &str) -> Result<(), Self::Error>;
}

/// Why a transaction changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Fenced,
    Precondition { key: String },
}

impl From<Refusal> for CommitError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Fenced => Self::Fenced,
            Refusal::Precondition { key } => Self::Precondition { key },
        }
    }
}

/// Checks a legal transaction and applies it as revision `next`. Without any change the revision is not used up.
pub(crate) fn apply<K: Keys>(
    keys: &mut K,
    next: Revision,
    transaction: &Transaction,
) -> Result<Result<Vec<Change>, Refusal>, K::Error> {
    if let Some(Fence { key, created }) = &transaction.fence
        && keys.get(key)?.map(|stored| stored.created) != Some(*created)
    {
        return Ok(Err(Refusal::Fenced));
    }
    for precondition in &transaction.preconditions {
        let stored = keys.get(precondition.key())?;
        let holds = match precondition {
            Precondition::Version { version, .. } => stored.map_or(0, |stored| stored.version) == *version,
            Precondition::Value { value, .. } => stored.is_some_and(|stored| stored.value == *value),
        };
        if !holds {
            return Ok(Err(Refusal::Precondition { key: precondition.key().to_owned() }));
        }
    }
    let mut changes = Vec::with_capacity(transaction.writes.len());
    for write in &transaction.writes {
        let key = write.key();
        let before = keys.get(key)?;
        let after = match write {
            Write::Put { value, .. } => {
                let (created, version) = before.as_ref().map_or((next, 0), |before| (before.created, before.version));
                let after = Stored { created, modified: next, version: version + 1, value: value.clone() };
                keys.put(key, &after)?;
                Some(after)
            }
            Write::Delete { .. } if before.is_none() => continue,
            Write::Delete { .. } => {
                keys.delete(key)?;
                None
            }
        };
        changes.push(Change { key: key.to_owned(), before, after });
    }
    Ok(Ok(changes))
}

/// A leadership begins as revision `next`: the leader record is deleted and created anew in one step, so that its
/// creation revision changes, which voids every older fence, while the term goes on counting whatever happens between.
/// Gives the new term, or why the old record cannot be read.
pub(crate) fn campaign<K: Keys>(
    keys: &mut K,
    next: Revision,
    candidate: &str,
) -> Result<Result<(u64, Change), record::Error>, K::Error> {
    let before = keys.get(key::LEADER)?;
    let old = match before.as_ref().map(|stored| record::read_leader(&stored.value)) {
        None => 0,
        Some(Ok(leader)) => leader.term,
        Some(Err(error)) => return Ok(Err(error)),
    };
    let floor = match keys.get(key::TERM)?.map(|stored| record::read_term(&stored.value)) {
        None => 0,
        Some(Ok(term)) => term,
        Some(Err(error)) => return Ok(Err(error)),
    };
    let term = old.max(floor) + 1;
    let value = record::leader(&record::Leader { term, candidate: candidate.to_owned() });
    let after = Stored { created: next, modified: next, version: 1, value };
    keys.put(key::LEADER, &after)?;
    Ok(Ok((term, Change { key: key::LEADER.to_owned(), before, after: Some(after) })))
}

/// Who leads after `changes`, when they say.
pub(crate) fn leader_after(changes: &[Change]) -> Option<Option<Revision>> {
    let change = changes.iter().find(|change| change.key == key::LEADER)?;
    Some(change.after.as_ref().map(|after| after.created))
}
