//! Which fleet a store holds: drawn once, and what agents remember with what they hold.
//!
//! Without it, an agent could not tell its own store from an empty or another one that wants nothing of it, and would
//! forget what it holds. Its own key, written only if absent: must never replace what is there.

use crate::store::{CommitError, Error, Fence, Precondition, Store, Transaction, Write};
use crate::{key, record};
use berth_model::id::FleetId;

/// The fleet that this store holds, if anybody ever led it.
///
/// # Errors
/// As for any read.
pub async fn of(store: &dyn Store) -> Result<Option<FleetId>, Error> {
    let item = store.get(key::FLEET).await?;
    Ok(item.map(|item| record::read_fleet(&item.value)).transpose()?)
}

/// The fleet that this store holds; `fresh` from now on, if nobody ever led it. The fence proves the leadership.
///
/// # Errors
/// As for any commit. Repeating it is safe.
pub async fn ensure(store: &dyn Store, fence: &Fence, fresh: FleetId) -> Result<FleetId, CommitError> {
    let known = of(store).await.map_err(|error| CommitError::Unavailable(error.to_string()))?;
    if let Some(known) = known {
        return Ok(known);
    }
    let transaction = Transaction {
        fence: Some(fence.clone()),
        preconditions: vec![Precondition::absent(key::FLEET)],
        writes: vec![Write::Put { key: key::FLEET.to_owned(), value: record::fleet(&fresh) }],
    };
    store.commit(transaction).await.map(|_| fresh)
}
