//! Where the audit stands in the store, and how it is sealed.
//!
//! | key, after `berth/audit/v1/` | value        |                                                                      |
//! |------------------------------|--------------|----------------------------------------------------------------------|
//! | `fresh/LEADERSHIP/GROUP`     | `AuditBatch` | written in the very transaction that it tells of                     |
//! | `blocks/NUMBER`              | `AuditBlock` | fresh batches, sealed onto the chain in the order of their keys      |
//! | `head`                       | `AuditMark`  | the last block                                                       |
//! | `base`                       | `AuditMark`  | the last block that was forgotten, so that what is left can be checked |
//!
//! Its own prefix: whoever lists or follows the world does not see it. Must never write a block without the mark of the
//! head that it follows from, nor take a batch away in another transaction than the one that seals it.

use crate::store::{CommitError, Error, Fence, KeyValue, Page, Precondition, Revision, Store, Transaction, Write};
use berth_model::Timestamp;
use berth_proto::audit::{Mark, Sealed, seal as seal_block};
use berth_proto::convert;
use berth_proto::v1::{AuditBatch, AuditBlock, AuditMark, AuditRecord};
use bytes::Bytes;
use prost::Message as _;

/// All of the audit.
pub const ALL: &str = "berth/audit/v1/";
/// What is not sealed yet.
pub const FRESH: &str = "berth/audit/v1/fresh/";
/// The chain.
pub const BLOCKS: &str = "berth/audit/v1/blocks/";
/// Its end.
pub const HEAD: &str = "berth/audit/v1/head";
/// Where what is kept of it begins.
pub const BASE: &str = "berth/audit/v1/base";

/// Batches in one block: with their deletions, the block, the head and what is forgotten well within a transaction.
const BATCHES: usize = 48;
/// Most bytes of records in one block, unless a single batch is larger: far below the store's largest value.
const BLOCK_BYTES: usize = 192 * 1024;

/// Key of the batch of one transaction. `leadership` is the revision of the leader key: later ones are higher.
pub fn fresh(leadership: Revision, group: u64) -> String {
    format!("{FRESH}{:020}/{group:020}", leadership.0)
}

/// Key of a block.
pub fn block(number: u64) -> String {
    format!("{BLOCKS}{number:020}")
}

/// Records as a batch's value.
pub fn batch(records: Vec<AuditRecord>) -> Bytes {
    AuditBatch { records }.encode_to_vec().into()
}

fn damaged(key: &str, why: impl std::fmt::Display) -> Error {
    Error::Corrupt(format!("audit record {key} cannot be read: {why}"))
}

/// A mark, as it stands; the beginning where there is none yet. With how often it was written.
///
/// # Errors
/// As for any read.
pub async fn mark(store: &dyn Store, key: &str) -> Result<(Mark, u64), Error> {
    let Some(item) = store.get(key).await? else { return Ok((Mark::default(), 0)) };
    Ok((read_mark(&item)?, item.version))
}

/// The mark that a key holds.
///
/// # Errors
/// When it is none.
pub fn read_mark(item: &KeyValue) -> Result<Mark, Error> {
    let wire = AuditMark::decode(item.value.clone()).map_err(|error| damaged(&item.key, error))?;
    Mark::try_from(&wire).map_err(|error| damaged(&item.key, error))
}

fn mark_value(mark: Mark) -> Bytes {
    AuditMark::from(mark).encode_to_vec().into()
}

/// The records of a batch.
///
/// # Errors
/// When it is none.
pub fn read_batch(item: &KeyValue) -> Result<Vec<AuditRecord>, Error> {
    Ok(AuditBatch::decode(item.value.clone()).map_err(|error| damaged(&item.key, error))?.records)
}

/// What one sealing came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Records that were fresh and are part of the chain now.
    pub sealed: usize,
    /// Whether more waits.
    pub more: bool,
}

/// What is sealed beside fresh batches.
#[derive(Clone, Copy, Debug)]
pub struct Beside<'a> {
    /// Refused calls.
    pub refused: &'a [AuditRecord],
    /// Refused calls that are only counted.
    pub not_recorded: u64,
}

/// Why nothing was sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// Reading failed.
    #[error(transparent)]
    Read(#[from] Error),
    /// Writing failed.
    #[error(transparent)]
    Write(#[from] CommitError),
}

/// Seals the oldest fresh batches, and what is given beside them, as one block; forgets what is older than `keep` blocks.
/// Nothing is written where there is nothing to seal.
///
/// # Errors
/// [`SealError`]. After [`CommitError::Unknown`] it may have happened: look at the head before sealing the same again.
pub async fn seal(
    store: &dyn Store,
    fence: &Fence,
    (term, now): (u64, Timestamp),
    beside: Beside<'_>,
    keep: u64,
) -> Result<Done, SealError> {
    let Page { items, more, revision: _ } = store.range(FRESH, None, None, BATCHES).await?;
    if items.is_empty() && beside.refused.is_empty() && beside.not_recorded == 0 {
        return Ok(Done::default());
    }
    let (head, version) = mark(store, HEAD).await?;
    let mut records = Vec::new();
    let (mut taken, mut bytes) = (Vec::new(), 0);
    for item in &items {
        if bytes > 0 && bytes + item.value.len() > BLOCK_BYTES {
            break;
        }
        bytes += item.value.len();
        records.extend(read_batch(item)?);
        taken.push(item);
    }
    let sealed = records.len();
    let more = more || taken.len() < items.len();
    records.extend_from_slice(beside.refused);
    let sealed_at = Some(convert::timestamp(now));
    let not_recorded = beside.not_recorded;
    let new = AuditBlock { sealed_at, term, records, not_recorded, ..AuditBlock::default() };
    let Sealed { encoded, mark: end } = seal_block(head, new);

    let mut transaction = Transaction { fence: Some(fence.clone()), ..Transaction::default() };
    let mut put = |key: String, version: u64, value: Bytes| {
        transaction.preconditions.push(Precondition::Version { key: key.clone(), version });
        transaction.writes.push(Write::Put { key, value });
    };
    put(block(end.number), 0, encoded.into());
    put(HEAD.to_owned(), version, mark_value(end));
    let mut gone: Vec<(String, u64)> = taken.iter().map(|item| (item.key.clone(), item.version)).collect();
    // Two at a time, so that a smaller number takes effect some day.
    let (base, base_version) = mark(store, BASE).await?;
    let due = end.number.saturating_sub(keep.max(1)).saturating_sub(base.number).min(2);
    if due > 0 {
        let last = base.number + due;
        if let Some(item) = store.get(&block(last)).await? {
            let hash = berth_proto::audit::hash(&item.value);
            put(BASE.to_owned(), base_version, mark_value(Mark { number: last, hash }));
            gone.extend((base.number + 1..=last).map(|number| (block(number), 1)));
        }
    }
    for (key, version) in gone {
        transaction.preconditions.push(Precondition::Version { key: key.clone(), version });
        transaction.writes.push(Write::Delete { key });
    }
    store.commit(transaction).await?;
    Ok(Done { sealed, more })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;
    use berth_proto::audit::{Chain, Taken};
    use berth_proto::v1::{AuditPart, audit_part::Part};

    const NOTHING: Beside<'static> = Beside { refused: &[], not_recorded: 0 };

    fn record(placement: &str) -> AuditRecord {
        AuditRecord { placement: placement.to_owned(), ..AuditRecord::default() }
    }

    async fn commit(store: &Memory, fence: &Fence, group: u64, names: &[&str]) {
        let key = fresh(fence.created, group);
        let value = batch(names.iter().map(|name| record(name)).collect());
        let preconditions = vec![Precondition::absent(key.clone())];
        let writes = vec![Write::Put { key, value }];
        store.commit(Transaction { fence: Some(fence.clone()), preconditions, writes }).await.unwrap();
    }

    async fn seal_now(store: &Memory, fence: &Fence, beside: Beside<'_>, keep: u64) -> Result<Done, SealError> {
        seal(store, fence, (1, Timestamp::from_millis(1)), beside, keep).await
    }

    /// All placements that are told of, in order, once the chain that is kept is found whole.
    async fn whole(store: &Memory) -> Vec<String> {
        let mut chain = Chain::default();
        let (base, _) = mark(store, BASE).await.unwrap();
        chain.take(&AuditPart { part: Some(Part::Base(base.into())) }).unwrap();
        let mut told = Vec::new();
        for item in store.range(BLOCKS, None, None, 100).await.unwrap().items {
            match chain.take(&AuditPart { part: Some(Part::Block(item.value.to_vec())) }).unwrap() {
                Taken::Block(_, block) => told.extend(block.records.into_iter().map(|record| record.placement)),
                other @ (Taken::Base(_) | Taken::Head(_) | Taken::Unsealed(_)) => panic!("{other:?}"),
            }
        }
        let (head, _) = mark(store, HEAD).await.unwrap();
        chain.take(&AuditPart { part: Some(Part::Head(head.into())) }).unwrap();
        chain.finish().unwrap();
        told
    }

    #[tokio::test]
    async fn what_is_fresh_becomes_part_of_the_chain_once_and_in_order() {
        let store = Memory::new();
        let fence = store.campaign("a").await.unwrap().fence;
        assert_eq!(seal_now(&store, &fence, NOTHING, 9).await.unwrap(), Done::default());
        let rest = store.range(ALL, None, None, 1).await.unwrap();
        assert!(rest.items.is_empty(), "where there is nothing to seal, nothing is written");
        commit(&store, &fence, 2, &["c"]).await;
        commit(&store, &fence, 1, &["a", "b"]).await;
        assert_eq!(seal_now(&store, &fence, NOTHING, 9).await.unwrap(), Done { sealed: 3, more: false });
        let refused = [record("no")];
        let beside = Beside { refused: &refused, not_recorded: 7 };
        seal_now(&store, &fence, beside, 9).await.unwrap();
        assert_eq!(whole(&store).await, ["a", "b", "c", "no"]);
        assert!(store.range(FRESH, None, None, 1).await.unwrap().items.is_empty());
    }

    #[tokio::test]
    async fn more_than_one_block_holds_is_sealed_by_and_by() {
        let store = Memory::new();
        let fence = store.campaign("a").await.unwrap().fence;
        for group in 0..100 {
            commit(&store, &fence, group, &["x"]).await;
        }
        let mut sealed = 0;
        let mut rounds = 0;
        loop {
            let done = seal_now(&store, &fence, NOTHING, 9).await.unwrap();
            sealed += done.sealed;
            rounds += 1;
            if !done.more {
                break;
            }
        }
        assert_eq!((sealed, rounds), (100, 3));
        assert_eq!(whole(&store).await.len(), 100);
    }

    #[tokio::test]
    async fn the_oldest_blocks_are_forgotten_and_the_rest_can_still_be_checked() {
        let store = Memory::new();
        let fence = store.campaign("a").await.unwrap().fence;
        for group in 0..10 {
            commit(&store, &fence, group, &[&group.to_string()]).await;
            seal_now(&store, &fence, NOTHING, 3).await.unwrap();
        }
        assert_eq!(whole(&store).await, ["7", "8", "9"]);
        assert_eq!(mark(&store, BASE).await.unwrap().0.number, 7);
    }

    #[tokio::test]
    async fn whoever_leads_no_more_seals_nothing_and_its_successor_takes_what_it_left() {
        let store = Memory::new();
        let old = store.campaign("a").await.unwrap().fence;
        commit(&store, &old, 5, &["left"]).await;
        let new = store.campaign("b").await.unwrap().fence;
        let refused = seal_now(&store, &old, NOTHING, 9).await.unwrap_err();
        assert!(matches!(refused, SealError::Write(CommitError::Fenced)), "{refused:?}");
        commit(&store, &new, 1, &["later"]).await;
        seal_now(&store, &new, NOTHING, 9).await.unwrap();
        assert_eq!(whole(&store).await, ["left", "later"]);
    }
}
