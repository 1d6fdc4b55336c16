//! The term that every later leadership must be above, however much the store has forgotten.
//!
//! A store that was lost, or restored from a backup, may remember a lower term than agents have obeyed; they would refuse
//! its leader for ever. Its own key, apart from the leader record, because that record may go with its leader's lease.
//! Must never lower what is there.

use crate::store::{CommitError, Error, Fence, Precondition, Store, Transaction, Write};
use crate::{key, record};

/// Highest term that can be asked for: far above any that counting reaches, far below where numbers end.
pub const HIGHEST: u64 = 1 << 62;

/// Makes sure that every leadership from the next one on has a term above `term`. The present one keeps its own; the
/// fence proves that it is the present one.
///
/// # Errors
/// As for any commit; [`CommitError::Illegal`] above [`HIGHEST`]. Repeating it is safe.
pub async fn raise(store: &dyn Store, fence: &Fence, term: u64) -> Result<(), CommitError> {
    if term > HIGHEST {
        return Err(CommitError::Illegal(format!("term {term} is above {HIGHEST}, which no counting reaches")));
    }
    let before = store.get(key::TERM).await.map_err(|error| match error {
        Error::Unavailable(why) | Error::Corrupt(why) => CommitError::Unavailable(why),
        error @ Error::Compacted { .. } => CommitError::Unavailable(error.to_string()),
    })?;
    let version = before.as_ref().map_or(0, |item| item.version);
    if let Some(item) = &before {
        let known = record::read_term(&item.value).map_err(|error| CommitError::Unavailable(error.to_string()))?;
        if known >= term {
            return Ok(());
        }
    }
    let transaction = Transaction {
        fence: Some(fence.clone()),
        preconditions: vec![Precondition::Version { key: key::TERM.to_owned(), version }],
        writes: vec![Write::Put { key: key::TERM.to_owned(), value: record::term(term) }],
    };
    store.commit(transaction).await.map(|_| ())
}
