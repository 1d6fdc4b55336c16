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
