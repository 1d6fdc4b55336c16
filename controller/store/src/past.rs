//! Reads of the past, for the stores that keep a history: which revisions can be read, and how a page is put together
//! from what stands now and what later revisions changed.
//!
//! Must never know where keys and history are kept.

use crate::engine::{Change, Stored};
use crate::store::{Error, KeyValue, Page, Revision};
use std::collections::BTreeMap;
use std::ops::Bound;

/// What later revisions changed within one read's keys: the state of each before the first of those changes, which is
/// its state at the revision asked for.
pub(crate) type Undo = BTreeMap<String, Option<Stored>>;

/// Which keys a range read means.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span<'a> {
    pub(crate) prefix: &'a str,
    pub(crate) after: Option<&'a str>,
}

impl<'a> Span<'a> {
    /// Where to begin.
    pub(crate) fn start(self) -> Bound<&'a str> {
        match self.after {
            Some(after) if after >= self.prefix => Bound::Excluded(after),
            Some(_) | None => Bound::Included(self.prefix),
        }
    }

    fn contains(self, key: &str) -> bool {
        key.starts_with(self.prefix) && self.after.is_none_or(|after| key > after)
    }

    /// Notes one later change; to be called in the order of revisions.
    pub(crate) fn undo(self, undo: &mut Undo, change: Change) {
        if self.contains(&change.key) {
            undo.entry(change.key).or_insert(change.before);
        }
    }
}

/// The revision to read at. `compacted` is the last revision that is not in the history any more: the state it left
/// can still be read.
pub(crate) fn readable(asked: Option<Revision>, compacted: Revision, current: Revision) -> Result<Revision, Error> {
    match asked {
        None => Ok(current),
        Some(asked) if asked > current => {
            Err(Error::Unavailable(format!("revision {asked} was asked for, the store is at {current}")))
        }
        Some(asked) if asked < compacted => Err(Error::Compacted { asked, oldest: compacted }),
        Some(asked) => Ok(asked),
    }
}

/// Makes sure that the history from `from` on is kept.
pub(crate) fn kept(from: Revision, compacted: Revision) -> Result<(), Error> {
    let oldest = Revision(compacted.0 + 1);
    if from < oldest { Err(Error::Compacted { asked: from, oldest }) } else { Ok(()) }
}

/// Puts a page together from the keys that stand now, in order, and what has to be undone.
pub(crate) fn page<E>(
    revision: Revision,
    limit: usize,
    now: impl Iterator<Item = Result<(String, Stored), E>>,
    undo: Undo,
) -> Result<Page, E> {
    let limit = limit.max(1);
    let mut now = now.peekable();
    let mut undo = undo.into_iter().peekable();
    let mut items: Vec<KeyValue> = Vec::new();
    loop {
        let take_undo = match (now.peek(), undo.peek()) {
            (Some(Ok((now, _))), Some((past, _))) => past <= now,
            (None, Some(_)) => true,
            (Some(_), None) | (Some(Err(_)), Some(_)) => false,
            (None, None) => return Ok(Page { revision, items, more: false }),
        };
        let (key, stored) = if take_undo {
            let Some((key, before)) = undo.next() else { continue };
            now.next_if(|now| now.as_ref().is_ok_and(|(now, _)| *now == key));
            let Some(before) = before else { continue };
            (key, before)
        } else {
            let Some(item) = now.next() else { continue };
            item?
        };
        if items.len() == limit {
            return Ok(Page { revision, items, more: true });
        }
        items.push(stored.into_key_value(key));
    }
}
